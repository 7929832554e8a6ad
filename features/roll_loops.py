"""The loops of the piano roll, compiled by `compiled`; constants from elsewhere are compiled in."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.compiled import compiled
from mmfuse.features.midi_scan import DRUM
from mmfuse.features.notes import COLUMN

_SNAP = 1e-6  # frames
_ONSET, _OFFSET, _FLAGS = COLUMN["onset_s"], COLUMN["offset_s"], COLUMN["flags"]
_PITCH, _VELOCITY = COLUMN["pitch"], COLUMN["velocity"]


@compiled
def spans(
    notes_values: NDArray[np.float64], fps: int, begin: float, drums: bool
) -> NDArray[np.int64]:
    """First frame of each note and the one after its last, (n, 2); equal where it is left out.

    A note of no length sounds in the frame of its onset; a drum is struck, not held.
    """
    found = np.zeros((len(notes_values), 2), np.int64)
    for note in range(len(notes_values)):
        drum = int(notes_values[note, _FLAGS]) & DRUM
        if drum and not drums:
            continue
        first = math.floor(notes_values[note, _ONSET] * fps + (_SNAP - begin))
        end = math.ceil(notes_values[note, _OFFSET] * fps - (_SNAP + begin))
        found[note, 0] = first
        found[note, 1] = first + 1 if drum else max(end, first + 1)
    return found


@compiled
def fill(
    roll_TPK: NDArray[np.uint8],
    notes_values: NDArray[np.float64],
    spans_N2: NDArray[np.int64],
    border: int,
    place: NDArray[Any],
) -> None:
    """Write notes into a roll whose frame 0 is frame `border` of the spans.

    `place` is the number of the planes onset, sustain, velocity and drums, -1 for one that is not
    wanted. What lies outside the roll is cut off; an onset before it is none.
    """
    frames = roll_TPK.shape[0]
    onset, sustain, velocity, drums = place[0], place[1], place[2], place[3]
    for note in range(len(notes_values)):
        first, end = spans_N2[note, 0] - border, min(spans_N2[note, 1] - border, frames)
        if end <= max(first, 0) or spans_N2[note, 0] == spans_N2[note, 1]:
            continue
        key = int(notes_values[note, _PITCH])
        loudness = np.uint8(notes_values[note, _VELOCITY])
        drum = int(notes_values[note, _FLAGS]) & DRUM
        struck = drums if drum else onset
        if struck >= 0 and first >= 0 and roll_TPK[first, struck, key] < loudness:
            roll_TPK[first, struck, key] = loudness
        if drum:
            continue
        for frame in range(max(first, 0), end):
            if sustain >= 0:
                roll_TPK[frame, sustain, key] = 1
            if velocity >= 0 and roll_TPK[frame, velocity, key] < loudness:
                roll_TPK[frame, velocity, key] = loudness
