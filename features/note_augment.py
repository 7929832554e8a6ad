"""Variants of a clip's notes: transposed, louder, on the grid or off it, faster or slower.

Conventions: each function takes rows of the `notes` stream, (n, 15) float64 with fields as in
`notes.FIELDS`, and gives new rows, sorted by tick, then pitch, as the stream is; what it was given
stays as it was. Nothing is dropped. Chance comes from `rng` and nowhere else, so equal generators
give equal rows.

What belongs together moves together: a note that gets another tick gets the seconds, bar and beat
of that tick, and a tempo that changes leaves ticks, bars and beats alone.
"""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.errors import ConfigError
from mmfuse.features.midi_scan import DRUM
from mmfuse.features.notes import COLUMN, FIELDS, SMPTE_BAR_S

Rows = NDArray[np.float64]
_SNAP = 1e-6  # grid steps
_FINEST = 128  # bars are whole in 128ths of a tick: no meter counts smaller notes


def transpose(notes_values: Rows, semitones: int) -> Rows:
    """Move pitches by `semitones`; drums, whose pitch names an instrument, stay.

    A note that would leave 0 ... 127 comes back by octaves, so its pitch class is right all the
    same; `fitting_semitones` are those that ask this of no note.
    """
    values = notes_values.copy()
    pitch, pitched = values[:, COLUMN["pitch"]], ~_is_drum(values)
    moved = pitch[pitched] + int(semitones)
    moved -= 12 * np.maximum(np.ceil((moved - 127) / 12), 0)
    moved += 12 * np.maximum(np.ceil(-moved / 12), 0)
    pitch[pitched] = moved
    return _in_order(values)


def fitting_semitones(notes_values: Rows, most: int) -> range:
    """The semitones within -most ... most by which every note stays in 0 ... 127; 0 is one of them.

    Draw with `rng.choice(fitting_semitones(rows, 6))`.
    """
    pitch = notes_values[~_is_drum(notes_values), COLUMN["pitch"]]
    lowest, highest = int(pitch.min(initial=127)), int(pitch.max(initial=0))
    return range(max(-most, -lowest) if len(pitch) else 0, min(most, 127 - highest) + 1)


def vary_velocity(notes_values: Rows, spread: int, rng: np.random.Generator) -> Rows:
    """Add to each note's velocity a whole number of -spread ... spread, each equally likely.

    Velocities stay within 1 ... 127: 0 would be a note-off.
    """
    values = notes_values.copy()
    louder = rng.integers(-spread, spread, len(values), endpoint=True)
    velocity = values[:, COLUMN["velocity"]]
    velocity[:] = np.clip(velocity + louder, 1, 127)
    return values


def quantize(notes_values: Rows, steps_per_quarter: int, strength: float = 1.0) -> Rows:
    """Draw onsets towards the grid of their bar; lengths in ticks stay, so ends move along.

    An onset that is drawn to the end of its bar begins the next one. Ticks are rounded to whole
    ones. Seconds are those of the new tick on the clock that all notes of the clip tell together,
    exact unless a tempo changes where none of them begins or ends.

    Args:
        notes_values: rows of the `notes` stream; those of files with SMPTE division, which have no
            beats, stay as they are.
        steps_per_quarter: 4 is sixteenths, 3 is triplets of eighths.
        strength: 0 leaves all where it is, 1 puts it onto the grid, 0.5 half-way in between.

    Raises:
        ConfigError: no steps, or a strength outside 0 ... 1.
    """
    if steps_per_quarter < 1 or not 0 <= strength <= 1:
        raise ConfigError(
            f"quantization to {steps_per_quarter} steps a quarter at strength {strength}; steps "
            "are at least 1, strength is 0 to 1"
        )
    column = dict(zip(FIELDS, notes_values.T, strict=True))
    metric = column["ticks_per_quarter"] > 0
    beat, bar_length = column["beat_in_bar"], column["bar_length"]
    nearest = np.floor(beat * steps_per_quarter + (0.5 + _SNAP)) / steps_per_quarter
    wanted = strength * (np.minimum(nearest, bar_length) - beat) * column["ticks_per_quarter"]
    return _moved(notes_values, np.where(metric, np.floor(wanted + 0.5), 0))


def jitter(notes_values: Rows, spread_s: float, rng: np.random.Generator) -> Rows:
    """Move each note by a time of -spread_s ... spread_s, to the nearest tick; none before tick 0.

    Lengths in ticks stay. Seconds are those of the new tick, as in `quantize`. Rows of files with
    SMPTE division stay as they are.
    """
    column = dict(zip(FIELDS, notes_values.T, strict=True))
    metric = column["ticks_per_quarter"] > 0
    tick_s = np.ones(len(notes_values))
    tick_s[metric] = column["quarter_s"][metric] / column["ticks_per_quarter"][metric]
    by_ticks = np.rint(rng.uniform(-spread_s, spread_s, len(notes_values)) / tick_s)
    return _moved(notes_values, np.where(metric, np.maximum(by_ticks, -column["tick"]), 0))


