"""Standard MIDI files to notes: one tolerant reader that raises nothing but `MidiError`.

Conventions: ticks are int64; time is kept as an integer over one denominator (microseconds times
ticks per quarter, or SMPTE subframes) and becomes float64 seconds once, at the end. Whatever had
to be mended is in `MidiFile.warnings`. Byte offsets count from the start of the file (inside its
RIFF wrapper, if it has one).

What is tolerated: running status across meta and system events, data bytes above 127 (the event
is dropped), quantities of five bytes and more that fit 28 bits, tracks that are cut or have no
end, wrong track counts, foreign chunks, long headers, tempo 0 (skipped), `RIFF`/`RMID` wrappers.
Note-offs pair with note-ons first in, first out by (track, channel, pitch); a note that never ends
is closed at the end of its track and flagged.

Source: Standard MIDI Files 1.0 (RP-001).
"""

from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.clock import FrameRate, Timecode
from mmfuse.features.errors import AlignError, MidiError
from mmfuse.features.midi_scan import (
    COLUMNS,
    DRUM,
    FAULTS,
    HANGING,
    ZERO_LENGTH,
    TrackScan,
    scan_track,
)
from mmfuse.features.midi_time import TempoMap, bars_of, smpte_rate, tempo_map_of

__all__ = [
    "DRUM",
    "HANGING",
    "NOTE",
    "ZERO_LENGTH",
    "MidiFile",
    "MidiLimits",
    "MidiWarning",
    "Sequence",
    "TempoMap",
    "read_midi",
]

NOTE = np.dtype([
    ("onset_tick", np.int64), ("offset_tick", np.int64),
    ("onset_s", np.float64), ("offset_s", np.float64),
    ("pitch", np.uint8), ("velocity", np.uint8), ("release_velocity", np.uint8),
    ("channel", np.uint8), ("program", np.uint8), ("bank", np.uint16),
    ("track", np.uint16), ("flags", np.uint8), ("bar", np.int32), ("beat_in_bar", np.float64),
])  # fmt: skip

_MAX_WARNINGS = 1_000
_FF54 = (FrameRate(Fraction(24)), FrameRate(Fraction(25)),
         FrameRate(Fraction(30000, 1001), drop=True), FrameRate(Fraction(30)))  # fmt: skip


@dataclass(frozen=True, slots=True)
class MidiLimits:
    """What one file may ask for before it is refused."""

    events: int = 2_000_000
    tracks: int = 1_024
    duration_s: int = 24 * 3600  # to the end of the last note


@dataclass(frozen=True, slots=True)
class MidiWarning:
    """Something that was mended: a stable word, the track (-1: the file), where, and how."""

    code: str
    track: int
    offset: int
    text: str


@dataclass(frozen=True, slots=True)
class Sequence:
    """One timeline: everything of a format 0 or 1 file, or one track of a format 2 file.

    `notes` is a structured array of dtype `NOTE`, sorted by onset, then pitch. `bar` counts from 0
    by the meter map (4/4 before any meter; a change inside a bar starts a new one) and
    `beat_in_bar` is in quarters. With SMPTE division a bar is a bin of 2 s and `beat_in_bar` is
    seconds into it. `meters` is (tick, beats, beat unit).
    """

    notes: NDArray[np.void]
    tempo_map: TempoMap
    tempos: tuple[tuple[int, int], ...]
    meters: tuple[tuple[int, int, int], ...]
    end_s: float


@dataclass(frozen=True, slots=True)
class MidiFile:
    """A MIDI file as read. `division` is the header's word; `start` is the timecode of tick 0."""

    format: int
    division: int
    start: Timecode | None
    sequences: tuple[Sequence, ...]
    warnings: tuple[MidiWarning, ...]


@dataclass(slots=True)
class _Log:
    warnings: list[MidiWarning] = field(default_factory=list)

    def add(self, code: str, track: int, offset: int, text: str) -> None:
        if len(self.warnings) < _MAX_WARNINGS:
            self.warnings.append(MidiWarning(code, track, offset, text))


def read_midi(data: bytes, limits: MidiLimits = MidiLimits()) -> MidiFile:
    """Read a Standard MIDI File.

    Args:
        data: the whole file.
        limits: a file that asks for more is refused.

    Raises:
        MidiError: `empty`, `not_midi`, `bad_header`, `bad_division`, `too_many_events`,
            `too_many_tracks`, `too_long`.
    """
    log = _Log()
    data = _unwrapped(data, log)
    file_format, declared, division, start = _header(data, log)
    smpte_rate(division)
    tracks = _tracks(data, start, declared, limits, log)
    timecode = _start(data, tracks, file_format, division, log)
    numbered = list(enumerate(tracks))
    groups = [[pair] for pair in numbered] if file_format == 2 and tracks else [numbered]
    sequences = tuple(_sequence(data, group, division, limits, log) for group in groups)
    return MidiFile(file_format, division, timecode, sequences, tuple(log.warnings))


def _unwrapped(data: bytes, log: _Log) -> bytes:
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


def _header(data: bytes, log: _Log) -> tuple[int, int, int, int]:
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
    words = [int.from_bytes(data[place : place + 2], "big") for place in (8, 10, 12)]
    file_format, declared, division = words
    if file_format > 2:
        log.add("format", -1, 8, f"unknown format {file_format}, read as format 1")
        file_format = 1
    place = 8 + length if 8 + length <= len(data) else 14  # a header can't be all of the file
    return file_format, declared, division, place


