"""Where a model trains and is asked: `train.device`, and the way of batches and draws there.

Shapes: as in `batch.py`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mmfuse.features import devices
from mmfuse.features.errors import ConfigError

CPU = torch.device("cpu")
_SHARE = 0.6  # of a card's free memory that streams may take


def chosen(name: str, precision: str = "float32") -> torch.device:
    """The device that `train.device` names; of several processes of torchrun, each its own card.

    Raises:
        ConfigError: it is not here, or can't compute in that precision.
    """
    found = devices.choose(name, said="train.device").device
    if found == "cuda":
        found = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if precision == "float16" and not found.startswith("cuda"):
        raise ConfigError(
            f'train.precision = "float16" needs an NVIDIA card, and train.device is {found}; '
            'take "bfloat16" or "float32"'
        )
    if found.startswith("cuda"):
        devices.exact_sums()
    return torch.device(found)


def usable(name: str) -> torch.device:
    """For a model that was trained on some device: the processor if it was, else what is here."""
    return chosen("cpu" if name == "cpu" else "auto")


def room(device: torch.device) -> int:
    """Bytes that streams may take on a device beside a model; 0 but on NVIDIA's cards."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return int(_SHARE * free)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor there; to a card by way of pinned memory, without waiting."""
    if tensor.device == device:
        return tensor
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@contextmanager
def draws_kept(device: torch.device) -> Iterator[None]:
    """Leave torch's generators, of the processor and of a card, as they were."""
    cards = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cards):
        yield


def draws(device: torch.device) -> dict[str, Tensor]:
    """States of the generators that training draws from, by device type."""
    found = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        found["mps"] = torch.mps.get_rng_state()
    return found


def set_draws(states: dict[str, Tensor], device: torch.device) -> None:
    """Go on drawing from there."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])
