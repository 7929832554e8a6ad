"""Exported features come back from the libraries they are for, equal to the bit."""

import gc
import json
import os
import re
import signal
import subprocess
import sys
from fractions import Fraction

import numpy as np
import peers  # noqa: F401
import pytest
from test_engine import mmfeat

from mmfuse.features import export_forms
from mmfuse.features.export import Item, export
from mmfuse.features.int8 import scales_spec, values_spec
from mmfuse.features.spec import Entry, StreamSpec, Timing
from mmfuse.features.store import open_store
from mmfuse.features.writer import StoreWriter

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")

FRAMES = StreamSpec("frames", "audio", (4,), "float16", {"rate_hz": 16000},
                    Timing("frames", Fraction(1, 100), Fraction(1, 50)))  # fmt: skip
DTYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
          "float16", "float32", "float64")  # fmt: skip
ITEM = {1: (), 2: (80,), 3: (2, 3)}  # of entries without rows
NAMES = ["a", "deep/b.c", "%2E..", "Ärger ?*", "x" * 300, "e@1"]


@pytest.fixture(scope="module")
def store(sample, tmp_path_factory):
    """Every stream of the sample corpus, and strange names, dtypes, views and shapes."""
    folder = tmp_path_factory.mktemp("out")
    (folder / "f.toml").write_text(
        "[preprocessing.audio]\n[preprocessing.midi]\n[preprocessing.text]\n"
    )
    path = folder / "s.zarr"
    mmfeat("run", folder / "f.toml", "--corpus", sample, "--store", path, "--limit", 12, code=None)
    rng = np.random.default_rng(0)
    with StoreWriter(path) as writer:
        for dtype in DTYPES:
            spec = StreamSpec(f"flat_{dtype}", "midi", (), dtype)
            for number, name in enumerate(NAMES):
                values = rng.integers(0, 2 if dtype == "bool" else 100, number * 7).astype(dtype)
                writer.stream(spec).append(name, rng.bytes(32), Entry(values))
        stream = writer.stream(FRAMES)
        for view, name in enumerate(["a", "a", "e"]):
            values = rng.standard_normal((30 + view, 4)).astype(np.float16)
            windows = ((Fraction(0), 20), (Fraction(1, 3), 10 + view))
            entry = Entry(values, Fraction(7, 3), windows, "noted")
            stream.append(name, rng.bytes(32), entry, view % 2, '{"gain":1}' if view == 1 else "")
        grid = writer.stream(StreamSpec("grid", "midi", (2, 3), "uint8"))
        grid.append("a", bytes(32), Entry(rng.integers(0, 255, (5, 2, 3)).astype(np.uint8)))
    return path


def stored(path):
    """(clip, view) -> stream name -> (values, times or None, what the sidecar says)."""
    opened, found = open_store(path), {}
    for key, spec in opened.specs().items():
        stream = opened[key]
        for entry, (clip_id, view) in enumerate(
            zip(stream.ids, stream.views.tolist(), strict=True)
        ):
            timed = spec.timing.kind != "none"
            times_s = stream.frame_times_s(entry) if timed else None
            parts = found.setdefault((clip_id, view), {})
            parts[spec.name] = (stream.at(entry), times_s, stream.record(entry))
    return found


def same(found, wanted):
    found = np.asarray(found)
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    assert found.tobytes() == wanted.tobytes()


def check(told, found, wanted):
    """One clip: what is told of it and arrays by `name` and `name.times_s`, against the store."""
    assert found.keys() == told["streams"].keys() | {
        f"{name}.times_s" for name, (_, times_s, _) in wanted.items() if times_s is not None
    }
    assert told["streams"].keys() == wanted.keys()
    for name, (values, times_s, record) in wanted.items():
        same(found[name], values)
        if times_s is not None:
            same(found[f"{name}.times_s"], times_s)
        one = told["streams"][name]
        assert (one["origin_s"], one["note"]) == (record["origin_s"], record["note"])
        assert one["augmentation"] == record.get("augmentation", "")
        assert one["windows"] == [[w["start_s"], w["rows"]] for w in record["windows"]]
        assert one["content"] == record["content"].hex()


