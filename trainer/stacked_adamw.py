"""AdamW of models that stand side by side, each with its own rates, in one pass over all arrays.

Weights of linear layers, (K, O, I), lie in memory as (K, I, O) and so do their moments: that is how
stacked gradients come, and turning one takes longer than the product that made it.

Importing this imports numba.

Shapes: K model, P number of one parameter, G group of the optimizer, O output and I input of a
layer.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmfuse.features.compiled import elementwise
from mmfuse.trainer.config import TrainConfig
from mmfuse.trainer.model import FusionModel
from mmfuse.trainer.optim import build_optimizer, set_rates

_B1, _B2, _EPSILON = 0.9, 0.999, 1e-8  # of torch's AdamW
_Array = NDArray[np.float32]
Parts = dict[str, Tensor]


class AdamW:
    """Parameters of K models, (K, *shape) by name, with their moments and averages.

    Rates and decays are those of each model's own optimizer, and so are the steps, up to rounding.
    """

    def __init__(self, models: Sequence[FusionModel], configs: Sequence[TrainConfig]) -> None:
        self.configs = list(configs)
        self.each = [
            build_optimizer(model, config) for model, config in zip(models, configs, strict=True)
        ]
        group_of = {
            id(p): g for g, group in enumerate(self.each[0].param_groups) for p in group["params"]
        }
        self.groups = [group_of[id(p)] for p in models[0].parameters()]
        named = [dict(model.named_parameters()) for model in models]
        self._turned = {
            f"{name}.weight" for name, of in models[0].named_modules() if isinstance(of, nn.Linear)
        }
        self.weights = {
            name: self._laid(name, torch.stack([of[name].detach() for of in named]))
            for name in named[0]
        }
        self.averaged = {name: of.clone() for name, of in self.weights.items()}
        self.means, self.squares = (
            {name: torch.zeros_like(of) for name, of in self.weights.items()} for _ in range(2)
        )
        self._ready()

    @property
    def stored(self) -> dict[str, Parts]:
        """All that steps change."""
        return {
            "weights": self.weights,
            "mean": self.means,
            "square": self.squares,
            "averaged": self.averaged,
        }

    def _ready(self) -> None:
        self.leaves = {name: of.detach().requires_grad_() for name, of in self.weights.items()}
        stored = self.stored.values()
        self._arrays = [
            [self._in_order(name, of[name]).view(len(self.each), -1).numpy() for of in stored]
            for name in self.weights
        ]

    def _in_order(self, name: str, of: Tensor) -> Tensor:
        """(K, I, O) of the weights of a linear layer, and of (K, I, O) (K, O, I); others as is."""
        return of.mT if name in self._turned else of

    def _laid(self, name: str, of: Tensor) -> Tensor:
        """The same numbers in the order of memory that a parameter has."""
        return self._in_order(name, self._in_order(name, of).contiguous())

    def step(self, gradients: Sequence[Tensor], step: int, steps: int) -> None:
        """Clip gradients, (K, *shape) each, and move all in place; `step` counts from 0."""
        one, dtype = self.configs[0], self._arrays[0][0].dtype
        for optimizer, config in zip(self.each, self.configs, strict=True):
            set_rates(optimizer, step, config, steps)
        rate_GK, decay_GK = (
            np.array(
                [[group[key] for group in of.param_groups] for of in self.each], dtype
            ).T.copy()
            for key in ("lr", "weight_decay")
        )
        flat = [
            self._in_order(name, of).reshape(len(self.each), -1)
            for name, of in zip(self.weights, gradients, strict=True)
        ]
        share_K = np.ones(len(self.each), dtype)
        if one.grad_clip:
            norms = [torch.linalg.vector_norm(of_KP, dim=1) for of_KP in flat]
            norm_K = torch.linalg.vector_norm(torch.stack(norms), dim=0)
            share_K = (one.grad_clip / (norm_K + 1e-6)).clamp(max=1.0).numpy()
        follow = 1 - min(one.ema, (step + 1) / (step + 10)) if one.ema else 0.0
        told = np.array(
            [1 - _B1, _B2, 1 - _B2, 1 / (1 - _B1 ** (step + 1)),
             (1 - _B2 ** (step + 1)) ** -0.5, _EPSILON, 1.0, follow],
            dtype,
        )  # fmt: skip
        for g, moved, gradients_KP in zip(self.groups, self._arrays, flat, strict=True):
            weights_KP, means_KP, squares_KP, averaged_KP = moved
            _move(
                weights_KP, means_KP, squares_KP, averaged_KP, gradients_KP.numpy(), share_K,
                rate_GK[g], decay_GK[g], told,
            )  # fmt: skip

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the models."""
        for name in ("each", "configs"):
            setattr(self, name, [getattr(self, name)[i] for i in rows])
        kept = torch.tensor(rows, dtype=torch.int64)
        for stored in self.stored.values():
            for name, of in stored.items():
                stored[name] = self._laid(name, of[kept])
        self._ready()


@elementwise
def _move(
    weights_KP: _Array, means_KP: _Array, squares_KP: _Array, averaged_KP: _Array,
    gradients_KP: _Array, share_K: _Array, rate_K: _Array, decay_K: _Array, told: _Array,
) -> None:  # fmt: skip
    """One parameter of all models; `told` has the numbers that all share, in the arrays' dtype."""
    rise, fade, square, unbias, unbias_root, epsilon, one, follow = told
    for k in range(len(weights_KP)):
        weights_P, means_P, squares_P = weights_KP[k], means_KP[k], squares_KP[k]
        averaged_P, gradients_P, share = averaged_KP[k], gradients_KP[k], share_K[k]
        shrink, rate = one - rate_K[k] * decay_K[k], rate_K[k] * unbias
        for i in range(weights_P.shape[0]):
            gradient = gradients_P[i] * share
            mean = means_P[i] + rise * (gradient - means_P[i])
            spread = fade * squares_P[i] + square * gradient * gradient
            weight = weights_P[i] * shrink
            weight -= rate * mean / (np.sqrt(spread) * unbias_root + epsilon)
            means_P[i], squares_P[i], weights_P[i] = mean, spread, weight
            averaged_P[i] += follow * (weight - averaged_P[i])
