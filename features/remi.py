"""Notes as a stream of musical events: Bar, Position, Tempo, Program, Pitch, Velocity, Duration.

Conventions: the grid is that of `note_grid`. A Bar is said for every bar that begins, empty ones
too, from bar 0 on; a Position where it changes; then, if it is wanted, a Tempo where its step
changes. Each note is Program (if wanted), Pitch, Velocity, Duration, so notes that begin together
stand one behind the other, low pitches first.

Each row is a token with the real onset in seconds, the bar and the beat of the note that it is part
of, or leads to; a Bar has its own number and beat 0.

Source: Huang and Yang, "Pop Music Transformer" (2020), arXiv 2002.00212; programs before pitches as
in von Rütte et al., "FIGARO" (2022), arXiv 2201.10936.
"""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmfuse.features import note_grid
from mmfuse.features.spec import Entry

PAD, BAR = 0, 1
FIELDS = ("token", "onset_s", "bar", "beat_in_bar")


@dataclass(frozen=True, slots=True)
class Remi(note_grid.GridParams):
    """Separate tokens on the metrical grid, and what changes them."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Columns of a row."""
        return FIELDS

    @property
    def first(self) -> dict[str, int]:
        """The first token of each part of a note."""
        counts = self.counts
        begins = accumulate(counts.values(), initial=BAR + 1)
        return dict(zip(counts, begins, strict=False))  # the last is where the vocabulary ends

    @property
    def vocabulary_size(self) -> int:
        """Tokens are 0 ... vocabulary_size - 1."""
        return BAR + 1 + sum(self.counts.values())

    @property
    def spec_params(self) -> dict[str, Any]:
        """What the stream's spec says of it."""
        parts = {name: [first, self.counts[name]] for name, first in self.first.items()}
        return self.stated({
            "name": "remi", "version": 1, "size": self.vocabulary_size, "pad": PAD, "bar": [BAR, 1],
            **parts,  # first token, count
        })  # fmt: skip

    def encode(self, notes_values: NDArray[np.float64]) -> Entry:
        """Rows of the `notes` stream, one at least, to tokens.

        Args:
            notes_values: (n, 15) float64, fields as in `notes.FIELDS`.

        Returns:
            values (m, 4) float64, m <= max_events; what was left out is counted in `note`.
        """
        grid = note_grid.on_grid(notes_values, self)
        bar, position, tempo = grid.bar, grid.numbers[:, 0], grid.numbers[:, 1]
        said = grid.numbers >= 0
        said[1:, 0] = (bar[1:] != bar[:-1]) | (position[1:] != position[:-1])
        if self.tempos:
            said[1:, 1] &= tempo[1:] != tempo[:-1]
        tokens = (grid.numbers + np.array(list(self.first.values())))[said]
        rows = note_grid.lay_out(bar, said.sum(axis=1), self.max_events)
        values = note_grid.timed(rows, grid, notes_values, len(FIELDS))
        values[:, 0] = BAR
        of_notes = np.flatnonzero(~rows.is_bar)
        values[of_notes, 0] = tokens[: len(of_notes)]
        return note_grid.entry(values, rows, grid, self)

    def decode(self, tokens: NDArray[Any]) -> NDArray[np.float64]:
        """Tokens back to notes on the grid: (n, 6), fields as in `note_grid.DECODED`.

        For looking and listening; the pipeline never takes its times from here. What is no token
        is skipped, and so is a note that lacks a part.
        """
        first = self.first
        names, begins = list(first), list(first.values())
        bar, known, notes = 0, dict[str, int](), list[tuple[int, dict[str, int]]]()
        bars = 0
        for token in np.asarray(tokens).astype(np.int64).tolist():
            if token == BAR:
                bar, bars = bars, bars + 1
                known.pop("position", None)
            elif begins[0] <= token < self.vocabulary_size:
                at = bisect_right(begins, token) - 1
                known[names[at]] = token - begins[at]
                if names[at] == "duration":
                    if {"position", "pitch", "velocity"} <= known.keys():
                        notes.append((bar, dict(known)))
                    for name in ("program", "pitch", "velocity", "duration"):
                        known.pop(name, None)
        return note_grid.decoded(notes, self)
