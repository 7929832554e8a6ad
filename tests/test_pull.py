"""A store that lies elsewhere comes whole or not at all, and nothing that comes is believed."""

import json
import os
import signal
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from typer.testing import CliRunner

from mmfuse.features import layout, pull
from mmfuse.features.errors import ConfigError, MissingError, StoreError
from mmfuse.features.failures import Failure
from mmfuse.features.pull import read_numbers
from mmfuse.features.spec import Entry, StreamSpec
from mmfuse.features.store import open_store
from mmfuse.features.verify import verify_store
from mmfuse.features.writer import StoreWriter

FRAMES = StreamSpec("frames", "audio", (16,), "float16")
NOTES = StreamSpec("notes", "midi", (3,), "float64")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store of two streams, one of three shards; do not write into it."""
    root = tmp_path_factory.mktemp("made") / "store.zarr"
    rng = np.random.default_rng(0)
    with StoreWriter(root) as writer:
        for number in range(12):
            content = number.to_bytes(32, "little")
            values = rng.standard_normal((700, 16)).astype(np.float16)
            writer.stream(FRAMES).append(f"clip-{number}", content, Entry(values))
            notes = rng.standard_normal((number, 3))
            writer.stream(NOTES).append(f"clip-{number}", content, Entry(notes))
            if number in (3, 7):
                writer.stream(FRAMES).seal()
        writer.failures.add(Failure("bad", "decode", "not_audio", "no", FRAMES.key, bytes(32)))
    return root


@pytest.fixture(scope="module")
def s3():
    """A server that speaks S3, on this machine, with one bucket; its boto3 client."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_REGION": "us-east-1",
    }  # fmt: skip
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    client = boto3.client("s3", endpoint_url=settings["AWS_ENDPOINT_URL"], region_name="us-east-1")
    yield client
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture
def bucket(s3, made, request):
    """Address of the store in a bucket of the test's own, and a function that puts an object."""
    name = f"b{zlib.crc32(request.node.name.encode())}"
    s3.create_bucket(Bucket=name)

    def put(path, data):
        s3.put_object(Bucket=name, Key=f"a/s.zarr/{path}", Body=data, ACL="public-read")

    for path, data in files(made).items():
        put(path, data)
    return f"s3://{name}/a/s.zarr", put


def files(root):
    found = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


def shard(root, k=0):
    return layout.shard_path(root, FRAMES.key, k, FRAMES.item)


def test_a_pulled_store_is_the_store(made, bucket, tmp_path):
    address, _ = bucket
    report = pull.pull(address, tmp_path / "s.zarr", workers=3)
    assert files(tmp_path / "s.zarr") == files(made)
    assert report.root == open_store(made).root
    assert verify_store(tmp_path / "s.zarr", 1.0).findings == []
    assert verify_store(tmp_path / "s.zarr", 1.0).notes == []


def test_a_second_pull_fetches_no_shard(bucket, tmp_path):
    address, _ = bucket
    first = pull.pull(address, tmp_path / "s.zarr")
    again = pull.pull(address, tmp_path / "s.zarr")
    assert first.kept == 0 and again.kept == 2 * 4
    assert again.bytes < 10_000


def test_large_files_come_in_ranges(monkeypatch, made, bucket, tmp_path):
    monkeypatch.setattr(pull, "_RANGE_BYTES", 1000)
    pull.pull(bucket[0], tmp_path / "s.zarr", workers=7)
    assert files(tmp_path / "s.zarr") == files(made)


def test_streams_and_shards_are_chosen_and_added_to(made, bucket, tmp_path):
    out = tmp_path / "s.zarr"
    pull.pull(bucket[0], out, ["frames"], (1, 1))
    store = open_store(out)
    assert store.keys() == [FRAMES.key]
    assert store["frames"].ids == [f"clip-{n}" for n in range(4, 8)]
    np.testing.assert_array_equal(store["frames"]["clip-5"], open_store(made)["frames"]["clip-5"])
    assert verify_store(out, 1.0).findings == []
    pull.pull(bucket[0], out, ["notes"])
    assert set(open_store(out).keys()) == {FRAMES.key, NOTES.key}
    assert verify_store(out, 1.0).findings == []
    pull.pull(bucket[0], out)
    assert files(out) == files(made)


@pytest.mark.parametrize("what", ["shard", "sidecar", "failures", "manifest"])
def test_a_corrupted_object_is_refused(what, made, bucket, tmp_path):
    address, put = bucket
    path = {
        "shard": shard(made, 1), "sidecar": layout.sidecar_path(made, FRAMES.key, 2),
        "failures": made / "_mm/failures.parquet", "manifest": made / "_mm/manifest.json",
    }[what]  # fmt: skip
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    put(path.relative_to(made).as_posix(), bytes(data))
    with pytest.raises(StoreError):
        pull.pull(address, tmp_path / "s.zarr")
    with pytest.raises(MissingError, match="no feature store"):
        open_store(tmp_path / "s.zarr")
    put(path.relative_to(made).as_posix(), path.read_bytes())
    pull.pull(address, tmp_path / "s.zarr")
    assert files(tmp_path / "s.zarr") == files(made)


