"""Notes in the order of a file to notes in the order of time. Compiled; see `compiled`.

numba keeps what it compiled until this file changes; constants from elsewhere are compiled in.
"""

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.compiled import compiled, inner
from mmfuse.features.midi_scan import (
    BANK,
    CHANNEL,
    FLAGS,
    OFFSET,
    ONSET,
    PITCH,
    PROGRAM,
    RELEASE,
    TRACK,
    VELOCITY,
)

_BIN_S = 2  # length of a bar where bars can't be known
_MAX_BAR = 0x7FFFFFFF

Table = NDArray[np.int64]
Rows = NDArray[np.void]


@inner
def run_end(keys: Table, order: Table, low: int) -> int:
    """Where the ascending run that begins at `low` ends."""
    end = min(low + 1, len(keys))
    while end < len(keys) and keys[order[end - 1]] <= keys[order[end]]:
        end += 1
    return end


@inner
def stable_order(keys: Table) -> Table:
    """The order that sorts `keys`: neighbouring runs are merged until there is one.

    A file's notes are a few runs, tracks behind each other, so this takes a few passes.
    """
    order, merged, runs = np.arange(len(keys)), np.empty_like(keys), 2
    while runs > 1:
        low, runs = 0, 0
        while low < len(keys):
            middle = run_end(keys, order, low)
            high = run_end(keys, order, middle)
            left, right = low, middle
            for row in range(low, high):
                if right == high or (left < middle and keys[order[left]] <= keys[order[right]]):
                    merged[row] = order[left]
                    left += 1
                else:
                    merged[row] = order[right]
                    right += 1
            low, runs = high, runs + 1
        order, merged = merged, order
    return order


@compiled
def sort_notes(notes: Table, tempos: Table, plan: Table, placed: Rows) -> int:
    """Sort notes by onset, then pitch, and fill in their times, bars and beats.

    Args:
        notes: rows of `NOTE_COLUMNS` in any order.
        tempos: first tick, numerator of a tick and numerator of the first tick, of each tempo; the
            first is at tick 0.
        plan: the denominator of all numerators; ticks in a quarter, or 0 at SMPTE division, where
            a bar is a bin of two seconds; then, for each meter, first tick, beats, beat unit and
            number of the first bar, the first at tick 0.
        placed: gets rows of `NOTE`.

    Returns:
        The largest numerator. Below 2**53, all times are exact quotients rounded once.
    """
    denominator, division, meters = plan[0], plan[1], plan[2:].reshape((-1, 4))
    order = stable_order(notes[:, ONSET] << 7 | notes[:, PITCH])
    onset, offset = placed["onset_tick"], placed["offset_tick"]
    onset_s, offset_s = placed["onset_s"], placed["offset_s"]
    pitch, velocity, release = placed["pitch"], placed["velocity"], placed["release_velocity"]
    channel, program, bank = placed["channel"], placed["program"], placed["bank"]
    track, flags = placed["track"], placed["flags"]
    bars, beats = placed["bar"], placed["beat_in_bar"]
    largest, at, meter = 0, 0, 0
    for row in range(len(order)):
        note = order[row]
        tick, end = notes[note, ONSET], notes[note, OFFSET]
        onset[row], offset[row] = tick, end
        pitch[row], velocity[row] = notes[note, PITCH], notes[note, VELOCITY]
        release[row], channel[row] = notes[note, RELEASE], notes[note, CHANNEL]
        program[row], bank[row] = notes[note, PROGRAM], notes[note, BANK]
        track[row], flags[row] = notes[note, TRACK], notes[note, FLAGS]
        while at + 1 < len(tempos) and tempos[at + 1, 0] <= tick:
            at += 1
        begins = tempos[at, 2] + (tick - tempos[at, 0]) * tempos[at, 1]
        low, high = at, len(tempos)  # the last tempo that begins before the note ends
        while high - low > 1:
            middle = (low + high) // 2
            if tempos[middle, 0] <= end:
                low = middle
            else:
                high = middle
        ends = tempos[low, 2] + (end - tempos[low, 0]) * tempos[low, 1]
        onset_s[row], offset_s[row] = begins / denominator, ends / denominator
        largest = max(largest, ends)
        if not division:
            bars[row] = min(begins // (_BIN_S * denominator), _MAX_BAR)
            beats[row] = begins % (_BIN_S * denominator) / denominator
            continue
        while meter + 1 < len(meters) and meters[meter + 1, 0] <= tick:
            meter += 1
        unit, length = meters[meter, 2], 4 * division * meters[meter, 1]
        into = (tick - meters[meter, 0]) * unit
        bars[row] = min(meters[meter, 3] + into // length, _MAX_BAR)
        beats[row] = into % length / (unit * division)
    return largest
