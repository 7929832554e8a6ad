"""How long notes sound when the pedals are taken into account.

Conventions: sustain (CC 64) and sostenuto (CC 66) are down from a value of 64 on; "reset all
controllers" (CC 121) lets both up. A pedal counts for its channel, whatever the track. At one tick,
pedals move after keys, and the last value wins. A key let up while the sustain pedal is down sounds
until the pedal comes up; sostenuto does the same for keys that are down when it goes down. A string
that is struck again ends its earlier note. Nothing sounds beyond the end of the sequence unless
its key does, and no note gets shorter. The soft pedal (CC 67) changes no time.

Source: MIDI 1.0 Detailed Specification; what is struck again as in Hawthorne et al., "Onsets and
Frames" (2018).
"""

import numpy as np
from numpy.typing import NDArray

SUSTAIN, SOSTENUTO, SOFT = NUMBERS = 64, 66, 67
_RESET = 121
_NEVER = np.iinfo(np.int64).max

Ticks = NDArray[np.int64]


def sounding_ends(notes: NDArray[np.void], controls: NDArray[np.void], end_tick: int) -> Ticks:
    """The tick at which each note stops sounding, at least its `offset_tick`.

    Args:
        notes: rows of `NOTE`, sorted by onset.
        controls: rows of `CONTROL`, sorted by tick.
        end_tick: end of the sequence; pedals that are still down come up here.
    """
    ends = notes["offset_tick"].copy()
    pedals = np.isin(controls["number"], (SUSTAIN, SOSTENUTO))
    for channel in np.unique(controls["channel"][pedals]).tolist():
        mine = np.flatnonzero(notes["channel"] == channel)
        moves = controls[controls["channel"] == channel]
        onset, offset = notes["onset_tick"][mine], notes["offset_tick"][mine]
        downs, ups = _pedal(moves, SOSTENUTO, end_tick)  # the last one before the key is let up
        at = np.searchsorted(downs, offset, side="left") - 1
        held = np.where(downs[at] >= onset, np.maximum(ups[at], offset), offset)
        downs, ups = _pedal(moves, SUSTAIN, end_tick)
        held = np.maximum(held, ups[np.searchsorted(downs, held, side="right") - 1])
        again = _struck_again(onset, notes["pitch"][mine])
        ends[mine] = np.maximum(np.minimum(held, again), offset)
    return ends


def _pedal(moves: NDArray[np.void], number: int, end_tick: int) -> tuple[Ticks, Ticks]:
    """Where a pedal goes down, and where it comes up again; -1 and -1 stand before all."""
    moves = moves[(moves["number"] == number) | (moves["number"] == _RESET)]
    down = (moves["number"] == number) & (moves["value"] >= 64)
    last = np.diff(moves["tick"], append=-1) != 0  # of those at one tick
    tick, down = moves["tick"][last], down[last]
    turns = np.diff(down, prepend=False)
    tick, down = tick[turns], down[turns]
    ups = tick[~down] if len(tick) % 2 == 0 else np.append(tick[~down], end_tick)
    return np.insert(tick[down], 0, -1), np.insert(ups, 0, -1)


def _struck_again(onset: Ticks, pitch: NDArray[np.uint8]) -> Ticks:
    """The next later onset of the same pitch."""
    again = np.full(len(onset), _NEVER)
    for one in np.unique(pitch).tolist():
        same = np.flatnonzero(pitch == one)
        starts = np.append(onset[same], _NEVER)
        again[same] = starts[np.searchsorted(onset[same], onset[same], side="right")]
    return again
