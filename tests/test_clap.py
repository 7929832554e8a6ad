"""A window's vector depends on the window alone, and is that of the bare model."""

import json
import random
from fractions import Fraction

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel
from typer.testing import CliRunner

from mmfuse.features.audio import Audio, read_audio, resample
from mmfuse.features.clap import BASES, Clap, ClapParams
from mmfuse.features.conformance import check_encoder
from mmfuse.features.corpus import open_corpus
from mmfuse.features.encoders import encode_clip
from mmfuse.features.errors import ConfigError, DecodeError, MissingError
from mmfuse.features.store import open_store
from mmfuse.features.windows import Windows
from mmfuse.pipeline.cli import app

RATE_HZ = 48_000
WINDOW = 10 * RATE_HZ
AUDIO = {
    "depths": [1, 1],
    "num_attention_heads": [2, 2],
    "patch_embeds_hidden_size": 16,
    "hidden_size": 32,
    "num_hidden_layers": 2,
}
TEXT = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}


def saved(folder, audio=AUDIO, **mel):
    """A small unfused checkpoint with seeded weights, as a local folder."""
    config = ClapConfig(audio_config=audio, text_config=TEXT, projection_dim=24)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ClapModel(config).save_pretrained(folder)
    ClapFeatureExtractor(**({"truncation": "rand_trunc"} | mel)).save_pretrained(folder)
    return folder


def encoder(folder, **options):
    return Clap(ClapParams(str(folder), **options))


def heard(samples, seed=0):
    return Audio(noise(samples, seed), RATE_HZ, 1, samples, "WAV")


def noise(samples, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def bare(model, extractor, samples_N):
    """What plain transformers say of one window."""
    mel = extractor(samples_N, sampling_rate=RATE_HZ, return_tensors="pt", padding="repeatpad")
    with torch.inference_mode():
        return model.get_audio_features(mel["input_features"]).pooler_output[0].numpy()


def relative(mine, theirs):
    return np.abs(mine - theirs).max() / np.abs(theirs).max()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("clap") / "small")


@pytest.mark.parametrize("samples", [WINDOW, 300_000, 100_001, 1024])
def test_a_window_gives_what_the_bare_model_gives(model, samples):
    ours = encoder(model)
    windows_BN = np.stack([noise(samples, 1), noise(samples, 2)])
    rows = ours.encode(windows_BN)["clap"]
    assert rows.shape == (2, 1, 24)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 1, rtol=1e-6)
    theirs = ClapModel.from_pretrained(model).eval()
    extractor = ClapFeatureExtractor.from_pretrained(model)
    for row, window_N in zip(rows[:, 0], windows_BN, strict=True):
        assert relative(row, bare(theirs, extractor, window_N)) <= 1e-5
    assert relative(rows[0], rows[1]) > 1e-3  # and the model hears the difference


def test_the_architecture_at_full_size_gives_what_the_bare_model_gives():
    ours = Clap(ClapParams(BASES[0], random_weights=5, threads=2))
    assert [spec.name for spec in ours.specs] == ["clap_random"]
    assert ours.specs[0].item == (512,)
    row = ours.encode(noise(WINDOW)[None])["clap_random"][0, 0]
    theirs = ClapModel(ClapConfig(text_config=TEXT)).eval()
    theirs.audio_model.load_state_dict(ours._model.audio_model.state_dict())
    theirs.audio_projection.load_state_dict(ours._model.audio_projection.state_dict())
    extractor = ClapFeatureExtractor(truncation="rand_trunc")
    assert relative(row, bare(theirs, extractor, noise(WINDOW))) <= 1e-5


def test_no_global_seed_and_no_neighbour_changes_a_bit(model):
    found = []
    for seed in (0, 1):
        np.random.seed(seed)  # noqa: NPY002 - the state that transformers draw from
        random.seed(seed)
        torch.manual_seed(seed)
        ours = encoder(model)
        many = ours.encode(np.stack([noise(WINDOW, s) for s in range(2)]))["clap"]
        tail = ours.encode(noise(123_456)[None])["clap"]
        found.append(many.tobytes() + tail.tobytes())
        alone = ours.encode(noise(WINDOW, 1)[None])["clap"]
        assert alone[0].tobytes() == many[1].tobytes()
        draws = (np.random.random(), random.random(), torch.rand(1).item())  # noqa: NPY002
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        torch.manual_seed(seed)
        assert draws == (np.random.random(), random.random(), torch.rand(1).item())  # noqa: NPY002
    assert found[0] == found[1]


