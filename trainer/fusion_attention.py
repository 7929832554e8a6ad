"""Fusions of sequences by attention: joint, from one modality to the others, through a bottleneck.

Shapes: B batch, T step, S step of a source, D width, H head, K learned step, M modality.
"""

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfuse.trainer.fusion_base import SequenceFusion, given
from mmfuse.trainer.layers import Encoded, TransformerLayer, masked_mean


class EarlyFusion(SequenceFusion):
    """All streams as one sequence, read by a joint transformer encoder.

    The result is a summary step and the mean step of each modality.

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
        self.summary = nn.Parameter(0.02 * torch.randn(hidden_dim))
        self.layers = nn.ModuleList(
            TransformerLayer(hidden_dim, attention_heads, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.out_dim = (len(dims) + 1) * hidden_dim

    def forward(self, streams: Mapping[str, Encoded], present_BM: Tensor) -> Tensor:
        """Sequences of all modalities -> (B, (M + 1) * hidden_dim)."""
        steps = [self.summary.expand(present_BM.shape[0], 1, -1)]
        masks = [torch.ones_like(present_BM[:, :1])]
        for m, name in enumerate(self.modalities):
            step_BTD, mask_BT = self.segment(name, streams[name], present_BM[:, m])
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


class CrossAttention(nn.Module):
    """Steps of a target ask the valid steps of a source; each source has to have one.

    softmax(Q K^T / sqrt(D / H)) V with Q from the target, K and V from the source, H heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x_BTD: Tensor, source_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """Target (B, T, D), source (B, S, D) and the source's mask -> (B, T, D)."""
        B, T, D = x_BTD.shape
        q = self.query(x_BTD).view(B, T, self.heads, -1).transpose(1, 2)
        kv = self.key_value(source_BSD).view(B, -1, 2, self.heads, D // self.heads)
        k, v = kv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BS[:, None, None])
        out: Tensor = self.out(y.transpose(1, 2).reshape(B, T, D))
        return out


class CrossLayer(nn.Module):
    """Pre-norm cross-modal attention and feed-forward, each with a residual.

    Source: Tsai et al., arXiv 1906.00295, section 3, with the residuals of their code.
    """

    def __init__(self, dim: int, heads: int, dropout: float, expansion: int = 2) -> None:
        super().__init__()
        self.norm_target, self.norm_source = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = CrossAttention(dim, heads)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, expansion * dim), nn.GELU(), nn.Linear(expansion * dim, dim)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, source_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """Target (B, T, D), source (B, S, D) and the source's mask -> (B, T, D)."""
        heard_BTD = self.attention(self.norm_target(x_BTD), self.norm_source(source_BSD), mask_BS)
        x_BTD = x_BTD + self.dropout(heard_BTD)
        y_BTD: Tensor = x_BTD + self.dropout(self.mlp(self.norm_mlp(x_BTD)))
        return y_BTD


