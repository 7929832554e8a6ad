"""Whatever the device, nothing is made elsewhere; what can't be had is one line.

There is no card where these tests were written. What stands in for one is said in each of them.
"""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from mmfuse.features.compound import Compound
from mmfuse.features.errors import ConfigError
from mmfuse.features.logmel import logmel_spec
from mmfuse.features.midi_tokens import midi_tokens_spec
from mmfuse.features.piano_roll import piano_roll_spec
from mmfuse.features.spec import StreamSpec, Timing
from mmfuse.trainer import resident as resident_module
from mmfuse.trainer.batch import Batch
from mmfuse.trainer.checkpoint import Checkpoints
from mmfuse.trainer.config import ModelConfig
from mmfuse.trainer.device import CPU, chosen, usable
from mmfuse.trainer.evaluate import gate_means
from mmfuse.trainer.loop import fit, predict_all, reproducible
from mmfuse.trainer.losses import terms_of
from mmfuse.trainer.model import FusionModel, drop_modalities
from mmfuse.trainer.objectives import BinaryCrossEntropy, CrossEntropy, SquaredError
from mmfuse.trainer.run import build_model

TRAINER = str(Path(resident_module.__file__).parent)
FUSIONS = ("late", "early", "cross_modal", "gated", "low_rank", "bottleneck")


class Nowhere(TorchFunctionMode):
    """What code of the trainer makes without a device is on `meta`, where nothing can be read.

    torch's own code, such as its optimizer, goes on as ever.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        ours = sys._getframe(1).f_code.co_filename.startswith(TRAINER)
        if ours and func in _device_constructors() and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def test_the_stand_in_finds_a_tensor_that_says_no_device():
    code = compile("import torch\nx = torch.arange(3)", f"{TRAINER}/x.py", "exec")
    names = {}
    with Nowhere():
        exec(code, names)
        assert torch.arange(3).device == CPU
    assert names["x"].is_meta
    with pytest.raises(RuntimeError):
        names["x"] + torch.ones(3)


@pytest.mark.parametrize(
    ("fusion", "balance", "task"),
    [
        ("late", "ogm_ge", "single"), ("early", "none", "single"),
        ("cross_modal", "mmpareto", "multilabel"), ("gated", "none", "regression"),
        ("low_rank", "none", "single"), ("bottleneck", "gradient_blending", "single"),
    ],
)  # fmt: skip
def test_whole_trainings_make_every_tensor_on_a_device_that_they_name(plant, fusion, balance, task):
    labels = {
        "single": lambda bits: str(bits["text"]), "regression": lambda bits: bits["midi"],
        "multilabel": lambda bits: [name for name in bits if bits[name]],
    }  # fmt: skip
    planted = plant(
        labels[task], fusion=fusion, balance=balance, task=task, missing=0.2, crop_s=0.3, ema=0.9,
        class_weights=task != "regression", counts=(24, 8, 8), batch_size=8, accumulate=2,
    )  # fmt: skip
    config = planted.run_config()
    found = []
    for mode in (None, Nowhere()):
        data = planted.data()
        with reproducible(0, 1):
            model = build_model(config, data)
            checkpoints = Checkpoints(planted.folder / f"{mode}", {}, 0.0, print)
            if mode:
                mode.__enter__()
            try:
                fitted = fit(model, data, config.train, checkpoints=checkpoints)
                said = predict_all(model, data, data.clips_of("test"), (True, False, True))
                gate_means(model, data, data.clips_of("test"), config.eval)
            finally:
                if mode:
                    mode.__exit__(None, None, None)
        found.append((fitted.records, said["whole"].tolist()))
    assert found[0] == found[1]


WIDTH = 24
FRAMES = Timing("frames", 1, 1)
COUNTS = {"num_hidden_layers": 1}
STREAMS = {
    "text": ("text", StreamSpec("text_tokens", "text", (), "uint16", {"vocab_size": 50})),
    "text_embedding": ("text", StreamSpec("text_embedding", "text", (WIDTH,), "float16", {})),
    "mel_cnn": ("audio", logmel_spec()),
    "wav2vec2": (
        "audio",
        StreamSpec("wav2vec2_layer00", "audio", (WIDTH,), "float16", {"architecture": COUNTS}),
    ),
    "clap": ("audio", StreamSpec("clap", "audio", (WIDTH,), "float16", {})),
    "event_based": ("midi", midi_tokens_spec()),
    "music_transformer": ("midi", midi_tokens_spec(Compound())),
    "piano_roll": ("midi", piano_roll_spec()),
}
MORE = {
    "event_based": {"transpose": 3}, "music_transformer": {"transpose": 3},
    "wav2vec2": {"layers": "all", "transformer_layers": 1},
}  # fmt: skip


def on_a_card(kinds, fusion):
    """A model, as if on a card, and a batch there."""
    specs = {STREAMS[kind][0]: STREAMS[kind][1] for kind in kinds}
    sections = {
        f"{STREAMS[kind][0]}_encoder": {"type": kind, "hidden_dim": 16, **MORE.get(kind, {})}
        for kind in kinds
    }
    config = ModelConfig.model_validate(sections | {"fusion": {"type": fusion, "hidden_dim": 16}})
    with torch.device("cuda"):
        model = FusionModel(config, specs, 3)
        x, mask, times = {}, {}, {}
        for kind, (name, spec) in ((kind, STREAMS[kind]) for kind in kinds):
            item = (2, WIDTH) if kind == "wav2vec2" else spec.item
            x[name] = torch.ones(4, 32, *item, dtype=torch.int64 if kind == "text" else None)
            mask[name], times[name] = torch.ones(4, 32).bool(), torch.zeros(4, 32)
        present = torch.ones(4, len(specs)).bool()
        batch = Batch(np.arange(4), x, mask, times, present, torch.ones(4, dtype=torch.int64))
    return model, batch


@pytest.mark.parametrize("fusion", FUSIONS)
def test_no_encoder_fusion_or_loss_mixes_devices(fusion):
    """torch's fake tensors stand in for a card: they have a device, rules, and no numbers."""
    texts, audios, midis = (
        [kind for kind, (name, _) in STREAMS.items() if name == one]
        for one in ("text", "audio", "midi")
    )
    rounds = itertools.zip_longest(texts, audios, midis)
    with FakeTensorMode():
        for kinds in ([kind for kind in several if kind] for several in rounds):
            model, batch = on_a_card(kinds, fusion)
            for training in (True, False):
                model.train(training)
                shown_BM = drop_modalities(batch.present_BM, 0.3)
                output = model(batch, shown_BM)
                assert output.logits_BC.device.type == "cuda"
                model.gate_weights(batch)
                weights = torch.ones(3)
                for objective, label in (
                    (CrossEntropy(0.1, weights), batch.label_B),
                    (BinaryCrossEntropy(0.1, weights), torch.ones(4, 3, device="cuda")),
                    (SquaredError(1.0), torch.ones(4, device="cuda")),
                ):
                    told = Batch(batch.clips, {}, {}, {}, batch.present_BM, label)
                    there = objective.to(torch.device("cuda"))
                    for term in terms_of(output, told, shown_BM, there).values():
                        assert term.device.type == "cuda"
        with pytest.raises(RuntimeError, match="device"):
            model(batch, torch.ones(4, len(kinds), device="cpu").bool())


