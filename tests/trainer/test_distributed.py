"""Two processes of torchrun are one with twice the batch, and only the first one writes."""

import inspect
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmfuse.trainer import distributed, optim, state
from mmfuse.trainer.run import train


def descent(model, config):
    """In the place of Adam, which makes a step of a gradient that is nothing but rounding."""
    groups = optim.parameter_groups(model, 0.0)
    for group in groups:
        group |= {"peak": config.lr, "schedule": "cosine", "begins": 0}
    return torch.optim.SGD(groups, lr=config.lr)


MAIN = f"""
import torch
from mmfuse.trainer import optim, state
from mmfuse.trainer.cli import main
{inspect.getsource(descent)}
state.build_optimizer = descent
main()
"""
STILL = (
    *(f"model.{name}.dropout=0" for name in ("text_encoder", "audio_encoder", "midi_encoder")),
    "model.fusion.dropout=0", "model.text_encoder.token_dropout=0",
    "model.midi_encoder.transpose=0", "model.midi_encoder.token_dropout=0",
    "model.audio_encoder.mask_bands=0", "model.audio_encoder.mask_frames=0",
    "train.lr=0.2", "eval.bootstrap=100", "eval.subsets=false", "train.modality_dropout=0.3",
)  # fmt: skip


def run(planted, out, processes, *overrides):
    """Train in so many processes; what the command printed."""
    start = [
        sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}",
        "--standalone", "--no-python", sys.executable, "-c", MAIN,
    ]  # fmt: skip
    command = [*start, "run", str(planted.config), "--out", str(out), "--json"]
    for override in (*STILL, *overrides):
        command += ["--set", override]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "options",
    [
        ("train.accumulate=2", "train.balance=ogm_ge", "train.ema=0.9"),
        pytest.param(("train.balance=mmpareto", "train.refit=true"), marks=pytest.mark.slow),
        pytest.param(("train.balance=gradient_blending",), marks=pytest.mark.slow),
    ],
)
def test_two_processes_equal_one_with_twice_the_batch(plant, monkeypatch, options):
    # 42 = 32 + 10: in the last window one process has less than the other, or nothing
    planted = plant(missing=0.3, counts=(42, 16, 20), epochs=2)
    one, two = planted.folder / "one", planted.folder / "two"
    monkeypatch.setattr(state, "build_optimizer", descent)
    train(planted.config, (*STILL, *options, "train.batch_size=16"), one)
    printed = run(planted, two, 2, *options, "train.batch_size=8")
    assert len(printed.splitlines()) == 1, "one process speaks"
    result = json.loads(printed)
    expected, found = (load_file(out / "model.safetensors") for out in (one, two))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6, msg=name)
    records = [
        [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        for out in (one, two)
    ]
    assert (
        result["steps"] == records[0][-1]["step"] == 2 * -(-42 // (32 if len(options) == 3 else 16))
    )
    for first, second in zip(*records, strict=True):
        assert first == pytest.approx(second, rel=1e-3, abs=1e-5)


def test_one_process_alone_adds_nothing(plant):
    assert distributed.size() == 1 and distributed.rank() == 0
    tensor = torch.arange(3.0)
    distributed.add([tensor])
    assert distributed.from_first(tensor) is tensor and tensor.tolist() == [0, 1, 2]
    assert distributed.told({"a": np.pi}) == {"a": np.pi}


@pytest.mark.slow
def test_processes_go_on_after_a_kill_to_the_same_bits(plant, monkeypatch):
    planted = plant(counts=(64, 16, 20), epochs=3)
    options = ("train.checkpoint_s=0", "model.fusion.dropout=0.3", "train.batch_size=8")
    whole, again = planted.folder / "whole", planted.folder / "again"
    run(planted, whole, 2, *options)
    dying = MAIN.replace(
        "main()\n",
        "from mmfuse.trainer.checkpoint import Checkpoints\n"
        "import os, signal\n"
        "save = Checkpoints.save\n"
        "def killed(self, step, *rest):\n"
        "    save(self, step, *rest)\n"
        "    if step == 6: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Checkpoints.save = killed\n"
        "main()\n",
    )
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[__name__], "MAIN", dying)
        with pytest.raises(AssertionError):
            run(planted, again, 2, *options)
    assert json.loads(run(planted, again, 2, *options))["resumed_at"] == 6
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (again / name).read_bytes() == (whole / name).read_bytes()
