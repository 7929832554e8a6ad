"""SpecAugment: stretches of mel bands and of frames blanked in training.

Names are the paper's: F and T are the longest mask over bands and over frames, m_F and m_T how many
there are of each, p the largest share of a clip's own frames that one mask over time may take. What
is masked gets 0, the mean, since frames are standardised. Time warping is left out: the paper found
it to matter least.

Source: Park et al., arXiv 1904.08779, sections 2 and 5.

Shapes: B batch, T frame, F mel band.
"""

import torch
from torch import Tensor, nn


class SpecAugment(nn.Module):
    """Masks drawn anew for every clip; does nothing outside training."""

    def __init__(self, F: int, T: int, m_F: int = 1, m_T: int = 1, p: float = 1.0) -> None:
        super().__init__()
        self.F, self.T, self.m_F, self.m_T, self.p = F, T, m_F, m_T, p

    def forward(self, x_BTF: Tensor, mask_BT: Tensor) -> Tensor:
        """Standardised frames (B, T, F) and which of them are a clip's -> the same, masked."""
        if not self.training:
            return x_BTF
        frames_B = mask_BT.sum(dim=1)
        bands_B = torch.full_like(frames_B, x_BTF.shape[2])
        for _ in range(self.m_F if self.F else 0):
            x_BTF = x_BTF.masked_fill(_stretch(bands_B, x_BTF.shape[2], self.F)[:, None], 0.0)
        for _ in range(self.m_T if self.T else 0):
            longest_B = (self.p * frames_B).long().clamp(max=self.T)
            hidden_BT = _stretch(frames_B, x_BTF.shape[1], longest_B)
            x_BTF = x_BTF.masked_fill(hidden_BT[:, :, None], 0.0)
        return x_BTF


def _stretch(size_B: Tensor, most: int, longest: Tensor | int) -> Tensor:
    """(B, most) bool, True in one random stretch of 0..longest of the first `size_B` steps."""
    device = size_B.device
    limit_B = torch.minimum(size_B, torch.as_tensor(longest, device=device))
    width_B = (torch.rand(len(size_B), device=device) * (limit_B + 1)).long()
    start_B = (torch.rand(len(size_B), device=device) * (size_B - width_B + 1)).long()
    steps = torch.arange(most, device=device)
    return (steps >= start_B[:, None]) & (steps < (start_B + width_B)[:, None])