def read_hf_parquet(out):
    import datasets

    dataset = datasets.load_dataset(str(out), split="clips")
    for row in dataset:  # its numpy format would make float32 and int64 of all
        names = [name.removesuffix("_told") for name in row if name.endswith("_told")]
        told = {name: json.loads(row[f"{name}_told"]) for name in names if row[f"{name}_told"]}
        arrays = {}
        for name in told:
            kind, depth = dataset.features[name], 0
            while hasattr(kind, "feature"):
                kind, depth = kind.feature, depth + 1
            shape = np.array(row[name], kind.dtype).shape if row[name] else (0, *ITEM[depth])
            arrays[name] = np.array(row[name], kind.dtype).reshape(shape)
            if f"{name}_times_s" in row:
                arrays[f"{name}.times_s"] = np.array(row[f"{name}_times_s"], np.float64)
        yield {"id": row["id"], "view": row["view"], "streams": told}, arrays


def read_webdataset(out):
    import webdataset

    urls = [str(file) for file in sorted(out.glob("*.tar"))]
    for sample in webdataset.WebDataset(urls, shardshuffle=False).decode():
        arrays = {k.removesuffix(".npy"): v for k, v in sample.items() if k.endswith(".npy")}
        assert sample["json"]["key"] == sample["__key__"]
        yield sample["json"], arrays
    gc.collect()  # it leaves files open


def index_of(out):
    return map(json.loads, (out / "index.jsonl").read_text().splitlines())


def read_npy(out):
    for told in index_of(out):
        files = {
            file.parent.name: file for file in out.glob(f"*/{told['key'].replace('*', '?')}.npy")
        }
        yield told, {name: np.load(file) for name, file in files.items()}


def read_safetensors(out):
    from safetensors import safe_open

    for told in index_of(out):
        with safe_open(out / told["file"], "np") as file:
            names = file.keys()
            mine = [name for name in names if name.partition("/")[2] == told["key"]]
            yield told, {name.partition("/")[0]: file.get_tensor(name) for name in mine}


def read_lhotse(out):
    from lhotse import CutSet

    for cut in CutSet.from_file(out / "cuts.jsonl"):
        told, arrays = cut.custom["mmfuse"], {}
        for name in cut.custom:
            if name != "mmfuse":
                arrays[name.replace("_times_s", ".times_s")] = cut.custom[name].load()
        if cut.has_features:
            arrays[cut.features.type] = cut.load_features()
        yield told, arrays


