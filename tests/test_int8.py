"""Frames as int8 are half as large, mapped as any other, and off by less than a hundredth."""

import hashlib
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfuse.features.audio import read_audio
from mmfuse.features.combine import merge, subset
from mmfuse.features.config import FeatureConfig, validate
from mmfuse.features.corpus import open_corpus
from mmfuse.features.encoders import build_encoder, encode_clip
from mmfuse.features.errors import ConfigError, DecodeError, StoreError
from mmfuse.features.gc import collect
from mmfuse.features.int8 import BLOCK_ROWS, dequantise, quantise, quantised_entries, scales_spec
from mmfuse.features.int8_stream import Int8Stream
from mmfuse.features.pull import pull
from mmfuse.features.spec import Entry
from mmfuse.features.staging import StagedStream
from mmfuse.features.store import open_store
from mmfuse.features.verify import verify_store
from mmfuse.features.writer import StoreWriter
from mmfuse.pipeline.executors import executor_of
from mmfuse.pipeline.progress import Progress
from mmfuse.pipeline.run import make_features

GOLDEN = Path(__file__).parent / "data" / "store-1-int8.zip"
GOLDEN_SHA256 = "58c3535cfeac1d5df173369bd5fadcebe9672f5dcfb2ad6b1c3e95a015e42afb"
GOLDEN_ROOT = "ce87df33e3398b38d3b01d7a45c5d15825fcbec70cd5b8d6a34e2386316bc46a"


def config_of(dtype, **audio):
    audio = {"dtype": dtype, **audio}
    return validate(FeatureConfig, {"preprocessing": {"audio": audio}}, "test")


def make(corpus, out, dtype="int8", workers=1, **audio):
    with Progress(quiet=True) as progress:
        make_features(
            open_corpus(corpus), out, config_of(dtype, **audio), progress,
            executor=executor_of("local", workers, None), limit=12,
        )  # fmt: skip
    return open_store(out)


@pytest.fixture(scope="module")
def stores(sample, tmp_path_factory):
    """The same clips as int8 and as float16; do not write into them."""
    folder = tmp_path_factory.mktemp("int8")
    return make(sample, folder / "int8.zarr"), make(sample, folder / "f16.zarr", "float16")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1100), st.floats(1e-20, 1e20), st.integers(0, 2**32 - 1))
