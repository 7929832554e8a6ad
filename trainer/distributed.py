"""Several processes of `torchrun` that train one model, each on its share of every window.

Gradients of the shares are added, so they are those of one process that has the whole window:
`batch_size` clips times the number of processes, times `accumulate`. Without torchrun all of this
does nothing. Nothing is pickled on the way.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def size() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process; 0 is the one that validates, writes and speaks."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Meet the other processes, where torchrun started some; cards talk by NCCL."""
    if size() == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def meet() -> None:
    """Wait until every process is here."""
    if size() > 1:
        dist.barrier()


def reseed(seed: int, step: int) -> None:
    """Let processes but the first draw numbers of their own, as a function of the step."""
    if rank():
        torch.manual_seed(((seed * 1_000_003 + step) * 4096 + rank()) % 2**63)


def add(tensors: Sequence[Tensor]) -> None:
    """Add up tensors over processes, in place, in one message."""
    if size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    first = 0
    for tensor in tensors:
        tensor.copy_(flat[first : first + tensor.numel()].view_as(tensor))
        first += tensor.numel()


def add_gradients(model: nn.Module) -> None:
    """Add up gradients; what has none in any process keeps none."""
    if size() == 1:
        return
    parameters = [p for p in model.parameters() if p.requires_grad]
    there_P = torch.tensor([float(p.grad is not None) for p in parameters])
    add([there_P])
    moved = [p for p, there in zip(parameters, there_P.tolist(), strict=True) if there]
    for parameter in moved:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    add([parameter.grad for parameter in moved if parameter.grad is not None])


def from_first(tensor: Tensor) -> Tensor:
    """What the first process has."""
    if size() > 1:
        message = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor.clone()
        dist.broadcast(message, 0)
        return message.to(tensor.dtype)
    return tensor


def told(document: dict[str, Any]) -> dict[str, Any]:
    """The first process's document, by way of JSON."""
    if size() == 1:
        return document
    raw = json.dumps(document).encode()
    length = from_first(torch.tensor([len(raw)]))
    message = torch.zeros(int(length), dtype=torch.uint8)
    if not rank():
        message = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    found: dict[str, Any] = json.loads(bytes(from_first(message).tolist()))
    return found