def scale_tempo(notes_values: Rows, factor: Fraction | float) -> Rows:
    """Play `factor` times as fast: seconds shrink by it, towards second 0 of the clip.

    That is what stretching the clip's audio by the same factor does, so the two stay together.
    With a `Fraction` each time is computed exactly and rounded once.
    Ticks, bars and beats stay. With SMPTE division ticks are time, so there they shrink too, each
    to the nearest whole one, and bars of two seconds are counted anew.

    Raises:
        ConfigError: the factor is not above 0.
    """
    if not factor > 0:
        raise ConfigError(f"tempo scaled by {factor}; the factor is above 0, 2 is twice as fast")
    values, by = notes_values.copy(), float(factor)
    column = dict(zip(FIELDS, values.T, strict=True))
    for name in ("onset_s", "offset_s", "quarter_s"):
        if isinstance(factor, Fraction):
            column[name][:] = [float(Fraction(second) / factor) for second in column[name].tolist()]
        else:
            column[name] /= by
    timed = column["ticks_per_quarter"] == 0
    for name in ("tick", "offset_tick"):
        column[name][timed] = np.floor(column[name][timed] / by + 0.5)
    since_start = (column["bar"][timed] * SMPTE_BAR_S + column["beat_in_bar"][timed]) / by
    column["bar"][timed], column["beat_in_bar"][timed] = np.divmod(since_start, SMPTE_BAR_S)
    return _in_order(values)


def _moved(notes_values: Rows, by_ticks: Rows) -> Rows:
    """Move notes by whole ticks, (n,), with their ends, seconds, bars and beats."""
    moves = by_ticks != 0
    if not moves.any():
        return notes_values.copy()
    values = notes_values.copy()
    column = dict(zip(FIELDS, values.T, strict=True))  # views: what is written is in `values`
    ticks, clock_s = _clock(values[column["ticks_per_quarter"] > 0])
    for tick, second in (("tick", "onset_s"), ("offset_tick", "offset_s")):
        column[tick][moves] += by_ticks[moves]
        column[second][moves] = np.interp(column[tick][moves], ticks, clock_s)
    beat, bar, bar_length = (column[name] for name in ("beat_in_bar", "bar", "bar_length"))
    ticks_per_quarter = column["ticks_per_quarter"][moves]
    fine = np.floor((beat[moves] * ticks_per_quarter + by_ticks[moves]) * _FINEST + 0.5)
    beat[moves] = fine / (_FINEST * ticks_per_quarter)
    over = np.flatnonzero(moves & (beat >= bar_length - _SNAP))
    under = np.flatnonzero(moves & (beat < 0))
    bars, lengths = bar.copy(), bar_length.copy()
    for rows, step in ((over, 1), (under, -1)):
        bar[rows] += step
        place = np.minimum(np.searchsorted(bars, bar[rows]), len(bars) - 1)
        there = bars[place] == bar[rows]  # that bar has notes, so its length is known
        bar_length[rows] = np.where(there, lengths[place], lengths[rows])
    beat[over] = np.maximum(beat[over] - lengths[over], 0)
    beat[under] = np.maximum(beat[under] + bar_length[under], 0)
    return _in_order(values)


def _is_drum(notes_values: Rows) -> NDArray[np.bool_]:
    return (notes_values[:, COLUMN["flags"]].astype(np.int64) & DRUM) > 0


def _in_order(notes_values: Rows) -> Rows:
    keys = (notes_values[:, COLUMN["pitch"]], notes_values[:, COLUMN["tick"]])
    return notes_values[np.lexsort(keys)]


def _clock(notes_values: Rows) -> tuple[Rows, Rows]:
    """Ticks at which notes begin or end, and their seconds; a day beyond at either end."""
    column = dict(zip(FIELDS, notes_values.T, strict=True))
    ticks, first = np.unique(
        np.concatenate([column["tick"], column["offset_tick"]]), return_index=True
    )
    clock_s = np.concatenate([column["onset_s"], column["offset_s"]])[first]
    tick_s = (column["quarter_s"] / column["ticks_per_quarter"])[[0, -1]]
    far = np.array([-1, 1]) * np.ceil(86_400 / tick_s)
    return (
        np.concatenate([ticks[:1] + far[0], ticks, ticks[-1:] + far[1]]),
        np.concatenate(
            [clock_s[:1] + far[0] * tick_s[0], clock_s, clock_s[-1:] + far[1] * tick_s[1]]
        ),
    )
