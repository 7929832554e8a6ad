"""The engine as a person uses it: workers, shares of an array, and what does not depend on them."""

import os
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_executors import files
from typer.testing import CliRunner

from mmfuse.features.corpus import open_corpus
from mmfuse.features.spec import Entry, StreamSpec
from mmfuse.features.store import open_store
from mmfuse.features.task import Known, TaskLock, TaskWriter, clear_locks, lock_path
from mmfuse.pipeline.cli import app
from mmfuse.pipeline.record import read_record

SPEC = StreamSpec("bytes", "text", (), "uint8")


def mmfeat(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert code is None or result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def whole(sample, tmp_path_factory):
    """Notes, tokens, rolls and text tokens of the sample corpus, by one process."""
    store = tmp_path_factory.mktemp("whole") / "s.zarr"
    mmfeat("tokenize", "--corpus", sample, "--store", store)
    return store


@pytest.mark.parametrize(
    ("hash_seed", "zone", "locale", "umask", "options"),
    [
        ("1", "Asia/Kathmandu", "C", 0o077, ["--workers", "2"]),
        ("77", "America/St_Johns", "C.UTF-8", 0o002, ["--workers", "1"]),
        pytest.param("0", "UTC", "C", 0o022, ["--workers", "4"], marks=pytest.mark.slow),
        pytest.param(
            "5", "Pacific/Chatham", "C.UTF-8", 0o027, ["--executor", "dask", "--workers", "2"],
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_files_do_not_depend_on_workers_executor_hashes_zone_locale_umask_or_place(
    sample, whole, tmp_path, hash_seed, zone, locale, umask, options
):
    program = "import sys; from mmfuse.pipeline.cli import main; sys.exit(main())"
    corpus = shutil.copytree(sample, tmp_path / "moved")
    command = [sys.executable, "-c", program, "tokenize", "--corpus", corpus]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "TZ": zone, "LC_ALL": locale}
    store = tmp_path / "elsewhere" / "s.zarr"
    subprocess.run(
        [*command, "--store", store, *options, "--quiet"],
        env=environment, check=True, umask=umask,
    )  # fmt: skip
    assert files(store) == files(whole)


def test_the_order_of_a_manifest_does_not_show_in_the_root(sample, whole, tmp_path):
    corpus = shutil.copytree(sample, tmp_path / "corpus")
    table = pq.read_table(corpus / "manifest.parquet")
    order = np.random.default_rng(4).permutation(len(table))
    pq.write_table(table.take(order), corpus / "manifest.parquet")
    for workers in (1, 2):
        store = tmp_path / f"{workers}.zarr"
        mmfeat("tokenize", "--corpus", corpus, "--store", store, "--workers", workers)
        assert open_store(store).root == open_store(whole).root
    assert files(tmp_path / "1.zarr") == files(tmp_path / "2.zarr") != files(whole)


def test_the_record_tells_who_made_a_store_how_fast_and_what_came_of_it(sample, whole, tmp_path):
    store = tmp_path / "s.zarr"
    mmfeat("tokenize", "--corpus", sample, "--store", store, "--workers", 2)
    record = read_record(store)
    assert record.keys() == open_store(store).specs().keys()
    for stream in record.values():
        assert stream["store_root"] == open_store(store).root
        assert stream["host"].keys() == {"python", "system", "machine", "cores"}
        assert {"mmfuse", "numpy", "soundfile", "soxr"} <= stream["versions"].keys()
        assert stream["stage_s"]["decode"] > 0
        assert 50 << 20 < stream["peak_rss_bytes"] < 50 << 30
        assert (stream["failed"], stream["clips"]) == ({}, 48)


def test_parts_of_an_array_merge_to_the_same_root(sample, whole, tmp_path):
    store = tmp_path / "s.zarr"
    for i in range(3):
        done = mmfeat("tokenize", "--corpus", sample, "--store", store, "--shard", f"{i}/3")
        assert f"mmfeat merge {store} {store}.*-of-3" in done.stdout
    parts = sorted(tmp_path.glob("s.zarr.*-of-3"))
    assert [part.name for part in parts] == [f"s.zarr.{i}-of-3" for i in range(3)]
    mmfeat("merge", store, *parts)
    assert open_store(store).root == open_store(whole).root


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--executor", "slurm"], 2, "no executor named 'slurm'; choose from: local, dask"),
        (["--scheduler", "tcp://a:1"], 2, "write --executor dask --scheduler tcp://a:1"),
        (["--shard", "3/3"], 2, "write I/N with I from 0 to N - 1"),
        (["--shard", "one"], 2, "write I/N"),
        (["--executor", "dask", "--scheduler", "nowhere"], 2, "no Dask scheduler at nowhere"),
    ],
)
def test_a_mistake_is_one_line(sample, tmp_path, options, code, message):
    where = ("--corpus", sample, "--store", tmp_path / "s.zarr")
    result = mmfeat("tokenize", *where, *options, code=code)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_dask_that_is_not_installed_is_told_with_the_command(sample, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    where = ("--corpus", sample, "--store", tmp_path / "s.zarr", "--executor", "dask")
    result = mmfeat("tokenize", *where, code=6)
    assert "pip install 'mmfuse[dask]'" in result.stderr


# -- parts of a corpus -----------------------------------------------------------------------------


@pytest.mark.parametrize("group", [3, 7, 1000])
def test_clips_in_the_middle_are_those_of_the_whole(tmp_path, group):
    rows = [{"id": f"c{n}", "text": f"text {n}"} for n in range(41)]
    table = pa.Table.from_pylist(rows)
    for number, part in enumerate((table.slice(0, 20), table.slice(20, 1), table.slice(21))):
        pq.write_table(part, tmp_path / f"{number}.parquet", row_group_size=group)
    corpus = open_corpus(tmp_path)
    assert corpus.by_number
    every = [clip.id for clip in corpus.clips()]
    assert every == [row["id"] for row in rows]
    for start, stop in ((0, 41), (0, 3), (5, 6), (19, 22), (20, 21), (38, 41), (7, 7)):
        assert [clip.id for clip in corpus.clips(start, stop)] == every[start:stop]
    assert next(corpus.clips(20, 21)).text == "text 20"


def test_a_stretch_of_a_manifest_reads_no_row_groups_outside_it(tmp_path, monkeypatch):
    table = pa.Table.from_pylist([{"id": f"c{n}", "text": "x"} for n in range(100)])
    pq.write_table(table, tmp_path / "m.parquet", row_group_size=10)
    seen = []
    good = pq.ParquetFile.iter_batches

    def spying(self, *arguments, **named):
        seen.append(named["row_groups"])
        return good(self, *arguments, **named)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spying)
    assert len(list(open_corpus(tmp_path / "m.parquet").clips(35, 52))) == 17
    assert seen == [[3, 4, 5]]


# -- one task, two workers -------------------------------------------------------------------------


def test_a_second_worker_waits_for_the_first_and_finds_everything_done(tmp_path):
    found = []

    def second():
        with TaskLock(tmp_path, "t") as lock, TaskWriter(tmp_path, "t", [SPEC], known) as writer:
            found.append((lock.waited, writer.stream(SPEC).has("a", bytes(32))))

    known = Known({}, {})
    thread = threading.Thread(target=second)
    with TaskLock(tmp_path, "t"):
        thread.start()
        while len(descriptors_of(lock_path(tmp_path, "t"))) < 2:
            time.sleep(0.01)
        with TaskWriter(tmp_path, "t", [SPEC], known) as writer:
            writer.stream(SPEC).append("a", bytes(32), Entry(np.ones(3, np.uint8)))
            assert not found
    thread.join(10)
    assert found == [(True, True)]


def descriptors_of(path):
    """What this process has open of a file."""
    links = (f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd"))
    return [link for link in links if os.path.exists(link) and os.path.samefile(link, path)]


def test_locks_that_nobody_holds_are_removed_and_those_that_somebody_does_are_told(tmp_path):
    with TaskLock(tmp_path, "held"), TaskLock(tmp_path, "left"):
        pass
    with TaskLock(tmp_path, "held") as lock:
        lock.note(clip="a")
        assert clear_locks(tmp_path) == {"held"}
        assert not lock.is_committed
        lock.set_committed()
        assert lock.is_committed
    assert clear_locks(tmp_path) == set()
    assert list((tmp_path / "_mm").glob("*.lock")) == []