def _tracks(
    data: bytes, place: int, declared: int, limits: MidiLimits, log: _Log
) -> list[TrackScan]:
    tracks: list[TrackScan] = []
    events = limits.events
    while place + 8 <= len(data):
        name, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "big")
        if name != b"MTrk":
            following = place + 8 + size
            named = name.isascii() and name.decode("ascii").isprintable()
            if not named or following > len(data):
                following = data.find(b"MTrk", place)
            log.add("alien_chunk", -1, place, f"chunk {name!r} skipped")
            if following < 0:
                break
            place = following
            continue
        number, body = len(tracks), place + 8
        if number >= limits.tracks:
            raise MidiError("too_many_tracks", f"more than {limits.tracks} tracks")
        if body + size > len(data):
            log.add("truncated", number, place, f"track of {size} bytes, {len(data) - body} there")
        end = min(body + size, len(data))
        track = scan_track(data, body, end, events)
        events = track.budget
        if events < 0:
            raise MidiError("too_many_events", f"more than {limits.events} events")
        for code, (count, offset) in track.faults.items():
            times = f" ({count} times)" if count > 1 else ""
            log.add(code, number, offset, FAULTS[code] + times)
        tracks.append(track)
        place = end
        if data[track.stop : track.stop + 4] == b"MTrk" and track.stop != end:
            log.add("track_size", number, body - 8, "the next track begins inside this one")
            place = track.stop
    if len(tracks) != declared:
        log.add("track_count", -1, 10, f"{declared} tracks declared, {len(tracks)} found")
    return tracks


def _start(
    data: bytes, tracks: list[TrackScan], file_format: int, division: int, log: _Log
) -> Timecode | None:
    """The timecode of tick 0, from FF 54 in the first track."""
    start = None
    for number, track in enumerate(tracks):
        for kind, tick, place, size in track.metas:
            if kind != 0x54:
                continue
            if start is not None or (file_format == 1 and number):
                log.add("start_ignored", number, place, "only the first track's first FF 54 counts")
                continue
            if size < 5:
                log.add("start_short", number, place, f"FF 54 of {size} bytes, not 5; skipped")
                continue
            head, minutes, seconds, frames, subframe = data[place : place + 5]
            rate = _FF54[head >> 5 & 3]
            if subframe > 99:
                log.add("start_subframe", number, place, f"subframe {subframe} taken as 99")
            separator = ";" if rate.drop else ":"
            label = f"{head & 31:02}:{minutes:02}:{seconds:02}{separator}{frames:02}"
            try:
                start = Timecode.parse(f"{label}.{min(subframe, 99):02}", rate)
            except AlignError as error:
                log.add("start_illegal", number, place, f"FF 54 skipped: {error}")
                continue
            if tick:
                log.add(
                    "start_late", number, place, f"FF 54 at tick {tick} taken as that of tick 0"
                )
            if division & 0x8000 and 256 - (division >> 8) != int(rate.fps):
                log.add("start_rate", number, place, f"FF 54 at {rate.name}, division at another")
    return start


def _sequence(
    data: bytes, tracks: list[tuple[int, TrackScan]], division: int, limits: MidiLimits, log: _Log
) -> Sequence:
    """Notes of some tracks on one timeline."""
    tempos = _merged(data, tracks, 0x51, 3, log)
    tempo_map = tempo_map_of(tempos, division)
    notes = np.zeros(sum(len(track.columns[0]) for _, track in tracks), NOTE)
    first = 0
    for number, track in tracks:
        part = notes[first : first + len(track.columns[0])]
        part["track"] = number
        for name, column in zip(COLUMNS, track.columns, strict=True):
            part[name] = column
        first += len(part)
    last = tempo_map.numerator(int(notes["offset_tick"].max(initial=0)))
    if last > min(limits.duration_s * tempo_map.denominator, 2**62):
        length_s = last / tempo_map.denominator
        raise MidiError("too_long", f"notes to {length_s:.0f} s; up to {limits.duration_s} s")
    notes = notes[np.lexsort((notes["pitch"], notes["onset_tick"]))]
    notes["onset_s"] = tempo_map.seconds(notes["onset_tick"])
    notes["offset_s"] = tempo_map.seconds(notes["offset_tick"])
    meters = [
        (tick, word >> 8, 1 << (word & 0xFF)) for tick, word in _merged(data, tracks, 0x58, 2, log)
    ]
    notes["bar"], notes["beat_in_bar"] = bars_of(notes["onset_tick"], meters, tempo_map)
    end_tick = max((track.end_tick for _, track in tracks), default=0)
    end_s = tempo_map.numerator(end_tick) / tempo_map.denominator
    return Sequence(notes, tempo_map, tuple(tempos), tuple(meters), end_s)


def _merged(
    data: bytes, tracks: list[tuple[int, TrackScan]], kind: int, size: int, log: _Log
) -> list[tuple[int, int]]:
    """(tick, first `size` bytes as a number) of one meta event; the last at a tick wins."""
    values: dict[int, int] = {}
    for number, track in tracks:
        for event, tick, place, length in track.metas:
            if event != kind:
                continue
            value = int.from_bytes(data[place : place + size], "big")
            meter = kind == 0x58
            if (
                length < size
                or not (value >> 8 if meter else value)
                or (meter and value & 0xFF > 7)
            ):
                name = "meter" if meter else "tempo"
                log.add(f"bad_{name}", number, place, f"a {name} that can't be, skipped")
                continue
            values[tick] = value
    return sorted(values.items())
