"""The bytes of a MIDI file to rows of numbers. Compiled; see `compiled`.

Plain functions over bytes, integers and arrays, without exceptions. numba keeps what it compiled
until this file changes; constants from elsewhere are compiled in. A quantity, an event or a size
may lie: nothing beyond the end of the data is read, and tables are never larger than what the
bytes can hold.

Source: Standard MIDI Files 1.0 (RP-001), MIDI 1.0 Detailed Specification.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.compiled import COMPILED, compiled, inner
from mmfuse.features.midi_scan import (
    BANK,
    CHANNEL,
    DRUM,
    DRUM_CHANNEL,
    FAULTS,
    FLAGS,
    HANGING,
    LATER,
    MAX_TICK,
    OFFSET,
    ONSET,
    PITCH,
    PROGRAM,
    RELEASE,
    SYSEX,
    TRACK,
    VELOCITY,
    ZERO_LENGTH,
)
from mmfuse.features.midi_sort import sort_notes

__all__ = ["buffer_of", "scan_file", "sort_notes"]

_NUM_FAULTS = len(FAULTS)
(
    ALIEN_CHUNK, TOO_MANY_TRACKS, TRUNCATED, VLQ_LONG, VLQ_WILD, NO_STATUS, BAD_DATA,
    SYSTEM, CUT, NO_END, STRAY_OFF, TRACK_SIZE, TOO_MANY_EVENTS,
) = range(_NUM_FAULTS)  # fmt: skip
_TRACK = 0x4D54726B  # MTrk

Table = NDArray[np.int64]


def buffer_of(data: bytes) -> Any:
    """A file's bytes in the form that is indexed fastest."""
    return np.frombuffer(data, np.uint8) if COMPILED else data


@inner
def word(data: Any, pos: int) -> int:
    """Four bytes, big end first."""
    return (
        int(data[pos]) << 24
        | int(data[pos + 1]) << 16
        | int(data[pos + 2]) << 8
        | int(data[pos + 3])
    )


@inner
def quantity(data: Any, pos: int, end: int) -> tuple[int, int]:
    """A variable-length quantity and the place after it; -1 if it is cut or above 28 bits."""
    value, going = 0, True
    while going and pos < end and value < 1 << 28:
        byte = int(data[pos])
        value = value << 7 | byte & 0x7F
        pos += 1
        going = byte >= 0x80
    return (-1 if going or value >= 1 << 28 else value), pos


@inner
def after_alien(data: Any, place: int) -> int:
    """Where to go on after a chunk that is no track: its end, if its name and size can be ones."""
    following, named = place + 8 + word(data, place + 4), True
    for pos in range(place, place + 4):
        named = named and 32 <= data[pos] < 127
    if named and following <= len(data):
        return following
    while place + 4 <= len(data) and word(data, place) != _TRACK:
        place += 1
    return place


@inner
def note_fault(found: Table, fault: int, place: int) -> None:
    """Count a fault, and remember where it was found first."""
    if not found[fault, 0]:
        found[fault, 1] = place
    found[fault, 0] += 1


