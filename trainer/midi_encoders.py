"""Encoders of MIDI. Shapes: B batch, T event, F field, D width, V token of the vocabulary."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
from mmfuse.trainer.text_encoders import drop_tokens

PITCHES, PITCH_CLASSES, OCTAVES = 128, 12, 11
WIDEST = 12  # semitones
READABLE = ("midi_like", "remi")  # vocabularies with one token a row


class EventBasedEncoder(nn.Module):
    """A transformer over events, one token each: those of `midi_like` or of `remi`.

    A note's embedding is the sum of those of the event, its pitch class and its octave: what is
    known of one key or register is known of all. Convolutions shorten the sequence before
    attention; a bag stands beside it, of events, pitch classes, octaves and intervals: with a few
    hundred clips it learns what attention can't yet.

    `vocabulary` is the stream's: `size`, and `[first, count]` of the tokens that are pitches,
    `note_on` and `note_off` or just `pitch`.
    """

    class_V: Tensor
    octave_V: Tensor
    pitch_V: Tensor

    def __init__(
        self,
        vocabulary: Mapping[str, Any],
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
        for name, numbers_V in _anatomy(vocabulary).items():
            self.register_buffer(name, numbers_V, persistent=False)
        self.embedding = nn.Embedding(int(vocabulary["size"]), hidden_dim, padding_idx=0)
        self.pitch_class = nn.Embedding(2 * PITCH_CLASSES + 1, hidden_dim, padding_idx=0)
        self.octave = nn.Embedding(2 * OCTAVES + 1, hidden_dim, padding_idx=0)
        self.norm = nn.LayerNorm(hidden_dim)
        self.shorten = nn.ModuleList(
            Downsample(hidden_dim, hidden_dim, step, dropout) for step in strides(stride)
        )
        self.layers = nn.ModuleList(
            TransformerLayer(hidden_dim, attention_heads, dropout) for _ in range(layers)
        )
        bag = int(vocabulary["size"]) + 2 * PITCH_CLASSES + 2 * OCTAVES + 2 + 2 * WIDEST + 2
        self.pool = nn.Linear(2 * hidden_dim + bag, hidden_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTF: Tensor, mask_BT: Tensor, times_BT: Tensor) -> Encoded:
        """Events (B, T, F) with the token id in one field, mask, onsets -> T / stride steps."""
        tokens_BT = torch.where(mask_BT, x_BTF[..., self.token_field], 0).long()
        if self.training and self.transpose:
            tokens_BT = self._transposed(tokens_BT)
        if self.training and self.token_dropout:
            mask_BT = mask_BT & drop_tokens(mask_BT, self.token_dropout)
        sequence_BTD, steps_BT = F.embedding(tokens_BT, self._table()), mask_BT
        for shorten in self.shorten:
            sequence_BTD, steps_BT, times_BT = shorten(sequence_BTD, steps_BT, times_BT)
        sequence_BTD = self.dropout(sequence_BTD + time_features(times_BT, self.dim))
        for layer in self.layers:
            sequence_BTD = layer(sequence_BTD, steps_BT)
        pooled_BD = self.pool(
            torch.cat(
                [
                    self._bag(tokens_BT, mask_BT),
                    masked_mean(sequence_BTD, steps_BT),
                    masked_max(sequence_BTD, steps_BT),
                ],
                dim=1,
            )
        )
        return Encoded(blank(sequence_BTD, steps_BT), steps_BT, pooled_BD, times_BT)

    def _table(self) -> Tensor:
        """What each token looks like, (V, D): far fewer rows than a batch has events."""
        table_VD: Tensor = self.norm(
            self.embedding.weight + self.pitch_class(self.class_V) + self.octave(self.octave_V)
        )
        return table_VD

    def _bag(self, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Roots of the shares of events, pitch classes, octaves and intervals, about 1: (B, bag).

        Roots, because the few frequent events would hide what the many rare ones tell.

        Source: the Hellinger distance, as Arandjelovic & Zisserman 2012 (RootSIFT).
        """
        weight_BT = mask_BT / mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
        parts = []
        for numbers_BT, size in (
            (tokens_BT, len(self.class_V)),
            (self.class_V[tokens_BT], 2 * PITCH_CLASSES + 1),
            (self.octave_V[tokens_BT], 2 * OCTAVES + 1),
            (self._intervals(tokens_BT, mask_BT), 2 * WIDEST + 2),
        ):
            share_BV = torch.zeros(len(tokens_BT), size).scatter_add(1, numbers_BT, weight_BT)
            parts.append((share_BV * size).sqrt())
        return torch.cat(parts, dim=1)

    def _intervals(self, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Semitones from the last NOTE_ON to this one, 1..2 * WIDEST + 1; 0 for other events."""
        on_BT = mask_BT & (self.octave_V[tokens_BT] > 0) & (self.octave_V[tokens_BT] <= OCTAVES)
        steps_T = torch.arange(tokens_BT.shape[1])
        last_BT = torch.where(on_BT, steps_T, -1).cummax(dim=1).values
        before_BT = F.pad(last_BT, (1, -1), value=-1)
        pitch_BT = self.pitch_V[tokens_BT]
        leap_BT = pitch_BT - pitch_BT.gather(1, before_BT.clamp(min=0))
        known_BT = on_BT & (before_BT >= 0)
        return torch.where(known_BT, leap_BT.clamp(-WIDEST, WIDEST) + WIDEST + 1, 0)

    def _transposed(self, tokens_BT: Tensor) -> Tensor:
        """Each clip moved by its own number of semitones; notes that would leave 0..127 stay."""
        by_B1 = torch.randint(-self.transpose, self.transpose + 1, (len(tokens_BT), 1))
        pitch_BT = self.pitch_V[tokens_BT]
        moved_BT = pitch_BT + by_B1
        fits_BT = (pitch_BT >= 0) & (moved_BT >= 0) & (moved_BT < PITCHES)
        return torch.where(fits_BT, tokens_BT + by_B1, tokens_BT)


def _anatomy(vocabulary: Mapping[str, Any]) -> dict[str, Tensor]:
    """Pitch class and octave of every token (0 where it is no note; NOTE_OFF has numbers of its
    own), and its pitch (-1 where it is no note): (V,) int64 each.
    """
    size = int(vocabulary["size"])
    class_V, octave_V, pitch_V = (torch.zeros(size, dtype=torch.int64) for _ in range(3))
    pitch_V -= 1
    names = ("pitch",) if "pitch" in vocabulary else ("note_on", "note_off")
    for off, name in enumerate(names):
        first, count = vocabulary[name]
        pitch = torch.arange(count)
        pitch_V[first : first + count] = pitch
        class_V[first : first + count] = 1 + pitch % PITCH_CLASSES + PITCH_CLASSES * off
        octave_V[first : first + count] = 1 + pitch // PITCH_CLASSES + OCTAVES * off
    return {"class_V": class_V, "octave_V": octave_V, "pitch_V": pitch_V}
