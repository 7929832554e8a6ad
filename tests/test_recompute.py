"""Making clips again finds whatever would make them otherwise today."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
import soundfile
from safetensors.torch import load_file, save_file
from test_wav2vec2 import saved
from typer.testing import CliRunner

from mmfuse.features import encoders
from mmfuse.features.corpus import open_corpus
from mmfuse.features.store import open_store
from mmfuse.features.writer import StoreWriter
from mmfuse.pipeline.cli import app


def mmfeat(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def made(sample, tmp_path_factory):
    """A corpus, a model and a store with streams of all modalities; copy before changing any."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(sample, folder / "corpus")
    model, store = saved(folder / "model"), folder / "s.zarr"
    common = ["--corpus", folder / "corpus", "--store", store, "--limit", 16, "--quiet"]
    mmfeat("extract", "--encoder", "wav2vec2", "--model", model, "--layers", "0,3", *common)
    mmfeat("tokenize", *common)
    return folder


@pytest.fixture
def copy(made, tmp_path):
    """The corpus and the store, to change; the store names the first corpus and its model."""
    shutil.copytree(made / "corpus", tmp_path / "corpus")
    shutil.copytree(made / "s.zarr", tmp_path / "s.zarr")
    return tmp_path


def verify(folder, *more, code=0):
    return mmfeat("verify", folder / "s.zarr", "--recompute", 20, *more, "--json", code=code)


def test_what_nothing_changed_is_made_again_to_the_bit(made):
    report = json.loads(verify(made).stdout)
    store = open_store(made / "s.zarr")
    streams = [store[key] for key in store.specs()]
    assert report["findings"] == []
    assert report["recomputed"] == sum(map(len, streams)) > 60
    assert len(streams) == 6


def test_one_changed_sample_is_found(made, copy):
    clips = (c for c in open_corpus(copy / "corpus").clips() if c.audio and ".wav" in c.audio.path)
    clip = next(clips)
    path = copy / "corpus" / clip.audio.path
    samples, rate_hz = soundfile.read(path, dtype="int16")
    samples[len(samples) // 2] += 1
    soundfile.write(path, samples, rate_hz)
    found = json.loads(verify(copy, "--corpus", copy / "corpus", code=4).stdout)["findings"]
    assert {finding["what"] for finding in found} == {
        "the corpus has other content than it was made from"
    }
    assert all(f"of {clip.id!r}" in finding["where"] for finding in found)


def test_one_changed_weight_is_found(made):
    path = made / "model" / "model.safetensors"
    kept = path.read_bytes()
    weights = load_file(path)
    weights[sorted(weights)[0]].view(-1)[0] += 1e-6
    save_file(weights, path, metadata={"format": "pt"})
    try:
        found = json.loads(verify(made, code=4).stdout)["findings"]
    finally:
        path.write_bytes(kept)
    assert len(found) == 2  # a stream a layer
    assert all("weights, model or code are others" in finding["what"] for finding in found)


def test_another_library_is_found_by_its_numbers(made, monkeypatch):
    plain = encoders.resample
    monkeypatch.setattr(encoders, "resample", lambda *audio: plain(*audio) * 1.001)
    monkeypatch.setattr("mmfuse.features.wav2vec2._normalised", lambda samples_N: samples_N)
    found = json.loads(verify(made, code=4).stdout)["findings"]
    assert {finding["where"].partition("-")[0] for finding in found} == {
        "wav2vec2_layer00",
        "wav2vec2_layer03",
    }
    assert all("other values, off by" in finding["what"] for finding in found)


def test_a_clip_that_left_the_corpus_is_told(made, copy):
    manifest = copy / "corpus" / "manifest.parquet"
    pq.write_table(pq.read_table(manifest).slice(1), manifest)
    found = json.loads(verify(copy, "--corpus", copy / "corpus", code=4).stdout)["findings"]
    assert {finding["what"] for finding in found} >= {"is no longer in the corpus"}


def test_a_store_that_does_not_say_how_it_was_made_is_one_line(copy):
    with StoreWriter(copy / "new.zarr"):
        pass
    result = mmfeat("verify", copy / "new.zarr", "--recompute", 1, code=6)
    assert result.stderr.count("\n") == 1
