"""Notes as rows of fields: kind, position, tempo, program, pitch, velocity, duration.

Conventions: the grid is that of `note_grid`. A row is a bar that begins (kind 1, all else 0) or a
note (kind 2); every bar has its row, empty ones too, from bar 0 on. In a note's row each field is
its number plus one, so that 0 is always "nothing". A model gives each field an embedding of its own
and adds them up.

Behind the fields, each row has the real onset in seconds, the bar and the beat of its note; a bar
row has its own number, beat 0, and the onset of the note that it leads to.

Source: Hsiao et al., "Compound Word Transformer" (2021), arXiv 2101.02402, with a note's position
in its own row.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmfuse.features import note_grid
from mmfuse.features.spec import Entry

PAD, BAR, NOTE = 0, 1, 2
TIMES = ("onset_s", "bar", "beat_in_bar")


@dataclass(frozen=True, slots=True)
class Compound(note_grid.GridParams):
    """One row a note on the metrical grid, and what changes it."""

    @property
    def sizes(self) -> dict[str, int]:
        """How many values each field has, 0 included."""
        return {"kind": NOTE + 1, **{name: 1 + count for name, count in self.counts.items()}}

    @property
    def fields(self) -> tuple[str, ...]:
        """Columns of a row."""
        return (*self.sizes, *TIMES)

    @property
    def spec_params(self) -> dict[str, Any]:
        """What the stream's spec says of it."""
        return self.stated({
            "name": "compound", "version": 1, "sizes": self.sizes, "pad": PAD,
            "kind": {"bar": BAR, "note": NOTE},
        })  # fmt: skip

    def encode(self, notes_values: NDArray[np.float64]) -> Entry:
        """Rows of the `notes` stream, one at least, to rows of fields.

        Args:
            notes_values: (n, 15) float64, fields as in `notes.FIELDS`.

        Returns:
            values (m, fields) float64, m <= max_events; what was left out is counted in `note`.
        """
        grid = note_grid.on_grid(notes_values, self)
        rows = note_grid.lay_out(grid.bar, np.ones(len(grid.bar), np.int64), self.max_events)
        values = note_grid.timed(rows, grid, notes_values, len(self.fields))
        values[:, 0] = np.where(rows.is_bar, BAR, NOTE)
        of_notes = np.flatnonzero(~rows.is_bar)
        values[of_notes, 1 : len(self.sizes)] = 1 + grid.numbers[: len(of_notes)]
        return note_grid.entry(values, rows, grid, self)

    def decode(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Rows back to notes on the grid: (n, 6), fields as in `note_grid.DECODED`.

        For looking and listening; the pipeline never takes its times from here. Only the fields
        are read, so rows of a model, without the times, will do. Rows that are neither bar nor
        note are skipped, and so is a note that lacks a part.
        """
        names = list(self.sizes)
        bars, notes = 0, list[tuple[int, dict[str, int]]]()
        for row in np.asarray(rows)[:, : len(names)].astype(np.int64).tolist():
            if row[0] == BAR:
                bars += 1
            part = {name: number - 1 for name, number in zip(names[1:], row[1:], strict=True)}
            needed = [part[name] for name in ("position", "pitch", "velocity", "duration")]
            if row[0] == NOTE and min(needed) >= 0:
                notes.append((max(bars - 1, 0), part))
        return note_grid.decoded(notes, self)
