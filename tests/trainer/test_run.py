"""A run is reproducible to the bit, complete in its folder, and finished only when it is."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from mmfuse.features.errors import ConfigError, LockedError
from mmfuse.trainer import run as run_module
from mmfuse.trainer.calibration import nll
from mmfuse.trainer.cli import app
from mmfuse.trainer.config import RunConfig, load_run_config
from mmfuse.trainer.event_file import PREFIX
from mmfuse.trainer.folder import FILES, RunFolder
from mmfuse.trainer.loop import predict
from mmfuse.trainer.run import train
from mmfuse.trainer.saved import load_model


@pytest.fixture
def finished(plant):
    """A planted corpus with one finished run in `a`."""
    planted = plant(missing=0.2)
    train(planted.config, (), planted.folder / "a")
    return planted


def read(path):
    return json.loads((path / "result.json").read_text())


def test_same_seed_gives_the_same_bits(finished):
    folder = finished.folder
    torch.rand(7)  # what happened before a run is nothing to it
    train(finished.config, (), folder / "b")
    train(finished.config, ("train.seed=1",), folder / "c")
    for name in ("model.safetensors", "predictions.parquet", "resolved.toml"):
        assert (folder / "a" / name).read_bytes() == (folder / "b" / name).read_bytes(), name
    one, two, other = (load_file(folder / run / "model.safetensors") for run in "abc")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    times = {"seconds", "out"}
    assert {k: v for k, v in read(folder / "a").items() if k not in times} == {
        k: v for k, v in read(folder / "b").items() if k not in times
    }


def test_a_run_leaves_the_state_of_torch_as_it_was(finished):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    train(finished.config, (), finished.folder / "b")
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_folder_holds_all_that_the_result_says(finished):
    folder, data = finished.folder / "a", finished.data()
    names = sorted(path.name.partition(PREFIX)[1] or path.name for path in folder.iterdir())
    assert names == sorted([*FILES, PREFIX])
    result = read(folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert (lines[-1]["step"], result["steps"], result["epochs"]) == (6, 6, 2)
    assert result["val"]["macro_f1"] == max(line["val_macro_f1"] for line in lines)
    assert result["modalities"] == ["text", "audio", "midi"]
    assert list(result["subsets"]) == [
        "text", "audio", "midi", "text+audio", "text+midi", "audio+midi", "text+audio+midi",
    ]  # fmt: skip
    whole = result["subsets"]["text+audio+midi"]
    for name, clips in (("val", 16), ("test", 20)):
        scores = result[name]
        assert scores["clips"] == clips == np.sum(scores["confusion"])
        assert (
            scores["accuracy"] == np.trace(scores["confusion"]) / clips == whole[name]["accuracy"]
        )
        assert scores["macro_f1_95"][0] <= scores["macro_f1"] <= scores["macro_f1_95"][1]
    weights = load_file(folder / "model.safetensors")
    buffers = weights["encoders.audio.mean_F"].numel() * 2
    assert result["parameters"] == sum(tensor.numel() for tensor in weights.values()) - buffers
    assert result["store_root"]
    assert result["streams"] == {name: stream.key for name, stream in data.streams.items()}


def test_predictions_are_probabilities_of_validation_and_test(finished):
    rows = pq.read_table(finished.folder / "a" / "predictions.parquet").to_pylist()
    data = finished.data()
    assert [row["id"] for row in rows] == [f"c{i}" for i in range(40, 76)]
    assert [row["split"] for row in rows] == ["validation"] * 16 + ["test"] * 20
    for row in rows:
        chances = {name.removeprefix("p:"): row[name] for name in row if name.startswith("p:")}
        assert list(chances) == data.classes
        assert sum(chances.values()) == pytest.approx(1)
        assert max(chances, key=chances.get) == row["predicted"]


def test_a_saved_model_predicts_what_the_run_did(finished):
    folder, data = finished.folder / "a", finished.data()
    model, classes = load_model(folder)
    clips = data.clips_of("test")
    assert classes == data.classes
    found = nll(data.label[clips], predict(model, data, clips))
    assert found == pytest.approx(read(folder)["test"]["nll"], abs=1e-6)


@pytest.mark.parametrize("overrides", [(), ("train.lr=1e-4", "train.ema=0.5", "name=other")])
def test_the_resolved_configuration_is_complete_and_equal(finished, overrides):
    out = finished.folder / "b"
    train(finished.config, ("train.epochs=1", *overrides), out)
    resolved = load_run_config(out / "resolved.toml")
    assert resolved == finished.run_config("train.epochs=1", *overrides)
    text = (out / "resolved.toml").read_text()
    for section, model in RunConfig.model_fields.items():
        if section in ("train", "eval"):
            assert all(f"{key} = " in text for key in model.annotation.model_fields)


def test_a_finished_run_is_not_replaced_unless_asked(finished):
    out = finished.folder / "a"
    before = read(out)
    with pytest.raises(ConfigError, match=r"holds a finished run; name another .*--overwrite"):
        train(finished.config, (), out)
    assert read(out) == before
    after = train(finished.config, ("train.seed=3",), out, overwrite=True)
    assert read(out)["seed"] == after["seed"] == 3


def test_an_error_before_training_leaves_the_finished_run_alone(finished):
    out = finished.folder / "a"
    with pytest.raises(ConfigError, match="no corpus at"):
        train(finished.config, ("data.corpus=nowhere.jsonl",), out, overwrite=True)
    assert read(out)


def test_a_folder_with_other_things_is_left_alone(finished):
    (finished.folder / "thesis").mkdir()
    (finished.folder / "thesis" / "chapter.txt").write_text("one")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"holds other things than a run \(chapter.txt\)"):
            train(finished.config, (), finished.folder / "thesis", overwrite=overwrite)


def test_two_processes_never_train_into_one_folder(finished):
    out = finished.folder / "b"
    with RunFolder(out), pytest.raises(LockedError, match="another process is training into"):
        train(finished.config, (), out)


@pytest.mark.parametrize("stage", ["fit", "save_model", "evaluate", "write_predictions"])
def test_a_run_that_dies_does_not_look_finished(finished, monkeypatch, stage):
    def die(*_):
        raise MemoryError

    out = finished.folder / "a"
    with monkeypatch.context() as patch:
        patch.setattr(run_module, stage, die)
        with pytest.raises(MemoryError):
            train(finished.config, (), out, overwrite=True)
    assert not (out / "result.json").exists()
    train(finished.config, (), out)  # no --overwrite needed
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
    assert read(out)


def test_a_loss_that_runs_off_is_an_error(finished):
    with pytest.raises(ConfigError, match=r"loss is not finite in epoch \d+; lower train.lr"):
        train(finished.config, ("train.lr=1e30", "train.grad_clip=0"), finished.folder / "b")


def test_ctrl_c_keeps_the_best_weights_and_exits_130(finished, monkeypatch):
    seen = []

    def report(config, record):
        seen.append(record)
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("mmfuse.trainer.progress.Progress.epoch", lambda self, *a: report(*a))
    out = finished.folder / "b"
    command = ["run", str(finished.config), "--set", "train.epochs=50", "--out", str(out), "--json"]
    outcome = CliRunner().invoke(app, command)
    assert outcome.exit_code == 130
    result = json.loads(outcome.stdout.splitlines()[-1])
    assert result["interrupted"]
    assert result["best_epoch"] == 1 + (seen[1]["val_macro_f1"] > seen[0]["val_macro_f1"])
    assert read(out) == result


def test_json_is_one_object_with_val_and_test(finished):
    command = ["run", str(finished.config), "--out", str(finished.folder / "b"), "--json"]
    outcome = CliRunner().invoke(app, command)
    assert outcome.exit_code == 0
    result = json.loads(outcome.stdout)
    for split in ("val", "test"):
        assert 0 <= result[split]["accuracy"] <= 1
        assert 0 <= result[split]["macro_f1"] <= 1
    assert outcome.stderr == ""


def test_the_summary_says_what_to_type_next(finished):
    out = finished.folder / "b"
    outcome = CliRunner().invoke(app, ["run", str(finished.config), "--out", str(out)])
    assert f"Next: mmtrain compare {out} OTHER_RUN" in outcome.stdout
    assert "text+midi" in outcome.stdout
    quiet = ["run", str(finished.config), "--out", str(out), "--overwrite", "--quiet"]
    assert CliRunner().invoke(app, quiet).stdout == ""


def test_errors_are_one_line_and_an_exit_code(finished):
    outcome = CliRunner().invoke(app, ["run", str(finished.config), "--set", "train.epoch=3"])
    assert outcome.exit_code == 2
    assert outcome.stderr.startswith("mmtrain: ")
    assert "did you mean 'epochs'?" in outcome.stderr
    assert len(outcome.stderr.splitlines()) == 1


def test_help_imports_nothing_heavy():
    code = (
        "import sys, mmfuse.trainer.cli as cli\n"
        "try: cli.app(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'polars', 'transformers', 'numpy', 'pyarrow', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_killed_process_leaves_an_unfinished_folder_that_the_next_run_takes(finished):
    out = finished.folder / "b"
    main = "from mmfuse.trainer.cli import main; main()"
    command = [sys.executable, "-c", main, "run", str(finished.config), "--out", str(out)]
    with subprocess.Popen([*command, "--set", "train.epochs=100000", "--quiet"]) as process:
        deadline = time.monotonic() + 60
        while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").stat().st_size:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    assert not (out / "result.json").exists()
    train(finished.config, (), out)
    assert read(out)["epochs"] == 2


def test_ctrl_c_without_anything_to_keep_exits_130(finished, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "evaluate", stop)
    out = finished.folder / "b"
    outcome = CliRunner().invoke(app, ["run", str(finished.config), "--out", str(out)])
    assert outcome.exit_code == 130
    assert "interrupted; to go on, give the same command again" in outcome.stderr
    assert not (out / "result.json").exists()
