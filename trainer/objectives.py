"""What each task minimises: a loss a clip, its mean, and what a clip weighs in a mean.

Shapes: B batch, W window (several batches in one step), K output, C class.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Objective:
    """A loss; `mean` is over clips, by what they weigh."""

    def each(self, logits_BK: Tensor, target_B: Tensor) -> Tensor:
        """Of every clip, (B,)."""
        raise NotImplementedError

    def mean(self, logits_BK: Tensor, target_B: Tensor) -> Tensor:
        """Of all clips, ()."""
        return self.each(logits_BK, target_B).mean()

    def weight(self, target_W: Tensor) -> Tensor:
        """What clips weigh, (W,)."""
        return torch.ones(len(target_W), device=target_W.device)

    def to(self, device: torch.device) -> "Objective":
        """The same where the model is."""
        return self


@dataclass(frozen=True, slots=True)
class CrossEntropy(Objective):
    """Of one class a clip; `weights_C` of classes are those of their clips too."""

    smoothing: float
    weights_C: Tensor | None = None

    def each(self, logits_BK: Tensor, target_B: Tensor) -> Tensor:
        """Targets are class numbers, (B,) int64."""
        return F.cross_entropy(
            logits_BK, target_B, self.weights_C, reduction="none", label_smoothing=self.smoothing
        )

    def mean(self, logits_BK: Tensor, target_B: Tensor) -> Tensor:
        """Weighed by class."""
        return F.cross_entropy(logits_BK, target_B, self.weights_C, label_smoothing=self.smoothing)

    def weight(self, target_W: Tensor) -> Tensor:
        """That of their classes."""
        if self.weights_C is None:
            return torch.ones(len(target_W), device=target_W.device)
        return self.weights_C[target_W]

    def to(self, device: torch.device) -> "CrossEntropy":
        """With the weights there."""
        weights_C = None if self.weights_C is None else self.weights_C.to(device)
        return CrossEntropy(self.smoothing, weights_C)


@dataclass(frozen=True, slots=True)
class BinaryCrossEntropy(Objective):
    """Of each label by itself, mean over labels; `weights_C` is what having a label weighs.

    Smoothing moves 0 and 1 towards one half.
    """

    smoothing: float
    weights_C: Tensor | None = None

    def each(self, logits_BK: Tensor, target_B: Tensor) -> Tensor:
        """Targets are 0 or 1, (B, C)."""
        smooth_BC = target_B * (1 - self.smoothing) + self.smoothing / 2
        return F.binary_cross_entropy_with_logits(
            logits_BK, smooth_BC, pos_weight=self.weights_C, reduction="none"
        ).mean(dim=1)

    def to(self, device: torch.device) -> "BinaryCrossEntropy":
        """With the weights there."""
        weights_C = None if self.weights_C is None else self.weights_C.to(device)
        return BinaryCrossEntropy(self.smoothing, weights_C)


@dataclass(frozen=True, slots=True)
class SquaredError(Objective):
    """Of a number in deviations of the train split; straight beyond `huber` of them, if not 0.

    Source: Huber, Annals of Mathematical Statistics 35 (1964), twice its loss, so that both agree
    near 0.
    """

    huber: float = 0.0

    def each(self, logits_BK: Tensor, target_B: Tensor) -> Tensor:
        """Targets are numbers, (B,)."""
        if self.huber:
            return 2 * F.huber_loss(logits_BK[:, 0], target_B, reduction="none", delta=self.huber)
        return (logits_BK[:, 0] - target_B) ** 2


def class_weights(label_N: NDArray[np.int64], classes: int) -> Tensor:
    """Inverse frequency of each class over clips, with mean 1 over clips: (C,)."""
    counts = np.bincount(label_N, minlength=classes)
    weights = len(label_N) / (classes * np.maximum(counts, 1))
    return torch.from_numpy(weights).float()


def label_weights(label_NC: NDArray[np.float64]) -> Tensor:
    """Clips without a label for each with it, (C,): both sides then weigh the same."""
    having_C = label_NC.sum(axis=0)
    return (
        torch.from_numpy((len(label_NC) - having_C) / np.maximum(having_C, 1))
        .float()
        .clamp(min=1e-3)
    )
