"""Encoders of what describes a whole clip: rows of descriptors, and n-grams of its text.

With a few hundred clips a linear map of good descriptors, strongly regularised, is hard to beat.
These have no sequence but the one vector that they make of it.

Shapes: B batch, T row, F descriptor, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfuse.trainer.layers import Encoded, blank, masked_mean

_FAR = 3.0  # deviations from the mean beyond which a descriptor counts no more
_PRIMES = (1_000_003, 48_271, 2_147_483_647)  # factors, and modulus, of the hash


class StatisticsEncoder(nn.Module):
    """Descriptors in deviations from the train split's mean, through dropout and a linear map.

    Several rows of a clip are averaged.
    """

    mean_F: Tensor
    deviation_F: Tensor

    def __init__(self, size: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.dim = hidden_dim
        self.register_buffer("mean_F", torch.zeros(size))
        self.register_buffer("deviation_F", torch.ones(size))
        self.project = nn.Linear(size, hidden_dim)
        self.dropout = nn.Dropout(dropout)

    def standardise(self, mean_F: Tensor, deviation_F: Tensor) -> None:
        """Take mean and deviation of each descriptor from the train split.

        One that never varies there says nothing: its deviation counts as infinite.
        """
        varies_F = deviation_F > 1e-6 * mean_F.abs().clamp(min=1e-6)
        self.mean_F.copy_(mean_F)
        self.deviation_F.copy_(torch.where(varies_F, deviation_F, torch.inf))

    def forward(self, x_BTF: Tensor, mask_BT: Tensor, times_BT: Tensor) -> Encoded:
        """Rows (B, T, F), mask, times -> one step."""
        x_BF = masked_mean(blank(x_BTF.float(), mask_BT), mask_BT)
        x_BF = ((x_BF - self.mean_F) / self.deviation_F).clamp(-_FAR, _FAR)
        return _one_step(self.project(self.dropout(x_BF)), mask_BT, times_BT)


class NgramBagEncoder(nn.Module):
    """N-grams of tokens, hashed and weighed by TF-IDF, through dropout and a linear map.

    The weight of an n-gram that occurs c times in a clip, and in a share p of the train clips, is
    log(1 + c) (1 - log p), and 0 where p is 0; a clip's weights have a mean square of 1 over the
    n-grams that have one. Over single bytes (`vocab_size = 257`) these are n-grams of characters.

    Source: Joulin et al., arXiv 1607.01759 (linear maps of hashed n-grams); Salton & Buckley,
    Information Processing & Management 24(5), 1988 (TF-IDF).
    """

    idf_F: Tensor

    def __init__(
        self, hidden_dim: int, ngrams: tuple[int, int], buckets: int, dropout: float
    ) -> None:
        super().__init__()
        self.dim, self.ngrams, self.buckets = hidden_dim, tuple(ngrams), buckets
        self.register_buffer("idf_F", torch.ones(buckets))
        self.project = nn.Linear(buckets, hidden_dim)
        self.dropout = nn.Dropout(dropout)

    def weigh(self, share_F: Tensor) -> None:
        """Take the share of train clips that have each bucket's n-grams, (buckets,)."""
        self.idf_F.copy_(torch.where(share_F > 0, 1 - share_F.clamp(min=1e-12).log(), 0.0))

    def counts(self, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """How often each bucket's n-grams occur: ids and mask (B, T) -> (B, buckets)."""
        shortest, longest = self.ngrams
        tokens_BT = torch.where(mask_BT, tokens_BT, 0).long()
        counts_BF = torch.zeros(tokens_BT.shape[0], self.buckets, device=tokens_BT.device)
        multiply, mix, modulus = _PRIMES
        length = tokens_BT.shape[1]
        padded, there = F.pad(tokens_BT, (0, longest - 1)), F.pad(mask_BT, (0, longest - 1))
        hash_BT, whole_BT = torch.zeros_like(tokens_BT), torch.ones_like(mask_BT)
        for n in range(1, longest + 1):
            hash_BT = (hash_BT * multiply + padded[:, n - 1 : n - 1 + length] + 1) % modulus
            whole_BT = whole_BT & there[:, n - 1 : n - 1 + length]
            if n >= shortest:
                bucket_BT = (hash_BT * mix % modulus) % self.buckets
                counts_BF = counts_BF.scatter_add(1, bucket_BT, whole_BT.to(counts_BF.dtype))
        return counts_BF

    def weights(self, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """The formula of the class: (B, buckets)."""
        weight_BF = self.counts(tokens_BT, mask_BT).log1p() * self.idf_F
        size_B1 = weight_BF.square().sum(dim=1, keepdim=True)
        count_B1 = (weight_BF > 0).sum(dim=1, keepdim=True)
        return weight_BF * (count_B1 / size_B1.clamp(min=1e-12)).sqrt()

    def forward(self, x_BT: Tensor, mask_BT: Tensor, times_BT: Tensor) -> Encoded:
        """Token ids, mask and times (B, T) -> one step."""
        return _one_step(self.project(self.dropout(self.weights(x_BT, mask_BT))), mask_BT, times_BT)


def _one_step(pooled_BD: Tensor, mask_BT: Tensor, times_BT: Tensor) -> Encoded:
    here_B1 = mask_BT.any(dim=1, keepdim=True)
    return Encoded(blank(pooled_BD.unsqueeze(1), here_B1), here_B1, pooled_BD, times_BT[:, :1])
