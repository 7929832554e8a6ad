"""The `note_statistics` stream: one row of numbers that describe all notes of a clip together.

Conventions: three groups of the same descriptors, of all notes, of those of the first track that
has notes, and of those of the second (a voice and its piano, a melody and its bass). Shares are
square roots of histograms that sum to one, so that their products compare distributions. Lengths
are in quarters by the tempo of each note, or in halves of a second at SMPTE division. Notes less
than 30 ms after one another are a chord; the line on top is that of each chord's highest note. Only
`register` and `pitch` change when all is transposed. A group without notes is all zeros.

Source: descriptors of the kind of jSymbolic (McKay & Fujinaga, ICMC 2006; jSymbolic 2.2, ISMIR
2018): pitch statistics, melodic and vertical intervals, rhythm, texture, dynamics.
"""

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.notes import COLUMN
from mmfuse.features.spec import Entry, StreamSpec, Timing

GROUPS = ("all", "first", "second")
CHORD_S = 0.03  # between onsets of one chord, at most
LENGTHS = (0.2, 0.3, 0.4, 0.6, 0.85, 1.2, 1.7, 2.5, 3.5)  # quarters: borders of ten bins
STEPS = (-7.5, -2.5, -0.5, 0.5, 2.5, 7.5)  # semitones: borders of seven kinds of melodic step
NEIGHBOURS = 16  # notes before a note that it is compared with
SIZES: Mapping[str, int] = {
    "register": 15,  # shares of half octaves from pitch 20 to 110
    "pitch": 5,  # mean, deviation, least, most, range
    "classes": 7,  # sum over pitch classes of the product of shares 0 to 6 semitones apart
    "length": 10,  # shares
    "duration": 4,  # mean and deviation of the logarithm in quarters, and of seconds
    "gap": 10,  # shares of lengths from chord to chord
    "chord": 8,  # shares of chords of 1 to 8 notes
    "top_interval": 25,  # shares of -12 to 12 semitones from chord to chord
    "top_motion": 5,  # mean size; shares of rising, repeated, by step, by leap
    "bottom_interval": 25,
    "bottom_motion": 5,
    "bottom_pair": 49,  # shares of pairs of successive steps, of seven kinds each
    "vertical": 12,  # shares of interval classes within chords
    "sounding": 12,  # and between notes that sound together
    "velocity": 10,  # mean, deviation, shares of eighths of the scale
    "rate": 6,  # notes a second, log of notes, notes a quarter; quarter, bar; polyphony
    "beat": 12,  # shares of twelfths of a quarter in which notes begin
}
FIELDS = tuple(
    f"{group}.{name}.{number}"
    for group in GROUPS
    for name, size in SIZES.items()
    for number in range(size)
)
Floats = NDArray[np.float64]


def note_statistics_spec() -> StreamSpec:
    """The `note_statistics` stream: float32 (1, 660), without times."""
    return StreamSpec(
        name="note_statistics",
        modality="midi",
        item=(len(FIELDS),),
        dtype="float32",
        params={"chord_s": CHORD_S, "neighbours": NEIGHBOURS, "groups": list(GROUPS)},
        timing=Timing("none"),
        fields=FIELDS,
    )