def test_an_object_of_another_size_is_not_even_fetched(made, bucket, tmp_path):
    address, put = bucket
    path = shard(made, 1).relative_to(made).as_posix()
    put(path, shard(made, 1).read_bytes() + b"more")
    with pytest.raises(StoreError, match="bytes at s3://.* its manifest says"):
        pull.pull(address, tmp_path / "s.zarr")
    assert not list((tmp_path / "s.zarr").rglob("*.tmp"))


def test_a_missing_object_is_named(s3, made, bucket, tmp_path):
    address, _ = bucket
    path = shard(made, 2).relative_to(made).as_posix()
    s3.delete_object(Bucket=address.split("/")[2], Key=f"a/s.zarr/{path}")
    with pytest.raises(StoreError, match=f"{path} is missing from {address}"):
        pull.pull(address, tmp_path / "s.zarr")


def test_where_no_store_is_that_is_said(bucket, tmp_path):
    with pytest.raises(MissingError, match="no feature store at s3://"):
        pull.pull(bucket[0] + "/elsewhere", tmp_path / "s.zarr")
    with pytest.raises(MissingError, match="no stream 'clap'"):
        pull.pull(bucket[0], tmp_path / "s.zarr", ["clap"])


def test_names_of_a_hostile_manifest_lead_nowhere(made, bucket, tmp_path):
    address, put = bucket
    manifest = json.loads((made / "_mm/manifest.json").read_bytes())
    manifest["files"]["../../evil"] = 0
    put("_mm/manifest.json", layout.to_sealed_json(manifest))
    with pytest.raises(StoreError, match="names a file"):
        pull.pull(address, tmp_path / "s.zarr")
    del manifest["files"]["../../evil"]
    manifest["streams"]["../x-12345678"] = manifest["streams"].pop(FRAMES.key)
    put("_mm/manifest.json", layout.to_sealed_json(manifest))
    with pytest.raises(StoreError, match="damaged"):
        pull.pull(address, tmp_path / "s.zarr")


SLOW = """
import sys, time
from mmfuse.features import pull, remote
read = remote._Objects.read
def slow(self, path, start, stop):
    time.sleep(0.05)
    return read(self, path, start, stop)
remote._Objects.read = slow
pull._RANGE_BYTES = 4096
pull.pull(sys.argv[1], pull.Path(sys.argv[2]), workers=1)
"""


def test_a_pull_that_was_killed_goes_on(made, bucket, tmp_path):
    out = tmp_path / "s.zarr"
    process = subprocess.Popen([sys.executable, "-c", SLOW, bucket[0], out])
    deadline = time.monotonic() + 60
    while not shard(out).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert shard(out).exists() and not shard(out, 2).exists()
    with pytest.raises(MissingError, match="no feature store"):
        open_store(out)
    report = pull.pull(bucket[0], out)
    assert report.kept >= 2
    assert files(out) == files(made)


def test_a_pull_mixes_with_no_other_store(made, bucket, tmp_path):
    with StoreWriter(tmp_path / "other.zarr") as writer:
        writer.stream(FRAMES).append("x", bytes(32), Entry(np.zeros((3, 16), np.float16)))
    with pytest.raises(StoreError, match="the source has not"):
        pull.pull(bucket[0], tmp_path / "other.zarr")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    with pytest.raises(StoreError, match="not a feature store and not empty"):
        pull.pull(bucket[0], tmp_path / "mine")


def test_a_store_comes_from_a_folder_and_from_http(made, bucket, tmp_path):
    pull.pull(str(made), tmp_path / "copy.zarr")
    assert files(tmp_path / "copy.zarr") == files(made)
    pull.pull(bucket[0].replace("s3:/", os.environ["AWS_ENDPOINT_URL"]), tmp_path / "http.zarr")
    assert files(tmp_path / "http.zarr") == files(made)


def test_what_can_not_be_is_refused(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="ftp://x: write s3://"):
        pull.pull("ftp://x", tmp_path / "s.zarr")
    with pytest.raises(MissingError, match="no feature store"):
        pull.pull(str(tmp_path), tmp_path / "s.zarr")
    assert read_numbers("3") == (3, 3) and read_numbers("0-2") == (0, 2)
    for text in ("2-1", "a", "-1", ""):
        with pytest.raises(ConfigError, match="--shards"):
            read_numbers(text)
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(MissingError, match=r"pip install 'mmfuse\[s3\]'"):
        pull.pull("s3://x/y", tmp_path / "s.zarr")


def test_the_command_pulls(made, bucket, tmp_path):
    from mmfuse.pipeline.cli import app

    out = tmp_path / "s.zarr"
    done = CliRunner().invoke(app, ["pull", bucket[0], str(out), "--stream", "notes", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["streams"], report["shards"]) == (1, 1)
    assert open_store(out).keys() == [NOTES.key]
