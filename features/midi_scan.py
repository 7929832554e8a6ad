"""The tables that a MIDI file's bytes become: their columns, and what can be wrong with the bytes.

`midi_loops` fills them. It is imported on the first read, as it takes numba to do so.
"""

from functools import cache
from types import ModuleType

import numpy as np

HANGING, ZERO_LENGTH, DRUM = 1, 2, 4  # bits of `flags`
DRUM_CHANNEL = 9  # channel 10 of those who count from 1

NOTE = np.dtype([
    ("onset_tick", np.int64), ("offset_tick", np.int64),
    ("onset_s", np.float64), ("offset_s", np.float64),
    ("pitch", np.uint8), ("velocity", np.uint8), ("release_velocity", np.uint8),
    ("channel", np.uint8), ("program", np.uint8), ("bank", np.uint16),
    ("track", np.uint16), ("flags", np.uint8), ("bar", np.int32), ("beat_in_bar", np.float64),
])  # fmt: skip
CONTROL = np.dtype([
    ("tick", np.int64), ("time_s", np.float64), ("channel", np.uint8), ("number", np.uint8),
    ("value", np.uint8), ("track", np.uint16),
])  # fmt: skip
# the columns of int64 tables, as they are read
NOTE_COLUMNS = ("onset_tick", "offset_tick", "pitch", "velocity", "release_velocity", "channel",
                "program", "bank", "track", "flags", "later")  # fmt: skip
(ONSET, OFFSET, PITCH, VELOCITY, RELEASE, CHANNEL,
 PROGRAM, BANK, TRACK, FLAGS, LATER) = range(len(NOTE_COLUMNS))  # fmt: skip
CONTROL_COLUMNS = ("track", "tick", "channel", "number", "value")
META = ("track", "kind", "tick", "place", "size")  # where the data of an event lie
FAULT = ("fault", "track", "place", "count")  # where a fault was found first
SYSEX = 0x1F0  # the kind of a system exclusive message; meta events have their own byte

FAULTS = {  # by their numbers, in the order in which they are said
    "alien_chunk": "a chunk that is no track, skipped",
    "too_many_tracks": "only the tracks before this one are read",
    "truncated": "a track that ends beyond the end of the file",
    "vlq_long": "a quantity of more than four bytes",
    "vlq_wild": "a quantity beyond 28 bits; the rest of the track is lost",
    "no_status": "data without a status byte, skipped",
    "bad_data": "a data byte above 127; the event is dropped",
    "system": "a system message that a file can't hold, skipped",
    "cut": "the track ends inside an event",
    "no_end": "the track has no end-of-track event",
    "stray_off": "a note-off with no note to end",
    "track_size": "the next track begins inside this one",
    "too_many_events": "only the events before this one are read",
}

SMALLEST_EVENT = 3  # bytes of a note-on, a control change or a meta event with its delta: at least
MAX_TICK = 1 << 53  # ticks count no further; whole numbers up to here are exact in float64


@cache
def loops() -> ModuleType:
    """`midi_loops`, compiled where it can be."""
    from mmfuse.features import midi_loops

    return midi_loops