def statistics_entry(notes_values: Floats) -> Entry:
    """Rows of the `notes` stream to one row that describes them.

    Args:
        notes_values: (n, 15) float64, fields as in `notes.FIELDS`; sorted by onset.

    Returns:
        values (1, 660) float32, finite; no row where there are no notes.
    """
    if not len(notes_values):
        return Entry(np.empty((0, len(FIELDS)), np.float32), windows=((Fraction(0), 0),))
    tracks = np.unique(notes_values[:, COLUMN["track"]])
    parts = [notes_values]
    parts += [notes_values[notes_values[:, COLUMN["track"]] == track] for track in tracks[:2]]
    found = [np.concatenate(list(describe(part).values())) for part in parts]
    found += [np.zeros(len(FIELDS) // len(GROUPS))] * (len(GROUPS) - len(found))
    values = np.concatenate(found).astype(np.float32)[None]
    return Entry(values, windows=((Fraction(0), 1),))


def describe(notes_values: Floats) -> dict[str, Floats]:
    """Descriptors of one group of notes by name, of the sizes of `SIZES`; there is a note."""
    column = {name: notes_values[:, number] for name, number in COLUMN.items()}
    pitch, onset_s = column["pitch"], column["onset_s"]
    duration_s = column["offset_s"] - onset_s
    quarter_s = np.where(column["quarter_s"] > 0, column["quarter_s"], 0.5)
    length = duration_s / quarter_s
    chord = np.concatenate([[0], np.cumsum(np.diff(onset_s) > CHORD_S)])
    first = np.flatnonzero(np.diff(chord, prepend=-1))
    top, bottom = np.maximum.reduceat(pitch, first), np.minimum.reduceat(pitch, first)
    classes = _shares(pitch % 12, 12) ** 2
    vertical, sounding = _intervals(pitch, onset_s, column["offset_s"], chord)
    span_s = max(float(np.ptp(onset_s)), 1.0)
    steps = np.digitize(np.diff(bottom), STEPS)
    count, velocity = len(pitch), column["velocity"]
    return {
        "register": _shares((pitch - 20) // 6, 15),
        "pitch": np.array([*_moments(pitch), pitch.min(), pitch.max(), np.ptp(pitch)]),
        "classes": np.array([classes @ np.roll(classes, k) for k in range(7)]),
        "length": _shares(np.digitize(length, LENGTHS), 10),
        "duration": np.array([*_moments(np.log(length + 0.05)), *_moments(duration_s)]),
        "gap": _shares(np.digitize(np.diff(onset_s[first]) / quarter_s.mean(), LENGTHS), 10),
        "chord": _shares(np.bincount(chord) - 1, 8),
        **_line("top", top),
        **_line("bottom", bottom),
        "bottom_pair": _shares(steps[:-1] * 7 + steps[1:], 49),
        "vertical": _shares(vertical, 12),
        "sounding": _shares(sounding, 12),
        "velocity": np.array([*_moments(velocity), *_shares(velocity // 16, 8)]),
        "rate": np.array(
            [
                count / span_s,
                np.log(count),
                count / span_s * quarter_s.mean(),
                quarter_s.mean(),
                column["bar_length"].mean(),
                duration_s.sum() / span_s,
            ]
        ),
        "beat": _shares(np.rint(column["beat_in_bar"] * 12) % 12, 12),
    }  # fmt: skip


def _shares(bins: NDArray[np.float64] | NDArray[np.int64], count: int) -> Floats:
    """Square roots of shares of bins 0 to count - 1; what is beyond counts to the outer ones."""
    if not len(bins):
        return np.zeros(count)
    numbers = np.clip(bins, 0, count - 1).astype(np.int64)
    return np.sqrt(np.bincount(numbers, minlength=count) / len(bins))


def _moments(values: Floats) -> tuple[float, float]:
    return float(values.mean()), float(values.std())


def _line(name: str, pitch: Floats) -> dict[str, Floats]:
    """Intervals of a line from chord to chord, and how it moves."""
    steps = np.clip(np.diff(pitch), -12, 12)
    size = np.abs(steps)
    motion = np.zeros(5)
    if len(steps):
        kinds = (steps > 0, steps == 0, (size > 0) & (size <= 2), size >= 5)
        motion = np.array([size.mean(), *(kind.mean() for kind in kinds)])
    return {f"{name}_interval": _shares(steps + 12, 25), f"{name}_motion": motion}


def _intervals(
    pitch: Floats, onset_s: Floats, offset_s: Floats, chord: NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """Interval classes between each note and those shortly before it: of a chord, and sounding."""
    vertical, sounding = [np.empty(0)], [np.empty(0)]
    for k in range(1, min(NEIGHBOURS, len(pitch) - 1) + 1):
        interval = np.abs(pitch[k:] - pitch[:-k]) % 12
        vertical.append(interval[chord[k:] == chord[:-k]])
        sounding.append(interval[onset_s[k:] < offset_s[:-k] - 0.02])
    return np.concatenate(vertical), np.concatenate(sounding)
