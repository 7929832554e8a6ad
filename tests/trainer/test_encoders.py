"""Encoders over stored layers, rolls, embeddings and waveforms: what they read, and what moves."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, Wav2Vec2FeatureExtractor
from typer.testing import CliRunner

from mmfuse.features.audio import Audio
from mmfuse.features.encoders import encode_clip
from mmfuse.features.errors import ConfigError, MissingError, StoreError
from mmfuse.features.piano_roll import piano_roll_spec, roll_entry
from mmfuse.features.spec import Entry, StreamSpec, Timing
from mmfuse.features.store import open_store
from mmfuse.features.wav2vec2 import Wav2vec2, Wav2vec2Params
from mmfuse.features.waveform import Waveform, waveform_spec
from mmfuse.features.windows import Windows
from mmfuse.features.writer import StoreWriter
from mmfuse.pipeline.cli import app as mmfeat
from mmfuse.trainer.cli import app as mmtrain
from mmfuse.trainer.config import load_run_config
from mmfuse.trainer.encoder_config import PianoRollConfig, Wav2Vec2Config
from mmfuse.trainer.encoders import build_encoder
from mmfuse.trainer.load import load_dataset
from mmfuse.trainer.loop import fit, predict, reproducible
from mmfuse.trainer.losses import loss_of
from mmfuse.trainer.optim import parameter_groups
from mmfuse.trainer.run import build_model, train
from mmfuse.trainer.saved import load_model
from mmfuse.trainer.spec_augment import SpecAugment
from mmfuse.trainer.stored_encoders import LayerMix

LAYERS, WIDTH = 4, 24
SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "conv_dim": [8] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
WINDOWS = {"duration_s": "30", "hop_s": "30", "tail": "short"}
FRAMES = Timing("frames", Fraction(1, 80), Fraction(1, 50))


def layer_spec(layer, name="wav2vec2", **params):
    params = {"model": "m", "architecture": {"num_hidden_layers": LAYERS - 1}, "layer": layer,
              "windows": WINDOWS} | params  # fmt: skip
    full = f"{name}_layer{int(layer):02}" if layer.isdigit() else name
    return StreamSpec(full, "audio", (WIDTH,), "float16", params, FRAMES)


CLAP = StreamSpec("clap", "audio", (WIDTH,), "float16", {"model": "c"},
                  Timing("frames", Fraction(5), Fraction(10)))  # fmt: skip
EMBEDDED = StreamSpec("text_embedding", "text", (WIDTH,), "float16", {"model": "t"})
ROLL = piano_roll_spec()
WAVE = waveform_spec()
MODALITY = {"clap": "audio", "wav2vec2": "audio", "waveform": "audio", "piano_roll": "midi",
            "text_embedding": "text"}  # fmt: skip


def rows_of(spec, rng, bit, count):
    """Noise; the bit is told by one column of the last layer but one, a key, or a frequency."""
    if spec.name == "piano_roll":
        roll = np.zeros((count, *spec.item), np.uint8)
        keys = rng.choice([40, 44, 47], count) + (2 if bit else 0)
        roll[np.arange(count), :, keys] = 80
        return roll
    if spec.name == "waveform":
        samples = 700 + 320 * count
        wave = np.sin(2 * np.pi * np.arange(samples) * (900 if bit else 250) / 16_000)
        return (9000 * wave + rng.normal(0, 300, samples)).astype(np.int16)
    told = spec.params.get("layer", "2") in ("2", "last")
    rows = rng.normal(0, 1, (count, *spec.item)) * (1 + 3 * (spec.params.get("layer") == "0"))
    rows[:, 5] += 1.5 * (2 * bit - 1) * told
    return rows.astype(spec.dtype)


@pytest.fixture
def one_thread():
    """Threads that wait for each other take longer than these small models do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def corpus(tmp_path):
    """`corpus(specs, section, counts, **train)` -> path of a configuration over planted streams."""

    def write(specs, section, counts=(60, 20, 40), preprocessing="", skip=(), **train):
        rng = np.random.default_rng(5)
        splits = np.repeat(["train", "validation", "test"], counts).tolist()
        lines, modality = [], MODALITY[specs[0].name.partition("_layer")[0].removesuffix("_random")]
        with StoreWriter(tmp_path / "s.zarr") as writer:
            streams = [(spec, writer.stream(spec)) for spec in specs]
            for number, split in enumerate(splits):
                bit, count = int(rng.integers(2)), int(rng.integers(9, 30))
                for spec, stream in streams:
                    rows = rows_of(spec, rng, bit, count)
                    entry = Entry(rows, windows=((Fraction(0), len(rows)),))
                    if (spec.name, number) not in skip:
                        stream.append(f"c{number}", number.to_bytes(32, "little"), entry)
                row = {"id": f"c{number}", "text": "x", "split": split, "label": f"class-{bit}"}
                lines.append(json.dumps(row))
        (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
        values = {"epochs": 6, "batch_size": 16, "threads": 1, "warmup_steps": 3, "lr": 5e-3,
                  "ema": 0.0, "crop_s": 0.0, "patience": 6} | train  # fmt: skip
        document = [
            'name = "planted"',
            f'[data]\ncorpus = "{tmp_path / "manifest.jsonl"}"\nstore = "{tmp_path / "s.zarr"}"',
            f"[preprocessing.{modality}]\n{preprocessing}",
            f"[model.{modality}_encoder]\nhidden_dim = 16\ndropout = 0.1\n{section}",
            '[model.fusion]\ntype = "late"\nhidden_dim = 16\ndropout = 0.1',
            "[train]", *(f"{key} = {json.dumps(value)}" for key, value in values.items()),
            "[eval]\nbootstrap = 200",
        ]  # fmt: skip
        path = tmp_path / "run.toml"
        path.write_text("\n".join(document))
        return path

    return write


def opened(path, *overrides):
    config = load_run_config(path, overrides)
    return config, load_dataset(config, path, overrides)[0]


def fitted(path, *overrides):
    """Model after training, and its accuracy on the test split."""
    config, data = opened(path, *overrides)
    with reproducible(0, 1):
        model = build_model(config, data)
        fit(model, data, config.train)
        clips = data.clips_of("test")
        found = predict(model, data, clips).argmax(axis=1) == data.label[clips]
    return model, found.mean()


STACK = [layer_spec(str(layer)) for layer in range(LAYERS)]
STORED = 'type = "wav2vec2"\nlayers = "all"\nstride = 4'
FROM_WAV2VEC2 = 'encoder = "wav2vec2"\nmodel = "m"\nlayers = "all"'
pytestmark = pytest.mark.usefixtures("one_thread")
PLANTED = {
    "wav2vec2": (STACK, STORED, FROM_WAV2VEC2),
    "wav2vec2, one layer": (
        [layer_spec("last")], 'type = "wav2vec2"\ntransformer_layers = 1', "",
    ),
    "clap": ([CLAP], 'type = "clap"', ""),
    "text_embedding": ([EMBEDDED], 'type = "text_embedding"\ntransformer_layers = 1', ""),
    "piano_roll": ([ROLL], 'type = "piano_roll"\nchannels = 4\nstride = 4', ""),
}  # fmt: skip
every_kind = pytest.mark.parametrize("kind", PLANTED)


@pytest.fixture
def built(corpus):
    """`built(kind)` -> configuration, data, model; nothing trained."""

    def make(kind):
        specs, section, preprocessing = PLANTED[kind]
        config, data = opened(corpus(specs, section, preprocessing=preprocessing))
        with reproducible(0, 1):
            return config, data, build_model(config, data)

    return make


@every_kind
def test_what_is_planted_is_learned(corpus, kind):
    specs, section, preprocessing = PLANTED[kind]
    assert fitted(corpus(specs, section, preprocessing=preprocessing))[1] >= 0.9


@every_kind
def test_padding_changes_nothing(built, kind):
    _, data, model = built(kind)
    model.eval()
    with torch.inference_mode():
        together = model(data.batch(np.arange(16))).logits_BC
        for clip in range(16):
            alone = model(data.batch(np.array([clip]))).logits_BC
            torch.testing.assert_close(alone[0], together[clip], rtol=0, atol=1e-5)


@every_kind
def test_nan_in_padded_places_changes_no_output_and_no_gradient(built, kind):
    config, data, model = built(kind)
    batch = data.batch(np.arange(16))
    ((name, mask_BT),) = batch.mask.items()
    assert not mask_BT.all()

    def outcome(value):
        batch.x[name][~mask_BT] = value
        batch.times_s[name][~mask_BT] = value
        model.train()
        model.zero_grad()
        with reproducible(5, 1):
            output = model(batch)
            loss_of(output, batch, batch.present_BM, config.train).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        return [output.logits_BC, *(gradient.clone() for gradient in gradients)]

    for zero, nan in zip(outcome(0.0), outcome(float("nan")), strict=True):
        assert torch.isfinite(nan).all()
        assert torch.equal(zero, nan)


@every_kind
def test_every_parameter_is_in_one_group_and_learns(built, kind):
    config, data, model = built(kind)
    grouped = [id(p) for group in parameter_groups(model, 0.1) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    batch = data.batch(np.arange(40))
    loss_of(model(batch), batch, batch.present_BM, config.train).backward()
    for name, parameter in model.named_parameters():
        if "missing" not in name:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_the_mix_learns_to_prefer_the_layer_that_tells(corpus):
    model, accuracy = fitted(corpus(STACK, STORED, preprocessing=FROM_WAV2VEC2), "train.epochs=25",
                             "train.patience=25", "train.lr=2e-2")  # fmt: skip
    weights = model.encoders["audio"].mix.weights_L.detach()
    assert accuracy > 0.9
    assert weights.argmax() == 2
    assert weights[2] > 0.3  # of four
    assert float(weights.sum()) == pytest.approx(1)


@pytest.mark.parametrize("layer_norm", [True, False])
def test_the_mix_is_the_weighted_sum_of_layers(layer_norm):
    mix = LayerMix(3, layer_norm=layer_norm).double()
    torch.nn.init.normal_(mix.logits_L)
    x_BTLE = 5 + 3 * torch.randn(2, 5, 3, 7, dtype=torch.float64)
    scaled = torch.nn.functional.layer_norm(x_BTLE, (7,)) if layer_norm else x_BTLE
    weights = mix.logits_L.exp() / mix.logits_L.exp().sum()
    torch.testing.assert_close(mix(x_BTLE), (scaled * weights[:, None]).sum(dim=2))


@pytest.mark.parametrize("layer_norm", [True, False])
def test_a_mix_of_one_layer_is_that_layer(layer_norm):
    x_BTLE = torch.randn(2, 5, 1, 7)
    mix = LayerMix(1, layer_norm=layer_norm)
    plain = torch.nn.functional.layer_norm(x_BTLE[:, :, 0], (7,)) if layer_norm else x_BTLE[:, :, 0]
    assert torch.equal(mix(x_BTLE), plain)
    assert not list(mix.parameters())
    # all of the weight on one of several is that one as well
    several = LayerMix(3, layer_norm=layer_norm)
    several.logits_L.data[1] = 1e4
    stacked = torch.cat([torch.randn(2, 5, 1, 7), x_BTLE, torch.randn(2, 5, 1, 7)], dim=2)
    torch.testing.assert_close(several(stacked), plain, rtol=1e-4, atol=1e-5)


def test_a_batch_has_every_layer_of_the_same_rows(corpus):
    _, data = opened(corpus(STACK, STORED, preprocessing=FROM_WAV2VEC2))
    batch = data.batch(np.arange(6))
    assert batch.x["audio"].shape[2:] == (LAYERS, WIDTH)
    for b in range(6):
        rows = int(batch.mask["audio"][b].sum())
        for layer, stream in enumerate(data.layers["audio"]):
            wanted = torch.from_numpy(stream[f"c{b}"].copy()).float()
            assert torch.equal(batch.x["audio"][b, :rows, layer], wanted)
    assert data[0]["audio"].shape == (int(batch.mask["audio"][0].sum()), LAYERS, WIDTH)
    assert data.keys == {"audio": [spec.key for spec in STACK]}


def test_a_crop_cuts_the_same_rows_from_every_layer(corpus):
    _, data = opened(corpus(STACK, STORED, preprocessing=FROM_WAV2VEC2))
    batch = data.batch(np.arange(40), crop_s=0.1, place=np.random.default_rng(0))
    seen = set()
    for b in range(40):
        rows = int(batch.mask["audio"][b].sum())
        first = round((float(batch.times_s["audio"][b, 0]) - 1 / 80) * 50)
        assert rows in (5, 6)
        seen.add(first)
        for layer, stream in enumerate(data.layers["audio"]):
            wanted = torch.from_numpy(stream[f"c{b}"][first : first + rows].copy()).float()
            assert torch.equal(batch.x["audio"][b, :rows, layer], wanted)
    assert len(seen) > 5


@pytest.mark.parametrize("layers", ["[0, 2]", "[2]"])
def test_chosen_layers_are_read_and_no_others(corpus, layers):
    section = f'type = "wav2vec2"\nlayers = {layers}'
    _, data = opened(corpus(STACK, section, preprocessing=FROM_WAV2VEC2))
    wanted = [f"wav2vec2_layer{layer:02}" for layer in json.loads(layers)]
    assert [stream.spec.name for stream in data.layers["audio"]] == wanted


def test_a_missing_layer_gives_the_line_that_makes_it(corpus):
    path = corpus(STACK[:2], STORED, preprocessing=FROM_WAV2VEC2)
    with pytest.raises(MissingError, match="no stream 'wav2vec2_layer02'; make it with: mmfeat r"):
        opened(path)
    path = corpus(STACK[:1], 'type = "wav2vec2"\nlayers = [0, 2]',
                  preprocessing='encoder = "wav2vec2"\nmodel = "m"')  # fmt: skip
    with pytest.raises(MissingError, match=r"""--set 'preprocessing.audio.layers="0,2"'$"""):
        opened(path)


def test_another_encoder_than_the_sections_gets_a_line_of_its_own(corpus):
    with pytest.raises(MissingError, match="'clap'; make it with: mmfeat extract --encoder clap "):
        opened(corpus(STACK[:1], 'type = "clap"'))


def test_layers_of_other_models_are_told_apart(corpus):
    other = [layer_spec(str(layer), model="n") for layer in range(LAYERS)]
    path = corpus([*STACK, *other], STORED, preprocessing=FROM_WAV2VEC2)
    _, data = opened(path)
    assert {stream.spec.params["model"] for stream in data.layers["audio"]} == {"m"}
    _, data = opened(path, "preprocessing.audio.model=n")
    assert {stream.spec.params["model"] for stream in data.layers["audio"]} == {"n"}
    with pytest.raises(ConfigError, match="pretrained_model = 'z', and stream .* is of 'm'; name"):
        build_model(*opened(path, "model.audio_encoder.pretrained_model=z"))


def test_windows_are_those_that_the_section_says(corpus):
    short = WINDOWS | {"duration_s": "10", "hop_s": "10"}
    others = [layer_spec(str(layer), windows=short) for layer in range(LAYERS)]
    path = corpus([*STACK, *others], STORED, preprocessing=FROM_WAV2VEC2)
    for duration_s in (10, 30):
        _, data = opened(path, f"preprocessing.audio.duration_s={duration_s}.0")
        keys = {stream.spec.params["windows"]["duration_s"] for stream in data.layers["audio"]}
        assert keys == {str(duration_s)}
    with pytest.raises(MissingError, match="2 streams 'wav2vec2_layer00' that fit"):
        opened(path)


def test_random_weights_are_never_taken_for_real_ones(corpus):
    seeded = [layer_spec("0", "wav2vec2_random", random_weights=0)]
    section = 'type = "wav2vec2"\nlayers = [0]'
    path = corpus(seeded, section, preprocessing=FROM_WAV2VEC2)
    with pytest.raises(MissingError, match="no stream 'wav2vec2_layer00'"):
        opened(path)
    _, data = opened(path, "preprocessing.audio.random_weights=0")
    assert data.specs["audio"].name == "wav2vec2_random_layer00"


def test_layers_of_other_lengths_are_refused(corpus):
    path = corpus(STACK, STORED, preprocessing=FROM_WAV2VEC2, skip={("wav2vec2_layer02", 3)})
    with pytest.raises(
        StoreError, match=r"clip 'c3' has \d+ rows in stream .* and 0 in wav2vec2_l"
    ):
        opened(path)


@pytest.fixture
def pretrained(tmp_path):
    """Folder of a small model whose normalisation looks over the whole of a clip."""
    folder = tmp_path / "model"
    config = AutoConfig.for_model("wav2vec2", **SMALL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


def tuned(folder, more=""):
    return (f'type = "wav2vec2"\nsource = "waveform"\npretrained_model = "{folder}"\nstride = 2\n'
            f"layers = [0, 2]\n{more}")  # fmt: skip


def test_a_frozen_model_gives_what_the_store_would_hold(pretrained):
    rng = np.random.default_rng(0)
    audio = Audio(rng.normal(0, 0.1, 9000).astype(np.float32), 16_000, 1, 9000, "WAV")
    config = Wav2Vec2Config(source="waveform", pretrained_model=str(pretrained), layers="all")
    encoder = build_encoder(config, WAVE)
    windows = Windows(Fraction(30), Fraction(30))
    stored = encode_clip(Wav2vec2(Wav2vec2Params(str(pretrained), windows, "all")), audio)
    wave = torch.from_numpy(encode_clip(Waveform(), audio)["waveform"].values).float()[None]
    found = encoder.train()._hidden(wave)[0]
    for layer, entry in enumerate(stored.values()):
        torch.testing.assert_close(
            found[:, layer], torch.from_numpy(entry.values).float(), rtol=2e-2, atol=2e-3
        )


def test_frozen_parameters_stay_until_the_step_and_then_move(corpus, pretrained):
    section = tuned(pretrained, "unfreeze_at_step = 4\nlr = 1e-3")
    path = corpus([WAVE], section, (24, 8, 8), 'encoder = "waveform"', epochs=4, batch_size=8)
    config, data = opened(path)
    with reproducible(0, 1):
        model = build_model(config, data)
        encoder, seen = model.encoders["audio"], {}

        def watch(module, inputs):
            if module.training and not torch.is_inference_mode_enabled():
                seen[len(seen)] = [p.detach().clone() for p in module.pretrained.parameters()]

        encoder.register_forward_pre_hook(watch)
        groups = parameter_groups(model, 0.1)
        fit(model, data, config.train)
    before = [p.clone() for p in seen[0]]

    def moved(step):
        return any(not torch.equal(a, b) for a, b in zip(before, seen[step], strict=True))

    assert len(seen) == 12
    assert [moved(step) for step in (1, 3, 4)] == [False] * 3  # step 4 trains what step 5 sees
    assert moved(5)
    names = {group["name"]: group.get("lr") for group in groups}
    assert names["audio.pretrained/decay"] == names["audio.pretrained/no_decay"] == 1e-3
    assert names["audio/decay"] is None
    grouped = sorted(id(p) for group in groups for p in group["params"])
    assert grouped == sorted(id(p) for p in model.parameters())


def test_a_model_that_stays_frozen_is_in_no_group_and_does_not_drop(corpus, pretrained):
    path = corpus([WAVE], tuned(pretrained), (16, 8, 8), 'encoder = "waveform"')
    config, data = opened(path)
    model = build_model(config, data).train()
    pretrained_ids = {id(p) for p in model.encoders["audio"].pretrained.parameters()}
    grouped = {id(p) for group in parameter_groups(model, 0.1) for p in group["params"]}
    assert not grouped & pretrained_ids
    assert grouped | pretrained_ids == {id(p) for p in model.parameters()}
    assert not any(module.training for module in model.encoders["audio"].pretrained.modules())


def test_fine_tuning_pads_nothing(corpus, pretrained):
    path = corpus([WAVE], tuned(pretrained, "freeze = false"), (16, 8, 8), 'encoder = "waveform"')
    config, data = opened(path)
    with reproducible(0, 1):
        model = build_model(config, data)
    batch = data.batch(np.arange(6))
    batch.x["audio"][~batch.mask["audio"]] = float("nan")
    model.eval()
    with torch.inference_mode(), reproducible(0, 1):
        together = model(batch).logits_BC
        for clip in range(6):
            alone = model(data.batch(np.array([clip]))).logits_BC
            torch.testing.assert_close(alone[0], together[clip], rtol=0, atol=1e-5)
    batch = data.batch(np.arange(6))
    model.train()
    with reproducible(0, 1):
        loss_of(model(batch), batch, batch.present_BM, config.train).backward()
    grads = [p.grad for n, p in model.named_parameters() if "pretrained" in n and "masked" not in n]
    assert sum(g is not None and bool(g.abs().sum() > 0) for g in grads) > 0.8 * len(grads)


def test_a_fine_tuned_run_saves_and_loads_whole(corpus, pretrained, tmp_path):
    section = tuned(pretrained, "unfreeze_at_step = 2\nlr = 1e-3")
    path = corpus([WAVE], section, (16, 8, 8), 'encoder = "waveform"', epochs=2)
    train(path, (), tmp_path / "a")
    train(path, (), tmp_path / "b")
    one, two = ((tmp_path / run / "model.safetensors").read_bytes() for run in "ab")
    assert one == two
    _, data = opened(path)
    model, _ = load_model(tmp_path / "a")
    clips = data.clips_of("test")
    assert np.isfinite(predict(model, data, clips)).all()


def test_a_waveform_at_another_rate_is_refused(pretrained):
    config = Wav2Vec2Config(source="waveform", pretrained_model=str(pretrained))
    spec = StreamSpec("waveform", "audio", (), "int16", {"rate_hz": 8000})
    with pytest.raises(ConfigError, match="hears 16000 Hz, .* set preprocessing.audio.rate_hz = 1"):
        build_encoder(config, spec)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ('source = "waveform"', "needs pretrained_model, a folder or ID@REVISION"),
        ("freeze = false", 'freeze = false: needs source = "waveform"'),
        ("unfreeze_at_step = 5", 'needs source = "waveform" and freeze = true'),
        ("layers = [3, 1]", r"rising numbers such as \[0, 6, 12\]"),
        ("layers = []", "rising numbers"),
        ("laiers = 3", "did you mean 'layers'"),
    ],
)
def test_a_section_that_makes_no_sense_is_refused(corpus, section, message):
    with pytest.raises(ConfigError, match=message):
        opened(corpus(STACK, f'type = "wav2vec2"\n{section}'))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            'type = "wav2vec3"',
            "audio_encoder.type = 'wav2vec3': no such type; did you mean 'wav2v",
        ),
        (
            "",
            "audio_encoder.type is missing; choose from: audio_statistics, clap, mel_cnn, wav2vec2",
        ),
    ],
)
def test_an_unknown_type_is_named_with_the_nearest(corpus, line, message):
    with pytest.raises(ConfigError, match=message):
        opened(corpus([CLAP], line))


