"""Encoders of audio. Shapes: B batch, T frame, F mel band, C channel, D width."""

import torch
from torch import Tensor, nn

from mmfuse.trainer.layers import Downsample, Encoded, blank, masked_max, masked_mean, strides
from mmfuse.trainer.spec_augment import SpecAugment


class MelCNNEncoder(nn.Module):
    """Convolutions over log-mel frames, shortened to a fraction, then mean and maximum.

    Bands are standardised with mean and deviation of the training split, kept as buffers. In
    training, SpecAugment masks one stretch of bands and one of frames of each clip.
    """

    mean_F: Tensor
    deviation_F: Tensor

    def __init__(
        self,
        bands: int,
        hidden_dim: int,
        stride: int,
        dropout: float,
        mask_bands: int,
        mask_frames: int,
    ) -> None:
        super().__init__()
        self.dim = hidden_dim
        self.spec_augment = SpecAugment(F=mask_bands, T=mask_frames)
        self.register_buffer("mean_F", torch.zeros(bands))
        self.register_buffer("deviation_F", torch.ones(bands))
        self.shorten = nn.ModuleList(
            Downsample(hidden_dim if i else bands, hidden_dim, step, dropout)
            for i, step in enumerate(strides(stride))
        )
        self.pool = nn.Linear(2 * hidden_dim + 2 * bands, hidden_dim)

    def standardise(self, mean_F: Tensor, deviation_F: Tensor) -> None:
        """Take mean and deviation per band, in dB, from the training split."""
        self.mean_F.copy_(mean_F)
        self.deviation_F.copy_(deviation_F.clamp(min=1e-3))

    def forward(self, x_BTF: Tensor, mask_BT: Tensor, times_BT: Tensor) -> Encoded:
        """Frames (B, T, F) in dB, mask, times -> T / stride steps."""
        x_BTF = blank(x_BTF.float(), mask_BT)
        x_BTF = blank((x_BTF - self.mean_F) / self.deviation_F, mask_BT)
        mean_BF = masked_mean(x_BTF, mask_BT)
        variance_BF = masked_mean(x_BTF**2, mask_BT) - mean_BF**2
        spread_BF = variance_BF.clamp(min=1e-6).sqrt()
        x_BTF = self.spec_augment(x_BTF, mask_BT)
        for shorten in self.shorten:
            x_BTF, mask_BT, times_BT = shorten(x_BTF, mask_BT, times_BT)
        pooled_BD = self.pool(
            torch.cat(
                [masked_mean(x_BTF, mask_BT), masked_max(x_BTF, mask_BT), mean_BF, spread_BF], dim=1
            )
        )
        return Encoded(blank(x_BTF, mask_BT), mask_BT, pooled_BD, times_BT)
