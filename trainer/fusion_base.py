"""What every fusion promises, and the two ways of reading what encoders give.

Shapes: B batch, T step, D width, M modality. `present_BM` says which clip has which modality; a
clip that lacks one gets a learned token in its place, never its content.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmfuse.trainer.layers import Encoded, blank, time_features


class MultimodalFusion(nn.Module):
    """What a fusion promises: `forward(streams, present_BM) -> (B, out_dim)`.

    `streams` has one `Encoded` a modality, in the order of `present_BM`'s columns. Absent entries
    change neither the output nor any gradient, whatever they hold.

    Args:
        dims: width of each modality's encoder.
        hidden_dim: width that all of them are brought to.
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

    def gate_weights(self, streams: Mapping[str, Encoded], present_BM: Tensor) -> Tensor | None:
        """How much each modality counts, (B, M), 0 where absent; None if a fusion has no such."""
        return None


class PooledFusion(MultimodalFusion):
    """A fusion of one vector a modality: its encoder's pooled vector, or the learned token."""

    def __init__(self, dims: Mapping[str, int], hidden_dim: int, *, normalise: bool = True) -> None:
        super().__init__(dims, hidden_dim)
        self.norm = nn.ModuleDict(
            {name: nn.LayerNorm(hidden_dim) if normalise else nn.Identity() for name in dims}
        )

    def vectors(self, streams: Mapping[str, Encoded], present_BM: Tensor) -> list[Tensor]:
        """(B, D) of each modality."""
        parts = []
        for m, name in enumerate(self.modalities):
            here_B1 = present_BM[:, m, None]
            pooled_BD = _where(here_B1, streams[name].pooled_BD)
            part_BD = self.norm[name](self.project[name](pooled_BD))
            parts.append(torch.where(here_B1, part_BD, self.missing[name]))
        return parts


class SequenceFusion(MultimodalFusion):
    """A fusion of sequences: each modality gives its pooled vector as a first step, then its steps.

    Every step carries an embedding of its modality and of its time in seconds. A clip that lacks a
    modality has one learned step in its place, so that attention always finds a key.
    """

    def __init__(self, dims: Mapping[str, int], hidden_dim: int) -> None:
        super().__init__(dims, hidden_dim)
        self.hidden_dim = hidden_dim
        self.kind = nn.ParameterDict(
            {name: nn.Parameter(0.02 * torch.randn(hidden_dim)) for name in dims}
        )
        self.pooled = nn.ModuleDict({name: nn.Linear(dims[name], hidden_dim) for name in dims})
        self.norm_in = nn.ModuleDict({name: nn.LayerNorm(hidden_dim) for name in dims})

    def segment(self, name: str, encoded: Encoded, present_B: Tensor) -> tuple[Tensor, Tensor]:
        """[missing or pooled, step, step, ...] of one modality, (B, 1 + T, D), and its mask."""
        here_B1 = present_B[:, None]
        pooled_BD = self.pooled[name](_where(here_B1, encoded.pooled_BD))
        first_BD = torch.where(here_B1, pooled_BD, self.missing[name])
        mask_BT = encoded.mask_BT & here_B1
        x_BTD = self.project[name](blank(encoded.sequence_BTD, mask_BT))
        x_BTD = x_BTD + time_features(encoded.times_BT, self.hidden_dim)
        x_BTD = self.norm_in[name](torch.cat([first_BD.unsqueeze(1), x_BTD], dim=1))
        return x_BTD + self.kind[name], torch.cat([torch.ones_like(mask_BT[:, :1]), mask_BT], dim=1)


def given(present_BM: Tensor) -> Tensor:
    """`present_BM`, and all True for clips that have nothing: their tokens are all there is.

    What is shared out over present modalities is shared out over this, so that no sum is empty.
    """
    return present_BM | ~present_BM.any(dim=1, keepdim=True)


def _where(here_B1: Tensor, x_BD: Tensor) -> Tensor:
    return torch.where(here_B1, x_BD, torch.zeros_like(x_BD))
