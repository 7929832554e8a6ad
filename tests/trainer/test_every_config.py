"""Each configuration that comes with mmfuse makes its features, trains and is tested."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmfuse.pipeline.cli import app as mmfeat
from mmfuse.trainer.cli import app as mmtrain

CONFIGS = Path(__file__).parents[2] / "configs"
QUICK = ("train.epochs=1", "train.threads=1", "eval.bootstrap=100")
UNTRAINED = ("preprocessing.audio.model=wav2vec2-base", "preprocessing.audio.random_weights=0")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The one store that all of them share."""
    return tmp_path_factory.mktemp("every") / "s.zarr"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.toml")))
def test_a_configuration_runs(name, sample, store, tmp_path):
    config = CONFIGS / f"{name}.toml"
    settings = [f"data.corpus={sample}", f"data.store={store}"]
    settings += UNTRAINED if name == "wav2vec2_late" else ()
    made = CliRunner().invoke(mmfeat, ["run", str(config), "--quiet", *sets(settings)])
    assert made.exit_code == 0, made.output
    line = ["run", str(config), "--out", str(tmp_path / name), "--json"]
    outcome = CliRunner().invoke(mmtrain, [*line, *sets([*settings, *QUICK])])
    assert outcome.exit_code == 0, outcome.output
    result = json.loads(outcome.stdout.splitlines()[-1])
    assert result["name"] == name
    assert 0 <= result["test"]["macro_f1"] <= 1


def sets(settings):
    return [word for setting in settings for word in ("--set", setting)]