def test_no_value_is_off_by_more_than_half_a_step(rows, size, seed):
    values = np.random.default_rng(seed).standard_normal((rows, 3)).astype(np.float32)
    values *= np.float32(size) * np.array([1, 1e-6, 0], np.float32)
    stored, scales = quantise(values)
    out = np.empty_like(values)
    dequantise(stored, scales, out)
    assert scales.shape == (-(-rows // BLOCK_ROWS), 3) and stored.min(initial=0) >= -127
    step = np.repeat(scales, BLOCK_ROWS, axis=0)[:rows]
    assert (np.abs(out - values) <= 0.501 * step + 1e-30).all()
    again = quantise(out)
    assert (again[0] == stored).all() or size < 1e-15


def test_an_entry_is_the_same_whatever_lies_before_it(sample, stores, tmp_path):
    assert make(sample, tmp_path / "other.zarr", workers=2).root == stores[0].root
    stream, compared = stores[0]["logmel"], 0
    encoder = build_encoder(config_of("int8").preprocessing.audio)
    for clip in open_corpus(sample).clips():
        if clip.id in stream and compared < 5:
            alone = encode_clip(encoder, read_audio(clip.audio.read()))
            found = stream.raw(int(stream.find([clip.id])[0]))
            for name, values in zip(("logmel", "logmel_scales"), found, strict=True):
                assert alone[name].values.tobytes() == values.tobytes()
            compared += 1
    assert compared == 5


def test_a_run_that_ends_between_values_and_scales_goes_on(monkeypatch, sample, stores, tmp_path):
    append, calls = StagedStream.append, []

    def full(self, *args, **more):
        calls.append(self.spec.name)
        if calls.count("logmel_scales") == 7:
            raise OSError(28, "No space left on device")
        append(self, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(StagedStream, "append", full)
        with pytest.raises(OSError, match="No space left"):
            make(sample, tmp_path / "s.zarr")
    assert calls.count("logmel") == 7
    assert make(sample, tmp_path / "s.zarr").root == stores[0].root
    assert verify_store(tmp_path / "s.zarr", 1.0).findings == []


def test_log_mel_is_off_by_less_than_a_hundredth(stores):
    quantised, exact = stores[0]["logmel"], stores[1]["logmel"]
    assert isinstance(quantised, Int8Stream) and quantised.dtype == np.float32
    for clip_id in exact.ids:
        values = exact[clip_id].astype(np.float32)
        off = np.linalg.norm(quantised[clip_id] - values) / np.linalg.norm(values)
        assert quantised[clip_id].dtype == np.float32 and off < 0.01
    (entry,) = quantised.find([exact.ids[0]])
    assert quantised.frame_times_s(int(entry)).tolist() == exact.frame_times_s(0).tolist()
    assert 2 * quantised.spec.row_bytes == exact.spec.row_bytes


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("access", ["map", "read"])
def test_gather_fills_floats(access, dtype, stores):
    stream = open_store(stores[0].path, access)["logmel"]
    entries = np.array([5, 0, 7, 5])
    out = np.empty((int(stream.lengths[entries].sum()), 80), dtype)
    stream.will_need(entries)
    bounds = stream.gather(entries, out)
    for entry, first, last in zip(entries, bounds[:-1], bounds[1:], strict=True):
        np.testing.assert_array_equal(out[first:last], stream.at(int(entry)).astype(dtype))
        stored, scales = stream.raw(int(entry))
        assert stored.dtype == np.int8 and scales.dtype == np.float32
        assert not stored.flags.writeable


def test_other_readers_of_zarr_see_values_and_scales(stores, others_agree):
    assert others_agree(stores[0].path) == 2 * 3 * len(stores[0]["logmel"])


def test_it_is_verified_merged_cut_dropped_and_pulled_as_any_other(stores, tmp_path):
    store = stores[0]
    assert verify_store(store.path, 1.0).findings == []
    ids = store["logmel"].ids
    subset(store.path, tmp_path / "a.zarr", ids[:9], ["logmel-" + store.keys()[0].split("-")[1]])
    subset(store.path, tmp_path / "b.zarr", ids[5:])
    for part in ("a", "b"):
        assert verify_store(tmp_path / f"{part}.zarr", 1.0).findings == []
        assert set(open_store(tmp_path / f"{part}.zarr").keys()) == set(store.keys())
    merge(tmp_path / "all.zarr", [tmp_path / "a.zarr", tmp_path / "b.zarr"])
    assert open_store(tmp_path / "all.zarr").root == store.root
    pull(str(store.path), tmp_path / "pulled.zarr", ["logmel"])
    assert open_store(tmp_path / "pulled.zarr").root == store.root
    collect(tmp_path / "all.zarr", [store["logmel"].key])
    assert open_store(tmp_path / "all.zarr").keys() == []


def test_values_without_their_scales_are_a_finding_and_an_error(stores, tmp_path):
    shutil.copytree(stores[0].path, tmp_path / "s.zarr")
    stream = stores[0]["logmel"]
    collect(tmp_path / "s.zarr", [stream.scales.key])
    with pytest.raises(StoreError, match="lacks logmel_scales"):
        open_store(tmp_path / "s.zarr")["logmel"]
    assert any(
        "logmel_scales" in str(found) for found in verify_store(tmp_path / "s.zarr").findings
    )
    with StoreWriter(tmp_path / "odd.zarr") as writer:
        writer.stream(stream.spec).append("a", bytes(32), Entry(np.ones((600, 80), np.int8)))
        one = Entry(np.ones((1, 80), np.float32))
        writer.stream(scales_spec(stream.spec)).append("a", bytes(32), one)
    with pytest.raises(StoreError, match="does not hold the scales of clip 'a'"):
        open_store(tmp_path / "odd.zarr")["logmel"]["a"]
    assert len(verify_store(tmp_path / "odd.zarr").findings) == 1


def test_the_trainer_reads_floats(stores):
    import torch

    from mmfuse.trainer.dataset import Dataset

    quantised, exact = stores[0]["logmel"], stores[1]["logmel"]
    ids = exact.ids
    batches = [
        Dataset(ids, ["train"] * len(ids), ids, {"audio": stream}).batch(np.arange(6))
        for stream in (quantised, exact)
    ]
    ours, theirs = (batch.x["audio"] for batch in batches)
    assert ours.dtype == torch.float32 and ours.shape == theirs.shape
    assert float((ours - theirs).norm() / theirs.norm()) < 0.01
    assert (batches[0].mask["audio"] == batches[1].mask["audio"]).all()


def test_what_can_not_be_int8_is_refused():
    with pytest.raises(ConfigError, match="waveform is int16"):
        build_encoder(config_of("int8", encoder="waveform").preprocessing.audio)
    spec = build_encoder(config_of("int8").preprocessing.audio).specs[0]
    for bad in (np.nan, np.inf):
        with pytest.raises(DecodeError) as error:
            quantised_entries(spec, np.full((2, 80), bad, np.float32), ())
        assert error.value.reason == "non_finite"


def test_a_golden_store_of_int8_opens_for_ever(tmp_path):
    assert hashlib.sha256(GOLDEN.read_bytes()).hexdigest() == GOLDEN_SHA256
    with zipfile.ZipFile(GOLDEN) as archive:
        archive.extractall(tmp_path / "s.zarr")
    store = open_store(tmp_path / "s.zarr")
    assert store.root == GOLDEN_ROOT
    assert verify_store(tmp_path / "s.zarr", 1.0).findings == []
    stream = store["frames"]
    for number, rows in enumerate((3, 600, 0)):
        stored, scales = stream.raw(int(stream.find([f"clip-{number}"])[0]))
        assert (stored == (np.arange(rows * 4).reshape(rows, 4) * 7 + number) % 255 - 127).all()
        assert (scales == np.arange(-(-rows // 512) * 4).reshape(-1, 4) + 0.5).all()
        expected = stored * np.repeat(scales, 512, axis=0)[:rows]
        assert (stream[f"clip-{number}"] == expected).all()
