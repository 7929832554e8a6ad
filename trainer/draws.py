"""Random numbers of a forward pass taken out of it, so that stacked models each have their own.

A pass is run once to see which numbers it draws (`Recorder`); the same numbers are drawn from each
model's own generator, in the same order (`draw`); then a pass over all models takes them as input
(`Replay`). What a model draws is therefore what it would have drawn alone.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mmfuse.trainer.twister import dropouts

_DROPOUTS = {F.dropout: 0, F.dropout1d: 1, F.dropout2d: 2}  # last dimensions with one number
_SOURCES = {torch.rand, torch.randint}


@dataclass(frozen=True, slots=True)
class Request:
    """One call that draws: of a dropout, the shape of its numbers, and strides if not plain."""

    source: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    p: float = 0.0
    strides: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32


def _request(dropout: Callable[..., Tensor], x: Tensor, p: float) -> Request:
    whole = _DROPOUTS[dropout]
    if whole:
        return Request(dropout, (*x.shape[:-whole], *[1] * whole), p, dtype=x.dtype)
    noise = torch.empty_like(x)
    strides = () if noise.is_contiguous() else noise.stride()
    return Request(dropout, tuple(x.shape), p, strides, x.dtype)


class Recorder(TorchFunctionMode):
    """Notes what is drawn; dropouts do nothing meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Every call of torch passes here."""
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            if kwargs["training"]:
                self.requests.append(_request(func, args[0], kwargs["p"]))
            return args[0]
        if func in _SOURCES:
            self.requests.append(Request(func, args))
        return func(*args, **kwargs)


class Replay(TorchFunctionMode):
    """Gives what was drawn before, call by call."""

    def __init__(self, drawn: Iterable[Tensor]) -> None:
        super().__init__()
        self._drawn = iter(drawn)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Every call of torch passes here."""
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            return args[0] * next(self._drawn) if kwargs["training"] else args[0]
        if func in _SOURCES:
            return next(self._drawn)
        return func(*args, **kwargs)


def draw(
    requests_K: Sequence[Sequence[Request]], generators_K: Sequence[torch.Generator]
) -> list[Tensor]:
    """What these calls of each model draw from its generator now, (K, ...) a call.

    Of a dropout, what it multiplies by. Smaller models are filled up, where nothing reads.
    """
    drawn: list[Tensor] = []
    for alike, calls in groupby(zip(*requests_K, strict=True), _alike):
        if alike:
            drawn += _dropouts(list(calls), generators_K)
        else:
            drawn += [_drawn(parts, generators_K) for parts in calls]
    return drawn


def _alike(parts: Sequence[Request]) -> bool:
    """Whether it is a dropout of plain arrays of the same shape."""
    one = parts[0]
    shapes = {(each.arguments, each.strides) for each in parts}
    return one.source in _DROPOUTS and shapes == {(one.arguments, ())}


def _dropouts(
    calls: Sequence[Sequence[Request]], generators: Sequence[torch.Generator]
) -> list[Tensor]:
    rooms = [torch.empty(len(of), *of[0].arguments, dtype=of[0].dtype) for of in calls]
    return dropouts(rooms, [[1 - each.p for each in of] for of in calls], generators)


def _drawn(parts: Sequence[Request], generators: Sequence[torch.Generator]) -> Tensor:
    both = list(zip(parts, generators, strict=True))
    if parts[0].source in _SOURCES:
        return _together([each.source(*each.arguments, generator=g) for each, g in both])
    return _together([_alone(*each) for each in both])


def _alone(one: Request, generator: torch.Generator) -> Tensor:
    if not one.strides:
        return _dropouts([[one]], [generator])[0][0]
    room = torch.empty_strided(one.arguments, one.strides, dtype=one.dtype)
    if not one.p:
        return room.fill_(1)
    return room.bernoulli_(1 - one.p, generator=generator).div_(1 - one.p)


def _together(parts: Sequence[Tensor]) -> Tensor:
    shape = [max(sizes) for sizes in zip(*(part.shape for part in parts), strict=True)]
    whole = torch.ones(len(parts), *shape, dtype=parts[0].dtype)
    for k, part in enumerate(parts):
        corner: tuple[int | slice, ...] = (k, *(slice(size) for size in part.shape))
        whole[corner] = part
    return whole
