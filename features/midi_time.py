"""MIDI ticks to exact seconds and to bars.

Conventions: time is an integer over one denominator (microseconds times ticks per quarter, or
SMPTE subframes) until it becomes float64 seconds, once. With SMPTE division tempo says nothing
about time; -29 is 30000/1001 frames per second.

Source: Standard MIDI Files 1.0 (RP-001).
"""

from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.errors import MidiError

_TEMPO = 500_000  # microseconds in a quarter until the file says otherwise
_BIN_S = 2  # length of a bar where bars can't be known
_FPS = {24: Fraction(24), 25: Fraction(25), 29: Fraction(30000, 1001), 30: Fraction(30)}


@dataclass(frozen=True, slots=True)
class TempoMap:
    """Ticks to exact time: `numerators(tick) / denominator` is seconds.

    `changes` is (tick, microseconds in a quarter), the first at tick 0. At SMPTE division there is
    one constant rate and `changes` is empty.
    """

    denominator: int
    per_tick: int  # numerator of one tick at SMPTE division, 0 otherwise
    changes: tuple[tuple[int, int], ...]
    starts: tuple[int, ...]  # numerator at each change

    def numerator(self, tick: int) -> int:
        """Exact time of one tick, in 1/denominator seconds."""
        if self.per_tick:
            return tick * self.per_tick
        at = bisect_right(self.changes, tick, key=lambda change: change[0]) - 1
        return self.starts[at] + (tick - self.changes[at][0]) * self.changes[at][1]

    def numerators(self, ticks: NDArray[np.int64]) -> NDArray[np.int64]:
        """The same for many ticks, whose times must be below 2**63."""
        if self.per_tick:
            return ticks * self.per_tick
        first_ticks = np.array([tick for tick, _ in self.changes], np.int64)
        rates = np.array([tempo for _, tempo in self.changes], np.int64)
        # a change beyond all notes may lie beyond int64; no note gets there
        starts = np.array([min(start, 2**62) for start in self.starts], np.int64)
        at = np.searchsorted(first_ticks, ticks, side="right") - 1
        return starts[at] + (ticks - first_ticks[at]) * rates[at]

    def seconds(
        self, ticks: NDArray[np.int64], shift_s: Fraction = Fraction(0)
    ) -> NDArray[np.float64]:
        """Exact time of each tick plus `shift_s`, rounded once to float64."""
        numerators = self.numerators(ticks)
        scale, denominator = shift_s.denominator, self.denominator * shift_s.denominator
        shift = shift_s.numerator * self.denominator
        largest = int(numerators.max(initial=0)) * scale + abs(shift)
        if max(largest, denominator) < 2**53:  # both sides exact: one division, one rounding
            return (numerators * scale + shift) / denominator
        exact = [(numerator * scale + shift) / denominator for numerator in numerators.tolist()]
        return np.array(exact, np.float64)


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


def tempo_map_of(tempos: list[tuple[int, int]], division: int) -> TempoMap:
    """The map of a header's division and a file's (tick, microseconds in a quarter), sorted.

    Raises:
        MidiError: `bad_division`.
    """
    rate = smpte_rate(division)
    if rate is not None:
        return TempoMap(rate.numerator, rate.denominator, (), ())
    changes = tempos if tempos and tempos[0][0] == 0 else [(0, _TEMPO), *tempos]
    starts = [0]
    for (tick, tempo), (following, _) in pairwise(changes):
        starts.append(starts[-1] + (following - tick) * tempo)
    return TempoMap(division * 1_000_000, 0, tuple(changes), tuple(starts))


def bars_of(
    ticks: NDArray[np.int64], meters: list[tuple[int, int, int]], tempo_map: TempoMap
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Bar (from 0) of each tick, and quarters into it.

    4/4 before any meter; a change inside a bar starts a new one. With SMPTE division, where a tick
    has no place in a bar, a bar is a bin of two seconds and the second result is seconds into it.
    """
    if tempo_map.per_tick:
        numerators, denominator = tempo_map.numerators(ticks), tempo_map.denominator
        bar, rest = np.divmod(numerators, _BIN_S * denominator)
        return bar, rest / denominator
    division = tempo_map.denominator // 1_000_000
    changes = meters if meters and meters[0][0] == 0 else [(0, 4, 4), *meters]
    bars = [0]  # a bar has 4 * division * beats / unit ticks, so count in 1/unit ticks
    for (tick, beats, unit), (following, _, _) in pairwise(changes):
        bars.append(bars[-1] - -(following - tick) * unit // (4 * division * beats))
    first_ticks, beats_, units = np.array(changes, np.int64).T
    at = np.searchsorted(first_ticks, ticks, side="right") - 1
    into = (ticks - first_ticks[at]) * units[at]
    bar, rest = np.divmod(into, 4 * division * beats_[at])
    bar = np.minimum(bar + np.array(bars, np.int64)[at], np.iinfo(np.int32).max)
    return bar, rest / (units[at] * division)
