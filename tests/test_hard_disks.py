"""Full disks, limits, read-only stores, two writers, locks of the dead: one clear line, no loss."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_store import MEL, content, values_of, write
from test_verify import mmfeat

from mmfuse.features.errors import LockedError
from mmfuse.features.spec import Entry
from mmfuse.features.store import open_store
from mmfuse.features.verify import verify_store
from mmfuse.features.writer import StoreWriter

COUNT = 60
WRITES = """
import sys
sys.path.insert(0, {folder!r})
from pathlib import Path
from mmfuse.features.console import user_errors
import test_store
with user_errors("mmfeat"):
    test_store.write(Path({path!r}), test_store.MEL, range({count}), seal_every=10)
    print("done")
"""


def writing(path, count=COUNT, **options):
    script = WRITES.format(folder=os.path.dirname(__file__), path=str(path), count=count)
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The root that the store has in the end."""
    path = tmp_path_factory.mktemp("whole") / "s.zarr"
    write(path, MEL, range(COUNT), seal_every=10)
    return open_store(path).root


@pytest.fixture
def mounted(tmp_path):
    """Mount something for the time of a test, where that is allowed."""
    places = []

    def mount(*arguments):
        place = tmp_path / f"mount-{len(places)}"
        place.mkdir()
        done = subprocess.run(["mount", *arguments, place], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("mounting is not allowed here")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", "-l", place], check=True)


def assert_stopped_and_sound(process, path, message):
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert errors.count("\n") == 1, errors
    assert message in errors
    assert verify_store(path, 1.0).findings == []
    store = open_store(path)["logmel"]
    assert 0 < len(store) < COUNT
    for clip_id in store.ids:
        expected = values_of(MEL, int(clip_id.split("-")[1]))
        np.testing.assert_array_equal(store[clip_id], expected)


def assert_goes_on(path, root):
    write(path, MEL, range(COUNT), seal_every=10)
    assert open_store(path).root == root
    assert verify_store(path, 1.0).findings == []


def test_a_full_disk_stops_the_run_and_harms_nothing_that_was_committed(mounted, root, tmp_path):
    disk = mounted("-t", "tmpfs", "-o", "size=1m", "tmpfs")
    process = writing(disk / "s.zarr")
    assert_stopped_and_sound(process, disk / "s.zarr", "No space left on device")
    moved = shutil.copytree(disk / "s.zarr", tmp_path / "moved.zarr")
    assert_goes_on(moved, root)


def test_an_extraction_on_a_full_disk_is_one_line_and_goes_on_where_there_is_room(
    sample, mounted, tmp_path
):
    disk = mounted("-t", "tmpfs", "-o", "size=2m", "tmpfs")
    line = ("extract", "--encoder", "waveform", "--corpus", sample)
    error = mmfeat(*line, "--store", disk / "s.zarr", code=1).stderr
    assert error.count("\n") == 1
    assert "No space left on device" in error
    moved = shutil.copytree(disk / "s.zarr", tmp_path / "moved.zarr")
    mmfeat(*line, "--store", moved)
    mmfeat(*line, "--store", tmp_path / "whole.zarr")
    assert open_store(moved).root == open_store(tmp_path / "whole.zarr").root
    assert verify_store(moved, 1.0).findings == []


def test_a_limit_on_file_sizes_stops_the_run_and_harms_nothing(tmp_path, root):
    path = tmp_path / "s.zarr"
    write(path, MEL, range(10), seal_every=10)
    limit = (150_000, 150_000)
    process = writing(path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert_stopped_and_sound(process, path, "File too large")
    assert_goes_on(path, root)


def test_a_read_only_store_is_read_verified_and_inspected(tmp_path, mounted):
    write(tmp_path / "s.zarr", MEL, range(20), seal_every=7)
    store = mounted("--bind", "-o", "ro", tmp_path / "s.zarr")
    if os.access(store / "_mm", os.W_OK):
        subprocess.run(["mount", "-o", "remount,bind,ro", store], check=True)
    stream = open_store(store)["logmel"]
    np.testing.assert_array_equal(stream["clip-3"], values_of(MEL, 3))
    mmfeat("inspect", store)
    mmfeat("verify", store, "--read-data", "all")
    mmfeat("gc", store, "--dry-run")
    mmfeat("subset", store, tmp_path / "part.zarr", "--streams", "logmel")
    error = mmfeat("gc", store, code=1).stderr
    assert error.count("\n") == 1
    assert "Read-only file system" in error
    with pytest.raises(OSError, match="Read-only"):
        StoreWriter(store)


@pytest.mark.parametrize("races", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_of_two_writers_one_is_told_that_the_store_is_locked_and_nothing_is_lost(
    tmp_path, root, races
):
    for race in range(races):
        path = tmp_path / f"{race}.zarr"
        both = [writing(path) for _ in range(2)]
        codes = []
        for process in both:
            _, errors = process.communicate(timeout=60)
            codes.append(process.returncode)
            assert (process.returncode == 0) or "another process is writing" in errors
        assert 0 in codes
        assert set(codes) <= {0, LockedError.exit_code}
        assert open_store(path).root == root
        assert verify_store(path, 1.0).findings == []


def test_the_lock_of_a_killed_writer_keeps_nobody_out(tmp_path, root):
    path = tmp_path / "s.zarr"
    process = writing(path, count=10**6)
    deadline = time.monotonic() + 60
    while not list(path.glob("_mm/logmel-*/*journal*")) and time.monotonic() < deadline:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (path / "_mm" / "writer.lock").exists()
    shutil.rmtree(path / MEL.key, ignore_errors=True)  # start anew below a lock that was left
    shutil.rmtree(path / "_mm" / MEL.key)
    Path(path / "_mm" / "manifest.json").unlink(missing_ok=True)
    assert_goes_on(path, root)


def test_a_writer_that_can_not_write_an_entry_goes_on_with_the_next_process(tmp_path, monkeypatch):
    path = tmp_path / "s.zarr"
    with pytest.raises(OSError, match="quota"), StoreWriter(path) as writer:
        stream = writer.stream(MEL)
        stream.append("clip-0", content(0), Entry(values_of(MEL, 0)))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", _over_quota)
            stream.seal()
    write(path, MEL, range(3))
    assert open_store(path)["logmel"].ids == ["clip-0", "clip-1", "clip-2"]
    assert verify_store(path, 1.0).findings == []


def _over_quota(_):
    raise OSError(122, "Disk quota exceeded")
