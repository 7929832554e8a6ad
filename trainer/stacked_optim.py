"""Parameters of many models as one array, and the AdamW that moves them.

Shapes: K model, P parameter of all.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmfuse.trainer.config import TrainConfig
from mmfuse.trainer.model import FusionModel
from mmfuse.trainer.optim import build_optimizer, set_rates

_B1, _B2, _EPSILON = 0.9, 0.999, 1e-8  # of torch's AdamW
Parts = dict[str, Tensor]


class Flat:
    """Parameters of K models as one (K, P) array, with a view for each that collects gradients."""

    def __init__(self, models: Sequence[FusionModel]) -> None:
        named = [dict(model.named_parameters()) for model in models]
        self.shapes = {name: p.shape for name, p in named[0].items()}
        rows = [torch.cat([p.detach().flatten() for p in of.values()]) for of in named]
        self.all_KP = torch.stack(rows)
        self.leaves = self.views(self.all_KP, grad=True)

    def views(self, all_KP: Tensor, *, grad: bool = False) -> Parts:
        """(K, *shape) by name."""
        found, first = {}, 0
        for name, shape in self.shapes.items():
            last = first + shape.numel()
            part = all_KP[:, first:last].detach().view(len(all_KP), *shape)
            found[name] = part.requires_grad_(grad)
            first = last
        return found

    def gradients(self) -> Tensor:
        """(K, P); zeros where nothing arrived."""
        parts = [
            torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            for leaf in self.leaves.values()
        ]
        for leaf in self.leaves.values():
            leaf.grad = None
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the models."""
        self.all_KP = self.all_KP[rows]
        self.leaves = self.views(self.all_KP, grad=True)


class AdamW:
    """torch's AdamW over a (K, P) array; rates and decays are those of each model's own groups."""

    def __init__(self, models: Sequence[FusionModel], configs: Sequence[TrainConfig]) -> None:
        self.configs = list(configs)
        self.each = [
            build_optimizer(model, config) for model, config in zip(models, configs, strict=True)
        ]
        owner = {
            id(p): g for g, group in enumerate(self.each[0].param_groups) for p in group["params"]
        }
        owners = [torch.full((p.numel(),), owner[id(p)]) for p in models[0].parameters()]
        self.owner_P = torch.cat(owners)
        self.dtype = next(models[0].parameters()).dtype
        self.decay_KP = self._spread("weight_decay")
        self.mean_KP, self.square_KP = (torch.zeros_like(self.decay_KP) for _ in range(2))

    def _spread(self, key: str) -> Tensor:
        """What the groups say, for each model and parameter."""
        told = [[group[key] for group in one.param_groups] for one in self.each]
        return torch.tensor(told, dtype=self.dtype)[:, self.owner_P]

    def step(self, all_KP: Tensor, grad_KP: Tensor, step: int, steps: int) -> None:
        """Move all parameters in place; `step` counts from 0."""
        for one, config in zip(self.each, self.configs, strict=True):
            set_rates(one, step, config, steps)
        rate_KP = self._spread("lr")
        all_KP.mul_(1 - rate_KP * self.decay_KP)
        self.mean_KP.lerp_(grad_KP, 1 - _B1)
        self.square_KP.mul_(_B2).addcmul_(grad_KP, grad_KP, value=1 - _B2)
        root = (1 - _B2 ** (step + 1)) ** 0.5
        spread_KP = self.square_KP.sqrt().div_(root).add_(_EPSILON)
        all_KP.sub_(rate_KP.div_(1 - _B1 ** (step + 1)).mul_(self.mean_KP).div_(spread_KP))

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the models."""
        for name in ("each", "configs"):
            setattr(self, name, [getattr(self, name)[i] for i in rows.tolist()])
        for name in ("decay_KP", "mean_KP", "square_KP"):
            setattr(self, name, getattr(self, name)[rows])
