"""Ways of keeping one modality from learning for all: `train.balance`, by default none.

Each sees every batch's losses before backward (`look`), may change the gradients of the encoders
once per optimizer step, when the whole window's are there (`settle`), and may weigh the losses anew
after an epoch (`close`).

Shapes: B batch, M modality, C class, P a flattened gradient.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mmfuse.trainer import distributed
from mmfuse.trainer.batch import Batch
from mmfuse.trainer.config import (
    BalanceConfig,
    GradientBlendingConfig,
    MMParetoConfig,
    OgmGeConfig,
    TrainConfig,
)
from mmfuse.trainer.losses import WHOLE, weighed
from mmfuse.trainer.model import FusionModel, Output

Losses = Mapping[str, float]  # of the whole model and of each head
_LEAST = 1e-3  # nats of overfitting; less can't be told from none


class Balance:
    """Own heads weigh `unimodal_weight`, and gradients stay as they are."""

    def __init__(self, model: FusionModel, config: TrainConfig) -> None:
        self.model, self.seed = model, config.seed
        own = config.unimodal_weight or 1.0  # heads without a weight teach nothing but themselves
        self.weights = {WHOLE: 1.0} | dict.fromkeys(model.unimodal, own)

    def look(
        self, terms: Mapping[str, Tensor], output: Output, batch: Batch, present_BM: Tensor
    ) -> None:
        """Before backward of a batch, which may be a part of the window."""

    def settle(self, step: int, epoch: int) -> None:
        """Before the optimizer's step, counted from 0."""

    def close(self, epoch: int, measure: Callable[[], tuple[Losses, Losses]]) -> None:
        """After an epoch; `measure` gives losses on the train and on the validation split."""

    def pack(self) -> dict[str, Any]:
        """What a checkpoint has to keep."""
        return {"weights": self.weights}

    def unpack(self, state: Mapping[str, Any]) -> None:
        """Become what was packed."""
        self.weights = dict(state["weights"])

    def gradients(self, name: str) -> list[Tensor]:
        """Gradients of a modality's encoder, those that there are."""
        return [p.grad for p in self.model.encoders[name].parameters() if p.grad is not None]


class OgmGe(Balance):
    """On-the-fly gradient modulation with generalization enhancement.

    The score of a modality is the mean probability that its own head gives the true class; an
    encoder that is ahead of the others' gets smaller gradients, and all get noise as large as the
    gradients' own deviation.

    Source: Peng et al., arXiv 2203.15332, equations 8 to 11; any number of modalities as its
    authors advise, by the mean of the ratios to each of the others.
    """

    def __init__(self, model: FusionModel, config: TrainConfig, options: OgmGeConfig) -> None:
        super().__init__(model, config)
        self.options = options
        device = next(model.parameters()).device
        self.sums_2M = torch.zeros(2, len(model.modalities), device=device)

    def look(
        self, terms: Mapping[str, Tensor], output: Output, batch: Batch, present_BM: Tensor
    ) -> None:
        """Add up the scores of clips that have the modality."""
        truth_B1 = batch.label_B[:, None]
        for m, logits_BC in enumerate(output.unimodal.values()):
            score_B = logits_BC.detach().float().softmax(dim=1).gather(1, truth_B1)[:, 0]
            here_B = present_BM[:, m]
            self.sums_2M[0, m] += torch.where(here_B, score_B, torch.zeros_like(score_B)).sum()
            self.sums_2M[1, m] += here_B.sum()

    def settle(self, step: int, epoch: int) -> None:
        """Scale each encoder's gradients by its coefficient, and add the noise."""
        distributed.add([self.sums_2M])
        options, (score_M, count_M) = self.options, self.sums_2M.clone()
        self.sums_2M.zero_()
        if epoch < options.first_epoch or 0 < options.last_epoch < epoch:
            return
        factor_M = modulation(score_M / count_M.clamp(min=1), count_M > 0, options.alpha)
        generator = torch.Generator(device=factor_M.device)
        generator.manual_seed(
            ((self.seed << 32) + step) % 2**63
        )  # no other draw of training changes
        for m, name in enumerate(self.model.modalities):
            for gradient in self.gradients(name):
                noise = torch.zeros_like(gradient)
                if options.noise and gradient.numel() > 1:
                    noise.normal_(generator=generator).mul_(gradient.std() + 1e-8)
                gradient.mul_(factor_M[m]).add_(noise)


def modulation(score_M: Tensor, there_M: Tensor, alpha: float) -> Tensor:
    """Coefficients of OGM: 1 - tanh(alpha * rho) where rho > 1, else 1; rho is the mean ratio."""
    others_MM = there_M & ~torch.eye(len(score_M), dtype=torch.bool, device=score_M.device)
    ratio_MM = score_M[:, None] / score_M[None].clamp(min=1e-12)
    sums_M = torch.where(others_MM, ratio_MM, torch.zeros_like(ratio_MM)).sum(dim=1)
    rho_M = sums_M / others_MM.sum(dim=1).clamp(min=1)
    return torch.where((rho_M > 1) & there_M, 1 - torch.tanh(alpha * rho_M), 1.0)


