"""Encoders of MIDI events. Shapes: B batch, T event, F field, D width."""

import torch
from torch import Tensor, nn

from mmfuse.features.spec import StreamSpec
from mmfuse.trainer.layers import (
    Downsample,
    Encoded,
    TransformerLayer,
    blank,
    masked_max,
    masked_mean,
    strides,
    time_features,
)
from mmfuse.trainer.midi_embedding import note_embedding
from mmfuse.trainer.text_encoders import drop_tokens


class EventBasedEncoder(nn.Module):
    """A transformer over events, however the stream writes them.

    Convolutions shorten the sequence before attention; the bag of `midi_embedding` stands beside
    it.
    """

    def __init__(
        self,
        spec: StreamSpec,
        hidden_dim: int,
        layers: int,
        attention_heads: int,
        stride: int,
        dropout: float,
        token_dropout: float,
        transpose: int,
    ) -> None:
        super().__init__()
        self.dim, self.token_dropout, self.transpose = hidden_dim, token_dropout, transpose
        self.events = note_embedding(spec, hidden_dim, transpose)
        self.shorten = nn.ModuleList(
            Downsample(hidden_dim, hidden_dim, step, dropout) for step in strides(stride)
        )
        self.layers = nn.ModuleList(
            TransformerLayer(hidden_dim, attention_heads, dropout) for _ in range(layers)
        )
        self.pool = nn.Linear(2 * hidden_dim + self.events.bag_size, hidden_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTF: Tensor, mask_BT: Tensor, times_BT: Tensor) -> Encoded:
        """Rows of `midi_tokens` (B, T, F), mask, onsets -> T / stride steps."""
        rows = self.events.rows(x_BTF, mask_BT)
        if self.training and self.transpose:
            rows = self.events.transposed(rows)
        if self.training and self.token_dropout:
            mask_BT = mask_BT & drop_tokens(mask_BT, self.token_dropout)
        bag_BS = self.events.bag(rows, mask_BT, times_BT)
        sequence_BTD, steps_BT = self.events(rows), mask_BT
        for shorten in self.shorten:
            sequence_BTD, steps_BT, times_BT = shorten(sequence_BTD, steps_BT, times_BT)
        sequence_BTD = self.dropout(sequence_BTD + time_features(times_BT, self.dim))
        for layer in self.layers:
            sequence_BTD = layer(sequence_BTD, steps_BT)
        pooled_BD = self.pool(
            torch.cat(
                [bag_BS, masked_mean(sequence_BTD, steps_BT), masked_max(sequence_BTD, steps_BT)],
                dim=1,
            )
        )
        return Encoded(blank(sequence_BTD, steps_BT), steps_BT, pooled_BD, times_BT)
