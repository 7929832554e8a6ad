"""The configurations that come with mmfuse are complete, and differ only where they should."""

from pathlib import Path

import pytest

from mmfuse.features.config import load_feature_config
from mmfuse.trainer.config import load_run_config
from mmfuse.trainer.encoder_config import EncoderConfig

CONFIGS = Path(__file__).parents[2] / "configs"
FUSIONS = ("early", "late", "cross_modal", "gated", "low_rank", "bottleneck")
SINGLE = {"text_only": "text", "audio_only": "audio", "midi_only": "midi"}
NAMES = (*FUSIONS, *SINGLE)


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_says_everything_and_its_values_are_the_defaults(name):
    config = load_run_config(CONFIGS / f"{name}.toml")
    assert config.name == name
    encoders = config.model.encoders()
    for section in (config.train, config.eval, config.model.fusion, *encoders.values()):
        own = {key for key, value in section if value is None}  # TOML has no word for it
        own |= set(EncoderConfig.model_fields) if section in encoders.values() else set()
        assert section.model_fields_set - own == set(type(section).model_fields) - own
        assert section == type(section)()


def test_all_of_them_make_and_read_the_same_features():
    first, *others = (load_feature_config(CONFIGS / f"{name}.toml") for name in NAMES)
    assert all(other == first for other in others)
    assert None not in dict(first.preprocessing).values()


def test_they_train_alike():
    configs = [load_run_config(CONFIGS / f"{name}.toml") for name in NAMES]
    assert len({config.train for config in configs}) == 1
    for config in configs:
        single = SINGLE.get(config.name)
        assert set(config.model.encoders()) == ({single} if single else {"text", "audio", "midi"})
        assert config.model.fusion.type == ("late" if single else config.name)


@pytest.mark.parametrize("name", NAMES)
def test_every_value_has_a_comment(name):
    for line in (CONFIGS / f"{name}.toml").read_text().splitlines():
        assert " = " not in line or " # " in line or line.startswith("#"), line


def test_descriptors_are_complete_and_say_why():
    path = CONFIGS / "descriptors.toml"
    config = load_run_config(path)
    for section in (config.train, config.eval, config.model.fusion):
        assert section.model_fields_set == set(type(section).model_fields)
    for encoder in config.model.encoders().values():
        own = set(EncoderConfig.model_fields)
        assert encoder.model_fields_set - own == set(type(encoder).model_fields) - own
    for line in path.read_text().splitlines():
        assert " = " not in line or " # " in line or line.startswith("#"), line
