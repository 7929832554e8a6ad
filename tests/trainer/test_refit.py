"""`train.refit`: epochs by validation, then a second training on train and validation together."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from mmfuse.features.errors import ConfigError
from mmfuse.trainer.card import card
from mmfuse.trainer.checkpoint import REFIT, Checkpoints
from mmfuse.trainer.cli import app
from mmfuse.trainer.loop import predict, reproducible
from mmfuse.trainer.losses import loss_of
from mmfuse.trainer.model import drop_modalities
from mmfuse.trainer.optim import build_optimizer, set_rates
from mmfuse.trainer.rescore import score
from mmfuse.trainer.run import build_model, train
from mmfuse.trainer.saved import load_saved
from mmfuse.trainer.sweep import sweep

OPTIONS = ("train.epochs=4", "train.grad_clip=0", "eval.bootstrap=100", "train.checkpoint_s=0")
REFITTED = (*OPTIONS, "train.refit=true")
SAME = ("model.safetensors", "predictions.parquet", "metrics.jsonl", "resolved.toml")


@pytest.fixture
def planted(plant):
    return plant(missing=0.3, counts=(40, 24, 20))


def by_hand(planted, epochs):
    """Train on train and validation in a plain loop."""
    config, data = planted.run_config(*REFITTED), planted.data(*REFITTED).joined()
    clips, done = data.clips_of("train"), 0
    assert len(clips) == 64 and not len(data.clips_of("validation"))
    with reproducible(config.train.seed, 1):
        model = build_model(config, data)
        optimizer = build_optimizer(model, config.train)
        model.train()
        for epoch in range(1, epochs + 1):
            for rows in data.order(clips, 16, config.train.seed, epoch):
                set_rates(optimizer, done, config.train, 4 * 4)
                batch = data.batch(rows)
                shown_BM = drop_modalities(batch.present_BM, config.train.modality_dropout)
                optimizer.zero_grad()
                loss_of(model(batch, shown_BM), batch, shown_BM, config.train).backward()
                optimizer.step()
                done += 1
        return model, predict(model, data, data.clips_of("test")), done


def rows(out, split):
    table = pq.read_table(out / "predictions.parquet").to_pylist()
    return [row for row in table if row["split"] == split]


def test_it_is_a_training_on_both_for_as_many_epochs_as_were_best(planted):
    first = train(planted.config, OPTIONS, planted.folder / "a")
    found = train(planted.config, REFITTED, planted.folder / "b")
    model, said_NK, steps = by_hand(planted, first["best_epoch"])
    assert found["refit"]["epochs"] == found["best_epoch"] == first["best_epoch"]
    assert (found["refit"]["steps"], found["refit"]["train_clips"]) == (steps, 64)
    saved = load_file(planted.folder / "b/model.safetensors")
    for name, expected in model.state_dict().items():
        torch.testing.assert_close(saved[name], expected, rtol=0, atol=1e-5, msg=name)
    tested = rows(planted.folder / "b", "test")
    columns = [name for name in tested[0] if name.startswith("p:")]
    np.testing.assert_allclose([[row[c] for c in columns] for row in tested], said_NK, atol=1e-5)
    assert sum(load_saved(planted.folder / "b").task.counts) == 64


def test_validation_and_temperature_are_of_the_model_that_did_not_see_it(planted):
    first = train(planted.config, OPTIONS, planted.folder / "a")
    found = train(planted.config, REFITTED, planted.folder / "b")
    assert rows(planted.folder / "b", "validation") == rows(planted.folder / "a", "validation")
    assert rows(planted.folder / "b", "test") != rows(planted.folder / "a", "test")
    for key in ("best_epoch", "steps", "train_clips", "val"):
        assert found[key] == first[key]
    assert first.keys() == found.keys() - {"refit"}
    for key in ("temperature", "val"):
        assert found["calibration"][key] == first["calibration"][key]
    for key in ("subsets", "shapley", "intervals", "robustness"):
        assert found[key].keys() == first[key].keys()
    assert found["subsets"]["text+audio+midi"]["val"] == first["subsets"]["text+audio+midi"]["val"]
    assert {*found["shapley"]} == {"val", "test"}
    again = score(planted.folder / "b", split="test")
    assert again["test"]["nll"] == pytest.approx(found["test"]["nll"], abs=1e-6)
    assert not again["trained_on"] and score(planted.folder / "b", split="validation")["trained_on"]
    assert not score(planted.folder / "a", split="validation")["trained_on"]
    text = card(load_saved(planted.folder / "b"), found)
    assert "trained anew on train and validation, 64 clips" in text


@pytest.mark.parametrize("phase", ["checkpoint", REFIT])
def test_a_run_that_died_in_either_training_goes_on_to_the_same_bits(planted, monkeypatch, phase):
    whole, out = planted.folder / "whole", planted.folder / "died"
    train(planted.config, REFITTED, whole)
    save = Checkpoints.save

    def dying(self, step, *rest):
        save(self, step, *rest)
        if step == 3 and (self.folder.parent.name == REFIT) == (phase == REFIT):
            raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", dying)
        with pytest.raises(MemoryError):
            train(planted.config, REFITTED, out)
    with pytest.raises(ConfigError, match="unfinished run with train.lr"):
        train(planted.config, (*REFITTED, "train.lr=1e-4"), out)
    result = train(planted.config, REFITTED, out)
    assert result["refit"]["resumed_at"] == (3 if phase == REFIT else 0)
    for name in SAME:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert not (out / "checkpoint").exists() and not (out / REFIT).exists()


def test_ctrl_c_in_the_second_training_leaves_the_first_model(planted):
    def report(config, record):
        if "val_macro_f1" not in record:
            raise KeyboardInterrupt

    train(planted.config, OPTIONS, planted.folder / "a")
    found = train(planted.config, REFITTED, planted.folder / "b", report=report)
    assert found["interrupted"] and "refit" not in found
    files = [planted.folder / run / "predictions.parquet" for run in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_command_says_so_and_a_number_is_scaled_anew(plant):
    planted = plant(lambda bits: str(bits["text"] + 2.5 * bits["midi"]), (40, 24, 20))
    settings = ["--set", "train.refit=true", "--set", "train.task=regression"]
    out = planted.folder / "r"
    command = ["run", str(planted.config), *settings, "--out", str(out)]
    outcome = CliRunner().invoke(app, command)
    assert outcome.exit_code == 0, outcome.output
    assert "Trained anew on train and validation, 64 clips, for" in outcome.stdout
    result = json.loads((out / "result.json").read_text())
    assert result["refit"]["train_clips"] == 64 and "calibration" not in result
    assert load_saved(out).task.clips == 64
    lines = CliRunner().invoke(app, ["eval", str(out), "--split", "validation"]).stdout
    assert "The model was trained on these clips." in lines


def test_a_sweep_queues_it_and_gradient_blending_refuses_it(planted):
    found = sweep(planted.config, REFITTED, 2, (), planted.folder / "s")
    assert found["queued"] == {"train.refit is not stacked": 2}
    with pytest.raises(ConfigError, match="it needs train.refit = false"):
        planted.run_config("train.refit=true", "train.balance=gradient_blending")


def test_the_last_epoch_is_kept_whatever_validation_says(planted):
    options = (*OPTIONS, "train.best_by=last", "train.patience=1", "train.lr=0.3")
    result = train(planted.config, options, planted.folder / "a")
    lines = (planted.folder / "a/metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["val_loss"] for line in lines]
    assert result["best_epoch"] == result["epochs"] == len(losses) == 4
    assert losses[-1] > min(losses) and result["val"]["nll"] == pytest.approx(losses[-1])
