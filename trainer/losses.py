"""What training minimises: the whole model's loss, and that of each modality's own head.

Each loss is a mean over clips, and a batch may be a part of a larger one (a window): its terms are
then multiplied by the share that the part has in the window, so that they add up to the window's.

Shapes: B batch, M modality, C class.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmfuse.trainer.batch import Batch
from mmfuse.trainer.config import TrainConfig
from mmfuse.trainer.model import Output
from mmfuse.trainer.objectives import CrossEntropy, Objective

WHOLE = "whole"  # the whole model, beside the names of modalities


@dataclass(frozen=True, slots=True)
class Shares:
    """What part of a window's weight a batch has, in the loss of all and of each modality."""

    whole: float
    alone_M: tuple[float, ...]


def shares_of(weight_W: Tensor, present_WM: Tensor, part: slice) -> Shares:
    """Shares of a part of a window, on the CPU; `weight_W` is what its clips weigh."""
    here_M = present_WM[part].sum(dim=0) / present_WM.sum(dim=0).clamp(min=1)
    return Shares(float(weight_W[part].sum() / weight_W.sum()), tuple(here_M.tolist()))


def terms_of(
    output: Output,
    batch: Batch,
    present_BM: Tensor,
    objective: Objective,
    shares: Shares | None = None,
) -> dict[str, Tensor]:
    """The loss of the whole model and of each head, by name; a head's is over clips that have it.

    Args:
        output: what the model says.
        batch: a window, or a part of it.
        present_BM: which modalities the model was shown.
        objective: the loss.
        shares: of this part in its window; all, where it is left out.
    """
    whole = objective.mean(output.logits_BC, batch.label_B)
    terms = {WHOLE: whole * shares.whole if shares else whole}
    for m, (name, logits_BC) in enumerate(output.unimodal.items()):
        losses_B, here_B = objective.each(logits_BC, batch.label_B), present_BM[:, m]
        kept_B = torch.where(here_B, losses_B, torch.zeros_like(losses_B))
        alone = kept_B.sum() / here_B.sum().clamp(min=1)
        terms[name] = alone * shares.alone_M[m] if shares else alone
    return terms


def weighed(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The sum of losses, each times its weight: ()."""
    whole = terms[WHOLE] * weights[WHOLE]
    for name, term in terms.items():
        if name != WHOLE:
            whole = whole + weights[name] * term
    return whole


def loss_of(output: Output, batch: Batch, present_BM: Tensor, config: TrainConfig) -> Tensor:
    """The loss of a batch of classes by itself, heads weighing `train.unimodal_weight` each."""
    terms = terms_of(output, batch, present_BM, CrossEntropy(config.label_smoothing))
    return weighed(terms, {WHOLE: 1.0} | dict.fromkeys(output.unimodal, config.unimodal_weight))
