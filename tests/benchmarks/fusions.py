"""What each fusion costs: parameters, and CPU milliseconds of a training step of it alone.

    python tests/benchmarks/fusions.py [--clips 32] [--rounds 40] [--threads 1] [--json]

The fusion, as its configuration in configs/ has it, with a linear head of eight classes, reads
streams made here: 64 wide, of 64 text, 64 audio and 64 MIDI steps, every tenth modality missing. A
step is forward, backward and AdamW. All fusions take turns in one process, a step that warms up and
one that is timed, in seconds of the processor (of all threads), which other programs on the machine
change little; the least of all rounds counts.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmfuse.trainer.config import load_run_config
from mmfuse.trainer.fusion import build_fusion
from mmfuse.trainer.layers import Encoded

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FUSIONS = {
    "late, sum only": ("late", ("model.fusion.interaction=false",)),
    "late": ("late", ()),
    "gated, softmax": ("gated", ()),
    "gated, gmu": ("gated", ('model.fusion.gate="gmu"',)),
    "low_rank": ("low_rank", ()),
    "early": ("early", ()),
    "cross_modal": ("cross_modal", ()),
    "bottleneck": ("bottleneck", ()),
}
NAMES, WIDTH, STEPS, CLASSES = ("text", "audio", "midi"), 64, 64, 8


def batch(clips: int) -> tuple[dict[str, Encoded], torch.Tensor, torch.Tensor]:
    """Streams, presence and labels."""
    torch.manual_seed(0)
    streams = {}
    for name in NAMES:
        lengths = torch.randint(STEPS // 2, STEPS + 1, (clips, 1))
        streams[name] = Encoded(
            torch.randn(clips, STEPS, WIDTH),
            torch.arange(STEPS) < lengths,
            torch.randn(clips, WIDTH),
            torch.arange(STEPS).expand(clips, -1) * 0.16,
        )
    return streams, torch.rand(clips, len(NAMES)) >= 0.1, torch.randint(CLASSES, (clips,))


def step_of(name: str, clips: int) -> tuple[Callable[[], None], int]:
    """A function that takes one training step, and how many parameters the fusion has."""
    file, overrides = FUSIONS[name]
    config = load_run_config(CONFIGS / f"{file}.toml", overrides)
    torch.manual_seed(0)
    fusion = build_fusion(config.model.fusion, dict.fromkeys(NAMES, WIDTH))
    head = nn.Linear(fusion.out_dim, CLASSES)
    optimizer = torch.optim.AdamW([*fusion.parameters(), *head.parameters()], foreach=True)
    streams, present_BM, label_B = batch(clips)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(head(fusion(streams, present_BM)), label_B)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step, sum(p.numel() for p in fusion.parameters())


def measure(clips: int, rounds: int) -> dict[str, Any]:
    """Parameters and least CPU milliseconds by fusion."""
    steps = {name: step_of(name, clips) for name in FUSIONS}
    seconds: dict[str, list[float]] = {name: [] for name in FUSIONS}
    for _ in range(rounds):
        for name, (step, _) in steps.items():
            step()
            began = time.process_time()
            step()
            seconds[name].append(time.process_time() - began)
    return {
        name: {
            "parameters": steps[name][1],
            "ms": round(1000 * min(seconds[name]), 2),
        }
        for name in FUSIONS
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measure(options.clips, options.rounds)
    if options.json:
        machine = {"torch": torch.__version__, "machine": platform.machine()}
        print(json.dumps({"clips": options.clips, "fusions": found, **machine}))
        return
    print(f"{options.clips} clips a step, threads: {options.threads}, torch {torch.__version__}")
    print(f"{'fusion':16}{'parameters':>12}{'CPU ms a step':>16}")
    for name, of in found.items():
        print(f"{name:16}{of['parameters']:12}{of['ms']:16.2f}")


if __name__ == "__main__":
    main()
