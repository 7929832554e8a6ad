"""`train.compile`: torch.compile by choice, with what it cost in time."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from mmfuse.features.errors import ConfigError
from mmfuse.trainer.batch import Batch
from mmfuse.trainer.model import FusionModel, Output

WARNING = (
    "train.compile: the first steps wait until torch has compiled the model, a minute or more; "
    "the summary says how long"
)


def compiled(model: FusionModel) -> Callable[[Batch, Tensor], Output]:
    """The model, compiled at its first call for batches of any size; parameters stay its own.

    Random numbers are those of the model as it is.
    """
    options: dict[str, str | int | bool | Callable[..., Any]] = {"fallback_random": True}
    if next(model.parameters()).device.type == "cpu":
        options["cpp.simdlen"] = 1  # torch 2.14 writes wrong C++ for vectors of padded masks
    run = torch.compile(model, dynamic=True, options=options)

    def forward(batch: Batch, present_BM: Tensor) -> Output:
        try:
            output: Output = run(batch, present_BM)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise ConfigError(
                f"train.compile: torch can't compile this model here ({reason}); where a C++ "
                "compiler is missing, install gcc; else set train.compile = false"
            ) from None
        return output

    return forward


class Steps:
    """How long steps take, from `begin` to `end`."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def begin(self) -> None:
        """A step begins."""
        self._began = time.monotonic()

    def end(self) -> None:
        """It is over."""
        self.seconds.append(time.monotonic() - self._began)

    def cost(self) -> dict[str, float]:
        """`step_s`, the median step, and `warm_up_s`, what all took beyond that."""
        if not self.seconds:
            return {"step_s": 0.0, "warm_up_s": 0.0}
        step_s = median(self.seconds)
        warm_up_s = sum(max(0.0, seconds - step_s) for seconds in self.seconds)
        return {"step_s": round(step_s, 6), "warm_up_s": round(warm_up_s, 3)}
