"""A clip's frames depend on the clip alone, and are those of the bare model."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, Wav2Vec2FeatureExtractor
from typer.testing import CliRunner

from mmfuse.features.audio import Audio, read_audio, resample
from mmfuse.features.corpus import open_corpus
from mmfuse.features.encoders import encode_clip
from mmfuse.features.errors import ConfigError, DecodeError, MissingError
from mmfuse.features.store import open_store
from mmfuse.features.wav2vec2 import BASES, TYPES, Wav2vec2, Wav2vec2Params
from mmfuse.features.windows import Windows
from mmfuse.pipeline.cli import app

RATE_HZ = 16_000
WHOLE = Windows(Fraction(30), Fraction(30))
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}


def saved(folder, kind="wav2vec2", **options):
    """A small model with seeded weights, as a local folder."""
    config = AutoConfig.for_model(kind, **SMALL | options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


def encoder(folder, layers="last", windows=WHOLE, **options):
    return Wav2vec2(Wav2vec2Params(str(folder), windows, layers, **options))


def noise(samples, seed=0):
    values = np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)
    return Audio(values, RATE_HZ, 1, samples, "WAV")


def bare(folder, samples_N, rate_hz=RATE_HZ):
    """What plain transformers say of one clip: all hidden states, then the last."""
    model = AutoModel.from_pretrained(folder).eval()
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    inputs = extractor(samples_N, sampling_rate=rate_hz, return_tensors="pt")
    with torch.inference_mode():
        found = model(inputs["input_values"], output_hidden_states=True)
    return [state[0].numpy() for state in (*found.hidden_states, found.last_hidden_state)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model") / "small")


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_gives_what_the_bare_model_gives(tmp_path, kind):
    folder = saved(tmp_path / "m", kind)
    audio = noise(12_345)
    ours = encoder(folder, "all").encode(audio.samples_N[None])
    *states, last = bare(folder, audio.samples_N)
    assert len(ours) == len(states) == 4
    for (mine,), theirs in zip(ours.values(), states, strict=True):
        assert np.abs(mine - theirs).max() <= 1e-5 * np.abs(theirs).max()
    stored = encode_clip(encoder(folder), audio)["wav2vec2"].values
    assert stored.dtype == np.float16
    assert np.abs(stored - last).max() <= 1e-3 * np.abs(last).max()


def test_frames_follow_the_formula_of_the_convolutions(model):
    ours = encoder(model)
    theirs = AutoModel.from_pretrained(model)._get_feat_extract_output_lengths
    for samples in (400, 719, 720, 721, 16_000, 160_000, 163_123):
        assert ours.frames(samples) == int(theirs(torch.tensor(samples)))
    assert (ours.shortest, ours.stride) == (400, 320)
    timing = ours.specs[0].timing
    assert (timing.first_s, timing.hop_s) == (Fraction(1, 80), Fraction(1, 50))


def test_a_click_shows_in_the_frames_whose_time_is_near(model):
    quiet, clicked = noise(RATE_HZ), noise(RATE_HZ)
    clicked.samples_N[8_000] += 5  # at 0.5 s
    ours = encoder(model, "0")
    layer = "wav2vec2_layer00"
    moved = (
        np.abs(encode_clip(ours, quiet)[layer].values - encode_clip(ours, clicked)[layer].values)
        .astype(float)
        .sum(1)
    )
    nearest = np.argmin(np.abs(0.0125 + 0.02 * np.arange(len(moved)) - 0.5))
    assert abs(int(moved.argmax()) - nearest) <= 8  # the positional convolution spreads it


def test_rate_and_normalisation_are_the_processors_whichever_file_holds_them(tmp_path):
    folder = saved(tmp_path / "m")
    says = {"feature_extractor": {"sampling_rate": 24_000, "do_normalize": False}}
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps(says))
    found = encoder(folder)
    assert (found.rate_hz, found.normalise) == (24_000, False)
    assert found.specs[0].timing.hop_s == Fraction(320, 24_000)
    (folder / "processor_config.json").write_text('{"feature_extractor": {"sampling_rate": "x"}}')
    with pytest.raises(ConfigError, match="its processor makes no sense"):
        encoder(folder)


def test_layers_are_streams_of_their_own_and_the_last_has_its_own_name(tmp_path):
    folder = saved(tmp_path / "m", do_stable_layer_norm=True, feat_extract_norm="layer")
    audio = noise(8_000)
    *states, last = bare(folder, audio.samples_N)
    entries = encode_clip(encoder(folder, "0,3"), audio)
    assert list(entries) == ["wav2vec2_layer00", "wav2vec2_layer03"]
    np.testing.assert_allclose(entries["wav2vec2_layer03"].values, states[3], atol=2e-2)
    np.testing.assert_allclose(
        encode_clip(encoder(folder), audio)["wav2vec2"].values, last, atol=2e-2
    )
    assert np.abs(states[3] - last).max() > 0.1  # the trap: these differ
    mean = encode_clip(encoder(folder, "mean"), audio)["wav2vec2_mean"].values
    np.testing.assert_allclose(mean, np.mean(states, axis=0), atol=2e-2)
    assert len({spec.fingerprint for spec in encoder(folder, "all").specs}) == 4


def test_windows_are_frames_of_their_own_with_their_own_times(model):
    audio = noise(RATE_HZ * 5 // 2)
    ours = encoder(model, windows=Windows(Fraction(1), Fraction(1)))
    entry = encode_clip(ours, audio)["wav2vec2"]
    assert entry.windows == ((Fraction(0), 49), (Fraction(1), 49), (Fraction(2), 24))
    second = Audio(audio.samples_N[RATE_HZ : 2 * RATE_HZ], RATE_HZ, 1, RATE_HZ, "WAV")
    alone = encode_clip(ours, second)
    assert entry.values[49:98].tobytes() == alone["wav2vec2"].values.tobytes()

    def tail(kind):
        windows = Windows(Fraction(1), Fraction(1), kind)
        return encode_clip(encoder(model, windows=windows), audio)["wav2vec2"]

    padded = tail("pad")
    assert padded.windows == entry.windows
    dropped = tail("drop")
    assert dropped.windows == entry.windows[:2]


def test_random_weights_are_marked_and_seeded():
    audio = noise(1_000)
    made = [
        Wav2vec2(Wav2vec2Params("hubert-base", WHOLE, random_weights=seed, threads=2))
        for seed in (0, 1)
    ]
    assert [spec.name for spec in made[0].specs] == ["wav2vec2_random"]
    assert made[0].specs != made[1].specs
    first, again = (encode_clip(e, audio) for e in (made[0], Wav2vec2(made[0].params)))
    assert (first["wav2vec2_random"].values == again["wav2vec2_random"].values).all()
    assert first["wav2vec2_random"].values.shape == (2, 768)
    assert len(BASES) == len(TYPES)


# -- what is refused -------------------------------------------------------------------------------


def changed(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def test_models_are_refused_before_anything_of_them_runs(tmp_path):
    with pytest.raises(MissingError, match="not in the local cache; fetch it with: hf"):
        encoder("a/b@main")
    folder = saved(tmp_path / "m")
    with pytest.raises(ConfigError, match=r"brings code of its own .*never runs"):
        encoder(changed(saved(tmp_path / "remote"), auto_map={"AutoModel": "modeling.M"}))
    with pytest.raises(ConfigError, match="of type 'whisper'; this encoder takes data2vec-audio"):
        encoder(changed(saved(tmp_path / "whisper"), model_type="whisper"))
    with pytest.raises(ConfigError, match="ends in an adapter"):
        encoder(changed(saved(tmp_path / "adapter"), add_adapter=True))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="weights as pickles.*save it as safetensors"):
        encoder(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(MissingError, match=r"has no model.safetensors"):
        encoder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"can't read config.json"):
        encoder(folder)


def test_weights_that_are_missing_or_of_another_shape_are_refused(tmp_path):
    folder = saved(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    name = sorted(key for key in weights if "encoder.layers.0" in key)[0]
    taken = weights.pop(name)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="lacks 1 weights of AutoModel, such as encoder.layers.0"):
        encoder(folder).load()
    weights[name] = taken.repeat(2, *(1 for _ in taken.shape[1:]))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="its weights can't be loaded"):
        encoder(folder).load()


@pytest.mark.parametrize("layers", ["4", "0,9", "-1", "first", ""])
def test_layers_that_are_not_there_are_refused(model, layers):
    with pytest.raises(ConfigError, match="write last, all, mean, or numbers from 0 to 3"):
        encoder(model, layers)


def test_clips_that_are_too_short_or_not_finite_are_their_own_failure(model):
    with pytest.raises(DecodeError, match="399 samples at 16000 Hz; one frame takes 400"):
        encode_clip(encoder(model), noise(399))
    assert encode_clip(encoder(model), noise(400))["wav2vec2"].values.shape == (1, 32)
    broken = encoder(model)
    with torch.no_grad():
        for parameter in broken.load().parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(DecodeError, match="float16"):
        encode_clip(broken, noise(1_000))


# -- whole runs ------------------------------------------------------------------------------------


def extract(corpus, store, model, *more, code=0):
    options = ["extract", "--encoder", "wav2vec2", "--corpus", corpus, "--store", store, "--model"]
    result = CliRunner().invoke(app, [str(o) for o in (*options, model, "--json", *more)])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def test_one_changed_weight_is_another_stream(sample, model, tmp_path):
    first = extract(sample, tmp_path / "s.zarr", model, "--limit", 2)
    folder = tmp_path / "m"
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    weights[name].view(-1)[0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    second = extract(sample, tmp_path / "s.zarr", folder, "--limit", 2)
    assert second["made"] == first["made"]
    assert len(open_store(tmp_path / "s.zarr").keys()) == 2


def test_the_waveform_is_what_the_decoder_gives(sample, tmp_path):
    options = ["--corpus", str(sample), "--store", str(tmp_path / "s.zarr"), "--quiet"]
    result = CliRunner().invoke(app, ["extract", "--encoder", "waveform", *options])
    assert result.exit_code == 0, result.output
    stream = open_store(tmp_path / "s.zarr")["waveform"]
    for clip in list(open_corpus(sample).clips())[:8]:
        if clip.audio is not None:
            audio = read_audio(clip.audio.read())
            samples_N = resample(audio.samples_N, audio.rate_hz, RATE_HZ)
            stored_N = stream[clip.id].astype(np.float32) / 32767
            assert np.abs(stored_N - np.clip(samples_N, -1, 1)).max() <= 0.5 / 32767 + 1e-7
            entry = int(stream.find([clip.id])[0])
            assert stream.frame_times_s(entry)[RATE_HZ] == 1.0
