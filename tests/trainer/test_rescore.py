"""Scoring again gives what the run said, and says what it can't score."""

import json

import pytest
from typer.testing import CliRunner

from mmfuse.features.errors import ConfigError
from mmfuse.trainer.cli import app
from mmfuse.trainer.rescore import score

ALIKE = ("calibration", "subsets", "shapley", "robustness")


@pytest.mark.parametrize(("split", "name"), [("validation", "val"), ("test", "test")])
def test_scores_of_a_split_are_those_of_the_run(trained, split, name):
    told = json.loads((trained / "a/result.json").read_text())
    found = score(trained / "a", split=split)
    _same(found[split], told[name])
    for key in ALIKE:
        _same(_of(found[key], split), _of(told[key], name))


def _of(section, split):
    """A section of a result without the other splits."""
    if isinstance(section, dict):
        if split in section:
            return section[split]
        return {key: _of(value, split) for key, value in section.items() if key != "test"}
    return section


def _same(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            _same(one[key], other[key])
    elif isinstance(one, list):
        for mine, theirs in zip(one, other, strict=True):
            _same(mine, theirs)
    else:
        assert one == pytest.approx(other, abs=1e-6)


def test_the_train_split_and_the_command(trained):
    outcome = CliRunner().invoke(app, ["eval", str(trained / "a"), "--split", "train", "--json"])
    assert outcome.exit_code == 0, outcome.output
    found = json.loads(outcome.stdout)
    assert found["train"]["clips"] > found["present"]["audio"] > 0
    lines = CliRunner().invoke(app, ["eval", str(trained / "a"), "--split", "train"]).stdout
    assert "train at T = " in lines
    assert "seen on train" in lines


def test_labels_that_the_model_does_not_know_and_clips_without_any_are_errors(trained, tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"id": "a", "text": "x", "split": "test", "label": "tango"}')
    with pytest.raises(ConfigError, match=r"label 'tango' is none of the model's classes \(glad"):
        score(trained / "a", path, trained / "s.zarr")
    path.write_text('{"id": "a", "text": "x", "split": "test"}')
    with pytest.raises(ConfigError, match="no clip has a label; `mmtrain predict` needs none"):
        score(trained / "a", path, trained / "s.zarr")
    with pytest.raises(ConfigError, match="no store to score on; name one with --store DIR"):
        score(trained / "a", path)
