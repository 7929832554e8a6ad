"""How strongly each modality's encoder is pulled, and what that says about balance.

Measured after backward and before clipping, on the device, and read once an epoch. Encoders differ
in size, so what is compared is the norm over the root of the number of parameters, the "pull"; and
a large pull alone is no imbalance: a warning also asks whether the modalities' own heads are far
apart.

Shapes: P parameter tensor, M modality.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmfuse.trainer.model import FusionModel

_DECAY = 0.98  # of the mean that follows the steps
FAR = 0.1  # between the best own head's score and the worst one's


class GradientNorms:
    """Norms of the gradients of each encoder, and ratios of update: lr * |gradient| / |weights|.

    Args:
        model: its encoders are looked at.
        optimizer: says each parameter's rate.
    """

    def __init__(self, model: FusionModel, optimizer: torch.optim.Optimizer) -> None:
        self.modalities = model.modalities
        group_of = {
            id(p): g for g, group in enumerate(optimizer.param_groups) for p in group["params"]
        }
        owned = [
            (m, p)
            for m, name in enumerate(self.modalities)
            for p in model.encoders[name].parameters()
            if id(p) in group_of
        ]
        device = next(model.parameters()).device
        self._optimizer = optimizer
        self._parameters = [p for _, p in owned]
        self._group_P = [group_of[id(p)] for p in self._parameters]
        self._owner_P = torch.tensor([m for m, _ in owned], device=device)
        sizes_P = torch.tensor([float(p.numel()) for p in self._parameters], device=device)
        self._root_M = self._summed(sizes_P).sqrt()
        self.totals_2M = torch.zeros(2, len(self.modalities), device=device)
        self.smooth_M = torch.zeros(len(self.modalities), device=device)
        self.steps = self.steps_in_epoch = 0

    def note(self) -> None:
        """Look at the gradients of a step. Nothing waits for the device."""
        with torch.no_grad():
            gradient_P = torch.stack(
                torch._foreach_norm([p.new_zeros(()) if p.grad is None else p.grad
                                     for p in self._parameters])
            )  # fmt: skip
            weight_P = torch.stack(torch._foreach_norm([p.data for p in self._parameters]))
            rates = [group["lr"] for group in self._optimizer.param_groups]
            rate_P = torch.tensor([rates[g] for g in self._group_P], device=gradient_P.device)
            norm_M = self._summed(gradient_P**2).sqrt()
            update_M = self._summed((rate_P * gradient_P) ** 2).sqrt()
            ratio_M = update_M / self._summed(weight_P**2).sqrt().clamp(min=1e-12)
            # a step that overflowed in float16 is not taken, and counts nothing
            norm_M, ratio_M = (x.nan_to_num(0, 0, 0) for x in (norm_M, ratio_M))
            self.totals_2M += torch.stack([norm_M, ratio_M])
            decay = min(_DECAY, self.steps / (self.steps + 1))
            self.smooth_M.lerp_(norm_M / self._root_M, 1 - decay)
        self.steps, self.steps_in_epoch = self.steps + 1, self.steps_in_epoch + 1

    def record(self) -> dict[str, float]:
        """Means over the steps since the last call, and the pulls of late."""
        norms, ratios = (self.totals_2M / max(1, self.steps_in_epoch)).tolist()
        self.totals_2M.zero_()
        self.steps_in_epoch = 0
        record: dict[str, float] = {}
        for name, norm, ratio, pull in zip(
            self.modalities, norms, ratios, self.smooth_M.tolist(), strict=True
        ):
            record |= {
                f"grad_norm.{name}": norm,
                f"update_ratio.{name}": ratio,
                f"pull.{name}": pull,
            }
        return record

    def _summed(self, value_P: Tensor) -> Tensor:
        zeros_M = torch.zeros(len(self.modalities), device=value_P.device)
        return zeros_M.index_add(0, self._owner_P, value_P.float())


def summary(record: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """By modality, what a record says of it: `grad_norm`, `update_ratio`, `pull`, `head`."""
    found: dict[str, dict[str, float]] = {}
    for key, value in record.items():
        what, dot, name = key.partition(".")
        if dot:
            found.setdefault(name, {})[what] = value
    return found


def imbalance(record: Mapping[str, float], limit: float) -> dict[str, Any] | None:
    """What is out of balance: encoders pulled more than `limit` times apart, and heads far apart.

    Returns:
        `strong` and `weak`, the modalities whose encoders are pulled most and least, the `ratio` of
        the two, and the `gap` between the scores of the best and the worst own head. None if
        either is small, or if there are no heads or several moving encoders to compare.
    """
    found = summary(record)
    pulls = {name: of["pull"] for name, of in found.items() if of.get("pull", 0) > 0}
    heads = [of["head"] for of in found.values() if "head" in of]
    if len(pulls) < 2 or len(heads) < 2 or max(heads) - min(heads) < FAR:
        return None
    strong, weak = max(pulls, key=pulls.__getitem__), min(pulls, key=pulls.__getitem__)
    ratio = pulls[strong] / pulls[weak]
    if ratio <= limit:
        return None
    return {"strong": strong, "weak": weak, "ratio": ratio, "gap": max(heads) - min(heads)}
