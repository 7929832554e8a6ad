"""Each encoder has a rate, a schedule, a decay and a beginning of its own, where it says so."""

import itertools
import math

import pytest
import torch

from mmfuse.features.errors import ConfigError
from mmfuse.trainer import loop
from mmfuse.trainer.loop import fit, reproducible, risen
from mmfuse.trainer.optim import build_optimizer, parameter_groups, set_rates
from mmfuse.trainer.run import build_model, train

ALL = ("text", "audio", "midi")
OWN = (
    "model.text_encoder.lr=0.02", "model.text_encoder.weight_decay=0.0",
    "model.audio_encoder.schedule=constant", "model.audio_encoder.weight_decay=0.3",
    "model.midi_encoder.schedule=linear", "model.midi_encoder.freeze_until_step=10",
)  # fmt: skip


@pytest.fixture
def built(plant):
    """`built(*overrides)` -> configuration, data, model."""
    planted = plant()

    def make(*overrides):
        config, data = planted.run_config(*overrides), planted.data(*overrides)
        with reproducible(0, 1):
            return config, data, build_model(config, data)

    return make


def rates(optimizer, step, config, steps):
    """Rate by part at a step."""
    set_rates(optimizer, step, config, steps)
    return {
        name.partition("/")[0]: group["lr"]
        for group in optimizer.param_groups
        for name in group["name"].split()
    }


def test_rates_follow_each_encoders_own_schedule(built):
    config, _, model = built(*OWN, "train.warmup_steps=4", "train.lr=0.01")
    optimizer = build_optimizer(model, config.train)
    first, last = (rates(optimizer, step, config.train, 100) for step in (0, 100))
    assert first == pytest.approx(
        {"text": 0.005, "audio": 0.0025, "midi": 0.0, "fusion": 0.0025, "head": 0.0025}
    )
    assert last == pytest.approx({"text": 0, "audio": 0.01, "midi": 0, "fusion": 0, "head": 0})
    middle = rates(optimizer, 55, config.train, 100)
    fall = 0.5 * (1 + math.cos(math.pi * 51 / 96))
    assert middle == pytest.approx(
        # MIDI begins at step 10: 45 of its 90 steps are behind, 41 of 86 after its warm-up
        {"text": 0.02 * fall, "audio": 0.01, "midi": 0.01 * (1 - 41 / 86),
         "fusion": 0.01 * fall, "head": 0.01 * fall}
    )  # fmt: skip
    assert rates(optimizer, 9, config.train, 100)["midi"] == 0
    assert rates(optimizer, 10, config.train, 100)["midi"] == pytest.approx(0.0025)


def test_matrices_decay_as_their_encoder_says(built):
    config, _, model = built(*OWN)
    for group in parameter_groups(model, 0.05):
        part, _, decays = group["name"].partition("/")
        expected = {"text": 0.0, "audio": 0.3}.get(part, 0.05) if decays == "decay" else 0.0
        assert group["weight_decay"] == expected, group["name"]
    assert config.model.midi_encoder.weight_decay is None


def test_an_encoder_is_frozen_until_its_step_and_moves_from_then_on(built):
    config, data, model = built("model.midi_encoder.freeze_until_step=4", "train.epochs=2")
    seen = {name: [] for name in ALL}

    def watch(module, inputs):
        if module.training:
            for name in ALL:
                parameters = model.encoders[name].parameters()
                seen[name].append(torch.cat([p.detach().flatten() for p in parameters]))

    model.register_forward_pre_hook(watch)
    with reproducible(0, 1):
        grouped = {id(p) for group in parameter_groups(model, 0.1) for p in group["params"]}
        fit(model, data, config.train)
    assert grouped == {id(p) for p in model.parameters()}
    moves = {
        name: [not torch.equal(a, b) for a, b in itertools.pairwise(states)]
        for name, states in seen.items()
    }
    assert moves["text"] == [True] * 5
    assert moves["midi"] == [False] * 4 + [True]  # six steps; what each sees is before it
    assert all(p.requires_grad for p in model.parameters())


def test_groups_are_whole_while_an_encoder_is_frozen(built):
    _, _, model = built("model.midi_encoder.freeze_until_step=4")
    model.thaw(2)
    assert not any(p.requires_grad for p in model.encoders["midi"].parameters())
    grouped = [id(p) for group in parameter_groups(model, 0.1) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_the_resolved_configuration_keeps_what_is_an_encoders_own(plant):
    planted = plant()
    train(planted.config, (*OWN, "train.epochs=1"), planted.folder / "a")
    resolved = (planted.folder / "a" / "resolved.toml").read_text()
    assert "weight_decay = 0.3" in resolved and 'schedule = "linear"' in resolved
    with pytest.raises(ConfigError, match="schedul"):
        planted.run_config("model.text_encoder.schedul=linear")


def test_modality_dropout_rises_and_stays(built, monkeypatch):
    config, data, model = built(
        "train.modality_dropout=0.4", "train.modality_dropout_warmup=2", "train.epochs=3"
    )
    shares, drop = [], loop.drop_modalities

    def watched(present_BM, p):
        shares.append(p)
        return drop(present_BM, p)

    monkeypatch.setattr(loop, "drop_modalities", watched)
    with reproducible(0, 1):
        fit(model, data, config.train)
    assert shares == pytest.approx([0.4 * min(1, step / 6) for step in range(9)])
    assert risen(0, 0) == 1.0  # without warm-up it is whole at once
