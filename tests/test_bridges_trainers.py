"""Trainers of others read a store: datasets of PyTorch and Hugging Face, and the examples."""

import os
import re
import subprocess
import sys
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import peers  # noqa: F401
import pytest
import torch
from test_engine import mmfeat
from torch.utils.data import DataLoader

from mmfuse.features.errors import MissingError, StoreError
from mmfuse.features.spec import Entry, StreamSpec, Timing
from mmfuse.features.store import open_store
from mmfuse.features.torch_dataset import pad
from mmfuse.features.writer import StoreWriter

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
FRAMES = StreamSpec("frames", "audio", (4,), "float16", {},
                    Timing("frames", Fraction(1, 100), Fraction(1, 50)))  # fmt: skip
TOKENS = StreamSpec("tokens", "text", (), "uint16")


@pytest.fixture
def store(tmp_path):
    """Frames of clips 0 to 7 (and a view of 1), tokens of clips 2 to 9."""
    rng = np.random.default_rng(0)
    with StoreWriter(tmp_path / "s.zarr") as writer:
        for number in range(8):
            values = rng.standard_normal((5 + number, 4)).astype(np.float16)
            writer.stream(FRAMES).append(f"c{number}", rng.bytes(32), Entry(values))
        values = rng.standard_normal((3, 4)).astype(np.float16)
        writer.stream(FRAMES).append("c1", rng.bytes(32), Entry(values), 1, "{}")
        for number in range(2, 10):
            values = rng.integers(40_000, 65_536, number).astype(np.uint16)
            writer.stream(TOKENS).append(f"c{number}", rng.bytes(32), Entry(values))
    return open_store(tmp_path / "s.zarr")


def check(sample, store, view=0):
    for name in ("frames", "tokens"):
        found, stream = np.asarray(sample[name]), store[name]
        is_there = bool(stream.find([sample["id"]], view)[0] >= 0)
        wanted = stream[sample["id"], view] if is_there else np.zeros((0, *stream.spec.item))
        assert found.shape == wanted.shape
        assert np.array_equal(found.astype(np.float64), wanted.astype(np.float64))


def test_a_sample_is_a_dict_of_tensors_and_what_is_missing_has_no_rows(store):
    dataset = store.as_torch_dataset()
    assert len(dataset) == 10
    assert {sample["id"] for sample in dataset} == {f"c{n}" for n in range(10)}
    for sample in dataset:
        check(sample, store)
        assert (sample["frames"].dtype, sample["tokens"].dtype) == (torch.float16, torch.int32)
    assert dataset[-1]["id"] == dataset[9]["id"]
    with pytest.raises(IndexError):
        dataset[10]
    dataset[0]["frames"][:] = 0  # a copy: the store stays what it is
    check(dataset[0], store)


def test_clips_streams_views_and_times_are_chosen(store):
    some = store.as_torch_dataset(["frames"], ["c3", "c1"], labels={"c3": 1, "c1": 0}, times=True)
    assert [(s["id"], s["label"]) for s in some] == [("c3", 1), ("c1", 0)]
    entry = int(store["frames"].find(["c3"])[0])
    assert np.array_equal(some[0]["frames_times_s"], store["frames"].frame_times_s(entry))
    assert len(store.as_torch_dataset(complete=True)) == 6
    viewed = store.as_torch_dataset(["frames"], ["c1"], views=True)
    assert [(s["id"], s["view"], len(s["frames"])) for s in viewed] == [("c1", 0, 6), ("c1", 1, 3)]
    with pytest.raises(MissingError, match="none of frames-.* has clip 'c9'"):
        store.as_torch_dataset(["frames"], ["c9"])
    with pytest.raises(MissingError, match="no stream 'mel'"):
        store.as_torch_dataset(["mel"])


@pytest.mark.parametrize("way", [None, "fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_read_the_same_whichever_way_they_start(store, way):
    dataset = store.as_torch_dataset(labels={f"c{n}": n for n in range(10)})
    how = {} if way is None else {"num_workers": 2, "multiprocessing_context": way}
    seen = []
    for batch in DataLoader(dataset, 4, collate_fn=pad, **how):
        for row, clip_id in enumerate(batch["id"]):
            sample = {
                name: batch[name][row, : batch[f"{name}_rows"][row]]
                for name in ("frames", "tokens")
            }
            check({"id": clip_id, **sample}, store)
            assert clip_id == f"c{batch['label'][row]}"
            assert not batch["frames"][row, batch["frames_rows"][row] :].any()
            seen.append(clip_id)
    assert seen == [sample["id"] for sample in dataset]


def test_a_store_that_changes_under_a_dataset_is_told(store):
    dataset = store.as_torch_dataset(["frames"])
    dataset.samples._named = None  # as in a worker
    with StoreWriter(store.path) as writer:
        writer.stream(FRAMES).append("new", bytes(32), Entry(np.zeros((1, 4), np.float16)))
    with pytest.raises(StoreError, match="was changed while it is read; open it anew"):
        dataset[0]


def test_a_dataset_of_hugging_face_reads_the_store_and_copies_nothing(store, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    dataset = store.as_hf_dataset(labels={f"c{n}": n for n in range(10)})
    assert dataset.num_rows == 10
    for sample in dataset:
        check(sample, store)
        assert sample["id"] == f"c{sample['label']}"
        assert not sample["frames"].flags.writeable or not len(sample["frames"])
    chosen = dataset.shuffle(seed=0).select(range(3))
    assert len(chosen[:]["frames"]) == 3
    for sample in chosen:
        check(sample, store)
    lengths = dataset.map(lambda one: {"rows": len(one["tokens"])}, remove_columns=["label"])
    assert sorted(lengths.with_format(None)["rows"]) == [0, 0, *range(2, 10)]


@pytest.fixture(scope="module")
def made(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    (folder / "f.toml").write_text("[preprocessing.audio]\n[preprocessing.text]\n")
    mmfeat("run", folder / "f.toml", "--corpus", sample, "--store", folder / "s.zarr")
    return folder / "s.zarr"


@pytest.mark.parametrize("name", ["plain_pytorch", "lightning_trainer"])
def test_examples_run(sample, made, name):
    if name == "lightning_trainer" and find_spec("lightning") is None:
        pytest.skip("lightning is not installed: it is in the bench extra")
    command = [sys.executable, EXAMPLES / f"{name}.py", sample, made, "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert re.search(r"test accuracy [01]\.\d+ of 1\d clips", done.stdout)
