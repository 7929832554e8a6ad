"""A model that torch has compiled trains as it does without, and the cost of that is told."""

import pytest
import torch

from mmfuse.features.errors import ConfigError
from mmfuse.trainer import compiled
from mmfuse.trainer.run import train
from mmfuse.trainer.summary import run_lines

pytestmark = pytest.mark.filterwarnings("default")  # torch's own, while it compiles


@pytest.mark.slow
def test_a_compiled_run_has_the_metrics_of_one_that_is_not(plant):
    planted = plant(modalities=("text", "audio"), missing=0.2, ema=0.9, epochs=3)
    said = []
    one = train(planted.config, (), planted.folder / "a")
    other = train(planted.config, ("train.compile=true",), planted.folder / "b", warn=said.append)
    for split in ("val", "test"):
        for name in ("nll", "accuracy", "macro_f1", "auroc"):
            assert other[split][name] == pytest.approx(one[split][name], abs=1e-3), name
    cost = other["compiled"]
    assert cost["warm_up_s"] > 10 * cost["step_s"] > 0
    assert said == [compiled.WARNING]
    assert f"Compiled: {cost['warm_up_s']:.1f} s of warm-up" in "\n".join(run_lines(other))
    assert "compiled" not in one


def test_the_cost_is_what_steps_took_beyond_the_median():
    steps = compiled.Steps()
    assert steps.cost() == {"step_s": 0.0, "warm_up_s": 0.0}
    steps.seconds = [9.0, 1.0, 1.0, 1.5, 0.5]
    assert steps.cost() == {"step_s": 1.0, "warm_up_s": 8.5}


def test_a_model_that_can_not_be_compiled_here_is_one_line(plant, monkeypatch):
    def refuse(*args, **kwargs):
        raise torch._dynamo.exc.TorchDynamoException("no working C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: refuse)
    planted = plant(counts=(8, 4, 4))
    with pytest.raises(ConfigError, match=r"compile this model here \(no working C\+\+ .*gcc"):
        train(planted.config, ("train.compile=true",), planted.folder / "a")


def test_mmpareto_is_refused(plant):
    with pytest.raises(ConfigError, match="it needs train.compile = false"):
        plant(counts=(4, 2, 2)).run_config("train.balance=mmpareto", "train.compile=true")