class MMPareto(Balance):
    """Gradients of the joint loss and of a modality's own, joined so that neither is hurt.

    Where the two agree (positive cosine) they are added; where they do not, the shortest vector
    between them takes the place of their sum, twice. It is never shorter than the sum, and then
    `gamma` times as long.

    Source: Wei and Hu, arXiv 2405.17730, algorithm 1, on each encoder's whole gradient.
    """

    def __init__(self, model: FusionModel, config: TrainConfig, options: MMParetoConfig) -> None:
        super().__init__(model, config)
        self.gamma = options.gamma
        self.own: dict[torch.nn.Parameter, Tensor] = {}

    def look(
        self, terms: Mapping[str, Tensor], output: Output, batch: Batch, present_BM: Tensor
    ) -> None:
        """Add up the gradients of the heads' losses."""
        parameters = [p for p in self.model.encoders.parameters() if p.requires_grad]
        alone = weighed({**terms, WHOLE: terms[WHOLE].detach()}, self.weights)
        found = torch.autograd.grad(alone, parameters, retain_graph=True, allow_unused=True)
        for parameter, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                before = self.own.get(parameter)
                self.own[parameter] = gradient if before is None else before + gradient

    def settle(self, step: int, epoch: int) -> None:
        """Put the joined gradient in the place of the sum."""
        if distributed.size() > 1:
            learning = [p for p in self.model.encoders.parameters() if p.requires_grad]
            self.own = {p: self._own_of(p).clone() for p in learning}
            distributed.add(list(self.own.values()))
        for name in self.model.modalities:
            parameters = [p for p in self.model.encoders[name].parameters() if p.grad is not None]
            if not parameters:
                continue
            own_P = torch.cat([self._own_of(p).flatten() for p in parameters])
            both_P = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
            joined_P = pareto(both_P - own_P, own_P, self.gamma)
            first = 0
            for parameter in parameters:
                part_P = joined_P[first : first + parameter.numel()]
                parameter.grad = part_P.view_as(parameter).clone()
                first += parameter.numel()
        self.own.clear()

    def _own_of(self, parameter: torch.nn.Parameter) -> Tensor:
        found = self.own.get(parameter)
        return torch.zeros_like(parameter) if found is None else found


def pareto(joint_P: Tensor, own_P: Tensor, gamma: float) -> Tensor:
    """MMPareto's gradient out of that of the joint loss and that of the modality's own."""
    difference_P = own_P - joint_P
    shortest = (difference_P @ own_P) / difference_P.square().sum().clamp(min=1e-30)
    share = torch.where(joint_P @ own_P > 0, 0.5, shortest.clamp(0, 1))
    joined_P = 2 * share * joint_P + 2 * (1 - share) * own_P
    stretch = ((joint_P + own_P).norm() / joined_P.norm().clamp(min=1e-30)).clamp(min=1)
    result_P: Tensor = gamma * stretch * joined_P
    return result_P


class GradientBlending(Balance):
    """Weighs the losses of the whole model and of the heads by how well each generalizes.

    Weights are G / O^2, made to add up to 1: G is what a loss won on validation in `every` epochs,
    O what its distance from the loss on the train split grew by. At first all are equal. The losses
    are those of the one model in training; the paper trains each head apart for its estimate.

    Source: Wang et al., arXiv 1905.12681, equation 5 and algorithm 2.
    """

    def __init__(
        self, model: FusionModel, config: TrainConfig, options: GradientBlendingConfig
    ) -> None:
        super().__init__(model, config)
        self.every = options.every
        self.before: tuple[Losses, Losses] | None = None
        self.weights = dict.fromkeys(self.weights, 1 / len(self.weights))

    def close(self, epoch: int, measure: Callable[[], tuple[Losses, Losses]]) -> None:
        """Measure after epochs 1, 1 + every, ..., and weigh anew from the second time on."""
        if (epoch - 1) % self.every:
            return
        now = measure()
        if self.before is not None:
            self.weights = blend(self.before, now) or self.weights
        self.before = now

    def pack(self) -> dict[str, Any]:
        """The weights and the last measurement."""
        return super().pack() | {"before": self.before}

    def unpack(self, state: Mapping[str, Any]) -> None:
        """Become what was packed."""
        super().unpack(state)
        self.before = None if state["before"] is None else tuple(state["before"])


def blend(before: tuple[Losses, Losses], now: tuple[Losses, Losses]) -> dict[str, float] | None:
    """Weights of losses by those on (train, validation) at two times; None if none got better."""
    (train_then, held_then), (train_now, held_now) = before, now
    rated = {}
    for name in held_now:
        won = max(0.0, held_then[name] - held_now[name])
        grown = (held_now[name] - train_now[name]) - (held_then[name] - train_then[name])
        rated[name] = won / max(grown**2, _LEAST**2)
    total = sum(rated.values())
    return {name: value / total for name, value in rated.items()} if total > 0 else None


_KINDS: Mapping[type, Callable[..., Balance]] = {
    OgmGeConfig: OgmGe,
    MMParetoConfig: MMPareto,
    GradientBlendingConfig: GradientBlending,
}


def build_balance(model: FusionModel, config: TrainConfig) -> Balance:
    """What `train.balance` names."""
    options = balance_section(config.balance)
    return (
        Balance(model, config) if options is None else _KINDS[type(options)](model, config, options)
    )


def balance_section(given: BalanceConfig | str) -> BalanceConfig | None:
    """A name alone stands for its section with all defaults; None for "none"."""
    sections = {"ogm_ge": OgmGeConfig, "mmpareto": MMParetoConfig}
    sections |= {"gradient_blending": GradientBlendingConfig}
    if isinstance(given, str):
        return sections[given]() if given in sections else None
    return given
