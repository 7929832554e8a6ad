"""A store loses nothing, lies about nothing, and is plain Zarr."""

import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfuse.features import layout, shards
from mmfuse.features.errors import ClipError, ConfigError, LockedError, MissingError, StoreError
from mmfuse.features.spec import DTYPES, Entry, StreamSpec, Timing, all_finite, frame_times_s
from mmfuse.features.store import open_store
from mmfuse.features.writer import StoreWriter

MEL = StreamSpec(
    "logmel", "audio", (8,), "float16", {"rate_hz": 16000},
    Timing("frames", Fraction(32, 1000), Fraction(1, 50)),
)  # fmt: skip


def content(number):
    return number.to_bytes(32, "little")


def values_of(spec, number, rows=None):
    rng = np.random.default_rng([7, number])
    rows = int(rng.integers(0, 1500)) if rows is None else rows
    return (rng.integers(0, 2, (rows, *spec.item)) if spec.dtype == "bool"
            else rng.integers(0, 100, (rows, *spec.item))).astype(spec.dtype)  # fmt: skip


def write(path, spec, numbers, seal_every=None):
    with StoreWriter(path) as writer:
        stream = writer.stream(spec)
        for count, number in enumerate(numbers):
            if not stream.has(f"clip-{number}", content(number)):
                stream.append(f"clip-{number}", content(number), Entry(values_of(spec, number)))
            if seal_every and count % seal_every == seal_every - 1:
                stream.seal()


@pytest.fixture
def store(tmp_path):
    write(tmp_path / "s.zarr", MEL, range(20), seal_every=7)
    return tmp_path / "s.zarr"


def test_what_was_written_is_read(store):
    stream = open_store(store)["logmel"]
    assert len(stream) == 20
    for number in range(20):
        np.testing.assert_array_equal(stream[f"clip-{number}"], values_of(MEL, number))


def test_views_are_mapped_not_copied(store):
    view = open_store(store)["logmel"]["clip-3"]
    assert not view.flags.writeable
    assert not view.flags.owndata


def test_gather_copies_one_behind_the_other(store):
    stream = open_store(store)["logmel"]
    entries = stream.find(["clip-11", "clip-2", "clip-19"])
    out = np.empty((stream.lengths[entries].sum(), 8), np.float16)
    stream.will_need(entries)
    bounds = stream.gather(entries, out)
    for i, number in enumerate((11, 2, 19)):
        np.testing.assert_array_equal(out[bounds[i] : bounds[i + 1]], values_of(MEL, number))


def test_reading_gives_what_mapping_gives_whatever_the_buffer(store):
    mapped, read = open_store(store)["logmel"], open_store(store, access="read")["logmel"]
    rng = np.random.default_rng(0)
    for _ in range(20):
        entries = rng.permutation(20)[: int(rng.integers(0, 20))]
        rows = int(mapped.lengths[entries].sum())
        one, other = (np.empty((rows, 8), np.float16) for _ in range(2))
        wide = np.empty((rows, 9), np.float32)[:, :8]
        bounds = mapped.gather(entries, one)
        assert bounds.tolist() == read.gather(entries, other).tolist()
        read.gather(entries, wide)
        assert one.tobytes() == other.tobytes() == wide.astype(np.float16).tobytes()
    assert not read["clip-3"].flags.writeable
    np.testing.assert_array_equal(read["clip-3"], mapped["clip-3"])
    with pytest.raises(ConfigError, match="choose from: map, read"):
        open_store(store, access="guess")


def test_a_shard_that_is_cut_while_it_is_read_is_an_error(store):
    read = open_store(store, access="read")["logmel"]
    assert len(read["clip-3"])
    path = layout.shard_path(store, MEL.key, 0, (8,))
    path.chmod(0o644)
    os.truncate(path, 100)
    with pytest.raises(StoreError, match="cut short while it was open"):
        _ = read["clip-3"]


@pytest.mark.parametrize("access", ["map", "read"])
def test_a_store_of_many_shards_keeps_few_files_open(tmp_path, monkeypatch, access):
    monkeypatch.setattr(shards, "most_open", lambda: 4)
    write(tmp_path / "s.zarr", MEL, range(30), seal_every=1)
    before = len(os.listdir("/proc/self/fd"))
    stream = open_store(tmp_path / "s.zarr", access)["logmel"]
    first = stream["clip-0"]
    for number in [*range(30), *range(30)]:
        np.testing.assert_array_equal(stream[f"clip-{number}"], values_of(MEL, number))
    assert len(os.listdir("/proc/self/fd")) <= before + 4 + (access == "map")  # `first` holds one
    np.testing.assert_array_equal(first, values_of(MEL, 0))


