"""MIDI files byte by byte, for tests: how to make them, and hard ones with the notes they hold.

Times of expected notes are exact fractions of a second; at 480 ticks in a quarter and 120 quarters
in a minute, a tick is 1/960 s. A note is (onset, offset, pitch, flags).
"""

import importlib
import struct
import sys
from fractions import Fraction
from types import ModuleType
from typing import NamedTuple

import pytest

from mmfuse.features import compiled, midi_chunks, midi_time
from mmfuse.features.midi_file import HANGING, ZERO_LENGTH, MidiFile, MidiLimits

END = b"\x00\xff\x2f\x00"
ON, OFF = b"\x90\x3c\x40", b"\x80\x3c\x40"

Note = tuple[Fraction | float, Fraction | float, int, int]


def vlq(value: int) -> bytes:
    out = [value & 0x7F]
    while value := value >> 7:
        out.append(0x80 | value & 0x7F)
    return bytes(reversed(out))


def track(*events: bytes | tuple[int, bytes], end: bytes = END) -> bytes:
    body = b"".join(e if isinstance(e, bytes) else vlq(e[0]) + e[1] for e in events) + end
    return b"MTrk" + struct.pack(">I", len(body)) + body


def smf(*tracks: bytes, division: int = 480, kind: int = 1, count: int | None = None) -> bytes:
    count = len(tracks) if count is None else count
    return b"MThd" + struct.pack(">IHHH", 6, kind, count, division) + b"".join(tracks)


def meta(kind: int, data: bytes) -> bytes:
    return b"\xff" + bytes([kind]) + vlq(len(data)) + data


def tempo(microseconds: int) -> bytes:
    return meta(0x51, microseconds.to_bytes(3, "big"))


def meter(beats: int, power: int) -> bytes:
    return meta(0x58, bytes([beats, power, 24, 8]))


def ff54(*data: int) -> bytes:
    return meta(0x54, bytes(data))


def control(number: int, value: int, channel: int = 0) -> bytes:
    return bytes([0xB0 | channel, number, value])


def sysex(*data: int) -> bytes:
    return b"\xf0" + vlq(len(data) + 1) + bytes(data) + b"\xf7"


def riff(data: bytes) -> bytes:
    chunks = b"RMIDLIST\x03\0\0\0abc\0data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def plain_loops() -> ModuleType:
    """The reader's loops once more, not compiled."""
    names = ("mmfuse.features.midi_sort", "mmfuse.features.midi_loops")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "COMPILED", False)
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        module = importlib.import_module(names[1])
        for name in names:
            patch.delitem(sys.modules, name)
    return module


def use_loops(patch: pytest.MonkeyPatch, module: ModuleType) -> None:
    """Read with them."""
    for user in (midi_chunks, midi_time):
        patch.setattr(user, "loops", lambda: module)


def times(midi: MidiFile, sequence: int = 0) -> list[tuple[float, float]]:
    notes = midi.sequences[sequence].notes
    return list(zip(notes["onset_s"].tolist(), notes["offset_s"].tolist(), strict=True))


def codes(midi: MidiFile) -> list[str]:
    return [warning.code for warning in midi.warnings]


ONE_NOTE = smf(track((0, ON), (480, OFF)))


class Hard(NamedTuple):
    """A file that other readers get wrong, and what is right."""

    name: str
    data: bytes
    notes: list[list[Note]]  # of each sequence; none where the file is refused
    warnings: tuple[str, ...] = ()
    start: str | None = None  # label of the timecode of tick 0
    reason: str | None = None  # why it is refused
    limits: MidiLimits = MidiLimits()


def _note(
    onset: Fraction | float, offset: Fraction | float, pitch: int = 60, flags: int = 0
) -> Note:
    return onset, offset, pitch, flags


