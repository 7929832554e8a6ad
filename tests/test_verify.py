"""`mmfeat verify` finds whatever happened to a store, and nothing where nothing happened."""

import json
import os
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from mmfuse.features import layout
from mmfuse.features.errors import MMFuseError
from mmfuse.features.failures import Failure
from mmfuse.features.spec import Entry, StreamSpec
from mmfuse.features.store import open_store
from mmfuse.features.verify import verify_store
from mmfuse.features.writer import StoreWriter
from mmfuse.pipeline.cli import app

FRAMES = StreamSpec("frames", "audio", (8,), "float16")
TOKENS = StreamSpec("tokens", "text", (), "uint16", {"vocabulary": "made up"})
PLANES = StreamSpec("planes", "midi", (2, 3), "bool")
SPECS = (FRAMES, TOKENS, PLANES)
LOCK = "_mm/writer.lock"


def append(stream, number, seed=0):
    rng = np.random.default_rng([seed, number])
    values = rng.integers(0, 2, (int(rng.integers(0, 700)), *stream.spec.item))
    content = rng.bytes(32)
    stream.append(f"clip-{number}", content, Entry(values.astype(stream.spec.dtype), note="n"))


def write(path, numbers=range(6), specs=SPECS):
    with StoreWriter(path) as writer:
        layout.write_durably(path / "_mm" / f"tokenizer-{'0a' * 8}.json", b'{"model": 1}\n')
        layout.write_durably(path / "_mm" / f"tokenizer-{'0b' * 8}.json", b'{"model": 2}\n')
        layout.write_durably(path / "_mm" / "run.json", layout.to_sealed_json({"streams": {}}))
        writer.failures.add(Failure("clip-77", "audio", "empty", "nothing", FRAMES.key, bytes(32)))
        for spec in specs:
            for number in numbers:
                append(writer.stream(spec), number)
                if number % 4 == 3:
                    writer.stream(spec).seal()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store with all kinds of files; do not write into it."""
    path = tmp_path_factory.mktemp("whole") / "s.zarr"
    write(path)
    return path


@pytest.fixture
def store(whole, tmp_path):
    """A store that a test may break."""
    return shutil.copytree(whole, tmp_path / "s.zarr")


def findings(path, share=1.0):
    return verify_store(path, share).findings


def files_of(path):
    return [f for f in sorted(path.rglob("*")) if f.is_file() and f.name != "writer.lock"]


def mmfeat(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


class Changed:
    """A file with other bytes, or none, while the block lasts."""

    def __init__(self, path, data):
        self.path, self.data = path, data

    def __enter__(self):
        self.before, self.mode = self.path.read_bytes(), self.path.stat().st_mode
        self._put(self.data)

    def __exit__(self, *_):
        self._put(self.before)

    def _put(self, data):
        self.path.unlink(missing_ok=True)
        if data is not None:
            self.path.write_bytes(data)
            self.path.chmod(self.mode)


def test_a_whole_store_has_no_fault(whole):
    for share in (0.0, 0.05, 1.0):
        report = verify_store(whole, share)
        assert (report.findings, report.notes) == ([], [])
        assert (report.streams, report.shards, report.entries) == (3, 6, 18)
    assert report.entries_read == 18
    streams = open_store(whole).manifest["streams"].values()
    assert report.bytes_read == sum(k["bytes"] for stream in streams for k in stream["shards"])


@pytest.mark.parametrize("flips", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_found(store, flips):
    rng, files, missed = np.random.default_rng(1), files_of(store), []
    assert len(files) > 30
    for number in range(flips):
        file = files[number % len(files)]
        data = bytearray(file.read_bytes())
        bit = int(rng.integers(len(data) * 8))
        data[bit // 8] ^= 1 << bit % 8
        with Changed(file, bytes(data)):
            if not findings(store):
                missed.append((file.relative_to(store), bit))
    assert missed == []
    assert findings(store) == []


def test_every_truncation_is_found_without_reading_data(store):
    rng, files = np.random.default_rng(2), files_of(store)
    for number in range(200):
        file = files[number % len(files)]
        data = file.read_bytes()
        with Changed(file, data[: int(rng.integers(len(data)))]):
            assert findings(store, share=0.0), file


def test_every_deletion_is_found_and_told_once(store):
    for file in files_of(store):
        with Changed(file, None):
            (finding,) = findings(store)
            assert finding.where == file.relative_to(store).as_posix()


def test_every_addition_is_found(store):
    files = files_of(store)
    for number, file in enumerate(files):
        for name in (f"{file.name}~", f"shard-99{file.suffix}"):
            extra = file.with_name(name)
            extra.write_bytes(file.read_bytes())
            found = findings(store, share=number % 2)
            assert [f.where for f in found] == [extra.relative_to(store).as_posix()]
            extra.unlink()


def test_every_swap_of_two_files_is_found(store):
    rng, files, swapped = np.random.default_rng(4), files_of(store), 0
    while swapped < 60:
        one, other = (files[i] for i in rng.choice(len(files), 2, replace=False))
        first, second = one.read_bytes(), other.read_bytes()
        if first != second:
            with Changed(one, second), Changed(other, first):
                assert findings(store), (one, other)
            swapped += 1


def test_links_and_devices_are_found(store, tmp_path):
    for file in files_of(store)[::3]:
        elsewhere = shutil.move(file, tmp_path / "elsewhere")
        file.symlink_to(elsewhere)
        found = findings(store)
        assert {f.where for f in found} == {file.relative_to(store).as_posix()}
        assert "a link or a device" in {f.what for f in found} or file.name == "manifest.json"
        file.unlink()
        shutil.move(elsewhere, file)
    os.mkfifo(store / "pipe")
    assert [f.where for f in findings(store)] == ["pipe"]


def test_a_share_of_the_data_finds_its_share_and_is_the_same_each_time(store):
    for shard in store.glob("frames-*/values/c/*/0"):
        data = bytearray(shard.read_bytes())
        data[: 64 * 16] = bytes(64 * 16)  # most likely within the first entry
        shard.chmod(0o644)
        shard.write_bytes(data)
        shard.chmod(0o444)
    found = [verify_store(store, 0.2, seed=5) for _ in range(2)]
    assert found[0].findings == found[1].findings
    assert found[0].entries_read == 6
    assert findings(store, share=0.0) == []
    assert len({len(verify_store(store, 0.2, seed=seed).findings) for seed in range(20)}) > 1


def test_a_reader_gives_the_right_values_or_an_error_whatever_was_lost(store):
    expected = {key: {i: open_store(store)[key][i].copy() for i in open_store(store)[key].ids}
                for key in open_store(store).specs()}  # fmt: skip
    rng = np.random.default_rng(6)
    for file in files_of(store):
        whole = file.read_bytes()
        for data in (None, b"", whole[: len(whole) // 2], whole[:-1], rng.bytes(len(whole))):
            if file.match("values/c/*/*") and data and len(data) == len(whole):
                continue  # changed values of the right size: `verify --read-data` finds them
            with Changed(file, data):
                try:
                    opened = open_store(store)
                    for key, clips in expected.items():
                        for clip_id, values in clips.items():
                            np.testing.assert_array_equal(opened[key][clip_id], values)
                except MMFuseError as error:
                    assert str(error).strip()


def test_an_unfinished_store_is_no_fault_and_is_told(tmp_path):
    path = tmp_path / "s.zarr"
    write(path, specs=(TOKENS,))
    writer = StoreWriter(path)
    for number in range(6):
        append(writer.stream(FRAMES), number)
        append(writer.stream(TOKENS), number, seed=1)
        if number == 3:
            writer.stream(FRAMES).seal()
    writer.close(finish=False)
    report = verify_store(path, 1.0)
    assert report.findings == []
    assert report.root is None
    assert report.notes == [
        "a run is unfinished; the same mmfeat command goes on with it",
        "4 files: work of a run that ended early; the same command takes it up",
    ]


def test_the_command_ends_with_4_and_a_line_a_fault(store):
    summary = "3 streams, 6 shards, 18 entries, of which 18 were read"
    assert summary in mmfeat("verify", store, "--read-data", "all").stdout
    shard = next(store.glob("frames-*/values/c/1/0"))
    shard.unlink()
    (store / "thesis.txt").write_text("precious")
    lines = mmfeat("verify", store, code=4).stdout.splitlines()
    assert lines[0].startswith(f"{shard.relative_to(store)}: missing; restore it from a copy, or ")
    assert lines[1] == "thesis.txt: nothing that belongs into a store; remove it"
    assert lines[2].endswith("2 faults")
    document = json.loads(mmfeat("verify", store, "--json", code=4).stdout)
    assert [finding["where"] for finding in document["findings"]][1] == "thesis.txt"


@pytest.mark.parametrize("share", ["5", "101%", "-1%", "some", "nan%"])
def test_a_share_that_is_none_is_a_mistake(store, share):
    assert (
        "write a share such as 5%, or all"
        in mmfeat("verify", store, "--read-data", share, code=2).stderr
    )


def test_no_store_is_no_fault_of_a_store(tmp_path):
    mmfeat("verify", tmp_path, code=6)
