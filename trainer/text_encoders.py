"""Encoders of text. Shapes: B batch, T token, D width."""

import torch
from torch import Tensor, nn

from mmfuse.trainer.layers import (
    Encoded,
    TransformerLayer,
    blank,
    masked_max,
    masked_mean,
    time_features,
)


class TextEncoder(nn.Module):
    """A small transformer over subwords beside a bag of them.

    With a few hundred texts the bag (mean and maximum of the embeddings) learns which words matter
    before attention learns anything; token dropout keeps it from learning texts by heart.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_dim: int,
        layers: int,
        attention_heads: int,
        dropout: float,
        token_dropout: float,
    ) -> None:
        super().__init__()
        self.dim = hidden_dim
        self.token_dropout = token_dropout
        self.embedding = nn.Embedding(vocab_size, hidden_dim, padding_idx=0)
        self.norm = nn.LayerNorm(hidden_dim)
        self.layers = nn.ModuleList(
            TransformerLayer(hidden_dim, attention_heads, dropout) for _ in range(layers)
        )
        self.pool = nn.Linear(3 * hidden_dim, hidden_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BT: Tensor, mask_BT: Tensor, times_BT: Tensor) -> Encoded:
        """Token ids (B, T), mask and times (B, T) -> steps as they are, pooled (B, D)."""
        tokens_BT = torch.where(mask_BT, x_BT, 0).long()
        if self.training and self.token_dropout:
            mask_BT = mask_BT & drop_tokens(mask_BT, self.token_dropout)
        bag_BTD = self.norm(self.embedding(tokens_BT))
        order_T = torch.arange(x_BT.shape[1], dtype=torch.float32, device=x_BT.device)
        order_BT = order_T.expand(x_BT.shape)
        sequence_BTD = self.dropout(bag_BTD + time_features(order_BT, self.dim, 4.0, 400.0))
        for layer in self.layers:
            sequence_BTD = layer(sequence_BTD, mask_BT)
        pooled_BD = self.pool(
            torch.cat(
                [
                    masked_mean(bag_BTD, mask_BT),
                    masked_max(bag_BTD, mask_BT),
                    masked_mean(sequence_BTD, mask_BT),
                ],
                dim=1,
            )
        )
        return Encoded(blank(sequence_BTD, mask_BT), mask_BT, pooled_BD, times_BT)


def drop_tokens(mask_BT: Tensor, p: float) -> Tensor:
    """Which tokens to keep, each with probability 1 - p; the first token always stays."""
    keep_BT = torch.rand(mask_BT.shape, device=mask_BT.device) >= p
    keep_BT[:, 0] = True
    return keep_BT
