"""Convolutions over piano rolls. Shapes: B batch, T frame, P plane, K key, C channel, D width."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfuse.trainer.layers import Encoded, blank, masked_max, masked_mean

KEYS, PITCH_CLASSES = 128, 12
_LOUDEST = 127.0
_SHORTER = 4  # frames and keys in one of the first convolution's steps: frames by 4, keys by 2


class PianoRollEncoder(nn.Module):
    """Convolutions over keys and time, then mean and maximum over keys and over time.

    A convolution sees a shape of notes wherever it lies on the keyboard; an embedding of each key,
    added after the first, tells where. Beside it stand how long each key and each pitch class
    sounds, roots of their shares.

    In training, each roll may be moved by a few keys.
    """

    def __init__(
        self,
        planes: int,
        hidden_dim: int,
        channels: int,
        stride: int,
        dropout: float,
        transpose: int,
    ) -> None:
        super().__init__()
        self.dim, self.transpose = hidden_dim, transpose
        steps = [_SHORTER] + [2] * ((stride // _SHORTER).bit_length() - 1)
        sizes = [planes] + [channels * 2**i for i in range(len(steps))]
        self.shorten = nn.ModuleList(
            _Shorten(sizes[i], sizes[i + 1], step, 5 if i else 13, dropout)
            for i, step in enumerate(steps)
        )
        self.key_CK = nn.Parameter(0.02 * torch.randn(channels, KEYS // 2))
        self.project = nn.Linear(2 * sizes[-1], hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)
        self.pool = nn.Linear(2 * hidden_dim + planes * (KEYS + PITCH_CLASSES), hidden_dim)

    def forward(self, x_BTPK: Tensor, mask_BT: Tensor, times_BT: Tensor) -> Encoded:
        """Rolls (B, T, P, 128) of 0..127, mask, times -> T / stride steps."""
        x_BTX = blank(x_BTPK.float().flatten(2), mask_BT) / _LOUDEST
        x_BPTK = x_BTX.view(x_BTPK.shape).transpose(1, 2)
        if self.training and self.transpose:
            x_BPTK = self._transposed(x_BPTK)
        sounds_BX = self._sounding(x_BPTK)
        for i, shorten in enumerate(self.shorten):
            x_BPTK, mask_BT, times_BT = shorten(x_BPTK, mask_BT, times_BT)
            if not i:
                x_BPTK = x_BPTK + self.key_CK[:, None]
        x_BTC = torch.cat([x_BPTK.mean(dim=3), x_BPTK.amax(dim=3)], dim=1).transpose(1, 2)
        sequence_BTD = F.gelu(self.norm(self.project(x_BTC)))
        pooled_BD = self.pool(
            torch.cat(
                [masked_mean(sequence_BTD, mask_BT), masked_max(sequence_BTD, mask_BT), sounds_BX],
                dim=1,
            )
        )
        return Encoded(blank(sequence_BTD, mask_BT), mask_BT, pooled_BD, times_BT)

    def _sounding(self, x_BPTK: Tensor) -> Tensor:
        """Roots of the shares of keys and of pitch classes in each plane, about 1: (B, P * 140)."""
        key_BPK = x_BPTK.sum(dim=2)
        share_BPK = key_BPK / key_BPK.sum(dim=2, keepdim=True).clamp(min=1e-6)
        padded = F.pad(share_BPK, (0, -KEYS % PITCH_CLASSES))
        by_class = padded.view(*padded.shape[:2], -1, PITCH_CLASSES).sum(dim=2)
        shares = [share_BPK * KEYS, by_class * PITCH_CLASSES]
        return torch.cat(shares, dim=2).sqrt().flatten(1)

    def _transposed(self, x_BPTK: Tensor) -> Tensor:
        """Each roll moved by its own number of keys; what leaves the keyboard is gone."""
        most = self.transpose
        by_B = torch.randint(-most, most + 1, (len(x_BPTK),), device="cpu")
        padded = F.pad(x_BPTK, (most, most))
        moved = [
            roll.narrow(2, most - int(by), KEYS) for roll, by in zip(padded, by_B, strict=True)
        ]
        return torch.stack(moved)


class _Shorten(nn.Module):
    """Masked convolution over time and keys: T steps become ceil(T / stride), keys half as many.

    As `layers.Downsample`: padding changes nothing, dropout takes whole channels of a clip.
    """

    def __init__(self, dim_in: int, dim_out: int, stride: int, keys: int, dropout: float) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(
            dim_in, dim_out, (stride + 1, keys), (stride, 2), (stride // 2, keys // 2)
        )
        self.norm = nn.LayerNorm(dim_out)
        self.dropout = nn.Dropout2d(dropout)

    def forward(
        self, x_BPTK: Tensor, mask_BT: Tensor, times_BT: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, C, T, K), mask and times -> the same three with fewer steps."""
        here = mask_BT[:, None, :, None]
        y = self.conv(torch.where(here, x_BPTK, x_BPTK.new_zeros(())))
        y = F.gelu(self.norm(y.permute(0, 2, 3, 1)))
        y = self.dropout(y.permute(0, 3, 1, 2))
        steps = y.shape[2]
        short = steps * self.stride - mask_BT.shape[1]
        mask = F.pad(mask_BT, (0, max(short, 0)))[:, : steps * self.stride]
        return y, mask.view(-1, steps, self.stride).any(dim=2), times_BT[:, :: self.stride]
