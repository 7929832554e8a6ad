"""How modalities become one vector. Each strategy is a class and a line in `FUSIONS`.

Shapes: B batch, T step, D width, M modality. `present_BM` says which clip has which modality; a
clip that lacks one gets a learned token in its place, never its content.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmfuse.trainer.layers import (
    Encoded,
    TransformerLayer,
    blank,
    masked_mean,
    time_features,
)


class MultimodalFusion(nn.Module):
    """What a fusion promises: `forward(streams, present_BM) -> (B, out_dim)`.

    `streams` has one `Encoded` a modality, in the order of `present_BM`'s columns. Absent entries
    change neither the output nor any gradient.
    """

    out_dim: int

    def __init__(self, dims: Mapping[str, int], hidden_dim: int) -> None:
        super().__init__()
        self.modalities = tuple(dims)
        self.missing = nn.ParameterDict(
            {name: nn.Parameter(0.02 * torch.randn(hidden_dim)) for name in dims}
        )
        self.project = nn.ModuleDict({name: nn.Linear(dims[name], hidden_dim) for name in dims})

    def forward(self, streams: Mapping[str, Encoded], present_BM: Tensor) -> Tensor:
        """Fuse; see the class."""
        raise NotImplementedError


class LateFusion(MultimodalFusion):
    """Pooled vectors side by side, and what an MLP makes of them together.

    A linear head over the result is a sum of unimodal logits (a product of experts, right where
    modalities are independent given the class) plus a term for what only their combination says.

    Source: Baltrusaitis et al., arXiv 1705.09406 (late fusion); Hinton 2002 (products of experts).
    """

    def __init__(self, dims: Mapping[str, int], hidden_dim: int, dropout: float) -> None:
        super().__init__(dims, hidden_dim)
        together = len(dims) * hidden_dim
        self.norm = nn.ModuleDict({name: nn.LayerNorm(hidden_dim) for name in dims})
        self.interact = nn.Sequential(
            nn.Linear(together, hidden_dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, hidden_dim),
        )
        self.dropout = nn.Dropout(dropout)
        self.out_dim = together + hidden_dim

    def forward(self, streams: Mapping[str, Encoded], present_BM: Tensor) -> Tensor:
        """Pooled vectors of all modalities -> (B, (M + 1) * hidden_dim)."""
        parts = []
        for m, name in enumerate(self.modalities):
            part_BD = self.norm[name](self.project[name](streams[name].pooled_BD))
            parts.append(torch.where(present_BM[:, m, None], part_BD, self.missing[name]))
        together = self.dropout(torch.cat(parts, dim=1))
        return torch.cat([together, self.interact(together)], dim=1)


class EarlyFusion(MultimodalFusion):
    """All streams as one sequence, read by a joint transformer encoder.

    Each modality gives its pooled vector as a first step, then its sequence; every step carries
    an embedding of its modality and of its time. A clip that lacks a modality has one learned step
    in its place. The result is a summary step and the mean step of each modality.

    Source: the concatenated-tokens transformer of Xu et al., arXiv 2206.06488, section 3.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        hidden_dim: int,
        dropout: float,
        layers: int,
        attention_heads: int,
    ) -> None:
        super().__init__(dims, hidden_dim)
        self.hidden_dim = hidden_dim
        self.kind = nn.ParameterDict(
            {name: nn.Parameter(0.02 * torch.randn(hidden_dim)) for name in dims}
        )
        self.pooled = nn.ModuleDict({name: nn.Linear(dims[name], hidden_dim) for name in dims})
        self.norm_in = nn.ModuleDict({name: nn.LayerNorm(hidden_dim) for name in dims})
        self.summary = nn.Parameter(0.02 * torch.randn(hidden_dim))
        self.layers = nn.ModuleList(
            TransformerLayer(hidden_dim, attention_heads, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.out_dim = (len(dims) + 1) * hidden_dim

    def forward(self, streams: Mapping[str, Encoded], present_BM: Tensor) -> Tensor:
        """Sequences of all modalities -> (B, (M + 1) * hidden_dim)."""
        B = len(present_BM)
        steps = [self.summary.expand(B, 1, -1)]
        masks = [torch.ones(B, 1, dtype=torch.bool)]
        for m, name in enumerate(self.modalities):
            step_BTD, mask_BT = self._segment(name, streams[name], present_BM[:, m])
            steps.append(step_BTD)
            masks.append(mask_BT)
        x_BTD, mask_BT = self.dropout(torch.cat(steps, dim=1)), torch.cat(masks, dim=1)
        for layer in self.layers:
            x_BTD = layer(x_BTD, mask_BT)
        x_BTD = self.norm(x_BTD)
        sizes = [step.shape[1] for step in steps]
        means = [
            masked_mean(segment_BTD, segment_BT)
            for segment_BTD, segment_BT in zip(
                torch.split(x_BTD, sizes, dim=1), torch.split(mask_BT, sizes, dim=1), strict=True
            )
        ]
        return torch.cat(means, dim=1)

    def _segment(self, name: str, encoded: Encoded, present_B: Tensor) -> tuple[Tensor, Tensor]:
        """[missing or pooled, step, step, ...] of one modality, (B, 1 + T, D), and its mask."""
        first_BD = torch.where(
            present_B[:, None], self.pooled[name](encoded.pooled_BD), self.missing[name]
        )
        mask_BT = encoded.mask_BT & present_B[:, None]
        x_BTD = self.project[name](blank(encoded.sequence_BTD, mask_BT))
        x_BTD = x_BTD + time_features(encoded.times_BT, self.hidden_dim)
        x_BTD = self.norm_in[name](torch.cat([first_BD.unsqueeze(1), x_BTD], dim=1))
        return x_BTD + self.kind[name], torch.cat([torch.ones_like(mask_BT[:, :1]), mask_BT], dim=1)


FUSIONS: Mapping[str, Callable[..., MultimodalFusion]] = {
    "early": EarlyFusion,
    "late": LateFusion,
}


def build_fusion(config: Any, dims: Mapping[str, int]) -> MultimodalFusion:
    """The fusion that `[model.fusion]` describes, over encoders of these widths."""
    options = {name: value for name, value in config.model_dump().items() if name != "type"}
    return FUSIONS[config.type](dims, **options)
