"""A sweep that is killed goes on to the same bits, and takes nothing else for itself."""

import signal
import subprocess
import sys
import time

import pytest

from mmfuse.features.errors import ConfigError, LockedError
from mmfuse.features.lock import held
from mmfuse.trainer import recorded
from mmfuse.trainer import sweep as sweep_module
from mmfuse.trainer.folder import read_result
from mmfuse.trainer.stacked import FORM
from mmfuse.trainer.sweep import sweep

SAME = ("model.safetensors", "predictions.parquet", "metrics.jsonl", "resolved.toml")
GRID = ("train.patience=1,9",)  # the first ones stop early
OPTIONS = ("train.checkpoint_s=0", "train.epochs=5", "train.ema=0.9", "train.crop_s=0.4",
           "eval.subsets=false", "eval.bootstrap=100")  # fmt: skip


@pytest.fixture
def planted(plant):
    return plant(modalities=("text", "midi"), missing=0.3, counts=(40, 16, 20))


def swept(planted, out, options=OPTIONS, **more):
    return sweep(planted.config, options, 2, GRID, out, **more)


def files(out):
    """What a sweep left, by path."""
    found = {path.relative_to(out): path for path in out.rglob("*") if path.name in SAME}
    return {str(name): path.read_bytes() for name, path in found.items()}


def epochs_behind(out):
    return len(list((out / "checkpoint").glob("step-*.json")))


@pytest.fixture
def whole(planted, monkeypatch):
    """Files of a sweep in one piece, with most steps as they were written down."""
    with monkeypatch.context() as patch:
        patch.setattr(recorded, "AFTER", 0)
        found = swept(planted, planted.folder / "whole")
    assert found["stacked"] == 4, found["queued"]
    assert not (planted.folder / "whole" / "checkpoint").exists()
    epochs = {read_result(planted.folder / "whole" / run)["epochs"] for run in runs(found)}
    assert len(epochs) > 1, "some stopped early"
    return files(planted.folder / "whole")


def runs(found):
    return [run["run"].rpartition("/")[2] for run in found["runs"]]


def test_kill_9_changes_nothing(planted, whole):
    out = planted.folder / "killed"
    main = "from mmfuse.trainer.cli import main; main()"
    line = [sys.executable, "-c", main, "sweep", str(planted.config), "--seeds", "2", "--quiet"]
    line += ["--grid", GRID[0], "--out", str(out)]
    for option in OPTIONS:
        line += ["--set", option]
    with subprocess.Popen(line, stderr=subprocess.PIPE) as process:
        while process.poll() is None and epochs_behind(out) < 2:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.stderr.read() == b""
    assert process.returncode == -signal.SIGKILL
    assert files(out) == {}, "nothing is finished before all are trained"
    found = swept(planted, out)
    assert files(out) == whole
    assert all(read_result(out / run)["resumed_at"] > 0 for run in runs(found))
    assert not (out / "checkpoint").exists()


def test_runs_that_were_finished_before_the_kill_are_kept(planted, whole, monkeypatch):
    out, conclude = planted.folder / "killed", sweep_module.conclude

    def dying(run, *rest):
        if run.path.name == "patience=9,seed=0":
            raise MemoryError
        return conclude(run, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(sweep_module, "conclude", dying)
        with pytest.raises(MemoryError):
            swept(planted, out)
    before = {path: path.stat().st_mtime_ns for path in out.glob("patience=1*/result.json")}
    assert len(before) == 2
    found = swept(planted, out)
    assert found["kept"] == 2 and files(out) == whole
    assert before == {path: path.stat().st_mtime_ns for path in before}
    last = read_result(out / "patience=9,seed=1")
    assert last["resumed_at"] > 0, "nothing was trained again"


@pytest.fixture
def unfinished(planted, monkeypatch):
    """Folder of a sweep that died after its second epoch."""
    out, save = planted.folder / "unfinished", sweep_module.checkpoint.Checkpoints.save

    def dying(self, step, *rest):
        save(self, step, *rest)
        if epochs_behind(out) == 2:
            raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(sweep_module.checkpoint.Checkpoints, "save", dying)
        with pytest.raises(MemoryError):
            swept(planted, out)
    return out


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("train.epochs=7", "train.epochs = 5, and this one has 7"),
        ("model.fusion.dropout=0.3", "runs.patience=1,seed=0.fusion.dropout = 0.2, and this"),
        ("train.lr=0.1", "runs.patience=1,seed=0.lr = 0.005, and this one has 0.1"),
    ],
)
def test_another_sweep_does_not_take_the_place_of_an_unfinished_one(
    planted, unfinished, change, named
):
    before = {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=f"holds an unfinished sweep with {named}.*--out DIR"):
        swept(planted, unfinished, (*OPTIONS, change))
    assert before == {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()}


def test_a_checkpoint_of_another_form_is_not_taken(planted, unfinished, monkeypatch):
    before = files(unfinished)
    monkeypatch.setattr(sweep_module, "FORM", FORM + 1)
    with pytest.raises(ConfigError, match=f"form = {FORM}, and this one has {FORM + 1}"):
        swept(planted, unfinished)
    assert before == files(unfinished) and epochs_behind(unfinished) == 2


def test_a_damaged_checkpoint_gives_way_to_the_one_before(planted, unfinished, whole):
    newest = max((unfinished / "checkpoint").glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])
    told = []
    swept(planted, unfinished, warn=told.append)
    assert files(unfinished) == whole
    assert len(told) == 1 and "looking for an earlier checkpoint" in told[0]


def test_two_sweeps_do_not_share_a_folder(planted):
    out = planted.folder / "taken"
    out.mkdir()
    with held(out / "sweep.lock", "taken"), pytest.raises(LockedError, match="another process"):
        swept(planted, out)
