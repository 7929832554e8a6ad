"""What rows of `midi_tokens` look like to a model: embeddings of them, and a bag of them.

Two ways of writing notes, one interface: `TokenEmbedding` for one token a row (`midi_like`,
`remi`), `FieldEmbedding` for one row of fields a note (`compound`). Which one it is stands in the
vocabulary: `size` and where pitches are, or `sizes` of fields. A note's embedding is the sum
of its parts', pitch class and octave among them: what is known of one key or register is known of
all.

The bag is an order-free summary, roots of shares: with a few hundred clips it learns what attention
can't yet. Roots, because the few frequent events would hide what the many rare ones tell.

Source of the roots: the Hellinger distance, as Arandjelovic & Zisserman 2012 (RootSIFT); of summed
fields: Hsiao et al., arXiv 2101.02402.

Shapes: B batch, T row, F column of the stream, K part of a row, D width, V token, S of the bag.
"""

from collections.abc import Mapping
from itertools import accumulate
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfuse.features.compound import NOTE
from mmfuse.features.spec import StreamSpec

PITCHES, PITCH_CLASSES, OCTAVES = 128, 12, 11
WIDEST = 12  # semitones
LEAPS = 2 * WIDEST + 1
FAMILIES, PER_FAMILY = 17, 8  # General MIDI's sixteen of eight programs, and drums
_GAPS_S = tuple(0.02 * 2 ** (step / 2) for step in range(16))  # borders, to 3.6 s


class NoteEmbedding(Protocol):
    """What both do."""

    bag_size: int

    def rows(self, x_BTF: Tensor, mask_BT: Tensor) -> Tensor:
        """Numbers of the stream's rows, int64; padding where the mask is False."""

    def transposed(self, rows: Tensor) -> Tensor:
        """Each clip moved by a random number of semitones; notes that would leave 0..127 stay."""

    def __call__(self, rows: Tensor) -> Tensor:
        """(B, T, D)."""

    def bag(self, rows: Tensor, mask_BT: Tensor, times_BT: Tensor) -> Tensor:
        """(B, S), about 1 each."""


def readable(spec: StreamSpec) -> bool:
    """Whether a `midi_tokens` stream is one token a row, or one of fields, as said above."""
    vocabulary = spec.params["vocabulary"]
    sizes = vocabulary.get("sizes")
    if sizes is not None:
        return {"kind", "pitch"} <= set(sizes) and set(sizes) == set(spec.fields[: len(sizes)])
    pitches = [vocabulary.get(name) for name in _pitch_kinds(vocabulary)]
    size = vocabulary.get("size", 0)
    fits = all(p and p[1] <= PITCHES and 0 < p[0] <= size - p[1] for p in pitches)
    return fits and "token" in spec.fields


def note_embedding(spec: StreamSpec, dim: int, transpose: int) -> "TokenEmbedding | FieldEmbedding":
    """The embedding for a `midi_tokens` stream that is `readable`."""
    vocabulary = spec.params["vocabulary"]
    if "sizes" not in vocabulary:
        return TokenEmbedding(vocabulary, dim, transpose, spec.fields.index("token"))
    sizes = vocabulary["sizes"]  # a store has them sorted by name
    in_order = {name: sizes[name] for name in spec.fields if name in sizes}
    return FieldEmbedding(in_order, dim, transpose)


