"""Loggers hear what metrics.jsonl and result.json say; one that fails takes no run with it."""

import json
import os
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from mmfuse.features.errors import ConfigError, MissingError
from mmfuse.trainer.cli import app
from mmfuse.trainer.event_file import PREFIX, EventFile
from mmfuse.trainer.loggers import tag_of
from mmfuse.trainer.run import train
from mmfuse.trainer.sweep import sweep

FAST = ("train.epochs=3", "eval.bootstrap=100", "eval.subsets=false")


@pytest.fixture
def planted(plant):
    return plant(counts=(40, 16, 20))


def events_of(folder):
    """Scalars and texts of a run, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = folder.glob(f"{PREFIX}*")
    found = EventAccumulator(str(file), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    scalars = {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }
    texts = {
        tag: found.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag in found.Tags()["tensors"]
    }
    return scalars, texts


def records_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def check_events(folder):
    scalars, texts = events_of(folder)
    records, result = records_of(folder), json.loads((folder / "result.json").read_text())
    for key in records[0]:
        if key != "step":
            wanted = [(record["step"], record[key]) for record in records]
            for (step, value), (told_step, told) in zip(wanted, scalars[tag_of(key)], strict=True):
                assert step == told_step
                assert told == pytest.approx(value, rel=1e-6, abs=1e-30)
    ((step, value),) = scalars["best/test/macro_f1"]
    assert (step, value) == (result["steps"], pytest.approx(result["test"]["macro_f1"]))
    toml = (folder / "resolved.toml").read_text()
    assert texts["configuration"] == f"```toml\n{toml}```"
    return scalars


def test_tensorboard_reads_what_metrics_say(planted):
    out = planted.folder / "run"
    train(planted.config, FAST, out)
    scalars = check_events(out)
    assert {"train/loss", "train/lr", "val/macro_f1", "grad_norm/text"} <= scalars.keys()
    assert all(len(values) == 3 for tag, values in scalars.items() if "best" not in tag)
    train(planted.config, FAST, out, overwrite=True)
    check_events(out)


def test_a_run_that_goes_on_has_one_file_with_all_epochs(planted, monkeypatch):
    out = planted.folder / "run"
    seen = []

    def dies(config, record):
        seen.append(record["epoch"])
        if len(seen) == 2:
            raise OSError("pulled the plug")

    options = (*FAST, "train.checkpoint_s=0")
    with pytest.raises(OSError, match="plug"):
        train(planted.config, options, out, report=dies)
    assert len(events_of(out)[0]["val/macro_f1"]) == 2
    # who is told is no part of what is trained: the run goes on with another list
    assert train(planted.config, (*options, "train.log=[]"), out)["resumed_at"]
    assert not list(out.glob(f"{PREFIX}*"))
    with pytest.raises(OSError, match="plug"):
        seen.clear()
        train(planted.config, options, out, report=dies, overwrite=True)
    assert train(planted.config, options, out)["resumed_at"]
    check_events(out)


def test_every_run_of_a_sweep_is_told(planted):
    sweep(planted.config, (*FAST, "train.crop_s=0"), seeds=2, grid=(), out=planted.folder / "sweep")
    for seed in (0, 1):
        check_events(planted.folder / "sweep" / f"seed={seed}")


def test_long_tags_and_texts_and_large_steps_are_read(tmp_path):
    file = EventFile(tmp_path)
    file.text("configuration", "é" * 40_000)
    file.scalars({"a/" + "b" * 300: -1.5, "z": float("inf")}, 2**40)
    file.close()
    scalars, texts = events_of(tmp_path)
    assert texts == {"configuration": "é" * 40_000}
    assert scalars == {"a/" + "b" * 300: [(2**40, -1.5)], "z": [(2**40, float("inf"))]}


PLUGIN = """
import json

class Lines:
    def __init__(self, folder, config):
        self.file = (folder.parent / "lines.txt").open("a")
        print("begin", config.name, file=self.file)

    def numbers(self, values, step):
        print(step, sorted(values)[0], file=self.file, flush=True)

    def close(self, *, finished):
        print("finished" if finished else "left", file=self.file)
        self.file.close()

class Broken(Lines):
    def numbers(self, values, step):
        raise RuntimeError("no network")

def never(folder, config):
    raise RuntimeError("no key; log in")
