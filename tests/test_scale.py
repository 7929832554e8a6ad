"""What ten million clips ask for: nothing is read before it is needed, and memory is bounded."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from simulated import PER_SHARD, ROWS, SPEC, clip_id, simulate_store
from test_store import MEL, content, values_of, write

from mmfuse.features import layout, sidecars
from mmfuse.features.errors import MissingError, StoreError
from mmfuse.features.spec import Entry
from mmfuse.features.store import open_store
from mmfuse.features.writer import StoreWriter

OPENED = """
import json, sys, threading, time
sys.path.insert(0, sys.argv[1])
import numpy as np
from simulated import ROWS, clip_id
from mmfuse.features.store import open_store

def anonymous():
    status = open("/proc/self/status").read()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024

def watch():
    while True:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.002)

peak, found, count = [0], {}, int(sys.argv[3])
threading.Thread(target=watch, daemon=True).start()
began = time.perf_counter()
stream = open_store(sys.argv[2])["simulated"]
found["open_s"] = time.perf_counter() - began
found["open_bytes"] = max(peak[0], anonymous())
began = time.perf_counter()
assert stream[clip_id(count // 2)].shape == (ROWS, 768)
found["first_s"] = time.perf_counter() - began
numbers = np.random.default_rng(0).integers(0, count, 64)
began = time.perf_counter()
entries = stream.find([clip_id(number) for number in numbers])
found["find_s"] = time.perf_counter() - began
assert entries.tolist() == numbers.tolist()
assert stream.find(["nobody"]).tolist() == [-1]
out = np.empty((64 * ROWS, 768), np.float16)
assert stream.gather(entries, out)[-1] == 64 * ROWS
assert len(stream.frame_times_s(int(entries[0]))) == ROWS
assert len(stream) == count
found["all_bytes"] = max(peak[0], anonymous()) - out.nbytes
print(json.dumps(found))
"""


def opened(store, entries):
    """What it costs to open a store and use it, in a process of its own."""
    command = [sys.executable, "-c", OPENED, Path(__file__).parent, store, str(entries)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("entries", [10**5, pytest.param(10**7, marks=pytest.mark.slow)])
def test_a_large_store_is_opened_and_read_in_little_memory(tmp_path, entries):
    simulate_store(tmp_path / "s.zarr", entries)
    found = opened(tmp_path / "s.zarr", entries)
    assert found["open_bytes"] < 100e6, found
    assert found["all_bytes"] < 100e6 + 50 * entries, found
    if entries == 10**7:
        assert found["open_s"] < 2, found
        assert found["all_bytes"] < 500e6, found


def test_opening_a_stream_reads_no_sidecar_and_a_clip_reads_its_own_shard(tmp_path, monkeypatch):
    simulate_store(tmp_path / "s.zarr", 3 * PER_SHARD)
    read, real = [], sidecars.read_sidecar
    monkeypatch.setattr(sidecars, "read_sidecar", lambda *a: read.append(a[0].stem) or real(*a))
    stream = open_store(tmp_path / "s.zarr")["simulated"]
    assert read == []
    assert len(stream[clip_id(PER_SHARD)]) == ROWS
    assert read == ["shard-0", "shard-1", "shard-2"]  # once, to know where ids are
    assert len(stream.table) == 3 * PER_SHARD
    assert len(read) == 3


def test_a_sidecar_that_was_changed_is_an_error_when_it_is_touched(tmp_path):
    write(tmp_path / "s.zarr", MEL, range(6), seal_every=2)
    path = layout.sidecar_path(tmp_path / "s.zarr", MEL.key, 1)
    whole = path.read_bytes()
    flipped = bytes([*whole[:900], whole[900] ^ 1, *whole[901:]])
    for harmed in (None, whole[:-8], flipped):
        stream = open_store(tmp_path / "s.zarr")["logmel"]
        path.unlink()
        if harmed:
            path.write_bytes(harmed)
        with pytest.raises(StoreError, match="store|its checksum is another"):
            _ = stream["clip-0"]
        path.write_bytes(whole)
    assert len(open_store(tmp_path / "s.zarr")["logmel"]) == 6


def test_sidecars_are_closed_and_opened_again_as_room_demands(tmp_path, monkeypatch):
    monkeypatch.setattr(sidecars, "_OPEN", 2)
    write(tmp_path / "s.zarr", MEL, range(12), seal_every=1)
    stream = open_store(tmp_path / "s.zarr")["logmel"]
    rng = np.random.default_rng(0)
    for number in rng.integers(0, 12, 60):
        np.testing.assert_array_equal(stream[f"clip-{number}"], values_of(MEL, number))
        assert stream.record(int(stream.find([f"clip-{number}"])[0]))["clip_id"] == f"clip-{number}"
    assert stream.ids == [f"clip-{number}" for number in range(12)]


@pytest.mark.parametrize("collide", [False, True])
def test_the_last_of_each_clip_and_view_counts_whatever_ids_hash_to(tmp_path, monkeypatch, collide):
    if collide:
        monkeypatch.setattr("builtins.hash", lambda one: len(one) % 2)
    rng = np.random.default_rng(1)
    expected = {}
    with StoreWriter(tmp_path / "s.zarr") as writer:
        stream = writer.stream(MEL)
        for number in range(200):
            clip, view = f"c{rng.integers(0, 30)}", int(rng.integers(0, 4))
            stream.append(clip, content(number), Entry(values_of(MEL, number)), view)
            expected.pop((clip, view), None)
            expected[clip, view] = number
            if number % 30 == 29:
                stream.seal()
        known = writer.known(MEL, ["c1", "c2", "nobody"])
    assert known == {k: content(v) for k, v in expected.items() if k[0] in ("c1", "c2")}
    stream = open_store(tmp_path / "s.zarr")["logmel"]
    assert list(zip(stream.ids, stream.views.tolist(), strict=True)) == list(expected)
    assert len(stream) == len(expected) < 200
    clips = [f"c{number}" for number in range(31)]
    for view in range(5):
        for clip, entry in zip(clips, stream.find(clips, view).tolist(), strict=True):
            assert (entry >= 0) == ((clip, view) in expected)
            if entry >= 0:
                values = values_of(MEL, expected[clip, view])
                np.testing.assert_array_equal(stream.at(entry), values)
                np.testing.assert_array_equal(stream[clip, view], values)
    assert "c1" in stream
    assert "nobody" not in stream
    with pytest.raises(MissingError, match="no clip 'nobody'"):
        _ = stream["nobody"]


def test_an_empty_find_and_an_empty_stream_are_no_fault(tmp_path):
    simulate_store(tmp_path / "s.zarr", 10)
    stream = open_store(tmp_path / "s.zarr")[SPEC.key]
    assert stream.find([]).tolist() == []
    assert stream.gather(np.array([], np.int64), np.empty((0, 768), np.float16)).tolist() == [0]
    simulate_store(tmp_path / "e.zarr", 0)
    stream = open_store(tmp_path / "e.zarr")[SPEC.key]
    assert len(stream) == 0
    assert stream.find(["nobody"]).tolist() == [-1]
    assert stream.ids == []


MADE = """
import sys
from mmfuse.pipeline.cli import app
try:
    app(sys.argv[1:])
except SystemExit as stop:
    assert not stop.code
status = open("/proc/self/status").read()  # ru_maxrss would be that of the parent, if it is larger
print(int(status.partition("VmHWM:")[2].split()[0]) * 1024)
"""


def peak_of(corpus, store):
    """Largest memory, in bytes, of the command that makes log-mel frames of a corpus."""
    command = [sys.executable, "-c", MADE, "extract", "--encoder", "logmel", "-q"]
    command += ["--corpus", str(corpus), "--store", str(store)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("clips", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_ten_times_the_clips_take_no_more_memory(tmp_path, clips):
    noise = np.random.default_rng(0).normal(0, 0.1, 60000).astype(np.float32)
    (tmp_path / "audio").mkdir()
    rows = []
    for number in range(10 * clips):
        path = f"audio/{number:05d}.wav"
        soundfile.write(tmp_path / path, noise[number : number + 8000], 16000)
        rows.append(json.dumps({"id": f"{number:05d}", "audio_path": path}))
    (tmp_path / "few.jsonl").write_text("\n".join(rows[:clips]))
    (tmp_path / "many.jsonl").write_text("\n".join(rows))
    few = peak_of(tmp_path / "few.jsonl", tmp_path / "few.zarr")
    many = peak_of(tmp_path / "many.jsonl", tmp_path / "many.zarr")
    assert many <= 1.1 * few, (few, many)
    again = peak_of(tmp_path / "many.jsonl", tmp_path / "many.zarr")  # all of it is there
    assert again <= 1.1 * few, (few, again)
    shutil.rmtree(tmp_path / "audio")