def test_find_gives_minus_one_for_strangers(store):
    assert open_store(store)["logmel"].find(["clip-1", "nobody"]).tolist()[1] == -1


@pytest.mark.parametrize(
    ("dtype", "item"),
    [*((dtype, (3,)) for dtype in DTYPES), ("uint16", ()), ("float16", (2, 5)), ("bool", (2, 5))],
)
def test_three_other_readers_agree_to_the_bit(tmp_path, others_agree, dtype, item):
    spec = StreamSpec("any", "audio", item, dtype)
    path = tmp_path / "s.zarr"
    write(path, spec, range(6), seal_every=2)
    assert others_agree(path) == 3 * 6


def test_root_does_not_depend_on_order_or_shards(tmp_path):
    write(tmp_path / "a.zarr", MEL, range(20), seal_every=7)
    write(tmp_path / "b.zarr", MEL, reversed(range(20)), seal_every=3)
    roots = {open_store(tmp_path / name).root for name in ("a.zarr", "b.zarr")}
    assert len(roots) == 1
    write(tmp_path / "c.zarr", MEL, range(19))
    assert open_store(tmp_path / "c.zarr").root not in roots


def test_a_clip_stored_anew_replaces_the_old_one(store):
    with StoreWriter(store) as writer:
        stream = writer.stream(MEL)
        assert not stream.has("clip-3", content(99))
        stream.append("clip-3", content(99), Entry(values_of(MEL, 99)))
    stream = open_store(store)["logmel"]
    assert len(stream) == 20
    np.testing.assert_array_equal(stream["clip-3"], values_of(MEL, 99))


def test_entries_of_zero_rows_are_entries(tmp_path):
    with StoreWriter(tmp_path / "s.zarr") as writer:
        writer.stream(MEL).append("silent", content(0), Entry(values_of(MEL, 0, rows=0)))
    stream = open_store(tmp_path / "s.zarr")["logmel"]
    assert stream["silent"].shape == (0, 8)
    assert stream.frame_times_s(0).shape == (0,)


def test_frame_times_are_exact_and_follow_windows(tmp_path):
    windows = ((Fraction(0), 3), (Fraction(1, 2), 2))
    entry = Entry(values_of(MEL, 1, rows=5), Fraction(-1001, 30000), windows)
    with StoreWriter(tmp_path / "s.zarr") as writer:
        writer.stream(MEL).append("x", content(1), entry)
    times_s = open_store(tmp_path / "s.zarr")["logmel"].frame_times_s(0)
    origin = Fraction(-1001, 30000)
    centres = [Fraction(32, 1000) + Fraction(i, 50) for i in range(3)]
    expected = [origin + c for c in centres] + [origin + Fraction(1, 2) + c for c in centres[:2]]
    assert times_s.tolist() == [float(t) for t in expected]


@given(st.fractions(-100, 100, max_denominator=48000), st.integers(0, 300))
def test_frame_times_are_rounded_once(origin, rows):
    values = np.zeros((rows, 8), np.float16)
    times_s = frame_times_s(MEL.timing, (), values, origin, ())
    expected = [float(origin + Fraction(32, 1000) + Fraction(i, 50)) for i in range(rows)]
    assert times_s.tolist() == expected


def test_values_that_are_not_finite_fail_the_clip_alone(tmp_path):
    with StoreWriter(tmp_path / "s.zarr") as writer:
        stream = writer.stream(MEL)
        stream.append("good", content(1), Entry(values_of(MEL, 1)))
        bad = np.full((2, 8), np.inf, np.float16)
        with pytest.raises(ClipError, match="NaN or Inf"):
            stream.append("bad", content(2), Entry(bad))
        stream.append("good too", content(3), Entry(values_of(MEL, 3)))
    assert open_store(tmp_path / "s.zarr")["logmel"].ids == ["good", "good too"]


def test_a_second_writer_is_told_to_wait(tmp_path):
    with StoreWriter(tmp_path / "s.zarr"), pytest.raises(LockedError, match="wait for it"):
        StoreWriter(tmp_path / "s.zarr")


