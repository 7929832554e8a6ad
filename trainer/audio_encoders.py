"""Encoders of audio. Shapes: B batch, T frame, F mel band, C channel, D width."""

import torch
from torch import Tensor, nn

from mmfuse.trainer.layers import Downsample, Encoded, blank, masked_max, masked_mean, strides


class MelCNNEncoder(nn.Module):
    """Convolutions over log-mel frames, shortened to a fraction, then mean and maximum.

    Bands are standardised with mean and deviation of the training split, kept as buffers. In
    training, one stretch of bands and one of frames are blanked per clip.

    Source of the masking: SpecAugment, Park et al., arXiv 1904.08779.
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
        self.dim, self.mask_bands, self.mask_frames = hidden_dim, mask_bands, mask_frames
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
        if self.training:
            x_BTF = self._augmented(x_BTF)
        for shorten in self.shorten:
            x_BTF, mask_BT, times_BT = shorten(x_BTF, mask_BT, times_BT)
        pooled_BD = self.pool(
            torch.cat(
                [masked_mean(x_BTF, mask_BT), masked_max(x_BTF, mask_BT), mean_BF, spread_BF], dim=1
            )
        )
        return Encoded(blank(x_BTF, mask_BT), mask_BT, pooled_BD, times_BT)

    def _augmented(self, x_BTF: Tensor) -> Tensor:
        bands_BF = _stretch(len(x_BTF), x_BTF.shape[2], self.mask_bands)
        frames_BT = _stretch(len(x_BTF), x_BTF.shape[1], self.mask_frames)
        return x_BTF.masked_fill(bands_BF[:, None] | frames_BT[:, :, None], 0.0)


def _stretch(batch: int, size: int, longest: int) -> Tensor:
    """(batch, size) bool, True in one random stretch of 0..longest steps of each row."""
    width_B1 = torch.randint(0, min(longest, size) + 1, (batch, 1))
    start_B1 = (torch.rand(batch, 1) * (size - width_B1 + 1)).long()
    steps = torch.arange(size)
    return (steps >= start_B1) & (steps < start_B1 + width_B1)