def test_a_clip_is_windows_of_ten_seconds_and_its_tail(model):
    whole = heard(WINDOW + 300_000)
    entry = encode_clip(encoder(model), whole)["clap"]
    assert entry.windows == ((Fraction(0), 1), (Fraction(10), 1))
    assert entry.values.shape == (2, 24)
    assert entry.values.dtype == np.float16
    theirs = ClapModel.from_pretrained(model).eval()
    extractor = ClapFeatureExtractor.from_pretrained(model)
    for row, part_N in zip(entry.values, np.split(whole.samples_N, [WINDOW]), strict=True):
        assert relative(row.astype(np.float32), bare(theirs, extractor, part_N)) <= 1e-3
    halves = encoder(model, windows=Windows(Fraction(10), Fraction(5), "drop"))
    overlapping = encode_clip(halves, whole)["clap"]
    assert overlapping.windows == ((Fraction(0), 1), (Fraction(5), 1))
    assert overlapping.values[0].tobytes() == entry.values[0].tobytes()


def test_clips_that_are_too_short_or_not_finite_are_their_own_failure(model):
    with pytest.raises(DecodeError, match="1023 samples at 48000 Hz; one frame takes 1024"):
        encode_clip(encoder(model), heard(1023))
    assert encode_clip(encoder(model), heard(1024))["clap"].values.shape == (1, 24)
    # what is left over below one mel frame belongs to no window
    assert len(encode_clip(encoder(model), heard(WINDOW + 1023))["clap"].values) == 1
    broken = encoder(model)
    with torch.no_grad():
        for parameter in broken._loaded()[0].parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(DecodeError, match="clap: values that float16 can't hold"):
        encode_clip(broken, heard(2_000))


def test_the_promise_of_every_encoder_is_kept(model):
    findings = check_encoder(lambda compute: Clap(ClapParams(str(model)), compute))
    assert [finding.check for finding in findings if finding.ok is False] == []
    assert sum(finding.ok is True for finding in findings) >= 12


def test_random_weights_are_seeded_and_leave_the_global_generator(model):
    torch.manual_seed(9)
    first = encoder(model, random_weights=0).encode(noise(2_000)[None])["clap_random"]
    drawn = torch.rand(1)
    torch.manual_seed(10)
    again = encoder(model, random_weights=0).encode(noise(2_000)[None])["clap_random"]
    other = encoder(model, random_weights=1).encode(noise(2_000)[None])["clap_random"]
    torch.manual_seed(9)
    assert torch.rand(1) == drawn
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_the_spec_holds_what_changes_the_numbers(model, tmp_path):
    spec = encoder(model).specs[0]
    assert (spec.name, spec.item, spec.dtype, spec.modality) == ("clap", (24,), "float16", "audio")
    assert (spec.timing.kind, spec.timing.first_s, spec.timing.hop_s) == ("frames", 0, 10)
    assert set(spec.params["weights_sha256"]) == {"model.safetensors"}
    assert spec.params["mel"]["truncation"] == "rand_trunc"
    assert encoder(model).specs[0].fingerprint == spec.fingerprint
    others = [
        encoder(model, windows=Windows(Fraction(10), Fraction(5))),
        encoder(model, windows=Windows(Fraction(10), Fraction(10), "drop")),
        encoder(model, threads=1),
        encoder(model, precision="bfloat16"),
        encoder(model, random_weights=0),
        encoder(model, random_weights=1),
        encoder(saved(tmp_path / "other", frequency_min=50)),
    ]
    assert len({spec.fingerprint, *(other.specs[0].fingerprint for other in others)}) == 8
    assert others[0].specs[0].timing.hop_s == 5


def test_settings_are_read_from_the_one_file_of_newer_processors(model, tmp_path):
    folder = saved(tmp_path / "m", frequency_min=50)
    settings = folder / "preprocessor_config.json"
    document = {"feature_extractor": json.loads(settings.read_text())}
    old = encoder(folder).specs
    settings.unlink()
    (folder / "processor_config.json").write_text(json.dumps(document))
    assert encoder(folder).specs == old
    assert old[0].params["mel"]["frequency_min"] == 50


# -- what is refused -------------------------------------------------------------------------------


def changed(folder, name="config.json", **values):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling_rate": 44_100}, r"says sampling_rate 44100, its unfused CLAP takes 48000"),
        ({"feature_size": 80}, r"says feature_size 80, its unfused CLAP takes 64"),
        (
            {"truncation": "fusion"},
            r"says truncation 'fusion', its unfused CLAP takes 'rand_trunc'",
        ),
        ({"padding": "pad"}, r"says padding 'pad', its unfused CLAP takes 'repeatpad'"),
        ({"hop_length": 0}, r"mel settings that can't be: .*hop_length 0"),
        ({"hop_length": 100}, r"mel settings that can't be: .*hop_length 100"),
        ({"frequency_max": 30_000}, r"mel settings that can't be: .*frequency_max 30000"),
        ({"max_length_s": "ten"}, r"mel settings that can't be: .*max_length_s ten"),
        ({"max_length_s": 11}, r"mel settings that can't be: .*max_length_s 11"),
    ],
)
def test_mel_settings_that_are_not_the_checkpoints_are_refused(tmp_path, settings, message):
    folder = changed(saved(tmp_path / "m"), "preprocessor_config.json", **settings)
    with pytest.raises(ConfigError, match=message):
        encoder(folder)


