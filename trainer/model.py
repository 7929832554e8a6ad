"""Encoders, a fusion and heads put together.

Shapes: B batch, T step, D width, M modality, C class.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmfuse.features.spec import StreamSpec
from mmfuse.trainer.batch import Batch
from mmfuse.trainer.config import ModelConfig
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
        detached: let the heads look on, without teaching the encoders.
    """

    def __init__(
        self,
        config: ModelConfig,
        specs: Mapping[str, StreamSpec],
        classes: int,
        *,
        unimodal_heads: bool = True,
        detached: bool = False,
    ) -> None:
        super().__init__()
        self.modalities, self.detached = tuple(specs), detached
        encoders = config.encoders()
        self.encoders = nn.ModuleDict(
            {name: build_encoder(encoders[name], spec) for name, spec in specs.items()}
        )
        self.sections = {name: encoders[name] for name in specs}
        dims = {name: section.hidden_dim for name, section in encoders.items()}
        self.held: dict[str, list[nn.Parameter]] = {}  # what waits for `freeze_until_step`
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
        pooled = {name: encoded.pooled_BD for name, encoded in streams.items()}
        if self.detached:
            pooled = {name: pooled_BD.detach() for name, pooled_BD in pooled.items()}
        unimodal = {name: head(pooled[name]) for name, head in self.unimodal.items()}
        logits_BC = self.head(self.fusion(streams, present_BM))
        return Output(logits_BC.float(), {name: of.float() for name, of in unimodal.items()})

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
        """Freeze and unfreeze encoders, and pretrained parts, as an optimizer step, from 0, has it.

        Depends on nothing but the step.
        """
        for name, encoder in self.encoders.items():
            begun = step >= self.sections[name].freeze_until_step
            if isinstance(encoder, FineTunedEncoder):
                encoder.thaw(step if begun else 0)
            if not begun and name not in self.held:
                self.held[name] = [p for p in encoder.parameters() if p.requires_grad]
            for parameter in self.held.get(name, []):
                parameter.requires_grad_(begun)
            if begun:
                self.held.pop(name, None)


def drop_modalities(present_BM: Tensor, p: float) -> Tensor:
    """Take each present modality away with probability p, but never the last one of a clip.

    Where all of a clip's would go, one of them stays, each equally likely.

    Source: ModDrop, Neverova et al., arXiv 1501.00102.
    """
    if p == 0:
        return present_BM
    luck_BM = torch.rand(present_BM.shape, device=present_BM.device)
    luckiest_B1 = luck_BM.masked_fill(~present_BM, -1.0).amax(dim=1, keepdim=True)
    return present_BM & (luck_BM >= luckiest_B1.clamp(max=p))
