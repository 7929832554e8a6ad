"""A run killed at any moment goes on to the same bits, and no work is thrown away unasked."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mmfuse.features.errors import ConfigError
from mmfuse.trainer.checkpoint import Checkpoints
from mmfuse.trainer.run import train

SAME = ("model.safetensors", "predictions.parquet", "metrics.jsonl", "resolved.toml")
OPTIONS = ("train.checkpoint_s=0", "train.epochs=4", "train.ema=0.9", "train.crop_s=0.4",
           "train.accumulate=2", "train.batch_size=8", "eval.subsets=false",
           "eval.bootstrap=100")  # fmt: skip


@pytest.fixture
def planted(plant):
    return plant(missing=0.3, counts=(60, 16, 20))


@pytest.fixture
def whole(planted):
    """Files of a run in one piece, by name."""
    out = planted.folder / "whole"
    train(planted.config, OPTIONS, out)
    assert not (out / "checkpoint").exists()
    return {name: (out / name).read_bytes() for name in SAME}


def steps_in(out):
    return [int(path.stem.partition("-")[2]) for path in (out / "checkpoint").glob("step-*.json")]


def killed_at(planted, out, rng, upto=30):
    """Start a run in a process of its own, kill it after a random step; whether it was killed."""
    target = max(steps_in(out), default=0) + int(rng.integers(1, upto))
    main = "from mmfuse.trainer.cli import main; main()"
    command = [sys.executable, "-c", main, "run", str(planted.config), "--out", str(out), "--quiet"]
    for option in OPTIONS:
        command += ["--set", option]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        while process.poll() is None and max(steps_in(out), default=0) < target:
            time.sleep(0.002)
        time.sleep(float(rng.random()) * 0.03)
        process.send_signal(signal.SIGKILL)
        assert process.stderr.read() == b""
    return process.returncode == -signal.SIGKILL


def resumed(planted, out, whole):
    """The same run brought to its end in this process; its result. All of its files are checked."""
    warnings = []
    result = train(planted.config, OPTIONS, out, warn=warnings.append)
    for name, expected in whole.items():
        assert (out / name).read_bytes() == expected, name
    assert not (out / "checkpoint").exists()
    return result, warnings


def test_kill_9_at_a_random_step_changes_nothing(planted, whole):
    rng, out = np.random.default_rng(), planted.folder / "killed"
    assert killed_at(planted, out, rng, upto=8)
    before = max(steps_in(out))
    assert killed_at(planted, out, rng, upto=8)
    assert max(steps_in(out)) > before
    result, warnings = resumed(planted, out, whole)
    assert result["resumed_at"] > before and warnings == []


@pytest.mark.slow
def test_kill_9_again_and_again_changes_nothing(planted, whole):
    rng = np.random.default_rng()
    for attempt in range(5):
        out, kills = planted.folder / f"killed-{attempt}", 0
        while killed_at(planted, out, rng, upto=6):
            kills += 1
        assert kills >= 3
        for name, expected in whole.items():
            assert (out / name).read_bytes() == expected, name


def stopped(planted, out, monkeypatch, saves):
    """A run that dies after so many checkpoints."""
    save = Checkpoints.save

    def dying(self, step, *rest):
        save(self, step, *rest)
        if step == saves:
            raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", dying)
        with pytest.raises(MemoryError):
            train(planted.config, OPTIONS, out)
    assert sorted(steps_in(out)) == [saves - 1, saves]


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def turn_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("suffix", "harm"),
    [
        ("safetensors", cut),
        ("safetensors", Path.unlink),
        ("json", turn_a_bit),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("safetensors", turn_a_bit), ("json", cut), ("json", Path.unlink))
        ),
    ],
)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    planted, whole, monkeypatch, suffix, harm
):
    out = planted.folder / "a"
    stopped(planted, out, monkeypatch, 12)
    harm(out / "checkpoint" / f"step-000000012.{suffix}")
    result, warnings = resumed(planted, out, whole)
    assert result["resumed_at"] == 11
    if (suffix, harm) != ("json", Path.unlink):  # then it was never written
        assert len(warnings) == 1 and "step-000000012" in warnings[0]
        assert "looking for an earlier checkpoint" in warnings[0]


def test_where_no_checkpoint_is_whole_the_run_begins_anew_and_says_so(planted, whole, monkeypatch):
    out = planted.folder / "a"
    stopped(planted, out, monkeypatch, 12)
    for path in (out / "checkpoint").glob("*.safetensors"):
        cut(path)
    result, warnings = resumed(planted, out, whole)
    assert result["resumed_at"] == 0
    assert "is whole; the run begins anew" in warnings[-1]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("train.lr=0.001", "train.lr = 0.005, and this one has 0.001"),
        ("train.epochs=5", "train.epochs = 4, and this one has 5"),
        ("model.fusion.hidden_dim=32", "model.fusion.hidden_dim = 16, and this one has 32"),
        ("preprocessing.text.vocab_size=300", None),  # the same as before
        ("eval.bootstrap=300", None),  # of no matter to training
        ("train.checkpoint_s=5", None),
    ],
)
def test_only_the_same_run_goes_on(planted, monkeypatch, change, named):
    out = planted.folder / "a"
    stopped(planted, out, monkeypatch, 5)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    options = (*OPTIONS, change)
    if named is None:
        assert train(planted.config, options, out)["resumed_at"] == 5
        return
    with pytest.raises(ConfigError, match=rf"holds an unfinished run with {named}; .*--overwrite"):
        train(planted.config, options, out)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert train(planted.config, options, out, overwrite=True)["resumed_at"] == 0


def test_other_labels_are_another_run(planted, monkeypatch):
    out, manifest = planted.folder / "a", planted.folder / "manifest.jsonl"
    stopped(planted, out, monkeypatch, 5)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[0]["label"] = rows[1]["label"] if rows[0]["label"] != rows[1]["label"] else "11"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ConfigError, match=r"unfinished run with data.clips = \w{64}, and"):
        train(planted.config, OPTIONS, out)


def test_checkpoints_are_taken_by_time_and_take_2_percent_at_most(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("mmfuse.trainer.checkpoint.time.monotonic", lambda: now[0])
    sync = os.fsync

    def slow(descriptor):
        now[0] += 1.0
        sync(descriptor)

    checkpoints = Checkpoints(tmp_path, {}, 30.0, print)
    now[0] = 29.9
    assert not checkpoints.due()
    now[0] = 30.0
    assert checkpoints.due()
    monkeypatch.setattr("mmfuse.features.layout.os.fsync", slow)
    checkpoints.save(1, {}, {})
    took = now[0] - 30.0
    assert took >= 2
    now[0] = 30.0 + took + 50 * took - 0.1
    assert not checkpoints.due()
    now[0] += 0.1
    assert checkpoints.due()