def test_models_are_refused_before_anything_of_them_runs(tmp_path):
    with pytest.raises(ConfigError, match=r"clap needs a model; .* --random-weights 0 --model"):
        encoder("")
    with pytest.raises(MissingError, match="fetch it with: hf download laion/x --revision main"):
        encoder("laion/x@main")
    fused = {**AUDIO, "enable_fusion": True, "fusion_type": "aff_2d"}
    with pytest.raises(ConfigError, match=r"fused CLAP: it mixes crops drawn at random"):
        encoder(saved(tmp_path / "fused", fused, truncation="fusion"))
    with pytest.raises(ConfigError, match=r"brings code of its own .*never runs"):
        encoder(changed(saved(tmp_path / "remote"), auto_map={"AutoModel": "modeling.M"}))
    with pytest.raises(ConfigError, match="of type 'hubert'; this encoder takes clap"):
        encoder(changed(saved(tmp_path / "hubert"), model_type="hubert"))
    with pytest.raises(ConfigError, match=r"config.json is no CLAP's"):
        encoder(changed(saved(tmp_path / "damaged"), audio_config=[1]))
    folder = saved(tmp_path / "m")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match=r"has no preprocessor_config.json"):
        encoder(folder)
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"can't read preprocessor_config.json"):
        encoder(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="weights as pickles.*save it as safetensors"):
        encoder(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(MissingError, match=r"has no model.safetensors"):
        encoder(folder)


@pytest.mark.parametrize(("long_s", "tail"), [(30, "short"), (5, "short"), (10, "pad")])
def test_windows_of_another_length_or_padding_are_refused(model, long_s, tail):
    with pytest.raises(ConfigError, match="clap hears windows of 10 s and fills the last one up"):
        encoder(model, windows=Windows(Fraction(long_s), Fraction(long_s), tail))


def test_weights_that_transformers_would_make_up_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = saved(tmp_path / "m")
    file = folder / "model.safetensors"
    weights = load_file(file)
    less = {name: value for name, value in weights.items() if "audio_projection" not in name}
    save_file(less, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks 4 weights of ClapAudioModelWithProjection"):
        encoder(folder).encode(noise(2_000)[None])
    name = "audio_projection.linear1.weight"
    save_file({**weights, name: torch.zeros(3, 3)}, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"its weights can't be loaded"):
        encoder(folder).encode(noise(2_000)[None])
    file.write_bytes(file.read_bytes()[:1_000])
    with pytest.raises(ConfigError, match=r"its weights can't be loaded"):
        encoder(folder).encode(noise(2_000)[None])


# -- whole runs ------------------------------------------------------------------------------------


def extract(corpus, store, model, *more, code=0):
    options = ["extract", "--encoder", "clap", "--corpus", corpus, "--store", store, "--model"]
    result = CliRunner().invoke(app, [str(o) for o in (*options, model, "--json", *more)])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if code == 0 else result.output


def test_neither_order_nor_stopping_changes_a_bit(sample, model, tmp_path):
    rows = pq.read_table(sample / "manifest.parquet", columns=["id", "audio_path"])
    rows = rows.filter(rows["audio_path"].is_valid()).slice(0, 6)
    roots = []
    for name, order in (("there", range(6)), ("back", range(6)[::-1])):
        folder = tmp_path / name
        (folder / "audio").mkdir(parents=True)
        for path in rows["audio_path"].to_pylist():
            (folder / path).hardlink_to(sample / path)
        pq.write_table(rows.take(list(order)), folder / "manifest.parquet")
        store = tmp_path / f"{name}.zarr"
        extract(folder, store, model, "--limit", 3)
        roots.append(extract(folder, store, model)["root"])
    assert roots[0] == roots[1]
    verify = ["verify", str(tmp_path / "back.zarr"), "--recompute", "2"]
    assert CliRunner().invoke(app, verify).exit_code == 0
    stream = open_store(tmp_path / "back.zarr")["clap"]
    theirs = ClapModel.from_pretrained(model).eval()
    extractor = ClapFeatureExtractor.from_pretrained(model)
    for clip in open_corpus(tmp_path / "there").clips():
        audio = read_audio(clip.audio.read())
        row = bare(theirs, extractor, resample(audio.samples_N, audio.rate_hz, RATE_HZ))
        assert relative(stream[clip.id][0].astype(np.float32), row) <= 1e-3


def test_settings_that_clap_has_no_use_for_are_refused(sample, model, tmp_path):
    store = tmp_path / "s.zarr"
    refused = extract(sample, store, model, "--layers", "all", code=2)
    assert "layers 'all': clap has one row a window; leave layers out" in refused
    refused = extract(sample, store, model, "--set", "preprocessing.audio.duration_s=5", code=2)
    assert "clap hears windows of 10 s" in refused
    refused = extract(sample, store, model, "--pooling", "cls", code=2)
    assert "preprocessing.audio.pooling = 'cls': no such key" in refused
