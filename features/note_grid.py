"""Notes on a metrical grid: what `remi` and `compound` tokens have in common.

Conventions: a quarter has `positions_per_quarter` steps. Onsets are rounded within their bar and
durations by themselves, both half up; a time within a millionth of a step of a half counts as half.
An onset that rounds to the end of its bar is the first position of the next one. A note lasts one
step at least. Notes stand in the order of bar, position, pitch; each is kept, whatever sounds
beside it.

With SMPTE division a file has neither quarters nor bars: a bar is then a bin of two seconds, as in
the `notes` stream, and a quarter half a second, MIDI's default tempo. Tempo is unknown there.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.errors import ConfigError
from mmfuse.features.midi_scan import DRUM
from mmfuse.features.notes import FIELDS as NOTE_FIELDS
from mmfuse.features.spec import Entry

DRUMS = 128  # the program of a note on the drum channel
LOWEST_QPM, PER_OCTAVE, TEMPOS = 16, 12, 49  # tempo steps of a semitone's ratio: 16 to 256
DECODED = ("bar", "beat_in_bar", "duration_quarters", "pitch", "velocity", "program")
_SNAP = 1e-6  # steps
_TIMES = [NOTE_FIELDS.index(name) for name in ("onset_s", "bar", "beat_in_bar")]


@dataclass(frozen=True, slots=True)
class GridParams:
    """What changes the tokens of a metrical grid."""

    positions_per_quarter: int = 12  # 12 has sixteenths and triplets
    max_quarters: int = 16  # longest bar and longest note; what is beyond is shortened and counted
    velocity_bins: int = 32
    programs: bool = False  # say each note's program, 128 for drums
    tempos: bool = False  # say the tempo
    max_events: int = 4096  # rows kept of one clip; the rest is counted in the entry's note

    def __post_init__(self) -> None:
        for name, most in (
            ("positions_per_quarter", 96), ("max_quarters", 64), ("velocity_bins", 128),
            ("max_events", 2**31),
        ):  # fmt: skip
            if not 1 <= getattr(self, name) <= most:
                raise ConfigError(f"midi_tokens: {name} is {getattr(self, name)}; 1 to {most}")

    @property
    def counts(self) -> dict[str, int]:
        """How many numbers each part of a note has, in the order in which parts are said."""
        steps = self.positions_per_quarter * self.max_quarters
        return {
            "position": steps,
            **({"tempo": TEMPOS} if self.tempos else {}),
            **({"program": DRUMS + 1} if self.programs else {}),
            "pitch": 128,
            "velocity": self.velocity_bins,
            "duration": steps,
        }

    def stated(self, vocabulary: Mapping[str, Any]) -> dict[str, Any]:
        """What the stream's spec says, the tokens' own vocabulary included."""
        tempo = {"tempo_qpm": {"lowest": LOWEST_QPM, "per_octave": PER_OCTAVE}}
        return {**asdict(self), "vocabulary": {**vocabulary, **(tempo if self.tempos else {})}}


@dataclass(frozen=True, slots=True)
class Grid:
    """Notes in the order of the tokens."""

    row: NDArray[np.int64]  # (N,) of the notes' rows
    bar: NDArray[np.int64]  # (N,)
    numbers: NDArray[np.int64]  # (N, K) from 0, parts as in `GridParams.counts`; -1 where unknown
    shortened: int  # notes that the vocabulary has no position or no duration for


def on_grid(notes_values: NDArray[np.float64], params: GridParams) -> Grid:
    """Rows of the `notes` stream, (n, 15), put on the grid."""
    note = dict(zip(NOTE_FIELDS, notes_values.T.copy(), strict=True))
    ticks = note["ticks_per_quarter"]
    metric = ticks > 0
    # the unit of beat_in_bar is a quarter or, at SMPTE division, a second, which is two
    steps = np.where(metric, 1.0, 2.0) * params.positions_per_quarter
    quarters = (note["offset_tick"] - note["tick"]) / np.where(metric, ticks, 1)
    length = np.where(metric, quarters, note["offset_s"] - note["onset_s"])
    position = _rounded(note["beat_in_bar"] * steps)
    duration = np.maximum(_rounded(length * steps), 1)
    over = position >= note["bar_length"] * steps - _SNAP
    position[over] = 0
    bar = note["bar"].astype(np.int64) + over

    longest = params.positions_per_quarter * params.max_quarters
    shortened = int(np.count_nonzero((position >= longest) | (duration > longest)))
    pitch = note["pitch"].astype(np.int64)
    parts = {
        "position": np.minimum(position, longest - 1),
        "pitch": pitch,
        "velocity": note["velocity"].astype(np.int64) * params.velocity_bins // 128,
        "duration": np.minimum(duration, longest) - 1,
    }
    if params.programs:
        drum = note["flags"].astype(np.int64) & DRUM > 0
        parts["program"] = np.where(drum, DRUMS, note["program"].astype(np.int64))
    if params.tempos:
        parts["tempo"] = _tempo_number(note["quarter_s"])
    row = np.lexsort((pitch, parts["position"], bar))
    numbers = np.stack([parts[name] for name in params.counts], axis=1)
    return Grid(row, bar[row], numbers[row], shortened)


def _rounded(steps: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.floor(steps + (0.5 + _SNAP)).astype(np.int64)


def _tempo_number(quarter_s: NDArray[np.float64]) -> NDArray[np.int64]:
    known = quarter_s > 0
    qpm = 60 / np.where(known, quarter_s, 1)
    number = np.floor(PER_OCTAVE * np.log2(qpm / LOWEST_QPM) + 0.5).astype(np.int64)
    return np.where(known, np.clip(number, 0, TEMPOS - 1), -1)


@dataclass(frozen=True, slots=True)
class Rows:
    """Which note each of M rows of the stream belongs to, or leads to if it is that of a bar."""

    note: NDArray[np.int64]  # (M,) in the grid's order
    is_bar: NDArray[np.bool_]  # (M,)
    total: int  # rows there would be without a limit


def lay_out(bar_N: NDArray[np.int64], own_N: NDArray[np.int64], limit: int) -> Rows:
    """Rows of notes that take `own_N` each, and of the bars before them; `limit` at most.

    Every bar that begins has a row, empty ones too, from bar 0 on.
    """
    gap = np.append(bar_N[0] + 1, bar_N[1:] - bar_N[:-1])
    size = gap + own_N
    ends = np.cumsum(size)
    kept = slice(0, int(np.searchsorted(ends, limit)) + 1)
    few = np.minimum(size[kept], limit)  # a gap may be of a billion bars
    note = np.repeat(np.arange(len(few)), few)[:limit]
    return Rows(note, np.arange(len(note)) < (ends - own_N)[note], int(ends[-1]))


def timed(
    rows: Rows, grid: Grid, notes_values: NDArray[np.float64], width: int
) -> NDArray[np.float64]:
    """Rows of `width` fields, the last three filled: onset, bar and beat of the row's note.

    They are the note's own, never what the grid made of it. The row of a bar has the number of
    that bar, beat 0, and the onset of the note that it leads to.
    """
    values = np.zeros((len(rows.note), width))
    values[:, -3:] = notes_values[grid.row[:, None], _TIMES].take(rows.note, axis=0)
    values[rows.is_bar, -2] = np.arange(np.count_nonzero(rows.is_bar))
    values[rows.is_bar, -1] = 0
    return values


def entry(values: NDArray[np.float64], rows: Rows, grid: Grid, params: GridParams) -> Entry:
    """The stream's entry, with all that was left out or shortened said in its note."""
    left_out = rows.total - len(values)
    said = [f"{left_out} of {rows.total} tokens left out"] if left_out else []
    if grid.shortened:
        said.append(
            f"{grid.shortened} notes beyond {params.max_quarters} quarters of bar or duration, "
            "shortened"
        )
    note = f"midi_tokens: {'; '.join(said)}" if said else ""
    return Entry(values, windows=((Fraction(0), len(values)),), note=note)


def decoded(
    notes: Iterable[tuple[int, Mapping[str, int]]], params: GridParams
) -> NDArray[np.float64]:
    """(bar, numbers by part) of notes to (n, 6) float64, fields as in `DECODED`.

    Velocities are the middles of their bins, programs are -1 where they are not said. Sorted by
    bar, beat, pitch.
    """
    steps, bins = params.positions_per_quarter, params.velocity_bins
    values = np.array(
        [
            (
                bar,
                part["position"] / steps,
                (part["duration"] + 1) / steps,
                part["pitch"],
                (part["velocity"] * 256 + 128) // (2 * bins),
                part.get("program", -1),
            )
            for bar, part in notes
        ],
        np.float64,
    ).reshape(-1, len(DECODED))
    return values[np.lexsort((values[:, 3], values[:, 1], values[:, 0]))]
