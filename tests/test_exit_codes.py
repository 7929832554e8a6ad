"""Every exit code, provoked through the real command."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

PROGRAM = "import sys; from mmfuse.pipeline.cli import main; sys.exit(main())"
GOOD = {"id": "good", "text": "some words", "split": "train"}
BAD = {"id": "bad", "text": "nul \0 here", "split": "test"}


def command(*arguments):
    return [sys.executable, "-c", PROGRAM, *map(str, arguments)]


def manifest(folder, rows):
    path = folder / "m.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A corpus of one clip, and its store."""
    folder = tmp_path_factory.mktemp("made")
    line = command("tokenize", "--corpus", manifest(folder, [GOOD]), "--store", folder / "s.zarr")
    assert subprocess.run(line, capture_output=True, check=False).returncode == 0
    return folder


def nothing(folder):
    """The store as it was made."""


def damage(folder):
    (shard,) = folder.glob("s.zarr/text_tokens-*/values/c/0")
    data = bytearray(shard.read_bytes())
    data[0] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(data)


def spoil(folder):
    manifest(folder, [GOOD, BAD])


def lock(folder):
    descriptor = os.open(folder / "s.zarr" / "_mm" / "writer.lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # held until this process ends


AGAIN = ("tokenize", "--corpus", "{}/m.jsonl", "--store", "{}/s.zarr")


@pytest.mark.parametrize(
    ("code", "before", "arguments", "says"),
    [
        (0, nothing, AGAIN, "1 already there"),
        (1, nothing, (*AGAIN[:-1], "/proc/none/s.zarr"), "/proc/none"),
        (2, nothing, (*AGAIN, "--shard", "2/2"), "write I/N"),
        (2, nothing, (*AGAIN, "--colour"), "No such option"),
        (3, spoil, AGAIN, "failed clips: 1"),
        (4, damage, ("verify", "{}/s.zarr", "--read-data", "all"), "2 faults"),
        (5, lock, AGAIN, "another process is writing"),
        (6, nothing, ("inspect", "{}/none.zarr"), "no feature store at"),
        (6, nothing, ("extract", "--encoder", "clap", "--model", "{}/none", *AGAIN[1:]), "none"),
    ],
)  # fmt: skip
def test_an_exit_code_says_what_happened(made, tmp_path, code, before, arguments, says):
    folder = shutil.copytree(made, tmp_path / "made")
    before(folder)
    line = command(*(argument.format(folder) for argument in arguments))
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("code", "number"), [(130, signal.SIGINT), (143, signal.SIGTERM)])
def test_a_signal_ends_a_run_with_its_own_code(tmp_path, code, number):
    rows = [{"id": f"c{n}", "text": f"words {n * n}", "split": "train"} for n in range(60_000)]
    line = command("tokenize", "--corpus", manifest(tmp_path, rows), "--store", tmp_path / "s.zarr")
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("s.zarr/_mm/*/*.journal")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code, errors
    assert errors.count("\n") == 1