def _smpte(fps: int, ticks: int, gap: int) -> bytes:
    """A note of `gap` ticks after as many, with tempos that must not count."""
    events = (0, tempo(123_456)), (gap, ON), (gap // 2, tempo(999_999)), (gap - gap // 2, OFF)
    return smf(track(*events), division=(256 - fps) << 8 | ticks)


_ONE, _LATER = track((0, ON), (480, OFF)), track((480, ON), (480, OFF))
_HALF = Fraction(1, 2)
_QUARTER = [[_note(0, _HALF)]]  # what is left of ONE_NOTE, whatever is wrong around it
_SECOND = [[_note(1, 2)]]
_LATE = MidiLimits(duration_s=10**7)
_LONG = Fraction(0x0FFFFFFF, 960)

HARD = [
    Hard("-25 x 40", _smpte(25, 40, 1000), _SECOND),
    Hard("-24 x 100", _smpte(24, 100, 2400), _SECOND),
    Hard("-30 x 80", _smpte(30, 80, 2400), _SECOND),
    Hard("-29 x 80 is 30000/1001", _smpte(29, 80, 2400),
         [[_note(Fraction(1001, 1000), Fraction(2002, 1000))]]),
    Hard("FF 54 at 25 fps", smf(track((0, ff54(0x21, 0, 0, 0, 0)), (0, ON), (480, OFF))),
         _QUARTER, start="01:00:00:00"),
    Hard("FF 54 of four bytes", smf(track((0, ff54(0x21, 0, 0, 0)), (0, ON), (480, OFF))),
         _QUARTER, ("start_short",)),
    Hard("FF 54 with subframe 120", smf(track((0, ff54(0x21, 0, 0, 1, 120)), (0, ON), (480, OFF))),
         _QUARTER, ("start_subframe",), start="01:00:00:01.99"),
    Hard("key of 8 sharps", smf(track((0, meta(0x59, b"\x08\x00")), (0, ON), (480, OFF))),
         _QUARTER, ("bad_key",)),
    Hard("key of mode 2", smf(track((0, meta(0x59, b"\x00\x02")), (0, ON), (480, OFF))),
         _QUARTER, ("bad_key",)),
    Hard("running status after sysex",
         smf(track((480, ON), (240, sysex(0x41, 0x10)), (240, b"\x3c\x00"))),
         [[_note(_HALF, 1)]]),
    Hard("running status after meta",
         smf(track((480, ON), (240, meta(1, b"hi")), (240, b"\x3c\x00"))),
         [[_note(_HALF, 1)]]),
    Hard("running status with none set", smf(track((0, b"\x3c\x40"), (0, ON), (480, OFF))),
         _QUARTER, ("no_status",)),
    Hard("last track cut inside a note-off",
         smf(_ONE, track((0, ON), (480, OFF), (0, ON), (480, OFF), end=b""))[:-2],
         [[_note(0, _HALF), _note(0, _HALF), _note(_HALF, 1, 60, HANGING)]],
         ("truncated", "cut")),
    Hard("last track cut after a delta",
         smf(track((0, ON), (480, OFF), (0, ON), (480, OFF), end=b""))[:-3],
         [[_note(0, _HALF), _note(_HALF, 1, 60, HANGING)]],
         ("truncated", "cut")),
    Hard("more tracks declared than there are", smf(track((0, ON), (480, OFF)), count=3),
         _QUARTER, ("track_count",)),
    Hard("fewer tracks declared than there are",
         smf(_ONE, _LATER, count=1),
         [[_note(0, _HALF), _note(_HALF, 1)]], ("track_count",)),
    Hard("header of 8 bytes", b"MThd\0\0\0\x08\0\1\0\1\1\xe0??" + ONE_NOTE[14:],
         _QUARTER, ("long_header",)),
    Hard("unknown chunk between tracks",
         smf(_ONE, b"XFIH\0\0\0\2ab", _LATER, count=2),
         [[_note(0, _HALF), _note(_HALF, 1)]], ("alien_chunk",)),
    Hard("RIFF RMID", riff(ONE_NOTE), _QUARTER, ("rmid",)),
    Hard("no bytes", b"", [], reason="empty"),
    Hard("ten bytes", ONE_NOTE[:10], [], reason="bad_header"),
    Hard("a delta of 28 bits", smf(track((0x0FFFFFFF, ON), (480, OFF))),
         [[_note(_LONG, _LONG + _HALF)]], limits=_LATE),
    Hard("twenty deltas of 28 bits",
         smf(track(*[(0x0FFFFFFF, meta(1, b""))] * 20, (0, ON), (480, OFF))),
         [[_note(20 * _LONG, 20 * _LONG + _HALF)]], limits=_LATE),
    Hard("a delta of 28 bits, within a day",
         smf(track((0, ON), (480, OFF), (0x0FFFFFFF, ON), (480, OFF))),
         _QUARTER, ("too_long",)),
    Hard("tempo change in track 2",
         smf(track((0, tempo(500_000))), track((960, tempo(1_000_000))),
             track((480, ON), (960, OFF))),
         [[_note(_HALF, 2)]]),
    Hard("tempo 0", smf(track((0, tempo(0)), (0, ON), (480, OFF))), _QUARTER, ("bad_tempo",)),
    Hard("division 0", smf(track((0, ON), (480, OFF)), division=0), [], reason="bad_division"),
    Hard("SMPTE division of 0 ticks", smf(track(), division=0xE700), [], reason="bad_division"),
    Hard("hanging note", smf(track((0, ON), (0, b"\x90\x40\x40"), (480, OFF), (480, meta(1, b"")))),
         [[_note(0, _HALF), _note(0, 1, 64, HANGING)]]),
    Hard("overlap on one pitch", smf(track((0, ON), (480, ON), (480, OFF), (480, OFF))),
         [[_note(0, 1), _note(_HALF, Fraction(3, 2))]]),
    Hard("note-off behind the next note-on of one tick",
         smf(track((0, ON), (480, ON), (0, OFF), (480, OFF))),
         [[_note(0, _HALF), _note(_HALF, 1)]]),
    Hard("note of no length", smf(track((480, ON), (0, OFF))),
         [[_note(_HALF, _HALF, 60, ZERO_LENGTH)]]),
    Hard("program change during a note", smf(track((0, ON), (240, b"\xc0\x07"), (240, OFF))),
         _QUARTER),
    Hard("format 2",
         smf(track((0, tempo(1_000_000)), (480, ON), (480, OFF)), _LATER, kind=2),
         [[_note(1, 2)], [_note(_HALF, 1)]]),
    Hard("data byte above 127", smf(track((0, ON), (0, b"\x90\xff\x40"), (480, OFF))),
         _QUARTER, ("bad_data",)),
    Hard("quantity of five bytes", smf(track((0, ON), b"\x80\x80\x80\x83\x60" + OFF)),
         _QUARTER, ("vlq_long",)),
    Hard("no tracks", smf(), [[]]),
    Hard("note-on of velocity 0, running status, no end of track",
         smf(track((0, ON), (480, b"\x3c\x00"), (0, b"\x3e\x40"), (480, b"\x3e\x00"), end=b"")),
         [[_note(0, _HALF), _note(_HALF, 1, 62)]], ("no_end",)),
]  # fmt: skip