@pytest.mark.parametrize("crop_s", [0.0, 0.4])
def test_rows_that_lie_on_a_device_are_gathered_as_those_in_memory(plant, crop_s):
    """The processor stands in for a card, by the code that only a card takes."""
    planted = plant(missing=0.3)
    memory, there = planted.data(), planted.data()
    for name in there.streams:
        there.resident(name).move(CPU)
    for rows in memory.order(memory.clips_of("train"), 16, 0, 1):
        one, other = (
            data.batch(rows, crop_s, np.random.default_rng(1)) for data in (memory, there)
        )
        for name in memory.streams:
            assert one.x[name].dtype == other.x[name].dtype
            assert torch.equal(one.mask[name], other.mask[name])
            assert torch.equal(one.x[name], other.x[name])
            assert torch.equal(one.times_s[name].nan_to_num(-1), other.times_s[name].nan_to_num(-1))


def test_a_batch_that_is_sent_has_everything_on_the_device(plant):
    data = plant(counts=(8, 4, 4)).data()
    batch = data.batch(np.arange(4))
    assert batch.to(CPU) is batch
    sent = batch.to(torch.device("meta"))
    tensors = [*sent.x.values(), *sent.mask.values(), *sent.times_s.values()]
    assert all(t.is_meta for t in (*tensors, sent.present_BM, sent.label_B))
    data.place(torch.device("meta"))
    assert data.batch(np.arange(4)).label_B.is_meta


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.device=cuda:3"], "train.device cuda:3: torch .* finds no such device here"),
        (["train.precision=float16"], '"float16" needs an NVIDIA card, and train.device is'),
    ],
)
def test_a_device_that_is_not_here_is_one_line(plant, overrides, message):
    config = plant(counts=(4, 2, 2)).run_config(*overrides).train
    with pytest.raises(ConfigError, match=message):
        chosen(config.device, config.precision)


def test_a_device_that_is_none_is_refused_by_the_configuration(plant):
    with pytest.raises(ConfigError, match=r"train.device"):
        plant(counts=(4, 2, 2)).run_config("train.device=gpu")
    with pytest.raises(ConfigError, match='needs a precision that is not "float16"'):
        plant(counts=(4, 2, 2)).run_config("train.balance=mmpareto", "train.precision=float16")


def test_models_are_asked_where_they_were_trained_or_on_what_is_here():
    assert usable("cpu") == CPU
    assert usable("cuda:7").type == chosen("auto").type


def test_float16_scales_losses_and_leaves_gradients_as_they_are(plant):
    """The scaling of a card, on the processor, which can compute in float16 but need not."""
    planted = plant(counts=(32, 8, 8), epochs=3, patience=3)
    found = {}
    for precision in ("float32", "float16"):
        config, data = planted.run_config(f"train.precision={precision}"), planted.data()
        with reproducible(0, 1):
            model = build_model(config, data)
            checkpoints = Checkpoints(planted.folder / precision, {}, 0.0, print)
            found[precision] = fit(model, data, config.train, checkpoints=checkpoints).records
        _, state = checkpoints.load()
        assert (state["scaler"].get("scale", 0) > 1000) == (precision == "float16")
    for one, other in zip(*found.values(), strict=True):
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=0.02)
        for name in data.streams:
            norm = f"grad_norm.{name}"
            assert other[norm] == pytest.approx(one[norm], rel=0.1)
    assert found["float16"] != found["float32"]