def test_a_roll_knows_which_key_and_a_transposed_one_is_the_moved_roll(in_bars):
    encoder = build_encoder(PianoRollConfig(hidden_dim=16, channels=4, transpose=3), ROLL)
    roll = torch.from_numpy(roll_entry(in_bars((0, 1, 60), (1, 1, 64))).values).float()
    mask, times = torch.ones(1, len(roll)).bool(), torch.zeros(1, len(roll))
    low = encoder.eval()(roll[None], mask, times).pooled_BD
    high = encoder(roll.roll(12, 2)[None], mask, times).pooled_BD
    assert not torch.allclose(low, high, atol=1e-3)
    x_BPTK = roll[:40].transpose(0, 1).expand(60, -1, -1, -1)
    moved = encoder._transposed(x_BPTK)
    by = [int(m.sum((0, 1)).nonzero()[0]) - 60 for m in moved]
    assert set(by) == set(range(-3, 4))
    for steps, one in zip(by, moved, strict=True):
        assert torch.equal(one, x_BPTK[0].roll(steps, 2))


def test_spec_augment_masks_stretches_of_the_clip_itself():
    augment = SpecAugment(F=3, T=6, m_F=1, m_T=1, p=0.5)
    lengths = torch.tensor([4, 10, 40] * 100)
    mask_BT = torch.arange(40) < lengths[:, None]
    with reproducible(0, 1):
        hidden = augment(torch.ones(300, 40, 8), mask_BT) == 0
    over_time, over_bands = hidden.all(dim=2), hidden.all(dim=1)
    assert not (over_time & ~mask_BT).any()
    widths = over_time.sum(dim=1).view(-1, 3)
    assert widths.amax(dim=0).tolist() == [2, 5, 6]  # half of the clip at most, and T
    assert widths.amin() == 0
    assert over_bands.sum(dim=1).max() == 3
    assert torch.equal(hidden, over_time[:, :, None] | over_bands[:, None])
    x = torch.randn(4, 40, 8)
    assert torch.equal(augment.eval()(x, mask_BT[:4]), x)


