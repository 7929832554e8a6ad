"""What encoders and fusions share: the record they exchange, masked pooling, attention, time.

Shapes: B batch, T time step, D width, H head, C channel, M modality, F field. A mask is True where
there is something. Padding and missing clips may hold anything, NaN included: encoders `blank` what
they are given before any arithmetic, because 0 * NaN is NaN, in the gradient too.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Encoded:
    """What an encoder says about a batch of clips.

    `times_BT` are seconds on the clip's timeline, NaN where a step has no time. Rows of clips that
    lack the modality have an all-False mask and finite values that mean nothing.
    """

    sequence_BTD: Tensor
    mask_BT: Tensor
    pooled_BD: Tensor
    times_BT: Tensor


def blank(x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Zeros where the mask is False, whatever stood there."""
    return torch.where(mask_BT.unsqueeze(-1), x_BTD, x_BTD.new_zeros(()))


def masked_mean(x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over valid steps, (B, D); zeros where there is none. All of x has to be finite."""
    share_BT = mask_BT / mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.bmm(share_BT.to(x_BTD.dtype).unsqueeze(1), x_BTD).squeeze(1)


def masked_max(x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Maximum over valid steps, (B, D); zeros where there is none."""
    low = torch.finfo(x_BTD.dtype).min
    peak_BD = x_BTD.masked_fill(~mask_BT.unsqueeze(-1), low).amax(dim=1)
    return torch.where(mask_BT.any(dim=1, keepdim=True), peak_BD, torch.zeros_like(peak_BD))


def time_features(
    times_BT: Tensor, dim: int, shortest_s: float = 0.1, longest_s: float = 60.0
) -> Tensor:
    """Sines and cosines of time at periods from `shortest_s` to `longest_s`: (B, T, dim).

    Steps without a time (NaN) get zeros. `dim` is even.
    """
    steps = torch.arange(dim // 2, dtype=torch.float32, device=times_BT.device)
    steps = steps / max(dim // 2 - 1, 1)
    period_s = shortest_s * (longest_s / shortest_s) ** steps
    timed_BT = torch.isfinite(times_BT)
    phase = blank(times_BT.unsqueeze(-1), timed_BT) * (2 * math.pi / period_s)
    return blank(torch.cat([phase.sin(), phase.cos()], dim=-1), timed_BT)


class Attention(nn.Module):
    """Self-attention over valid steps by scaled_dot_product_attention.

    A row without any valid step attends to its first one, so that no softmax is over nothing.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T, D) and its mask -> (B, T, D)."""
        B, T, D = x_BTD.shape
        qkv = self.qkv(x_BTD).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        first_T = torch.arange(T, device=x_BTD.device) == 0
        keys_BT = mask_BT | (first_T & ~mask_BT.any(dim=1, keepdim=True))
        y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], attn_mask=keys_BT[:, None, None])
        out: Tensor = self.out(y.transpose(1, 2).reshape(B, T, D))
        return out


class TransformerLayer(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual.

    Another attention than the plain one may be given, and gets what follows the mask.

    Source: Xiong et al., arXiv 2002.04745 (pre-norm trains without a long warm-up).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dropout: float,
        expansion: int = 2,
        attention: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(dim)
        self.attention = attention or Attention(dim, heads)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, expansion * dim), nn.GELU(), nn.Linear(expansion * dim, dim)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor, *context: Tensor) -> Tensor:
        """(B, T, D) and its mask -> (B, T, D)."""
        attended_BTD = self.attention(self.norm_attention(x_BTD), mask_BT, *context)
        x_BTD = x_BTD + self.dropout(attended_BTD)
        y_BTD: Tensor = x_BTD + self.dropout(self.mlp(self.norm_mlp(x_BTD)))
        return y_BTD


class Downsample(nn.Module):
    """Masked strided convolution over time: T steps become ceil(T / stride).

    Invalid steps count as the zeros beyond a clip's end, so padding changes nothing. A new step is
    valid where its stride holds a valid one; its time is that of the first of them. Dropout takes
    whole channels of a clip: neighbouring steps would tell what a single one hides.
    """

    def __init__(self, dim_in: int, dim_out: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv1d(dim_in, dim_out, stride + 1, stride=stride, padding=stride // 2)
        self.norm = nn.LayerNorm(dim_out)
        self.dropout = nn.Dropout1d(dropout)

    def forward(
        self, x_BTD: Tensor, mask_BT: Tensor, times_BT: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, D), mask and times -> the same three with fewer steps."""
        y_BTD = self.conv(blank(x_BTD, mask_BT).transpose(1, 2)).transpose(1, 2)
        y_BTD = F.gelu(self.norm(y_BTD))
        y_BTD = self.dropout(y_BTD.transpose(1, 2)).transpose(1, 2)
        steps = y_BTD.shape[1]
        short = steps * self.stride - mask_BT.shape[1]
        mask = F.pad(mask_BT, (0, max(short, 0)))[:, : steps * self.stride]
        return y_BTD, mask.view(-1, steps, self.stride).any(dim=2), times_BT[:, :: self.stride]


def strides(stride: int) -> list[int]:
    """A power of two as the strides of convolutions, fours first: 8 -> [4, 2]."""
    powers = stride.bit_length() - 1
    return [4] * (powers // 2) + [2] * (powers % 2)
