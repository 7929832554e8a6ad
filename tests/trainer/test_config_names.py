"""Keys that go by two names: either works, in a file and with --set, and one is written."""

import tomllib

import pytest
from wrong_configs import RIGHT

from mmfuse.features.config import load_feature_config
from mmfuse.features.errors import ConfigError
from mmfuse.trainer.config import load_run_config
from mmfuse.trainer.run import build_model, to_toml

NAMES = [
    ("preprocessing.audio.rate_hz", "sample_rate", 16000, 8000),
    ("preprocessing.audio.duration_s", "duration", None, 10.0),
    ("model.fusion.type", "strategy", "late", "gated"),
]


def value_at(config, key):
    for name in key.split("."):
        config = getattr(config, name)
    return config


@pytest.fixture
def path(tmp_path):
    (tmp_path / "run.toml").write_text(RIGHT.replace("dropout = 0.4\n", ""))
    return tmp_path / "run.toml"


@pytest.mark.parametrize(("key", "other", "before", "after"), NAMES)
def test_another_name_overrides_what_the_file_says_under_the_first(path, key, other, before, after):
    section, _, own = key.rpartition(".")
    assert value_at(load_run_config(path), key) == before
    by_other, by_own = (
        load_run_config(path, [f"{section}.{name}={after}"]) for name in (other, own)
    )
    assert by_other == by_own
    assert value_at(by_other, key) == after
    written = tomllib.loads(to_toml(by_other))
    for name in section.split("."):
        written = written[name]
    assert written[own] == after and other not in written
    if section.startswith("preprocessing"):
        features = load_feature_config(path, [f"{section}.{other}={after}"])
        assert value_at(features, key) == after


@pytest.mark.parametrize(("key", "other", "before", "after"), NAMES)
def test_a_file_may_use_the_other_name_and_an_override_the_first(path, key, other, before, after):
    section = key.rpartition(".")[0]
    line = f"{other} = {before!r}" if before else f"{other} = 3.0"
    text = RIGHT.replace("dropout = 0.4\n", "").replace("rate_hz = 16000", "")
    text = text.replace('[model.fusion]\ntype = "late"', '[model.fusion]\nstrategy = "late"')
    if section.endswith("audio"):
        text = text.replace('encoder = "logmel"', f'encoder = "logmel"\n{line}')
    path.write_text(text)
    assert value_at(load_run_config(path), key) == (before or 3.0)
    assert value_at(load_run_config(path, [f"{key}={after}"]), key) == after


@pytest.mark.parametrize(("key", "other", "before", "after"), NAMES)
def test_both_names_at_once_are_refused_by_both_names(path, key, other, before, after):
    section, _, own = key.rpartition(".")
    value = f'"{after}"' if isinstance(after, str) else after
    text = path.read_text().replace("rate_hz = 16000\n", "").replace('type = "late"\n', "")
    both = f"{own} = {value}\n{other} = {value}\n"
    path.write_text(text.replace(f"[{section}]\n", f"[{section}]\n{both}"))
    with pytest.raises(ConfigError, match=rf"{section}.{other} = .*: is {own} under another name"):
        load_run_config(path)


@pytest.mark.parametrize(
    ("modality", "kind", "size"),
    [("text", "text", 300), ("midi", "event_based", 389), ("midi", "music_transformer", 389)],
)
def test_a_vocabulary_of_another_size_is_refused(plant, modality, kind, size):
    planted = plant(counts=(4, 2, 2), modalities=(modality,))
    section = f"model.{modality}_encoder"
    words = [f"{section}={{type='{kind}',hidden_dim=16}}"]
    for said in (size, size + 1):
        config = planted.run_config(*words, f"{section}.vocab_size={said}")
        if said == size:
            build_model(config, planted.data(*words))
            continue
        with pytest.raises(ConfigError, match=rf"{section}.vocab_size = {said}: .* has {size} tok"):
            build_model(config, planted.data(*words))
