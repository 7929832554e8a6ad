"""The configurations of single encoders are complete, and share a store with the others."""

from pathlib import Path

import pytest

from mmfuse.features.config import load_feature_config
from mmfuse.trainer.config import load_run_config
from mmfuse.trainer.encoder_config import EncoderConfig

CONFIGS = Path(__file__).parents[2] / "configs"
ENCODER_OF = {"music_transformer": "midi", "piano_roll": "midi", "wav2vec2_late": "audio"}
every_one = pytest.mark.parametrize("name", ENCODER_OF)


@every_one
def test_a_configuration_says_everything_and_its_values_are_the_defaults(name):
    config = load_run_config(CONFIGS / f"{name}.toml")
    assert config.name == name
    encoders = config.model.encoders()
    for section in (config.train, config.eval, config.model.fusion, *encoders.values()):
        unsaid = {key for key, value in section if value is None}  # TOML has no word for it
        if section in encoders.values():
            unsaid |= set(EncoderConfig.model_fields)  # docs/training.md has them
        assert section.model_fields_set | unsaid == set(type(section).model_fields)
        assert section == type(section)() or section is encoders[ENCODER_OF[name]]
    assert encoders[ENCODER_OF[name]].type == name.removesuffix("_late")


@every_one
def test_it_trains_as_the_others_do(name):
    assert load_run_config(CONFIGS / f"{name}.toml").train == late().train


@every_one
def test_other_modalities_have_the_same_features_and_encoders(name):
    config, changed = load_run_config(CONFIGS / f"{name}.toml"), ENCODER_OF[name]
    features = load_feature_config(CONFIGS / f"{name}.toml").preprocessing
    for modality in {"text", "audio", "midi"} - {changed}:
        assert getattr(features, modality) == getattr(late().preprocessing, modality)
        if modality in config.model.encoders():
            assert config.model.encoders()[modality] == late().model.encoders()[modality]


def late():
    return load_run_config(CONFIGS / "late.toml")


@every_one
def test_every_value_has_a_comment(name):
    for line in (CONFIGS / f"{name}.toml").read_text().splitlines():
        assert " = " not in line or " # " in line or line.startswith("#"), line