"""


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """An installed package with three loggers, and one that is not whole."""
    place = tmp_path / "site"
    (place / "lines_logger-1.0.dist-info").mkdir(parents=True)
    (place / "lines_logger.py").write_text(PLUGIN)
    (place / "lines_logger-1.0.dist-info" / "METADATA").write_text("Name: lines-logger\n")
    (place / "lines_logger-1.0.dist-info" / "entry_points.txt").write_text(
        "[mmfuse.loggers]\nlines = lines_logger:Lines\nbroken = lines_logger:Broken\n"
        "never = lines_logger:never\nabsent = lines_logger:Absent\n"
    )
    monkeypatch.syspath_prepend(str(place))


def test_an_installed_package_adds_a_logger(planted, plugins):
    train(planted.config, (*FAST, 'train.log=["lines", "tensorboard"]'), planted.folder / "run")
    lines = (planted.folder / "lines.txt").read_text().splitlines()
    steps = [str(record["step"]) for record in records_of(planted.folder / "run")]
    assert [line.split()[0] for line in lines] == ["begin", *steps, steps[-1], "finished"]
    check_events(planted.folder / "run")


def test_a_logger_that_fails_says_so_once_and_the_run_goes_on(planted, plugins):
    warnings = []
    options = (*FAST, 'train.log=["broken", "tensorboard"]')
    train(planted.config, options, planted.folder / "run", warn=warnings.append)
    assert warnings == ["the logger 'broken' fails and is told no more: no network"]
    assert (planted.folder / "lines.txt").read_text().splitlines()[1:] == ["left"]
    check_events(planted.folder / "run")


@pytest.mark.parametrize(
    ("names", "kind", "message"),
    [
        ('["tensorbord"]', ConfigError, "train.log names 'tensorbord'; choose from: tensorboard, "),
        ('["absent"]', MissingError, "the logger 'absent' of lines_logger:Absent can't be loaded"),
        ('["never"]', ConfigError, "the logger 'never' can't begin: no key; log in; mend it, or"),
    ],
)
def test_a_logger_that_can_not_be_had_is_one_line(planted, plugins, names, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        train(planted.config, (*FAST, f"train.log={names}"), planted.folder / "run")
    assert not (planted.folder / "run" / "result.json").exists()
    train(planted.config, FAST, planted.folder / "run")  # and the folder is free


def test_a_package_that_is_not_there_is_one_line_with_what_to_type(planted, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    command = ["run", str(planted.config), "--set", 'train.log=["wandb"]', "--out", "x"]
    outcome = CliRunner().invoke(app, command)
    assert outcome.exit_code == 6
    assert "pip install 'mmfuse[wandb]'" in outcome.stderr


def test_a_run_loads_nothing_of_loggers_that_are_not_asked_for(planted):
    code = """
import sys
from pathlib import Path
from mmfuse.trainer.run import train
train(Path(sys.argv[1]), sys.argv[3:], Path(sys.argv[2]))
heavy = ("tensorboard", "tensorflow", "wandb", "mlflow", "google.protobuf")
print([name for name in heavy if name in sys.modules])
"""
    command = [sys.executable, "-c", code, planted.config, planted.folder / "run", *FAST]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_weights_and_biases_hears_a_run_offline(planted, monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    code = """
import sys
from pathlib import Path
from mmfuse.trainer.run import train
train(Path(sys.argv[1]), sys.argv[3:], Path(sys.argv[2]))
"""
    out = planted.folder / "run"
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
    command = [sys.executable, "-c", code, planted.config, out, *FAST, 'train.log=["wandb"]']
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    for record in records_of(out):
        assert str(record["val_macro_f1"]).encode() in file.read_bytes()
    assert b"best/test/macro_f1" in file.read_bytes()


def test_mlflow_hears_a_run(planted, tmp_path):
    pytest.importorskip("mlflow")
    code = """
import json, sys
from pathlib import Path
from mmfuse.trainer.run import train
train(Path(sys.argv[1]), sys.argv[3:], Path(sys.argv[2]))
import mlflow
client = mlflow.MlflowClient()
(run,) = client.search_runs([client.get_experiment_by_name("mmfuse").experiment_id])
points = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "val/macro_f1")]
print(json.dumps([run.info.status, run.data.params["train.epochs"], points]))
"""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": (tmp_path / "ml").as_uri(),
                   "MLFLOW_ALLOW_FILE_STORE": "true"}  # fmt: skip
    out = planted.folder / "run"
    command = [sys.executable, "-c", code, planted.config, out, *FAST, 'train.log=["mlflow"]']
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    points = [[record["step"], record["val_macro_f1"]] for record in records_of(out)]
    assert json.loads(done.stdout.splitlines()[-1]) == ["FINISHED", "3", points]
