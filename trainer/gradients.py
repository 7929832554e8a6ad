"""How strongly each modality's encoder is pulled, and what that says about balance.

Measured after backward, with the norm that clipping needs, and summed and read once an epoch.
Encoders differ in size, so what is compared is the norm over the root of the number of parameters,
the "pull"; and a large pull alone is no imbalance: a warning also asks whether the modalities' own
heads are far apart.

Shapes: P parameter tensor, M modality, S step.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmfuse.trainer.model import FusionModel

_DECAY = 0.98  # of the mean that follows the steps
_TOGETHER = 256  # steps that are summed at once
_SAID = ("grad_norm", "update_ratio", "pull", "head")
FAR = 0.1  # between the best own head's score and the worst one's


class GradientNorms:
    """Norms of the gradients of each encoder, and ratios of update: lr * |gradient| / |weights|.

    The weights are those at the end of the steps that a record is about.

    Args:
        model: its encoders are looked at.
        optimizer: says each parameter's rate.
    """

    def __init__(self, model: FusionModel, optimizer: torch.optim.Optimizer) -> None:
        self.modalities = model.modalities
        group_of = {
            id(p): g for g, group in enumerate(optimizer.param_groups) for p in group["params"]
        }
        count = len(self.modalities)
        encoders = model.encoders.items()
        owner_of = {id(p): m for m, (_, one) in enumerate(encoders) for p in one.parameters()}
        self._parameters: list[Tensor] = [p for p in model.parameters() if id(p) in group_of]
        device = next(model.parameters()).device
        self._optimizer = optimizer
        self._group_P = torch.tensor([group_of[id(p)] for p in self._parameters], device=device)
        owners = [owner_of.get(id(p), count) for p in self._parameters]  # the last owns the rest
        self._owner_P = torch.tensor(owners, device=device)
        sizes_P = torch.tensor([float(p.numel()) for p in self._parameters], device=device)
        self._root_M = self._summed(sizes_P[None])[0].sqrt()
        self.totals_2M = torch.zeros(2, count, device=device)
        self.smooth_M = torch.zeros(count, device=device)
        self.steps = self.steps_in_epoch = 0
        self.norms: list[Tensor] = []  # (P,) of each step that is not in the totals yet
        self.rates: list[list[float]] = []  # of the optimizer's groups in the same steps

    def note(self, limit: float = 0.0) -> None:
        """Look at the gradients of a step; then clip their common norm at `limit`, if that is any.

        Nothing waits for the device, and sums are left for later.
        """
        zero = self.totals_2M.new_zeros(())
        gradients = [zero if p.grad is None else p.grad for p in self._parameters]
        norm_P = torch.stack(torch._foreach_norm(gradients))
        self.norms.append(norm_P)
        self.rates.append([group["lr"] for group in self._optimizer.param_groups])
        if limit:
            share = limit / (torch.linalg.vector_norm(norm_P) + 1e-6)
            torch._foreach_mul_(gradients, share.clamp(max=1.0))
        self.steps, self.steps_in_epoch = self.steps + 1, self.steps_in_epoch + 1
        if len(self.norms) == _TOGETHER:
            self._settle()

    def record(self) -> dict[str, float]:
        """Means over the steps since the last call, and the pulls of late."""
        self._settle()
        with torch.no_grad():
            weight_P = torch.stack(torch._foreach_norm(self._parameters))
        weight_M = self._summed(weight_P[None] ** 2)[0].sqrt().clamp(min=1e-12)
        mean_2M = self.totals_2M / max(1, self.steps_in_epoch)
        norms, ratios = mean_2M[0].tolist(), (mean_2M[1] / weight_M).tolist()
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

    def _settle(self) -> None:
        """Put what was noted into the totals."""
        if not self.norms:
            return
        norm_SP = torch.stack(self.norms)
        rate_SP = norm_SP.new_tensor(self.rates)[:, self._group_P]
        # a step that overflowed in float16 is not taken, and counts nothing
        norm_SM, update_SM = (
            self._summed(value_SP**2).sqrt().nan_to_num(0, 0, 0)
            for value_SP in (norm_SP, rate_SP * norm_SP)
        )
        self.totals_2M += torch.stack([norm_SM.sum(dim=0), update_SM.sum(dim=0)])
        for step, pull_M in enumerate(norm_SM / self._root_M, self.steps - len(self.norms)):
            self.smooth_M.lerp_(pull_M, 1 - min(_DECAY, step / (step + 1)))
        self.norms, self.rates = [], []

    def _summed(self, value_XP: Tensor) -> Tensor:
        """Sums over each modality's parameters: (X, M)."""
        count = len(self.modalities)
        zeros_XM = torch.zeros(len(value_XP), count + 1, device=value_XP.device)
        return zeros_XM.index_add(1, self._owner_P, value_XP.float())[:, :count]


def summary(record: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """By modality, what a record says of it: `grad_norm`, `update_ratio`, `pull`, `head`."""
    found: dict[str, dict[str, float]] = {}
    for key, value in record.items():
        what, dot, name = key.partition(".")
        if dot and what in _SAID:
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