class CrossModalAttention(SequenceFusion):
    """One modality asks each of the others, and what it hears from all is read together.

    The target is `query` (the first modality, if the model has none of that name). Its steps, and
    `questions` learned steps before them, go through layers of cross attention into each source, at
    every layer into the source as it came from its encoder. The results stand side by side in width
    and pass one layer of self-attention. A clip that lacks the target still asks, by the learned
    steps and the target's learned token; a source that it lacks answers with its learned token.

    The result is the mean of the learned steps and the mean of the target's steps. (The paper takes
    the last step, which in a padded batch is padding.) Time is in seconds in target and source
    alike; text without times has its order from its encoder only.

    Source: MulT, Tsai et al., arXiv 1906.00295, one target only.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        hidden_dim: int,
        dropout: float,
        layers: int,
        attention_heads: int,
        query: str = "text",
        questions: int = 4,
    ) -> None:
        super().__init__(dims, hidden_dim)
        self.target = query if query in dims else self.modalities[0]
        self.sources = tuple(name for name in dims if name != self.target)
        self.questions = nn.Parameter(0.02 * torch.randn(questions, hidden_dim))
        self.layers = nn.ModuleList(
            nn.ModuleList(CrossLayer(hidden_dim, attention_heads, dropout) for _ in range(layers))
            for _ in self.sources
        )
        width = max(1, len(self.sources)) * hidden_dim
        self.together = TransformerLayer(width, attention_heads, dropout)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.out_dim = 2 * width

    def forward(self, streams: Mapping[str, Encoded], present_BM: Tensor) -> Tensor:
        """Sequences of all modalities -> (B, 2 * max(1, M - 1) * hidden_dim)."""
        segments = {
            name: self.segment(name, streams[name], present_BM[:, m])
            for m, name in enumerate(self.modalities)
        }
        own_BTD, own_BT = segments[self.target]
        K = len(self.questions)
        asked_BTD = torch.cat([self.questions.expand(own_BTD.shape[0], -1, -1), own_BTD], dim=1)
        mask_BT = torch.cat([torch.ones_like(own_BT[:, :1]).expand(-1, K), own_BT], dim=1)
        asked_BTD = self.dropout(asked_BTD)
        heard = []
        for name, layers in zip(self.sources, self.layers, strict=True):
            source_BSD, mask_BS = segments[name]
            x_BTD = asked_BTD
            for layer in cast("nn.ModuleList", layers):
                x_BTD = layer(x_BTD, source_BSD, mask_BS)
            heard.append(x_BTD)
        together_BTD = torch.cat(heard, dim=2) if heard else asked_BTD
        together_BTD = self.norm(self.together(together_BTD, mask_BT))
        means = [together_BTD[:, :K].mean(dim=1), masked_mean(together_BTD[:, K:], own_BT)]
        return torch.cat(means, dim=1)


class BottleneckFusion(SequenceFusion):
    """Modalities with transformers of their own, which meet only in a few shared steps.

    In each layer, modality m reads its steps z_m and the shared ones z_f together, and the shared
    steps become the mean of what the present modalities make of them:

        [z_m; f_m] = Transformer_m([z_m; z_f]),   z_f = mean over present m of f_m

    What is said by two modalities together takes two layers. The result is the first step of each
    modality and the mean shared step. (The paper averages one classifier over first steps; the
    linear head that follows here has weights for each.)

    Source: MBT, Nagrani et al., arXiv 2107.00135, fusion via attention bottlenecks.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        hidden_dim: int,
        dropout: float,
        layers: int,
        attention_heads: int,
        bottlenecks: int = 4,
    ) -> None:
        super().__init__(dims, hidden_dim)
        self.bottleneck = nn.Parameter(0.02 * torch.randn(bottlenecks, hidden_dim))
        self.layers = nn.ModuleList(
            nn.ModuleList(TransformerLayer(hidden_dim, attention_heads, dropout) for _ in dims)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.out_dim = (len(dims) + 1) * hidden_dim

    def forward(self, streams: Mapping[str, Encoded], present_BM: Tensor) -> Tensor:
        """Sequences of all modalities -> (B, (M + 1) * hidden_dim)."""
        steps, masks = {}, {}
        for m, name in enumerate(self.modalities):
            x_BTD, masks[name] = self.segment(name, streams[name], present_BM[:, m])
            steps[name] = self.dropout(x_BTD)
        shared_BKD = self.bottleneck.expand(present_BM.shape[0], -1, -1)
        given_BM = given(present_BM).to(shared_BKD.dtype)
        share_BM = given_BM / given_BM.sum(dim=1, keepdim=True)
        for layers in self.layers:
            said = []
            for name, layer in zip(self.modalities, cast("nn.ModuleList", layers), strict=True):
                x_BTD, mask_BT = steps[name], masks[name]
                both_BTD = torch.cat([x_BTD, shared_BKD], dim=1)
                always_BK = torch.ones_like(mask_BT[:, :1]).expand(-1, shared_BKD.shape[1])
                both_BTD = layer(both_BTD, torch.cat([mask_BT, always_BK], dim=1))
                steps[name], own_BKD = both_BTD.split([x_BTD.shape[1], shared_BKD.shape[1]], dim=1)
                said.append(own_BKD)
            shared_BKD = torch.einsum("bm,mbkd->bkd", share_BM, torch.stack(said))
        first = [steps[name][:, 0] for name in self.modalities]
        fused: Tensor = self.norm(torch.stack([*first, shared_BKD.mean(dim=1)], dim=1))
        return fused.flatten(1)
