"""Tasks stage entries in any process and order; what is committed never depends on either."""

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from mmfuse.features import staging
from mmfuse.features.spec import Entry, StreamSpec
from mmfuse.features.staging import StagedStream
from mmfuse.features.store import open_store
from mmfuse.features.writer import StoreWriter

WIDE = StreamSpec("wide", "audio", (16,), "float16")
BYTES = StreamSpec("bytes", "text", (), "uint8")
SPECS = (WIDE, BYTES)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Shards of 1024 rows, so that a task fills several."""
    monkeypatch.setattr("mmfuse.features.layout.shard_rows_of", lambda spec: 1024)


def values_of(spec, number):
    rng = np.random.default_rng([5, number])
    rows = int(rng.integers(0, 600))
    return rng.integers(0, 100, (rows, *spec.item)).astype(spec.dtype)


def content(number):
    return number.to_bytes(32, "little")


def stage(root, spec, plan, task, clips):
    """A task of a few clips, done or taken up, with what it reports."""
    staged = StagedStream(root, spec, f"{plan}-{task:03d}")
    try:
        for number in clips:
            if not staged.has(f"clip-{number}", content(number)):
                staged.append(f"clip-{number}", content(number), Entry(values_of(spec, number)))
        return staged.finish()
    finally:
        staged.release()


def run(root, clips, plan="a", per_task=4, order=None, commit_each=True):
    """All clips by tasks that end in the given order, committed in their own."""
    with StoreWriter(root) as store:
        for spec in SPECS:
            store.open(spec, plan)
        tasks = [clips[i : i + per_task] for i in range(0, len(clips), per_task)]
        done = {}
        for task in order or range(len(tasks)):
            known = {s.key: store.known(s, [f"clip-{n}" for n in tasks[task]]) for s in SPECS}
            new = {
                s.key: [n for n in tasks[task]
                        if known[s.key].get((f"clip-{n}", 0)) != content(n)] for s in SPECS
            }  # fmt: skip
            done[task] = {s.key: stage(root, s, plan, task, new[s.key]) for s in SPECS}
        for task in range(len(tasks)):
            for spec in SPECS:
                store.take(spec, done[task][spec.key])
            if commit_each:
                store.flush()
    return files_of(root)


def files_of(root):
    """Bytes of every file."""
    found = {}
    for file in sorted(root.rglob("*")):
        if file.is_file() and file.name != "writer.lock":
            name = str(file.relative_to(root))
            found[name] = file.read_bytes()
    return found


def test_files_do_not_depend_on_the_order_in_which_tasks_end_nor_on_commits(tmp_path):
    clips = list(range(24))
    whole = run(tmp_path / "a.zarr", clips)
    assert run(tmp_path / "b.zarr", clips, order=[3, 5, 0, 4, 2, 1]) == whole
    assert run(tmp_path / "c.zarr", clips, commit_each=False) == whole
    assert sum(name.startswith(f"{WIDE.key}/values/c") for name in whole) > 8


def test_a_task_that_fills_several_shards_is_read_whole(tmp_path):
    run(tmp_path / "s.zarr", list(range(24)), per_task=24)
    stream = open_store(tmp_path / "s.zarr")["wide"]
    for number in range(24):
        np.testing.assert_array_equal(stream[f"clip-{number}"], values_of(WIDE, number))


def test_what_tasks_of_another_plan_left_is_committed_once(tmp_path):
    root = tmp_path / "s.zarr"
    stage(root, WIDE, "old", 0, [1, 2])
    unfinished = StagedStream(root, WIDE, "old-001")
    unfinished.append("clip-3", content(3), Entry(values_of(WIDE, 3)))
    unfinished.release()
    run(root, [1, 2, 3, 4], plan="new")
    stream = open_store(root)["wide"]
    assert stream.ids == [f"clip-{n}" for n in (1, 2, 3, 4)]
    before = files_of(root)
    stage(root, WIDE, "old", 0, [1, 2])  # a worker that was late
    run(root, [1, 2, 3, 4], plan="new")
    assert files_of(root) == before


def test_a_finished_task_that_is_taken_up_again_goes_on_in_its_last_part(tmp_path):
    stage(tmp_path / "a", WIDE, "a", 0, range(5))
    parts = stage(tmp_path / "a", WIDE, "a", 0, range(9))
    whole = stage(tmp_path / "b", WIDE, "a", 0, range(9))
    assert [p.crc32c for p in parts] == [p.crc32c for p in whole]
    assert [p.path.read_bytes() for p in parts] == [p.path.read_bytes() for p in whole]


def test_a_part_that_was_damaged_costs_only_its_own_tail(tmp_path):
    parts = stage(tmp_path, WIDE, "a", 0, range(9))
    data = bytearray(parts[0].path.read_bytes())
    data[500 * WIDE.row_bytes] ^= 1
    parts[0].path.chmod(0o644)
    parts[0].path.write_bytes(data)
    kept = StagedStream(tmp_path, WIDE, "a-000").contents()
    assert 0 < len(kept) < 9
    run(tmp_path, list(range(9)), per_task=9)
    stream = open_store(tmp_path)["wide"]
    for number in range(9):
        np.testing.assert_array_equal(stream[f"clip-{number}"], values_of(WIDE, number))


class Stop(Exception):
    pass


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_crash_before_any_file_call_of_many_tasks_loses_nothing(tmp_path, monkeypatch, step):
    """Stop before the n-th write, truncation, fsync, rename or unlink, then run again."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # the disk itself does not fail
    clips = list(range(6))
    whole = run(tmp_path / "whole.zarr", clips, commit_each=False)
    n, unharmed = 0, False
    while not unharmed:
        root = tmp_path / f"crash-{n}.zarr"
        with monkeypatch.context() as patch:
            crash_at(patch, n)
            try:
                run(root, clips, commit_each=False)
                unharmed = True
            except Stop:
                pass
        if n % 3 == 0:  # die again on the way back
            with monkeypatch.context() as patch:
                crash_at(patch, n % 17)
                with suppress(Stop):
                    run(root, clips, commit_each=False)
        assert run(root, clips, commit_each=False) == whole, n
        n += step
    assert n > 100


def crash_at(patch, n):
    calls = iter(range(10**9))

    def guarded(function):
        def call(*args, **kwargs):
            if next(calls) == n:
                raise Stop
            return function(*args, **kwargs)

        return call

    patch.setattr(staging, "_write_all", guarded(staging._write_all))
    patch.setattr(os, "fsync", guarded(lambda descriptor: None))
    patch.setattr(os, "truncate", guarded(os.truncate))
    for name in ("replace", "unlink", "chmod", "touch", "mkdir"):
        patch.setattr(Path, name, guarded(getattr(Path, name)))
