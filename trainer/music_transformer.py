"""The Music Transformer over MIDI events. Shapes: B batch, T event, F field, D width."""

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
from mmfuse.trainer.relative import RelativeAttention
from mmfuse.trainer.text_encoders import drop_tokens

BIN_S = 2.0  # a bar where there is none: a 4/4 at MIDI's default tempo, as in the notes stream
BEATS, PARTS = 16, 12  # of a bar, of a beat: positions that have an embedding
BARS = 64  # bars from the first one that have an embedding


class MusicTransformer(nn.Module):
    """Relative attention over events that know their bar, their place in it, and their second.

    Bars count from the first of what the encoder sees, so that a clip means the same wherever it
    was cut. A place in a bar is the sum of a beat's embedding and that of a twelfth of it. Where a
    row has no bar (NaN, or a stream without the field), its bar is a bin of two seconds, its beats
    are half seconds.

    Convolutions may shorten the sequence before attention, a step then has the bar of its first
    event; the bag of `midi_embedding` stands beside it.

    Source: Huang et al., arXiv 1809.04281 (relative attention).
    """

    def __init__(
        self,
        spec: StreamSpec,
        hidden_dim: int,
        layers: int,
        attention_heads: int,
        stride: int,
        reach: int,
        bar_reach: int,
        dropout: float,
        token_dropout: float,
        transpose: int,
    ) -> None:
        super().__init__()
        self.dim, self.token_dropout, self.transpose = hidden_dim, token_dropout, transpose
        names = ("bar", "beat_in_bar")
        self.fields = [spec.fields.index(name) for name in names if name in spec.fields]
        self.events = note_embedding(spec, hidden_dim, transpose)
        self.bar = nn.Embedding(BARS, hidden_dim)
        self.beat = nn.Embedding(BEATS, hidden_dim)
        self.part = nn.Embedding(PARTS, hidden_dim)
        for table in (self.bar, self.beat, self.part):
            nn.init.normal_(table.weight, std=0.1)
        self.shorten = nn.ModuleList(
            Downsample(hidden_dim, hidden_dim, step, dropout) for step in strides(stride)
        )
        self.layers = nn.ModuleList(
            TransformerLayer(
                hidden_dim,
                attention_heads,
                dropout,
                attention=RelativeAttention(hidden_dim, attention_heads, reach, bar_reach),
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(hidden_dim)
        self.pool = nn.Linear(2 * hidden_dim + self.events.bag_size, hidden_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTF: Tensor, mask_BT: Tensor, times_BT: Tensor) -> Encoded:
        """Rows of `midi_tokens` (B, T, F), mask, onsets -> T / stride steps."""
        rows = self.events.rows(x_BTF, mask_BT)
        bar_BT, place_BTD = self.places(x_BTF, mask_BT, times_BT)
        if self.training and self.transpose:
            rows = self.events.transposed(rows)
        if self.training and self.token_dropout:
            mask_BT = mask_BT & drop_tokens(mask_BT, self.token_dropout)
        bag_BS = self.events.bag(rows, mask_BT, times_BT)
        sequence_BTD, steps_BT = self.events(rows) + place_BTD, mask_BT
        for shorten in self.shorten:
            sequence_BTD, steps_BT, times_BT = shorten(sequence_BTD, steps_BT, times_BT)
            bar_BT = bar_BT[:, :: shorten.stride]
        sequence_BTD = self.dropout(sequence_BTD + time_features(times_BT, self.dim))
        for layer in self.layers:
            sequence_BTD = layer(sequence_BTD, steps_BT, bar_BT)
        sequence_BTD = self.norm(sequence_BTD)
        pooled_BD = self.pool(
            torch.cat(
                [bag_BS, masked_mean(sequence_BTD, steps_BT), masked_max(sequence_BTD, steps_BT)],
                dim=1,
            )
        )
        return Encoded(blank(sequence_BTD, steps_BT), steps_BT, pooled_BD, times_BT)

    def places(self, x_BTF: Tensor, mask_BT: Tensor, times_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Bars from the first one, (B, T) int64, and the embedding of each place, (B, T, D)."""
        bar_BT, beat_BT = bars_and_beats(
            torch.where(mask_BT, times_BT, 0.0),
            *(torch.where(mask_BT, x_BTF[..., field], 0.0) for field in self.fields),
        )
        far = torch.iinfo(torch.int64).max
        first_B1 = bar_BT.masked_fill(~mask_BT, far).amin(dim=1, keepdim=True)
        bar_BT = torch.where(mask_BT, bar_BT - first_B1, 0)
        part_BT = (beat_BT * PARTS).round().long().clamp(0, BEATS * PARTS - 1)
        place_BTD = (
            self.bar(bar_BT.clamp(0, BARS - 1))
            + self.beat(part_BT // PARTS)
            + self.part(part_BT % PARTS)
        )
        return bar_BT, place_BTD


def bars_and_beats(
    times_BT: Tensor, bar_BT: Tensor | None = None, beat_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Bars, int64, and beats within them; bins of `BIN_S` where there are none or they are NaN."""
    times_BT = torch.nan_to_num(times_BT)
    bin_BT = (times_BT / BIN_S).floor()
    within_BT = (times_BT - bin_BT * BIN_S) * 2
    if bar_BT is None or beat_BT is None:
        return bin_BT.long(), within_BT
    known_BT = torch.isfinite(bar_BT) & torch.isfinite(beat_BT)
    return torch.where(known_BT, bar_BT, bin_BT).long(), torch.where(known_BT, beat_BT, within_BT)
