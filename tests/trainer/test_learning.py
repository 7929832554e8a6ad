"""What is planted is learned: in one modality, and across two, where one alone can't know it."""

import numpy as np
import pytest

from mmfuse.trainer.loop import fit, predict, reproducible
from mmfuse.trainer.run import build_model

COUNTS = (240, 60, 100)


def accuracy_of(planted, *overrides):
    """Accuracy on the test split after training."""
    config, data = planted.run_config(*overrides), planted.data(*overrides)
    with reproducible(config.train.seed, 1):
        model = build_model(config, data)
        fit(model, data, config.train)
        clips = data.clips_of("test")
        return (predict(model, data, clips).argmax(axis=1) == data.label[clips]).mean()


@pytest.mark.parametrize("name", ["text", "audio", "midi"])
def test_a_signal_in_one_modality_is_learned(plant, name):
    planted = plant(
        lambda bits: f"class-{bits[name]}", COUNTS, modalities=(name,), epochs=6, patience=6
    )
    assert accuracy_of(planted) > 0.93


@pytest.mark.parametrize(
    "fusion",
    [
        "early",
        "late",
        *(pytest.param(f, marks=pytest.mark.slow) for f in ("cross_modal", "low_rank")),
    ],
)
def test_xor_of_two_modalities_is_learned_by_fusion(plant, fusion):
    planted = plant(
        lambda bits: f"class-{bits['text'] ^ bits['midi']}", COUNTS, ("text", "midi"), fusion,
        epochs=16, patience=16, unimodal_weight=0.0, modality_dropout=0.0,
    )  # fmt: skip
    assert accuracy_of(planted) > 0.9


@pytest.mark.parametrize("name", ["text", "midi"])
def test_xor_of_two_modalities_is_unknown_to_one(plant, name):
    planted = plant(
        lambda bits: f"class-{bits['text'] ^ bits['midi']}", COUNTS, (name,), epochs=6, patience=6
    )
    assert 0.3 < accuracy_of(planted) < 0.7


def test_what_one_modality_knows_survives_the_loss_of_the_others(plant):
    planted = plant(
        lambda bits: f"class-{bits['text']}", COUNTS, epochs=8, patience=8, modality_dropout=0.3
    )
    config, data = planted.run_config(), planted.data()
    with reproducible(0, 1):
        model = build_model(config, data)
        fit(model, data, config.train)
        clips = data.clips_of("test")
        found = {
            keep: (predict(model, data, clips, keep).argmax(axis=1) == data.label[clips]).mean()
            for keep in ((True, True, True), (True, False, False), (False, True, True))
        }
    assert found[True, True, True] > 0.93
    assert found[True, False, False] > 0.9
    assert found[False, True, True] < 0.7


def test_averaged_weights_learn_too(plant):
    planted = plant(
        lambda bits: f"class-{bits['text']}", COUNTS, ("text",), epochs=8, patience=8, ema=0.9,
        class_weights=True, crop_s=0.5,
    )  # fmt: skip
    assert accuracy_of(planted) > 0.93


def test_the_best_epoch_is_kept(plant):
    planted = plant(lambda bits: f"class-{bits['text']}", epochs=10, patience=3)
    config, data = planted.run_config(), planted.data()
    with reproducible(0, 1):
        model = build_model(config, data)
        fitted = fit(model, data, config.train)
    scores = [(record["val_macro_f1"], -record["val_loss"]) for record in fitted.records]
    assert fitted.best_epoch == 1 + int(np.argmax([score == max(scores) for score in scores]))
    assert len(scores) == min(10, fitted.best_epoch + 3)
    assert fitted.steps == 3 * len(scores)