def test_a_folder_that_is_no_store_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(StoreError, match="name a new folder"):
        StoreWriter(tmp_path)
    with pytest.raises(MissingError, match="mmfeat run"):
        open_store(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_a_strange_stream_is_named_with_those_that_exist(store):
    with pytest.raises(MissingError, match=f"it holds: {MEL.key}"):
        open_store(store)["wav2vec2"]


# -- damage ------------------------------------------------------------------------------------


def files_of(store):
    return [file for file in sorted(store.rglob("*")) if file.is_file()]


@pytest.mark.parametrize("harm", ["delete", "truncate", "link"])
def test_lost_and_short_shards_are_errors_never_zeros(store, tmp_path, harm):
    for shard in (0, 1, 2):
        for path in (layout.shard_path(store, MEL.key, shard, (8,)),
                     layout.sidecar_path(store, MEL.key, shard)):  # fmt: skip
            path.chmod(0o644)
            whole = path.read_bytes()
            path.unlink()
            if harm == "truncate":
                path.write_bytes(whole[:-1])
            elif harm == "link":
                (tmp_path / "elsewhere").write_bytes(whole)
                path.symlink_to(tmp_path / "elsewhere")
            with pytest.raises(StoreError, match="store"):
                open_store(store)["logmel"]
            path.unlink(missing_ok=True)
            path.write_bytes(whole)
    open_store(store)["logmel"]


def test_a_changed_shard_index_is_an_error(store):
    path = layout.shard_path(store, MEL.key, 0, (8,))
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="index"):
        open_store(store)["logmel"].at(0)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"streams": []},
        {"format": None},
        {"files": {"../../secret": 1}},
        {"root": "f00"},
        {"tombstones": ["../x-00000000"]},
        {"colour": "blue"},
    ],
)
def test_a_manifest_of_another_kind_is_refused(store, change):
    path = store / "_mm" / "manifest.json"
    path.write_bytes(layout.to_sealed_json({**json.loads(path.read_text()), **change}))
    with pytest.raises(StoreError):
        open_store(store)


def test_a_manifest_that_is_cut_short_is_refused(store):
    path = store / "_mm" / "manifest.json"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(StoreError, match="not JSON"):
        open_store(store)


def test_a_spec_that_was_edited_is_refused(store):
    path = store / "_mm" / "manifest.json"
    edited = path.read_text().replace('"rate_hz": 16000', '"rate_hz": 8000')
    path.write_text(edited)
    with pytest.raises(StoreError, match="checksum"):
        open_store(store)
    path.write_bytes(layout.to_sealed_json(json.loads(edited)))
    with pytest.raises(StoreError, match="fingerprint"):
        open_store(store)


@pytest.mark.parametrize(
    "change",
    [{"k": -1}, {"rows": 10**12}, {"bytes": 3}, {"crc32c": "0"}, {"entries": True}, {"extra": 1}],
)
def test_a_shard_that_can_not_be_is_refused(store, change):
    path = store / "_mm" / "manifest.json"
    document = json.loads(path.read_text())
    document["streams"][MEL.key]["shards"][1] |= change
    path.write_bytes(layout.to_sealed_json(document))
    with pytest.raises(StoreError, match="damaged.*restore _mm/manifest.json from a copy"):
        open_store(store)


def test_a_store_from_before_manifests_were_sealed_opens_and_is_sealed_by_the_next_run(store):
    path = store / "_mm" / "manifest.json"
    document = json.loads(path.read_text())
    del document["checksum"], document["files"]
    path.write_bytes(layout.to_json(document))
    assert len(open_store(store)["logmel"]) == 20
    write(store, MEL, range(21))
    assert layout.seal_fault(path.read_bytes()) is None


# -- restart -----------------------------------------------------------------------------------


def snapshot(store):
    """Bytes of every file that a reader sees; bookkeeping of versions and locks apart."""
    skip = ("writer.lock", "manifest.json", "task-")
    return {f.relative_to(store): f.read_bytes() for f in files_of(store)
            if not f.name.startswith(skip)}  # fmt: skip


class Stop(Exception):
    pass


