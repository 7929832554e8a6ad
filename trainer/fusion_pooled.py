"""Fusions of one vector a modality: side by side, weighed by gates, multiplied.

Shapes: B batch, D width, M modality, R rank, O output.
"""

import math
from collections.abc import Mapping
from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn

from mmfuse.trainer.fusion_base import PooledFusion, given
from mmfuse.trainer.layers import Encoded


class LateFusion(PooledFusion):
    """Pooled vectors side by side, and what an MLP makes of them together.

    A linear head over the result is a sum of unimodal logits (a product of experts, right where
    modalities are independent given the class) plus a term for what only their combination says.
    Without `interaction` only the sum is left: the plain late fusion that others are held against.
    Without `normalise` a vector keeps its length, which tells how much there is to say.

    Source: Baltrusaitis et al., arXiv 1705.09406 (late fusion); Hinton 2002 (products of experts).
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        hidden_dim: int,
        dropout: float,
        interaction: bool = True,
        normalise: bool = True,
    ) -> None:
        super().__init__(dims, hidden_dim, normalise=normalise)
        together = len(dims) * hidden_dim
        self.interact = (
            nn.Sequential(
                nn.Linear(together, hidden_dim),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Linear(hidden_dim, hidden_dim),
            )
            if interaction
            else None
        )
        self.dropout = nn.Dropout(dropout)
        self.out_dim = together + hidden_dim * interaction

    def forward(self, streams: Mapping[str, Encoded], present_BM: Tensor) -> Tensor:
        """Pooled vectors of all modalities -> (B, (M + 1) * hidden_dim), M without interaction."""
        together: Tensor = self.dropout(torch.cat(self.vectors(streams, present_BM), dim=1))
        if self.interact is None:
            return together
        return torch.cat([together, self.interact(together)], dim=1)


class GatedFusion(PooledFusion):
    """A sum of the modalities' vectors, each times a weight that all of them decide together.

    `gate = "softmax"`: one number a modality, softmax over those that are present, so they sum to
    one, absent ones count 0, and one alone counts 1. `gate = "gmu"`: one number a modality and
    dimension by gated multimodal units. With h_m = tanh(V_m x_m):

        two modalities:  z = sigmoid(W_z [x_1; x_2]),       h = z * h_1 + (1 - z) * h_2
        more:            z_m = sigmoid(W_m [x_1; ...; x_M]), h = sum over m of z_m * h_m

    Absent modalities have z = 0; the other one of two then has 1.

    Source: Arevalo et al., arXiv 1702.01992, equations 1 to 4 (gmu); attention over modalities as
    in Hori et al., arXiv 1701.03126 (softmax).
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        hidden_dim: int,
        dropout: float,
        gate: Literal["softmax", "gmu"] = "softmax",
    ) -> None:
        super().__init__(dims, hidden_dim)
        count = len(dims)
        self.kind = gate
        self.value = nn.ModuleDict(
            {name: nn.Linear(hidden_dim, hidden_dim, bias=False) for name in dims}
        )
        self.gate: nn.Linear | None = None
        if gate == "softmax" and count > 1:
            self.gate = nn.Linear(count * hidden_dim, count)
        elif gate == "gmu" and count > 1:
            gates = 1 if count == 2 else count  # of two, the second is what the first leaves
            self.gate = nn.Linear(count * hidden_dim, gates * hidden_dim, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.out_dim = hidden_dim

    def forward(self, streams: Mapping[str, Encoded], present_BM: Tensor) -> Tensor:
        """Pooled vectors of all modalities -> (B, hidden_dim)."""
        vectors = self.vectors(streams, present_BM)
        values_BMD = torch.stack(
            [torch.tanh(self.value[n](x)) for n, x in zip(self.modalities, vectors, strict=True)],
            dim=1,
        )
        fused_BD: Tensor = self.dropout((self._gates(vectors, present_BM) * values_BMD).sum(dim=1))
        return fused_BD

    def gate_weights(self, streams: Mapping[str, Encoded], present_BM: Tensor) -> Tensor:
        """Weight of each modality, (B, M), 0 where absent; of gmu the mean over dimensions."""
        gates_BMD = self._gates(self.vectors(streams, present_BM), present_BM)
        return gates_BMD.mean(dim=2) * present_BM

    def _gates(self, vectors: list[Tensor], present_BM: Tensor) -> Tensor:
        """(B, M, D) of gmu, (B, M, 1) of softmax."""
        here_BM1 = given(present_BM).unsqueeze(2)
        if self.gate is None:
            return here_BM1.to(vectors[0].dtype)
        logits: Tensor = self.gate(torch.cat(vectors, dim=1))
        if self.kind == "softmax":
            return logits.unsqueeze(2).masked_fill(~here_BM1, -math.inf).softmax(dim=1)
        z_BMD = torch.sigmoid(logits.view(logits.shape[0], -1, self.out_dim))
        if len(vectors) == 2:
            z_BMD = torch.cat([z_BMD, 1 - z_BMD], dim=1)
            z_BMD = torch.where(here_BM1.all(dim=1, keepdim=True), z_BMD, torch.ones_like(z_BMD))
        return z_BMD * here_BM1


class LowRankFusion(PooledFusion):
    """The outer product of all vectors read by a tensor of low rank, without making either.

        h = sum over r of prod over m of [1; x_m] W_m^r + b

    is `W . ([1; x_1] outer ... outer [1; x_M]) + b` where W has rank R: it holds every product of
    features of different modalities, at a cost that grows with R * M instead of D^M.

    The factors start near 1 + x_m W_m^r: a sum of all vectors, and products of them beside it.

    Source: Liu et al., arXiv 1806.00064, section 3.
    """

    def __init__(
        self, dims: Mapping[str, int], hidden_dim: int, dropout: float, rank: int = 4
    ) -> None:
        super().__init__(dims, hidden_dim)
        self.factor = nn.ParameterDict(
            {name: nn.Parameter(self._initial(rank, hidden_dim)) for name in dims}
        )
        self.bias = nn.Parameter(torch.zeros(hidden_dim))
        self.norm_out = nn.LayerNorm(hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.out_dim = hidden_dim

    @staticmethod
    def _initial(rank: int, dim: int) -> Tensor:
        factor_RDO = torch.randn(rank, dim + 1, dim) / math.sqrt(2 * dim)
        factor_RDO[:, 0] = 1.0
        return factor_RDO

    def forward(self, streams: Mapping[str, Encoded], present_BM: Tensor) -> Tensor:
        """Pooled vectors of all modalities -> (B, hidden_dim)."""
        product_BD = self.product(self.vectors(streams, present_BM))
        fused_BD: Tensor = self.dropout(self.norm_out(product_BD))
        return fused_BD

    def product(self, vectors: list[Tensor]) -> Tensor:
        """The formula of the class over one (B, D) a modality: (B, hidden_dim)."""
        terms_MRBO = []
        for name, x_BD in zip(self.modalities, vectors, strict=True):
            factor_RDO = self.factor[name]
            terms_MRBO.append(factor_RDO[:, :1] + x_BD @ factor_RDO[:, 1:])
        fused_BO: Tensor = reduce(torch.mul, terms_MRBO).sum(dim=0) + self.bias
        return fused_BO
