"""MIDI ticks to exact seconds and to bars.

Conventions: time is an integer over one denominator (microseconds times ticks per quarter, or
SMPTE subframes) until it becomes float64 seconds, once. With SMPTE division tempo says nothing
about time; -29 is 30000/1001 frames per second.

Source: Standard MIDI Files 1.0 (RP-001).
"""

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from itertools import chain
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.errors import MidiError
from mmfuse.features.midi_scan import NOTE, loops

_TEMPO = 500_000  # microseconds in a quarter until the file says otherwise
_FPS = {24: Fraction(24), 25: Fraction(25), 29: Fraction(30000, 1001), 30: Fraction(30)}
MAX_NUMERATOR = 2**62  # no numerator goes beyond; int64 has room for one more addition
_EXACT = 2**53  # whole numbers below are exact in float64


class TempoMap(NamedTuple):
    """Ticks to exact time: `numerators(tick) / denominator` is seconds.

    `segments` are (first tick, numerator of one tick, numerator of the first tick), one for each
    tempo, the first at tick 0; at SMPTE division there is one.
    """

    denominator: int
    division: int  # ticks in a quarter; 0 at SMPTE division
    segments: tuple[tuple[int, int, int], ...]

    def numerator(self, tick: int) -> int:
        """Exact time of one tick, in 1/denominator seconds."""
        at = bisect_right(self.segments, tick, key=itemgetter(0)) - 1
        first, rate, start = self.segments[at]
        return start + (tick - first) * rate

    def second(self, tick: int) -> float:
        """The time of one tick, exact and rounded once."""
        return self.numerator(tick) / self.denominator

    def tick_before(self, numerator: int) -> int:
        """The last tick whose time is not after `numerator` / `denominator`, which is >= 0."""
        at = bisect_right(self.segments, numerator, key=itemgetter(2)) - 1
        first, rate, start = self.segments[at]
        return first + (numerator - start) // rate

    def numerators(self, ticks: NDArray[np.int64]) -> NDArray[np.int64]:
        """The same as `numerator` for many ticks, whose times must be below 2**63."""
        first, rate, start = self.columns()
        at = np.searchsorted(first, ticks, side="right") - 1
        return start[at] + (ticks - first[at]) * rate[at]

    def seconds(
        self, ticks: NDArray[np.int64], shift_s: Fraction = Fraction(0)
    ) -> NDArray[np.float64]:
        """Exact time of each tick plus `shift_s`, rounded once to float64."""
        numerators = self.numerators(ticks)
        scale, denominator = shift_s.denominator, self.denominator * shift_s.denominator
        shift = shift_s.numerator * self.denominator
        largest = int(numerators.max(initial=0)) * scale + abs(shift)
        if max(largest, denominator) < _EXACT:  # both sides exact: one division, one rounding
            return (numerators * scale + shift) / denominator
        exact = [(numerator * scale + shift) / denominator for numerator in numerators.tolist()]
        return np.array(exact, np.float64)

    def ticks(self, times_s: NDArray[np.float64]) -> NDArray[np.int64]:
        """The tick nearest to each time, at least 0; float64 arithmetic."""
        first, rate, start = self.columns()
        starts_s = start / self.denominator
        at = np.maximum(np.searchsorted(starts_s, times_s, side="right") - 1, 0)
        into = (times_s - starts_s[at]) * (self.denominator / rate[at])
        return np.maximum(first[at] + np.rint(into).astype(np.int64), 0)

    def columns(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The columns of `table`."""
        table = self.table()
        return table[:, 0], table[:, 1], table[:, 2]

    def table(self) -> NDArray[np.int64]:
        """The segments, in int64; a tempo beyond all notes may be too late for it and is moved."""
        rows = self.segments
        if rows[-1][2] > MAX_NUMERATOR:
            rows = tuple((first, rate, min(start, MAX_NUMERATOR)) for first, rate, start in rows)
        return np.array(rows, np.int64)


def smpte_rate(division: int) -> Fraction | None:
    """Ticks per second at SMPTE division; None where ticks divide a quarter.

    Raises:
        MidiError: `bad_division`.
    """
    if not division & 0x8000:
        if not division:
            raise MidiError("bad_division", "division 0: a tick has no length")
        return None
    fps, ticks = 256 - (division >> 8), division & 0xFF
    if fps not in _FPS or not ticks:
        raise MidiError("bad_division", f"SMPTE division of {fps} frames of {ticks} ticks")
    return _FPS[fps] * ticks


def tempo_map_of(tempos: Sequence[tuple[int, int]], division: int) -> TempoMap:
    """The map of a header's division and a file's (tick, microseconds in a quarter), sorted.

    Raises:
        MidiError: `bad_division`.
    """
    smpte = smpte_rate(division)
    if smpte is not None:
        return TempoMap(smpte.numerator, 0, ((0, smpte.denominator, 0),))
    first, rate, start = 0, _TEMPO, 0
    segments = []
    for tick, tempo in tempos:
        if tick:
            segments.append((first, rate, start))
            start += (tick - first) * rate
        first, rate = tick, tempo
    return TempoMap(division * 1_000_000, division, (*segments, (first, rate, start)))


def place_notes(
    notes: NDArray[np.int64], tempo_map: TempoMap, meters: Sequence[tuple[int, int, int]]
) -> NDArray[np.void]:
    """Notes sorted by onset, then pitch, with their times, bars and beats, from their ticks.

    Args:
        notes: int64 rows of `midi_scan.NOTE_COLUMNS`, all earlier than 2**62 / denominator seconds.
        tempo_map: ticks to time.
        meters: (tick, beats, beat unit), sorted. 4/4 before any; a change inside a bar starts a
            new one. With SMPTE division, where a tick has no place in a bar, a bar is a bin of two
            seconds and `beat_in_bar` is seconds into it.

    Returns:
        Rows of `midi_scan.NOTE`.
    """
    division = tempo_map.division
    changes = meters if meters and meters[0][0] == 0 else [(0, 4, 4), *meters]
    bars = [(*changes[0], 0)]  # a bar has 4 * division * beats / unit ticks, so count 1/unit ticks
    for following in changes[1:] if division else ():
        tick, beats, unit, bar = bars[-1]
        bars.append((*following, bar - -(following[0] - tick) * unit // (4 * division * beats)))
    table = tempo_map.table()
    plan = np.array([tempo_map.denominator, division, *chain(*bars)], np.int64)
    placed = np.empty(len(notes), NOTE)
    largest = loops().sort_notes(notes, table, plan, placed)
    if largest >= _EXACT:  # numerators beyond what float64 holds: integers by integers
        placed["onset_s"] = tempo_map.seconds(placed["onset_tick"])
        placed["offset_s"] = tempo_map.seconds(placed["offset_tick"])
    return placed