@inner
def scan_track(
    data: Any,
    pos: int,
    end: int,
    track: int,
    budget: int,
    notes: Table,
    controls: Table,
    metas: Table,
    num_notes: int,
    num_controls: int,
    num_metas: int,
    oldest: Table,
    newest: Table,
    found: Table,
) -> tuple[int, int, int, int, int, int]:
    """Read one track's events from `pos` to `end`, at most `budget` of them.

    Rows go behind the `num_` ones that are there; `found` gets how often each fault was found, and
    its first place. `oldest` and `newest` are the queue of notes that sound for each channel and
    pitch, and `LATER` links a note to the next; all queues are empty (`oldest` is -1) before and
    after.

    Returns:
        Rows filled of `notes`, `controls` and `metas`; the last tick; where reading stopped; what
        is left of the budget, -1 if it ran out.
    """
    first_note = num_notes
    program, bank_high, bank_low = np.zeros((3, 16), np.int64)
    tick, status, ended = 0, 0, False

    while pos < end and not ended:
        if not budget:
            note_fault(found, TOO_MANY_EVENTS, pos)
            budget = -1
            break
        budget -= 1
        begin = pos
        delta, pos = quantity(data, pos, end)
        if pos - begin > 4 and delta >= 0:
            note_fault(found, VLQ_LONG, begin)
        tick = min(tick + max(delta, 0), MAX_TICK)
        if delta < 0 or pos >= end:
            note_fault(found, CUT if pos >= end else VLQ_WILD, begin)
            break
        first = int(data[pos])
        if first < 0x80 and not status:
            note_fault(found, NO_STATUS, pos)
            while pos < end and data[pos] < 0x80:
                pos += 1
            if pos >= end:
                break
            first = int(data[pos])
        if first >= 0xF0:
            pos += 1
            if first in (0xF0, 0xF7, 0xFF):
                kind = SYSEX if first == 0xF0 else -1
                if first == 0xFF:
                    kind = int(data[pos]) if pos < end else -2
                    pos += 1
                begin = pos
                size, pos = quantity(data, pos, end)
                if size < 0 or pos + size > end:
                    note_fault(found, VLQ_WILD if pos < end and size < 0 else CUT, begin)
                    pos = end
                    break
                ended = kind == 0x2F
                if kind >= 0 and not ended:
                    metas[num_metas, 0] = track
                    metas[num_metas, 1] = kind
                    metas[num_metas, 2] = tick
                    metas[num_metas, 3] = pos
                    metas[num_metas, 4] = size
                    num_metas += 1
                pos += size
            else:
                note_fault(found, SYSTEM, pos - 1)
                pos += 2 if first == 0xF2 else 1 if first in (0xF1, 0xF3) else 0
            continue
        if first >= 0x80:
            status = first
            pos += 1
        message, channel = status >> 4, status & 0x0F
        size = 1 if message in (0xC, 0xD) else 2
        if pos + size > end:
            note_fault(found, CUT, pos)
            pos = end
            break
        one = int(data[pos])
        two = int(data[pos + 1]) if size == 2 else 0
        if one > 127 or two > 127:
            note_fault(found, BAD_DATA, pos)
            pos += size
            continue
        pos += size
        key = channel << 7 | one
        if message == 0x9 and two:
            notes[num_notes, ONSET] = tick
            notes[num_notes, OFFSET] = -1
            notes[num_notes, PITCH] = one
            notes[num_notes, VELOCITY] = two
            notes[num_notes, RELEASE] = 64
            notes[num_notes, CHANNEL] = channel
            notes[num_notes, PROGRAM] = program[channel]
            notes[num_notes, BANK] = bank_high[channel] << 7 | bank_low[channel]
            notes[num_notes, TRACK] = track
            notes[num_notes, FLAGS] = DRUM if channel == DRUM_CHANNEL else 0
            notes[num_notes, LATER] = -1
            if oldest[key] < 0:
                oldest[key] = num_notes
            else:
                notes[newest[key], LATER] = num_notes
            newest[key] = num_notes
            num_notes += 1
        elif message in (0x8, 0x9):
            note = oldest[key]
            if note < 0:
                note_fault(found, STRAY_OFF, pos - size)
                continue
            oldest[key] = notes[note, LATER]
            notes[note, OFFSET] = tick
            if message == 0x8:
                notes[note, RELEASE] = two
        elif message == 0xC:
            program[channel] = one
        elif message == 0xB:
            if one == 0:
                bank_high[channel] = two
            elif one == 32:
                bank_low[channel] = two
            controls[num_controls, 0] = track
            controls[num_controls, 1] = tick
            controls[num_controls, 2] = channel
            controls[num_controls, 3] = one
            controls[num_controls, 4] = two
            num_controls += 1

    if not ended and budget >= 0 and not found[CUT, 0]:
        note_fault(found, NO_END, min(pos, end))
    for note in range(first_note, num_notes):
        if notes[note, OFFSET] < 0:
            notes[note, OFFSET] = tick
            notes[note, FLAGS] |= HANGING
            oldest[notes[note, CHANNEL] << 7 | notes[note, PITCH]] = -1
        if notes[note, OFFSET] == notes[note, ONSET]:
            notes[note, FLAGS] |= ZERO_LENGTH
    return num_notes, num_controls, num_metas, tick, pos, budget


@compiled
def scan_file(
    data: Any,
    place: int,
    budget: int,
    notes: Table,
    controls: Table,
    metas: Table,
    end_ticks: Table,
    faults: Table,
) -> tuple[int, int, int, int, int]:
    """Read all tracks.

    Args:
        data: the file; indexing gives its bytes as integers.
        place: of the first chunk.
        budget: events that may be read.
        notes: gets rows of `NOTE_COLUMNS`, in the order of the note-ons.
        controls: gets rows of `CONTROL_COLUMNS`.
        metas: gets rows of `META`: meta events, and system exclusives. This table and the two
            before have room for all events that the bytes can hold, or for the budget.
        end_ticks: gets the last tick of each track; as long as tracks may be read.
        faults: gets rows of `FAULT`, as many as it has room for.

    Returns:
        Rows filled of `notes`, `controls`, `metas`, `end_ticks` and `faults`.
    """
    num_notes, num_controls, num_metas, num_tracks, num_faults = 0, 0, 0, 0, 0
    found = np.zeros((_NUM_FAULTS, 2), np.int64)  # in one chunk: how often, first place
    oldest, newest = np.full(2048, -1), np.empty(2048, np.int64)
    while place + 8 <= len(data) and budget >= 0:
        found[:] = 0
        body, track = place + 8, -1
        if word(data, place) != _TRACK:
            note_fault(found, ALIEN_CHUNK, place)
            place = after_alien(data, place)
        elif num_tracks == len(end_ticks):
            note_fault(found, TOO_MANY_TRACKS, place)
            budget = -1
        else:
            end = body + word(data, place + 4)
            if end > len(data):
                note_fault(found, TRUNCATED, place)
                end = len(data)
            num_notes, num_controls, num_metas, tick, stop, budget = scan_track(
                data, body, end, num_tracks, budget,
                notes, controls, metas, num_notes, num_controls, num_metas,
                oldest, newest, found,
            )  # fmt: skip
            end_ticks[num_tracks] = tick
            place = end
            if stop + 4 <= end and budget >= 0 and word(data, stop) == _TRACK:
                note_fault(found, TRACK_SIZE, body - 8)
                place = stop
            track = num_tracks
            num_tracks += 1
        for fault in range(len(found)):
            if found[fault, 0] and num_faults < len(faults):
                faults[num_faults, 0] = fault
                faults[num_faults, 1] = track
                faults[num_faults, 2] = found[fault, 1]
                faults[num_faults, 3] = found[fault, 0]
                num_faults += 1
    return num_notes, num_controls, num_metas, num_tracks, num_faults