@pytest.mark.parametrize("torn", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_crash_before_any_file_call_loses_nothing(tmp_path, monkeypatch, torn):
    """Stop before the n-th write, fsync, rename or unlink, for every n, then run again."""
    write(tmp_path / "whole.zarr", MEL, range(8), seal_every=3)
    whole, root = snapshot(tmp_path / "whole.zarr"), open_store(tmp_path / "whole.zarr").root
    n, unharmed = 0, False
    while not unharmed:
        path = tmp_path / f"crash-{n}.zarr"
        with monkeypatch.context() as patch:
            crash_at(patch, n, torn)
            try:
                write(path, MEL, range(8), seal_every=3)
                unharmed = True
            except Stop:
                pass
        write(path, MEL, range(8), seal_every=3)
        assert open_store(path).root == root, n
        assert snapshot(path).keys() >= whole.keys(), n
        n += 1
    assert n > 60


def crash_at(patch, n, torn):
    from pathlib import Path

    from mmfuse.features import staging as module

    calls = iter(range(10**9))

    def guarded(function):
        def call(*args, **kwargs):
            if next(calls) == n:
                raise Stop
            return function(*args, **kwargs)

        return call

    def torn_write(file, data):
        if next(calls) == n:
            file.write(data[: len(data) * torn // 4])
            raise Stop
        file.write(data)

    patch.setattr(module, "_write_all", torn_write)
    patch.setattr(os, "fsync", guarded(lambda descriptor: None))  # the disk itself does not fail
    for name in ("replace", "unlink", "chmod"):
        patch.setattr(Path, name, guarded(getattr(Path, name)))


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(0, 10**6), which=st.sampled_from(["part", "journal"]), flip=st.booleans())
def test_a_torn_part_or_journal_costs_only_its_tail(tmp_path_factory, cut, which, flip):
    path = tmp_path_factory.mktemp("torn") / "s.zarr"
    writer = StoreWriter(path)
    stream = writer.stream(MEL)
    for number in range(6):
        stream.append(f"clip-{number}", content(number), Entry(values_of(MEL, number)))
    writer.close(finish=False)
    file = path / "_mm" / MEL.key / f"task-own-0.{which}"
    data = bytearray(file.read_bytes())
    if flip:
        data[cut % len(data)] ^= 0x10
    else:
        del data[cut % len(data) :]
    file.write_bytes(data)
    write(path, MEL, range(6))
    stream = open_store(path)["logmel"]
    for number in range(6):
        np.testing.assert_array_equal(stream[f"clip-{number}"], values_of(MEL, number))


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {folder!r})
import test_store
test_store.write(Path({path!r}), test_store.MEL, range(400), seal_every=50)
"""


@pytest.mark.parametrize("kills", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_sigkill_at_any_moment_loses_nothing(tmp_path, kills):
    path = tmp_path / "s.zarr"
    script = KILLED.format(folder=os.path.dirname(__file__), path=str(path))
    rng = np.random.default_rng(3)
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, "-c", script])
        time.sleep(float(rng.uniform(0.4, 1.6)))
        process.send_signal(signal.SIGKILL)
        process.wait()
    write(path, MEL, range(400), seal_every=50)
    write(tmp_path / "whole.zarr", MEL, range(400), seal_every=50)
    assert open_store(path).root == open_store(tmp_path / "whole.zarr").root


def test_spec_round_trips_and_every_part_of_it_is_in_the_fingerprint():
    assert StreamSpec.from_json(json.loads(json.dumps(MEL.to_json()))) == MEL
    others = [
        StreamSpec("logmel", "audio", (8,), "float16", {"rate_hz": 8000}, MEL.timing),
        StreamSpec("logmel", "audio", (8,), "float16", MEL.params, MEL.timing, version=2),
        StreamSpec("logmel", "audio", (8,), "float32", MEL.params, MEL.timing),
        StreamSpec("logmel", "audio", (8,), "float16", MEL.params, Timing("none")),
    ]
    assert len({MEL.fingerprint, *(spec.fingerprint for spec in others)}) == 5


def test_a_failures_table_that_is_a_link_or_damaged_is_refused(store, tmp_path):
    path = store / "_mm" / "failures.parquet"
    path.write_bytes(b"no table")
    with pytest.raises(StoreError, match="damaged.*remove it"):
        StoreWriter(store)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="link or a device"):
        open_store(store).failures()


def test_what_is_not_in_memory_is_read_ahead(tmp_path):
    spec = StreamSpec("frames", "audio", (64,), "float32")
    with StoreWriter(tmp_path / "s.zarr") as writer:
        values = np.ones((40_000, 64), np.float32)
        writer.stream(spec).append("a", bytes(32), Entry(values))
    stream = open_store(tmp_path / "s.zarr")["frames"]
    path = layout.shard_path(tmp_path / "s.zarr", stream.key, 0, spec.item)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        if shards._in_memory(descriptor, 2**22):
            pytest.skip("this file system keeps everything in memory")
        stream.will_need([0])
        deadline = time.monotonic() + 10
        while not shards._in_memory(descriptor, 0, values.nbytes - 1):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_nothing_infinite_is_taken_for_finite(bad, dtype):
    values = np.array([[0, -0.0, 65504, -65504], [6e-8, 1, -1, 2]], dtype)
    assert all_finite(values) and all_finite(values[:, ::2]) and all_finite(values[:0])
    values[1, 2] = bad
    assert not all_finite(values) and not all_finite(values[:, ::2])
