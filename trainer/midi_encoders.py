"""Encoders of MIDI. Shapes: B batch, T event, F field, D width."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmfuse.trainer.layers import (
    Downsample,
    Encoded,
    TransformerLayer,
    blank,
    masked_max,
    masked_mean,
    time_features,
)
from mmfuse.trainer.text_encoders import drop_tokens

PITCHES, PITCH_CLASSES = 128, 12


class EventBasedEncoder(nn.Module):
    """A transformer over NOTE_ON, NOTE_OFF, TIME_SHIFT and VELOCITY events.

    A note's embedding is the sum of those of the event, its pitch class and its octave: what is
    known of one key or register is known of all. Convolutions shorten the sequence before
    attention; a bag of events stands beside it.

    `vocabulary` holds `size`, and the first ids `note_on` and `note_off` of 128 pitches each.
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        hidden_dim: int,
        layers: int,
        attention_heads: int,
        stride: int,
        dropout: float,
        token_dropout: float,
        transpose: int,
        token_field: int = 0,
    ) -> None:
        super().__init__()
        self.dim, self.token_dropout, self.transpose = hidden_dim, token_dropout, transpose
        self.token_field = token_field
        self.note_on, self.note_off = vocabulary["note_on"], vocabulary["note_off"]
        self.embedding = nn.Embedding(vocabulary["size"], hidden_dim, padding_idx=0)
        self.pitch_class = nn.Embedding(2 * PITCH_CLASSES + 1, hidden_dim, padding_idx=0)
        self.octave = nn.Embedding(2 * (PITCHES // PITCH_CLASSES + 1) + 1, hidden_dim, padding_idx=0)
        self.norm = nn.LayerNorm(hidden_dim)
        self.shorten = nn.ModuleList(
            Downsample(hidden_dim, hidden_dim, 2, dropout) for _ in range(stride.bit_length() - 1)
        )
        self.layers = nn.ModuleList(
            TransformerLayer(hidden_dim, attention_heads, dropout) for _ in range(layers)
        )
        self.pool = nn.Linear(3 * hidden_dim, hidden_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTF: Tensor, mask_BT: Tensor, times_BT: Tensor) -> Encoded:
        """Events (B, T, F) with the token id in one field, mask, onsets -> T / stride steps."""
        tokens_BT = torch.where(mask_BT, x_BTF[..., self.token_field], 0).long()
        if self.training and self.transpose:
            tokens_BT = self._transposed(tokens_BT)
        if self.training and self.token_dropout:
            mask_BT = mask_BT & drop_tokens(mask_BT, self.token_dropout)
        bag_BTD = self.norm(self._embed(tokens_BT))
        sequence_BTD, steps_BT = bag_BTD, mask_BT
        for shorten in self.shorten:
            sequence_BTD, steps_BT, times_BT = shorten(sequence_BTD, steps_BT, times_BT)
        sequence_BTD = self.dropout(sequence_BTD + time_features(times_BT, self.dim))
        for layer in self.layers:
            sequence_BTD = layer(sequence_BTD, steps_BT)
        pooled_BD = self.pool(
            torch.cat(
                [
                    masked_mean(bag_BTD, mask_BT),
                    masked_mean(sequence_BTD, steps_BT),
                    masked_max(sequence_BTD, steps_BT),
                ],
                dim=1,
            )
        )
        return Encoded(blank(sequence_BTD, steps_BT), steps_BT, pooled_BD, times_BT)

    def _pitch(self, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Pitch (or -1) and 0 for NOTE_ON, 1 for NOTE_OFF."""
        off_BT = (tokens_BT >= self.note_off) & (tokens_BT < self.note_off + PITCHES)
        on_BT = (tokens_BT >= self.note_on) & (tokens_BT < self.note_on + PITCHES)
        pitch_BT = tokens_BT - torch.where(off_BT, self.note_off, self.note_on)
        return torch.where(on_BT | off_BT, pitch_BT, -1), off_BT.long()

    def _embed(self, tokens_BT: Tensor) -> Tensor:
        pitch_BT, off_BT = self._pitch(tokens_BT)
        note_BT = pitch_BT >= 0
        octaves = PITCHES // PITCH_CLASSES + 1
        class_BT = torch.where(note_BT, 1 + pitch_BT % PITCH_CLASSES + PITCH_CLASSES * off_BT, 0)
        octave_BT = torch.where(note_BT, 1 + pitch_BT // PITCH_CLASSES + octaves * off_BT, 0)
        embedded: Tensor = (
            self.embedding(tokens_BT) + self.pitch_class(class_BT) + self.octave(octave_BT)
        )
        return embedded

    def _transposed(self, tokens_BT: Tensor) -> Tensor:
        """Each clip moved by its own number of semitones; notes that would leave 0..127 stay."""
        by_B1 = torch.randint(-self.transpose, self.transpose + 1, (len(tokens_BT), 1))
        pitch_BT, _ = self._pitch(tokens_BT)
        moved_BT = pitch_BT + by_B1
        fits_BT = (pitch_BT >= 0) & (moved_BT >= 0) & (moved_BT < PITCHES)
        return torch.where(fits_BT, tokens_BT + by_B1, tokens_BT)
