"""Random numbers of a forward pass taken out of it, so that stacked models each have their own.

A pass is run once to see which numbers it draws (`Recorder`); the same numbers are drawn from each
model's own generator, in the same order (`draw`); then a pass over all models takes them as input
(`Replay`). What a model draws is therefore what it would have drawn alone.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d}
_SOURCES = {torch.rand, torch.randint}


@dataclass(frozen=True, slots=True)
class Request:
    """One call that draws: of a dropout, what was given to it; else its arguments."""

    source: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    p: float = 0.0
    strides: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32


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
                x = args[0]
                self.requests.append(
                    Request(func, tuple(x.shape), kwargs["p"], x.stride(), x.dtype)
                )
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


def draw(requests: Sequence[Request]) -> list[Tensor]:
    """What these calls draw from torch's generator now; of a dropout, what it multiplies by."""
    drawn = []
    for request in requests:
        if request.source in _SOURCES:
            drawn.append(request.source(*request.arguments))
            continue
        ones = torch.empty_strided(request.arguments, request.strides, dtype=request.dtype).fill_(1)
        drawn.append(request.source(ones, request.p, True))
    return drawn


def stack(drawn: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The draws of several models side by side; the smaller ones filled up, where nothing reads."""
    stacked = []
    for parts in zip(*drawn, strict=True):
        shape = [max(sizes) for sizes in zip(*(part.shape for part in parts), strict=True)]
        whole = torch.ones(len(parts), *shape, dtype=parts[0].dtype)
        for k, part in enumerate(parts):
            corner: tuple[int | slice, ...] = (k, *(slice(size) for size in part.shape))
            whole[corner] = part
        stacked.append(whole)
    return stacked
