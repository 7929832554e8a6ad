"""Where models run: the processor, an NVIDIA card, or Apple's.

Nothing here changes what a stream is. What does (precision, backend, threads) belongs to its spec.
"""

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from mmfuse.features.encoders import Compute
from mmfuse.features.errors import ConfigError

_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA; WSL; AMD
_BATCH = 16  # windows that go to a card together


def choose(device: str, batch: int | None = None, said: str = "--device") -> Compute:
    """What `--device` and `--batch` ask for; `said` is where it was typed, for messages.

    `auto` is a card that torch can use, else the processor; torch is not even imported where the
    machine has no driver for one.

    Raises:
        ConfigError: no such kind of device, or none of it here.
    """
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (number and not number.isdigit()):
        raise ConfigError(f"{said} {device!r}; choose auto, cpu, cuda, cuda:1 or mps")
    found = "cpu"
    if kind != "cpu" and (kind != "auto" or _driver()):
        found = _available(device, said)
    return Compute(found, batch or (1 if found == "cpu" else _BATCH))


def exact_sums() -> None:
    """Let cards multiply single precision as such; some shorten it to ten bits unasked."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def precision(device: str, name: str) -> AbstractContextManager[Any]:
    """The context in which a model computes: `float32`, or `bfloat16` or `float16` by autocast."""
    import torch

    if name == "float32":
        return nullcontext()
    return torch.autocast(device.partition(":")[0], dtype=getattr(torch, name))


def _driver() -> bool:
    return sys.platform == "darwin" or any(Path(path).exists() for path in _DRIVERS)


def _available(device: str, said: str) -> str:
    import torch

    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    kind, _, number = device.partition(":")
    if kind == "auto":
        return "cuda" if cards else "mps" if mps else "cpu"
    if (kind == "cuda" and int(number or 0) < cards) or (kind == "mps" and mps):
        return device
    there = [*(f"cuda:{card}" for card in range(cards)), *(["mps"] if mps else []), "cpu"]
    raise ConfigError(
        f"{said} {device}: torch {torch.__version__} finds no such device here; it finds "
        f"{', '.join(there)}"
    )
