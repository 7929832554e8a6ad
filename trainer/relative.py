"""Self-attention that knows how far apart two steps are, in steps and in bars.

Conventions: the distance of key j from query i is j - i, so it is negative behind the query; both
directions are learned, up to `reach`, and what is farther counts as `reach`. Bars likewise.

The logits of all distances are one product of T x (2T - 1), which `skew` turns into T x T without
gathering anything. They go to scaled_dot_product_attention as its mask.

Source: Huang et al., "Music Transformer", arXiv 1809.04281, sections 3.4 and 3.4.1, there for keys
behind the query only; the bias by bars is that of Raffel et al., arXiv 1910.10683, section 2.1.

Shapes: B batch, H head, T step, D width, d width of a head, R distance.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def skew(by_distance_BHTR: Tensor) -> Tensor:
    """From distances to keys: (B, H, T, 2T - 1) -> (B, H, T, T).

    Column r of the input is distance r - (T - 1); entry (i, j) of the result is that of j - i. One
    padding, one reshape: in the flattened rows of length 2T, (i, j - i + T - 1) lies at
    i * (2T - 1) + j + T - 1.
    """
    B, H, T, R = by_distance_BHTR.shape
    flat = F.pad(by_distance_BHTR, (0, 1)).flatten(2)
    return flat[..., T - 1 : T - 1 + T * R].view(B, H, T, R)[..., :T]


class RelativeAttention(nn.Module):
    """Attention over valid steps, by content, by distance and by bars.

    A row without any valid step attends to its first one, so that no softmax is over nothing.
    """

    def __init__(self, dim: int, heads: int, reach: int, bar_reach: int) -> None:
        super().__init__()
        self.heads, self.reach, self.bar_reach = heads, reach, bar_reach
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.distance_HRd = nn.Parameter(0.02 * torch.randn(heads, 2 * reach + 1, dim // heads))
        self.bars_RH = nn.Parameter(torch.zeros(2 * bar_reach + 1, heads))

    def forward(self, x_BTD: Tensor, mask_BT: Tensor, bar_BT: Tensor) -> Tensor:
        """(B, T, D), its mask and the bar of each step, int64 -> (B, T, D)."""
        B, T, D = x_BTD.shape
        q, k, v = self.qkv(x_BTD).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        first_T = torch.arange(T, device=x_BTD.device) == 0
        keys_BT = mask_BT | (first_T & ~mask_BT.any(dim=1, keepdim=True))
        bias_BHTT = self.by_distance(q) + self.by_bars(bar_BT)
        bias_BHTT = bias_BHTT.masked_fill(~keys_BT[:, None, None], float("-inf"))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_BHTT)
        # a copy in every case: an export must not depend on how attention lays its result out
        y_BTD = y.transpose(1, 2).clone(memory_format=torch.contiguous_format).view(B, T, D)
        out: Tensor = self.out(y_BTD)
        return out

    def by_distance(self, q_BHTd: Tensor) -> Tensor:
        """Logits (B, H, T, T): each query times the embedding of its distance to each key."""
        T, width = q_BHTd.shape[2:]
        apart_R = torch.arange(1 - T, T, device=q_BHTd.device).clamp(-self.reach, self.reach)
        by_distance = q_BHTd @ self.distance_HRd[:, apart_R + self.reach].transpose(1, 2)
        return skew(by_distance) / math.sqrt(width)

    def by_bars(self, bar_BT: Tensor) -> Tensor:
        """Logits (B, H, T, T): a number for each head and difference of bars."""
        apart_BTT = (bar_BT[:, None, :] - bar_BT[:, :, None]).clamp(-self.bar_reach, self.bar_reach)
        bias_BTTH = F.embedding(apart_BTT + self.bar_reach, self.bars_RH)
        return bias_BTTH.permute(0, 3, 1, 2)