READERS = {
    "hf-parquet": read_hf_parquet,
    "webdataset": read_webdataset,
    "npy": read_npy,
    "safetensors": read_safetensors,
    "lhotse": read_lhotse,
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("form", READERS)
def test_what_goes_out_comes_back_to_the_bit(store, tmp_path, monkeypatch, form):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(export_forms, "_SHARD_BYTES", 1 << 20)  # several files
    monkeypatch.setattr(export_forms, "_GROUP_BYTES", 1 << 18)
    out = tmp_path / "out"
    report = mmfeat("export", store, "--to", form, "--out", out, "--json")
    wanted = stored(store)
    seen = set()
    for told, arrays in READERS[form](out):
        clip = (told["id"], told["view"])
        seen.add(clip)
        parts = wanted[clip]
        if form == "lhotse":  # it has no place for an array without rows
            for name in [n for n, (values, *_) in parts.items() if not len(values)]:
                arrays[name] = parts[name][0]
                if parts[name][1] is not None:
                    arrays[f"{name}.times_s"] = parts[name][1]
        check(told, arrays, parts)
    assert seen == wanted.keys()
    assert json.loads(report.stdout)["clips"] == len(seen)
    document = json.loads((out / "streams.json").read_text())
    opened = open_store(store)
    assert document["store_root"] == opened.root
    for one in document["streams"].values():
        assert StreamSpec.from_json(one["spec"]).fingerprint == one["fingerprint"]
        assert opened.specs()[one["key"]].fingerprint == one["fingerprint"]
    assert set(os.listdir(tmp_path)) <= {"out", "hf"}


def test_streams_are_chosen_and_int8_goes_out_as_floats(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "s.zarr"
    spec = values_spec(FRAMES)
    values = rng.integers(-127, 128, (600, 4)).astype(np.int8)
    with StoreWriter(path) as writer:
        writer.stream(spec).append("a", bytes(32), Entry(values))
        scales = rng.random((2, 4)).astype(np.float32)
        writer.stream(scales_spec(spec)).append("a", bytes(32), Entry(scales))
    assert export(path, "npy", tmp_path / "all").streams == ["frames"]
    same(np.load(tmp_path / "all/frames/a.npy"), open_store(path)["frames"]["a"])
    mmfeat("export", path, "--to", "npy", "--out", tmp_path / "raw", "--streams", "frames_scales")
    same(np.load(tmp_path / "raw/frames_scales/a.npy"), scales)


def test_equal_features_are_equal_tars(store, tmp_path):
    for name in ("one", "two"):
        export(store, "webdataset", tmp_path / name)
    one, two = (sorted((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--to", "csv", "--out", "new"], 2, "--to 'csv'; choose from: hf-parquet, webdataset"),
        (["--to", "npy", "--out", "there"], 2, "there is there already; name another folder"),
        (["--to", "npy", "--out", "new", "--streams", "mel"], 6, "has no stream 'mel'; it holds"),
    ],
)
def test_what_can_not_be_exported_is_one_line(store, tmp_path, monkeypatch, options, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    result = mmfeat("export", store, *options, code=code)
    assert message in result.output
    assert os.listdir(tmp_path) == ["there"]


def test_an_export_that_fails_or_is_stopped_leaves_nothing(store, tmp_path, monkeypatch):
    def fail(self, item):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_forms.Npy, "add", fail)
    result = mmfeat("export", store, "--to", "npy", "--out", tmp_path / "x", code=1)
    assert "No space left" in result.output
    assert os.listdir(tmp_path) == []


SLOW = """
import sys, time
from mmfuse.features import export_forms
add = export_forms.Npy.add
def slow(self, item):
    add(self, item)
    print("one", flush=True)
    time.sleep(0.2)
export_forms.Npy.add = slow
from mmfuse.pipeline.cli import main
main()
"""


def test_a_terminated_export_leaves_nothing(store, tmp_path):
    command = [sys.executable, "-c", SLOW, "export", store, "--to", "npy", "--out", tmp_path / "x"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        assert job.stdout.readline() == "one\n"
        assert len(os.listdir(tmp_path)) == 1
        job.send_signal(signal.SIGTERM)
        assert job.wait(60) == 143
    assert os.listdir(tmp_path) == []


def test_keys_are_names_of_files_and_tell_clips_apart():
    ids = [*NAMES, "e", "..", ".", "a/b", "a%2Fb", "~", "\\", "\0".replace("\0", "\x01"), "é"]
    keys = [Item(clip_id, view, {}).key for clip_id in dict.fromkeys(ids) for view in (0, 1)]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[A-Za-z0-9_%-]+(@1)?", key) for key in keys)
    assert max(map(len, keys)) < 210


LIMITED = """
import resource, sys
from pathlib import Path
from mmfuse.features.export import export
import numpy, pyarrow.parquet, safetensors.numpy, mmfuse.features.export_forms
used = int(next(line for line in open("/proc/self/status") if "VmData" in line).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + (400 << 20),) * 2)
export(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits are Linux's")
@pytest.mark.parametrize("form", READERS)
def test_a_store_of_a_gigabyte_goes_out_with_400_mb(tmp_path, form):
    spec = StreamSpec("big", "audio", (1024,), "float32")
    values = np.random.default_rng(0).random((1024, 1024), np.float32)
    with StoreWriter(tmp_path / "s.zarr") as writer:
        for number in range(256):
            writer.stream(spec).append(f"{number}", bytes(32), Entry(values))
    command = [sys.executable, "-c", LIMITED, tmp_path / "s.zarr", form, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
