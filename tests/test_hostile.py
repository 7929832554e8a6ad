"""Files from strangers: what asks for too much fails as one clip, or as one line."""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faults import Fault, Faulty
from test_engine import mmfeat
from test_executors import POISON, TEXT

from mmfuse.features import rows
from mmfuse.features.clip import Source
from mmfuse.features.corpus import open_corpus
from mmfuse.features.errors import ClipError, ConfigError
from mmfuse.features.store import open_store
from mmfuse.features.task import TaskLock, has_died, held_tasks
from mmfuse.pipeline.executors import InProcess, executor_of
from mmfuse.pipeline.limits import memory_shared
from mmfuse.pipeline.local import LocalExecutor
from mmfuse.pipeline.options import placed
from mmfuse.pipeline.progress import Progress
from mmfuse.pipeline.run import make_features

MEASURES = """
import re, sys
from mmfuse.features.corpus import open_corpus
rows = sum(len(clip.text) for clip in open_corpus(sys.argv[1]).clips())
print(rows, re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


@pytest.fixture
def texts(tmp_path):
    """A manifest of 100 short texts."""
    path = tmp_path / "m.jsonl"
    lines = [{"id": f"clip-{n}", "text": f"word{n % 7} and {n}"} for n in range(100)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="limits are Linux's")
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_clip_that_eats_memory_fails_alone(texts, tmp_path, workers):
    executor = InProcess() if workers == 1 else LocalExecutor(workers)
    fault = Fault(POISON, "eat", tmp_path)
    progress = Progress(quiet=True)
    report = make_features(
        open_corpus(texts), tmp_path / "s.zarr", TEXT, progress, executor=Faulty(executor, fault)
    )
    assert report.failed == {("text", "out_of_memory"): 1}
    assert report.made["text_tokens"] == 99
    (row,) = open_store(tmp_path / "s.zarr").failures().to_pylist()
    assert (row["clip_id"], row["reason"]) == (POISON, "out_of_memory")


@pytest.mark.skipif(sys.platform != "linux", reason="limits are Linux's")
def test_the_limit_on_memory_ends_with_its_block():
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    with memory_shared(2):
        half = resource.getrlimit(resource.RLIMIT_DATA)[0]
        with memory_shared(1):  # never more than around it
            assert resource.getrlimit(resource.RLIMIT_DATA)[0] == half
        with pytest.raises(MemoryError):
            np.empty(half, np.uint8)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def write_bomb(path, count=80, cell=16 << 20, **options):
    """A small Parquet file whose text unpacks to `count` times `cell` bytes."""
    text = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(count, np.int32)), pa.array(["x" * cell], pa.string())
    )
    ids = pa.array([f"c{n}" for n in range(count)])
    table = pa.table({"id": ids, "text": text})
    options = {"compression": "zstd", "dictionary_pagesize_limit": 1 << 30, **options}
    pq.write_table(table, path, **options)


def test_a_parquet_cell_that_comes_back_in_every_row_is_unpacked_a_few_rows_at_a_time(tmp_path):
    bomb = tmp_path / "bomb.parquet"
    write_bomb(bomb)
    assert bomb.stat().st_size < 100_000
    done = subprocess.run(
        [sys.executable, "-c", MEASURES, bomb], capture_output=True, text=True, check=True
    )
    characters, peak_kib = map(int, done.stdout.split())
    assert characters == 80 * (16 << 20)  # 1.25 GiB
    assert peak_kib < 1 << 20


def test_rows_unpacked_at_once_follow_the_largest_cell(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "BATCH_BYTES", 2 << 20)
    path = tmp_path / "m.parquet"
    for cell, expected in ((1 << 10, 256), (128 << 10, 15), (3 << 20, 1)):
        write_bomb(path, count=3, cell=cell)
        group = pq.read_metadata(path).row_group(0)
        assert rows._safe_rows(path, group, ["id", "text"]) == expected
        assert rows._safe_rows(path, group, ["id"]) == 256
    shared = pa.table({"id": ["a", "b"], "text": ["x" * (512 << 10)] * 2})
    encoding = {"id": "PLAIN", "text": "DELTA_BYTE_ARRAY"}
    pq.write_table(shared, path, use_dictionary=False, column_encoding=encoding)
    group = pq.read_metadata(path).row_group(0)
    assert rows._safe_rows(path, group, ["text"]) <= 4


def test_a_manifest_of_copies_is_told_before_all_of_it_is_read(tmp_path):
    path = tmp_path / "m.parquet"
    ids = pa.DictionaryArray.from_arrays(pa.array(np.zeros(70_000, np.int32)), pa.array(["a"]))
    pq.write_table(pa.table({"id": ids, "text": ids}), path)
    with pytest.raises(ConfigError, match="row 2, column id: id 'a' is there already in row 1"):
        open_corpus(path).check()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 100_000, "line 1: not JSON"),
        ('{"id": "a", "text": ' + "[" * 100_000, "line 1: not JSON"),
        ('{"id": "' + "a" * 2000 + '", "text": "x"}', "an id of 2000 characters; up to 1024"),
        (" " * (65 << 20), "line 1: longer than"),
    ],
)
def test_hostile_json_is_one_line(tmp_path, line, message):
    path = tmp_path / "m.jsonl"
    path.write_text(line)
    result = mmfeat("tokenize", "--corpus", path, "--store", tmp_path / "s.zarr", code=2)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


# -- paths -----------------------------------------------------------------------------------------


def reason_of(root, path):
    with pytest.raises(ClipError) as found:
        Source("here", root, path).read()
    return found.value.reason


def test_only_regular_files_below_the_folder_are_read(tmp_path):
    root, secret = tmp_path / "corpus", tmp_path / "secret"
    (root / "folder").mkdir(parents=True)
    secret.write_bytes(b"secret")
    (root / "good").write_bytes(b"good")
    (root / "inside").symlink_to(root / "good")
    (root / "outside").symlink_to(secret)
    (root / "up").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    (root / "null").symlink_to("/dev/null")
    os.mkfifo(root / "pipe")
    assert Source("here", root, "good").read() == b"good"
    assert Source("here", root, "inside").read() == b"good"
    assert Source("here", root, "folder/../good").read() == b"good"
    assert {name: reason_of(root, name) for name in (
        "outside", "up/secret", "../secret", str(secret), "null", "/dev/zero", "pipe", "folder",
        "loop", "none", "good/x",
    )} == {
        "outside": "outside_root", "up/secret": "outside_root", "../secret": "outside_root",
        str(secret): "outside_root", "null": "outside_root", "/dev/zero": "outside_root",
        "pipe": "not_a_file", "folder": "not_a_file", "loop": "unreadable",
        "none": "missing_file", "good/x": "unreadable",
    }  # fmt: skip


def test_the_folder_of_a_corpus_may_be_a_link_and_named_from_here(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.wav").write_bytes(b"one")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    assert Source("here", type(tmp_path)("link"), "a.wav").read() == b"one"
    (tmp_path / "there" / "link").mkdir(parents=True)
    (tmp_path / "there" / "link" / "a.wav").write_bytes(b"two")
    monkeypatch.chdir(tmp_path / "there")
    assert Source("here", type(tmp_path)("link"), "a.wav").read() == b"two"


def test_the_text_of_a_folder_corpus_is_read_through_no_link_that_leads_out(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    (folder / "a.mid").write_bytes(b"MThd")
    (folder / "a.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ConfigError, match="leads out of the corpus folder"):
        list(open_corpus(folder).clips())


# -- names -----------------------------------------------------------------------------------------


def test_no_name_of_a_corpus_steers_the_terminal_in_any_command(tmp_path):
    name = "\x1b[2J\x9b31m[red]x[/red]\u202e\r\n\x07"
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / f"{name.replace('/', '')}.mid").write_bytes(b"no MIDI")
    lines = [
        {"id": name, "text": "nul \0 here", "midi_path": f"{name.replace('/', '')}.mid"},
        {"id": f"{name}2", "text": "good", "midi_path": f"none{name}", "split": "train"},
    ]
    manifest = folder / "m.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    store = tmp_path / "s.zarr"
    where = ("--corpus", manifest)
    shown = [
        mmfeat("scan", *where, code=3),
        mmfeat("tokenize", *where, "--store", store, code=3),
        mmfeat("inspect", store),
        mmfeat("inspect", store, "--failures"),
        mmfeat("inspect", store, "--clip", f"{name}2"),
        mmfeat("inspect", store, "--clip", f"{name}3", code=6),
        mmfeat("tokenize", *where, "--store", store, "--column", f"{name}=id", code=2),
        mmfeat("tokenize", "--corpus", f"{manifest}{name}", "--store", store, code=2),
        mmfeat("align", *where, "--out", tmp_path / "a.parquet", code=None),
    ]
    (store / f"stranger{name.replace('/', '')}").write_bytes(b"")
    shown += [mmfeat("verify", store, code=None), mmfeat("gc", store, "--dry-run")]
    manifest.write_text("\n".join(json.dumps({**row, "id": name}) for row in lines))
    shown.append(mmfeat("tokenize", *where, "--store", store, code=2))
    for result in shown:
        text = result.stdout + result.stderr
        assert all(c.isprintable() or c == "\n" for c in text), text
    assert sum("\\x1b[2J\\x9b31m[red]x[/red]\\u202e\\r\\n\\x07" in r.output for r in shown) >= 6


# -- a process that dies ---------------------------------------------------------------------------


def test_where_a_run_died_in_a_clip_the_next_works_in_a_process_of_its_own(texts, tmp_path):
    store = tmp_path / "s.zarr"
    code = (
        "import os, sys\n"
        "from mmfuse.pipeline.makers import TextMaker\n"
        "from mmfuse.pipeline.cli import main\n"
        "good = TextMaker.decode\n"
        "def decode(maker, clip, loaded):\n"
        f"    clip.id == {POISON!r} and os.abort()\n"
        "    return good(maker, clip, loaded)\n"
        "TextMaker.decode = decode\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, "tokenize", "--corpus", texts, "--store", store]
    died = subprocess.run(command, capture_output=True, check=False)
    assert died.returncode == -6
    assert has_died(store)
    assert isinstance(placed(store, 1, "local", None, None)[1]["executor"], LocalExecutor)
    mmfeat("tokenize", "--corpus", texts, "--store", store)
    assert not has_died(store)
    assert isinstance(placed(store, 1, "local", None, None)[1]["executor"], InProcess)
    assert isinstance(executor_of(), InProcess)
    assert len(open_store(store)["text_tokens"]) == 100


def test_gc_leaves_alone_what_workers_of_a_dead_run_still_write(texts, tmp_path):
    store = tmp_path / "s.zarr"
    mmfeat("tokenize", "--corpus", texts, "--store", store)
    with TaskLock(store, "abc-000001"):
        assert held_tasks(store) == {"abc-000001"}
        result = mmfeat("gc", store, "--unfinished", code=5)
        assert "1 workers of a run that ended are still at work" in result.stderr
        mmfeat("gc", store)
    assert held_tasks(store) == set()
    mmfeat("gc", store, "--unfinished")
    assert list((store / "_mm").glob("*.lock")) == [store / "_mm" / "writer.lock"]
