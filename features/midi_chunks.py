"""The chunks of a MIDI file: wrapper, header and tracks, and what their bytes hold, unread.

What is wrong is mended and logged, as far as it can be. Byte offsets count from the start of the
MIDI file (inside its RIFF wrapper, if it has one).

Source: Standard MIDI Files 1.0 (RP-001), RIFF MIDI (RP-029).
"""

from dataclasses import dataclass, field
from struct import unpack_from

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.errors import MidiError
from mmfuse.features.midi_scan import (
    CONTROL,
    CONTROL_COLUMNS,
    FAULT,
    FAULTS,
    MAX_TICK,
    META,
    NOTE_COLUMNS,
    SMALLEST_EVENT,
    loops,
)

MAX_WARNINGS = 1_000
_FAULTS = tuple(FAULTS.items())
_NO_CONTROLS = np.empty(0, CONTROL)


@dataclass(frozen=True, slots=True)
class MidiLimits:
    """How much of one file is read. What lies beyond is left out, with a warning that says so."""

    events: int = 2_000_000  # of all tracks; the rest of the file is not read
    tracks: int = 1_024  # those after them are not read
    ticks: int = MAX_TICK  # later notes and controls are left out, longer notes end here
    duration_s: int = 24 * 3600  # the same, in seconds


DEFAULT_LIMITS = MidiLimits()


@dataclass(frozen=True, slots=True)
class MidiWarning:
    """Something that was mended: a stable word, the track (-1: the file), where, and how."""

    code: str
    track: int
    offset: int
    text: str


@dataclass(slots=True)
class WarningLog:
    """The first thousand warnings of a file."""

    warnings: list[MidiWarning] = field(default_factory=list)

    def add(self, code: str, track: int, offset: int, text: str) -> None:
        """Note what was mended."""
        if len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(MidiWarning(code, track, offset, text))


@dataclass(slots=True)
class Chunks:
    """A file's bytes as rows.

    All in the order of the file: `notes` (int64 of `NOTE_COLUMNS`), `controls` (dtype `CONTROL`,
    without times) and `metas` (of `META`); `end_ticks` is the last tick of each track.
    """

    data: bytes
    format: int
    division: int
    notes: NDArray[np.int64]
    controls: NDArray[np.void]
    metas: list[list[int]]
    end_ticks: list[int]


def read_chunks(data: bytes, limits: MidiLimits, log: WarningLog) -> Chunks:
    """Take a file apart.

    Raises:
        MidiError: `empty`, `not_midi`, `bad_header`.
    """
    data = _unwrapped(data, log)
    file_format, declared, division, place = _header(data, log)
    room = min((len(data) - place) // SMALLEST_EVENT, limits.events) + 1
    notes = np.empty((room, len(NOTE_COLUMNS)), np.int64)
    controls = np.empty((room, len(CONTROL_COLUMNS)), np.int64)
    metas = np.empty((room, len(META)), np.int64)
    end_ticks = np.empty(min(limits.tracks, 1 << 16, len(data) // 8), np.int64)
    faults = np.empty((MAX_WARNINGS, len(FAULT)), np.int64)
    scan, buffer = loops().scan_file, loops().buffer_of(data)
    filled = scan(buffer, place, limits.events, notes, controls, metas, end_ticks, faults)
    num_notes, num_controls, num_metas, num_tracks, num_faults = filled
    for fault, track, at, count in faults[:num_faults].tolist():
        code, text = _FAULTS[fault]
        log.add(code, track, at, f"{text} ({count} times)" if count > 1 else text)
    if num_tracks != declared:
        log.add("track_count", -1, 10, f"{declared} tracks declared, {num_tracks} found")
    return Chunks(
        data,
        file_format,
        division,
        notes[:num_notes],
        controls_of(controls[:num_controls]) if num_controls else _NO_CONTROLS,
        metas[:num_metas].tolist(),
        end_ticks[:num_tracks].tolist(),
    )


def controls_of(table: NDArray[np.int64]) -> NDArray[np.void]:
    """Rows of `CONTROL_COLUMNS` as rows of `CONTROL`; times are 0."""
    controls = np.zeros(len(table), CONTROL)
    for column, name in enumerate(CONTROL_COLUMNS):
        controls[name] = table[:, column]
    return controls


def _unwrapped(data: bytes, log: WarningLog) -> bytes:
    if not data:
        raise MidiError("empty", "MIDI file of 0 bytes")
    if data[:4] == b"RIFF" and data[8:12] == b"RMID":
        place = 12
        while place + 8 <= len(data):
            size = int.from_bytes(data[place + 4 : place + 8], "little")
            if data[place : place + 4] == b"data":
                log.add("rmid", -1, place, "RIFF wrapper taken off")
                return data[place + 8 : place + 8 + size]
            place += 8 + size + size % 2
    return data


def _header(data: bytes, log: WarningLog) -> tuple[int, int, int, int]:
    """(format, declared tracks, division, place of the first chunk)."""
    if data[:4] != b"MThd":
        raise MidiError(
            "not_midi", f"no MIDI file: it begins with {data[:4].hex(' ')}, not with 'MThd'"
        )
    length = int.from_bytes(data[4:8], "big")
    if len(data) < 14 or length < 6:
        size = max(min(length, len(data) - 8), 0)
        raise MidiError("bad_header", f"MIDI header of {size} bytes, not 6")
    if length > 6:
        log.add("long_header", -1, 4, f"header of {length} bytes; those after the sixth skipped")
    file_format, declared, division = unpack_from(">HHH", data, 8)
    if file_format > 2:
        log.add("format", -1, 8, f"unknown format {file_format}, read as format 1")
        file_format = 1
    place = 8 + length if 8 + length <= len(data) else 14  # a header can't be all of the file
    return file_format, declared, division, place