class TokenEmbedding(nn.Module):
    """One token a row.

    `vocabulary` is the stream's: `size`, and `[first, count]` of the tokens that are pitches,
    `note_on` and `note_off` or just `pitch`. The bag has events, pitch classes, octaves, intervals.
    """

    class_V: Tensor
    octave_V: Tensor
    pitch_V: Tensor

    def __init__(
        self, vocabulary: Mapping[str, Any], dim: int, transpose: int, token_field: int = 0
    ) -> None:
        super().__init__()
        self.transpose, self.token_field = transpose, token_field
        for name, numbers_V in _anatomy(vocabulary).items():
            self.register_buffer(name, numbers_V, persistent=False)
        self.embedding = nn.Embedding(int(vocabulary["size"]), dim, padding_idx=0)
        self.pitch_class = nn.Embedding(2 * PITCH_CLASSES + 1, dim, padding_idx=0)
        self.octave = nn.Embedding(2 * OCTAVES + 1, dim, padding_idx=0)
        self.norm = nn.LayerNorm(dim)
        self.bag_size = int(vocabulary["size"]) + 2 * PITCH_CLASSES + 2 * OCTAVES + 2 + LEAPS + 1

    def rows(self, x_BTF: Tensor, mask_BT: Tensor) -> Tensor:
        """Tokens (B, T)."""
        return torch.where(mask_BT, x_BTF[..., self.token_field], 0).long()

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """(B, T) -> (B, T, D), by way of what each token looks like: far fewer than events."""
        table_VD = self.norm(
            self.embedding.weight + self.pitch_class(self.class_V) + self.octave(self.octave_V)
        )
        return F.embedding(tokens_BT, table_VD)

    def bag(self, tokens_BT: Tensor, mask_BT: Tensor, times_BT: Tensor) -> Tensor:
        """Events, pitch classes, octaves and intervals: (B, S)."""
        return _roots(
            [
                (tokens_BT, len(self.class_V)),
                (self.class_V[tokens_BT], 2 * PITCH_CLASSES + 1),
                (self.octave_V[tokens_BT], 2 * OCTAVES + 1),
                (self.intervals(tokens_BT, mask_BT), LEAPS + 1),
            ],
            mask_BT,
        )

    def intervals(self, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Semitones from the last NOTE_ON to this one, 1..2 * WIDEST + 1; 0 for other events."""
        on_BT = mask_BT & (self.octave_V[tokens_BT] > 0) & (self.octave_V[tokens_BT] <= OCTAVES)
        before_BT = F.pad(_last(on_BT), (1, -1), value=-1)
        pitch_BT = self.pitch_V[tokens_BT]
        leap_BT = pitch_BT - pitch_BT.gather(1, before_BT.clamp(min=0))
        known_BT = on_BT & (before_BT >= 0)
        return torch.where(known_BT, leap_BT.clamp(-WIDEST, WIDEST) + WIDEST + 1, 0)

    def transposed(self, tokens_BT: Tensor) -> Tensor:
        """Each clip moved by its own number of semitones; notes that would leave 0..127 stay."""
        by_B1 = _semitones(self.transpose, tokens_BT)
        pitch_BT = self.pitch_V[tokens_BT]
        moved_BT = pitch_BT + by_B1
        fits_BT = (pitch_BT >= 0) & (moved_BT >= 0) & (moved_BT < PITCHES)
        return torch.where(fits_BT, tokens_BT + by_B1, tokens_BT)


class FieldEmbedding(nn.Module):
    """One row of fields a note, and one a bar: the sum of an embedding of each field.

    `sizes` are the stream's: values of each field by its name, 0 being "nothing", in the order of
    the columns. Pitch class, octave and the program's family count as fields. The bag has each
    field alone; and for each family its pitch classes, octaves, intervals from note to note and
    seconds from onset to onset, so that a voice and its accompaniment are told apart.
    """

    first_K: Tensor

    def __init__(self, sizes: Mapping[str, int], dim: int, transpose: int) -> None:
        super().__init__()
        self.transpose = transpose
        self.names = list(sizes)
        self.sizes = {**sizes, "class": 1 + PITCH_CLASSES, "octave": 1 + OCTAVES}
        if "program" in sizes:
            self.sizes["family"] = 1 + FAMILIES
        *first, size = accumulate([0, *self.sizes.values()])
        self.register_buffer("first_K", torch.tensor(first), persistent=False)
        self.table = nn.EmbeddingBag(size + 1, dim, mode="sum", padding_idx=0)
        self.norm = nn.LayerNorm(dim)
        by_family = PITCH_CLASSES + OCTAVES + LEAPS + len(_GAPS_S) + 1
        self.bag_size = (
            sum(sizes.values()) + 4 + (FAMILIES if "program" in sizes else 1) * by_family
        )

    def rows(self, x_BTF: Tensor, mask_BT: Tensor) -> Tensor:
        """Fields (B, T, K); a value beyond the vocabulary counts as its last."""
        fields_BTK = x_BTF[..., : len(self.names)]
        fields_BTK = torch.where(mask_BT.unsqueeze(-1), fields_BTK, 0).long()
        last = [self.sizes[name] - 1 for name in self.names]
        last_K = torch.tensor(last, device=fields_BTK.device)
        return torch.minimum(fields_BTK.clamp(min=0), last_K)

    def forward(self, rows_BTK: Tensor) -> Tensor:
        """(B, T, K) -> (B, T, D)."""
        parts_BTK = torch.cat([rows_BTK, *(x.unsqueeze(-1) for x in self._derived(rows_BTK))], -1)
        numbers_BTK = torch.where(parts_BTK > 0, parts_BTK + self.first_K, 0)
        sums = self.table(numbers_BTK.flatten(0, 1))
        y_BTD: Tensor = self.norm(sums.view(*rows_BTK.shape[:2], -1))
        return y_BTD

    def bag(self, rows_BTK: Tensor, mask_BT: Tensor, times_BT: Tensor) -> Tensor:
        """Shares among notes: (B, S)."""
        pitch_BT = self._field(rows_BTK, "pitch")
        notes_BT = mask_BT & (self._field(rows_BTK, "kind") == NOTE) & (pitch_BT > 0)
        class_BT, octave_BT, *family = self._derived(rows_BTK)
        many = FAMILIES if family else 1
        family_BT = (family[0] - 1).clamp(min=0) if family else torch.zeros_like(pitch_BT)
        leap_BT, gap_BT = _from_note_to_note(family_BT, pitch_BT, times_BT, notes_BT)
        alone = [(rows_BTK[..., k], self.sizes[name]) for k, name in enumerate(self.names)]
        joint = [
            (torch.where(part_BT > 0, family_BT * size + part_BT, 0), many * size + 1)
            for part_BT, size in (
                (class_BT, PITCH_CLASSES), (octave_BT, OCTAVES),
                (leap_BT, LEAPS), (gap_BT, len(_GAPS_S) + 1),
            )
        ]  # fmt: skip
        return _roots(alone + joint, notes_BT)

    def transposed(self, rows_BTK: Tensor) -> Tensor:
        """Each clip moved by its own number of semitones; notes that would leave 0..127 stay."""
        by_B1 = _semitones(self.transpose, rows_BTK)
        pitch_BT = self._field(rows_BTK, "pitch")
        moved_BT = pitch_BT + by_B1
        fits_BT = (pitch_BT > 0) & (moved_BT > 0) & (moved_BT <= PITCHES)
        rows_BTK = rows_BTK.clone()
        rows_BTK[..., self.names.index("pitch")] = torch.where(fits_BT, moved_BT, pitch_BT)
        return rows_BTK

    def _field(self, rows_BTK: Tensor, name: str) -> Tensor:
        return rows_BTK[..., self.names.index(name)]

    def _derived(self, rows_BTK: Tensor) -> list[Tensor]:
        """Pitch class, octave and, where programs are said, family; 0 where there is no note."""
        pitch_BT = self._field(rows_BTK, "pitch")
        here_BT = pitch_BT > 0
        parts = [
            torch.where(here_BT, 1 + (pitch_BT - 1) % PITCH_CLASSES, 0),
            torch.where(here_BT, 1 + (pitch_BT - 1) // PITCH_CLASSES, 0),
        ]
        if "program" in self.names:
            program_BT = self._field(rows_BTK, "program")
            parts.append(torch.where(program_BT > 0, 1 + (program_BT - 1) // PER_FAMILY, 0))
        return parts


def _semitones(most: int, rows: Tensor) -> Tensor:
    """How far each clip is moved, (B, 1)."""
    return torch.randint(-most, most + 1, (len(rows), 1), device=rows.device)


def _from_note_to_note(
    family_BT: Tensor, pitch_BT: Tensor, times_BT: Tensor, notes_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """From the last note of the same family: semitones, 1..LEAPS, and the bin of the seconds
    between the onsets, 1..17; 0 at the first note of a family and where there is none.
    """
    steps_T = torch.arange(family_BT.shape[1], device=family_BT.device)
    group_BT = torch.where(notes_BT, family_BT, FAMILIES)
    order_BT = (group_BT * family_BT.shape[1] + steps_T).argsort(dim=1)
    group_BT, pitch_BT = group_BT.gather(1, order_BT), pitch_BT.gather(1, order_BT)
    time_BT = torch.where(notes_BT, times_BT, 0.0).gather(1, order_BT)
    known_BT = F.pad(group_BT[:, 1:] == group_BT[:, :-1], (1, 0)) & (group_BT < FAMILIES)
    leap_BT = F.pad(pitch_BT[:, 1:] - pitch_BT[:, :-1], (1, 0)).clamp(-WIDEST, WIDEST)
    borders = torch.tensor(_GAPS_S, device=time_BT.device)
    gap_BT = torch.bucketize(F.pad(time_BT[:, 1:] - time_BT[:, :-1], (1, 0)), borders)
    back_BT = order_BT.argsort(dim=1)
    leap_BT = torch.where(known_BT, leap_BT + WIDEST + 1, 0).gather(1, back_BT)
    return leap_BT, torch.where(known_BT, gap_BT + 1, 0).gather(1, back_BT)


def _last(on_BT: Tensor) -> Tensor:
    """Step of the last True up to each step; -1 before the first.

    What cummax would give, from operations that every export format has.
    """
    steps_BT = torch.arange(on_BT.shape[1], device=on_BT.device).expand(on_BT.shape)
    count_BT = on_BT.cumsum(dim=1)
    place_BT, step_BT = torch.where(on_BT, count_BT, 0), torch.where(on_BT, steps_BT, -1)
    at_BK = F.pad(torch.full_like(count_BT, -1), (0, 1)).scatter(1, place_BT, step_BT)
    return at_BK.gather(1, count_BT)


def _roots(parts: list[tuple[Tensor, int]], mask_BT: Tensor) -> Tensor:
    """Roots of the shares of numbers below a size, for each of the parts: (B, sum of sizes)."""
    weight_BT = mask_BT / mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
    found = []
    for numbers_BT, size in parts:
        zeros_BV = torch.zeros(mask_BT.shape[0], size, device=mask_BT.device)
        share_BV = zeros_BV.scatter_add(1, numbers_BT, weight_BT)
        found.append((share_BV * size).sqrt())
    return torch.cat(found, dim=1)


def _pitch_kinds(vocabulary: Mapping[str, Any]) -> tuple[str, ...]:
    return ("pitch",) if "pitch" in vocabulary else ("note_on", "note_off")


def _anatomy(vocabulary: Mapping[str, Any]) -> dict[str, Tensor]:
    """Pitch class and octave of every token (0 where it is no note; NOTE_OFF has numbers of its
    own), and its pitch (-1 where it is no note): (V,) int64 each.
    """
    size = int(vocabulary["size"])
    class_V, octave_V, pitch_V = (torch.zeros(size, dtype=torch.int64) for _ in range(3))
    pitch_V -= 1
    for off, name in enumerate(_pitch_kinds(vocabulary)):
        first, count = vocabulary[name]
        pitch = torch.arange(count)
        pitch_V[first : first + count] = pitch
        class_V[first : first + count] = 1 + pitch % PITCH_CLASSES + PITCH_CLASSES * off
        octave_V[first : first + count] = 1 + pitch // PITCH_CLASSES + OCTAVES * off
    return {"class_V": class_V, "octave_V": octave_V, "pitch_V": pitch_V}
