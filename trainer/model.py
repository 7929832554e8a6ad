"""Encoders, a fusion and heads put together, and the parameter groups of the optimizer.

Shapes: B batch, T step, D width, M modality, C class.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmfuse.features.spec import StreamSpec
from mmfuse.trainer.config import ModelConfig
from mmfuse.trainer.dataset import Batch
from mmfuse.trainer.encoders import build_encoder
from mmfuse.trainer.fine_tuned import FineTunedEncoder
from mmfuse.trainer.fusion import build_fusion
from mmfuse.trainer.layers import Encoded


@dataclass(frozen=True, slots=True)
class Output:
    """`logits_BC` of the whole model, and of each modality's own head (rows that have it only)."""

    logits_BC: Tensor
    unimodal: dict[str, Tensor]


class FusionModel(nn.Module):
    """`[model]` of a configuration over streams of the given specs.

    Args:
        config: `[model]`.
        specs: spec of the stream of each modality, in the order of `Batch.present_BM`.
        classes: number of classes.
        unimodal_heads: give each modality a head of its own, for its own loss; one modality alone
            has none, its head would be the model's.
    """

    def __init__(
        self,
        config: ModelConfig,
        specs: Mapping[str, StreamSpec],
        classes: int,
        *,
        unimodal_heads: bool = True,
    ) -> None:
        super().__init__()
        self.modalities = tuple(specs)
        encoders = config.encoders()
        self.encoders = nn.ModuleDict(
            {name: build_encoder(encoders[name], spec) for name, spec in specs.items()}
        )
        self.lr = {name: getattr(encoders[name], "lr", 0.0) for name in specs}
        dims = {name: section.hidden_dim for name, section in encoders.items()}
        self.fusion = build_fusion(config.fusion, dims)
        self.head = nn.Linear(self.fusion.out_dim, classes)
        alone = dims if unimodal_heads and len(dims) > 1 else {}
        self.unimodal = nn.ModuleDict({name: nn.Linear(dims[name], classes) for name in alone})

    def forward(self, batch: Batch, present_BM: Tensor | None = None) -> Output:
        """Logits of a batch.

        Args:
            batch: padded arrays of every modality.
            present_BM: modalities to use; those the batch has, where it is left out. Content
                outside it has no influence, not even as NaN.
        """
        present_BM = batch.present_BM if present_BM is None else present_BM & batch.present_BM
        streams = self._encoded(batch, present_BM)
        unimodal = {name: head(streams[name].pooled_BD) for name, head in self.unimodal.items()}
        return Output(self.head(self.fusion(streams, present_BM)), unimodal)

    def gate_weights(self, batch: Batch) -> Tensor | None:
        """How much the fusion counts each modality of a batch, (B, M); None if it has no gates."""
        return self.fusion.gate_weights(self._encoded(batch, batch.present_BM), batch.present_BM)

    def _encoded(self, batch: Batch, present_BM: Tensor) -> dict[str, Encoded]:
        return {
            name: self.encoders[name](
                batch.x[name], batch.mask[name] & present_BM[:, m, None], batch.times_s[name]
            )
            for m, name in enumerate(self.modalities)
        }

    def thaw(self, step: int) -> None:
        """Freeze and unfreeze pretrained parts as an optimizer step, from 0, has them."""
        for encoder in self.encoders.values():
            if isinstance(encoder, FineTunedEncoder):
                encoder.thaw(step)


def drop_modalities(present_BM: Tensor, p: float) -> Tensor:
    """Take each present modality away with probability p, but never the last one of a clip.

    Where all of a clip's would go, one of them stays, each equally likely.

    Source: ModDrop, Neverova et al., arXiv 1501.00102.
    """
    if p == 0:
        return present_BM
    luck_BM = torch.rand(present_BM.shape)
    kept_BM = present_BM & (luck_BM >= p)
    luckiest_BM = luck_BM.masked_fill(~present_BM, -1.0)
    rescue_BM = present_BM & (luckiest_BM == luckiest_BM.amax(dim=1, keepdim=True))
    return torch.where(kept_BM.any(dim=1, keepdim=True), kept_BM, rescue_BM)


def parameter_groups(model: FusionModel, weight_decay: float) -> list[dict[str, Any]]:
    """One group for each part of the model, with and without decay; norms and biases have none.

    Every parameter that trains, now or after a thaw, is in exactly one group: an optimizer that
    misses some trains a model that looks whole. A group has an `lr` where the configuration gives
    its encoder one; in a fine-tuned encoder that is the pretrained part's.
    """
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for part, parameter in _parts(model):
        decays = parameter.ndim > 1
        group = groups.setdefault(
            (part, decays),
            {
                "name": f"{part}/{'decay' if decays else 'no_decay'}",
                "params": [],
                "weight_decay": weight_decay if decays else 0.0,
                **_own_lr(model, part),
            },
        )
        group["params"].append(parameter)
    grouped = sorted(id(p) for group in groups.values() for p in group["params"])
    trained = sorted({id(p) for p in model.parameters() if p.requires_grad} | _later(model))
    assert grouped == trained, "a parameter is in no group, or in two"
    return list(groups.values())


def _parts(model: FusionModel) -> Iterator[tuple[str, nn.Parameter]]:
    """(part, parameter) with the parts `audio`, `midi`, `text`, `fusion`, `head`.

    What is pretrained is a part of its own, `audio.pretrained`.
    """
    later = _later(model)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and id(parameter) not in later:
            continue
        first, second, *rest = name.split(".")
        inner = f"{second}.pretrained" if rest[:1] == ["pretrained"] else second
        parts = {"encoders": inner, "fusion": "fusion", "head": "head", "unimodal": "head"}
        yield parts[first], parameter


def _later(model: FusionModel) -> set[int]:
    """Parameters that are frozen now and will not be, by id."""
    return {
        id(parameter)
        for encoder in model.encoders.values()
        if isinstance(encoder, FineTunedEncoder)
        for parameter in encoder.later
    }


def _own_lr(model: FusionModel, part: str) -> dict[str, float]:
    name, _, pretrained = part.partition(".")
    lr = model.lr.get(name, 0.0)
    if not lr or (isinstance(model.encoders[name], FineTunedEncoder) and not pretrained):
        return {}
    return {"lr": lr}