def test_a_seeded_model_goes_the_whole_way_and_its_layer_mix_learns(sample, tmp_path):
    AutoConfig.for_model("wav2vec2", **SMALL).save_pretrained(tmp_path / "model")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(tmp_path / "model")
    path, store = tmp_path / "run.toml", tmp_path / "s.zarr"
    path.write_text(f"""
name = "seeded"
[data]
corpus = "{sample}"
store = "{store}"
[preprocessing.text]
[preprocessing.audio]
encoder = "wav2vec2"
model = "{tmp_path / "model"}"
random_weights = 0
layers = "all"
threads = 1
[model.text_encoder]
type = "text"
hidden_dim = 16
[model.audio_encoder]
type = "wav2vec2"
layers = "all"
hidden_dim = 16
[model.fusion]
type = "late"
hidden_dim = 16
[train]
epochs = 4
lr = 5e-3
warmup_steps = 1
threads = 1
[eval]
bootstrap = 100
""")
    outcome = CliRunner().invoke(mmfeat, ["run", str(path), "--quiet"])
    assert outcome.exit_code == 0, outcome.output
    names = {spec.name for spec in open_store(store).specs().values() if spec.modality == "audio"}
    layers = SMALL["num_hidden_layers"] + 1
    assert names == {f"wav2vec2_random_layer{layer:02d}" for layer in range(layers)}
    outcome = CliRunner().invoke(mmtrain, ["run", str(path), "--out", str(tmp_path / "run")])
    assert outcome.exit_code == 0, outcome.output
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    shares = [[record[f"mix.audio.{layer}"] for layer in range(layers)] for record in records]
    assert all(sum(each) == pytest.approx(1) for each in shares)
    assert len({tuple(each) for each in shares}) == len(records) == 4, "the mix moves every epoch"
    assert max(abs(share - 1 / layers) for share in shares[-1]) > 1e-3
    for name in ("text", "audio"):
        assert all(record[f"grad_norm.{name}"] > 0 for record in records)
    assert set(json.loads((tmp_path / "run" / "result.json").read_text())["gradients"]) == {
        "text", "audio",
    }  # fmt: skip
