"""A fusion: each modality votes with a vector, and confidence weighs the votes.

Shapes: B clip, D width, M modality.
"""

import torch
from torch import nn

from mmfuse.trainer.fusion_base import PooledFusion, given


class Voting(PooledFusion):
    """A mean of the present modalities' vectors, each weighed by its own confidence."""

    def __init__(self, dims, hidden_dim, sharpness=1.0):
        super().__init__(dims, hidden_dim)
        self.sharpness, self.out_dim = sharpness, hidden_dim
        self.confidence = nn.ModuleDict({name: nn.Linear(hidden_dim, 1) for name in dims})

    def _votes(self, streams, present_BM):
        vectors = self.vectors(streams, present_BM)
        each = zip(self.modalities, vectors, strict=True)
        scores_BM = torch.cat([self.confidence[name](x_BD) for name, x_BD in each], dim=1)
        scores_BM = scores_BM.masked_fill(~given(present_BM), -torch.inf) * self.sharpness
        return torch.stack(vectors, dim=1), scores_BM.softmax(dim=1)

    def forward(self, streams, present_BM):
        """(B, D)."""
        vectors_BMD, weights_BM = self._votes(streams, present_BM)
        return (weights_BM.unsqueeze(-1) * vectors_BMD).sum(dim=1)

    def gate_weights(self, streams, present_BM):
        """(B, M)."""
        return self._votes(streams, present_BM)[1] * present_BM
