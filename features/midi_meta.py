"""What a MIDI file says beside its notes: tempos, meters, keys, words, and the timecode of tick 0.

Conventions: of tempos, meters and keys the last one at a tick wins, whatever its track. An event
that can't be is skipped with a warning.

Source: Standard MIDI Files 1.0 (RP-001), lyrics and markers as in RP-017 and RP-026.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from mmfuse.features.clock import FrameRate, Timecode
from mmfuse.features.errors import AlignError
from mmfuse.features.midi_chunks import Chunks, WarningLog
from mmfuse.features.midi_scan import SYSEX

TEXT, NAME, LYRIC, MARKER = 1, 3, 5, 6  # meta events that hold words, of 1 to 15
_TEMPO, _START, _METER, _KEY = 0x51, 0x54, 0x58, 0x59
_FF54 = (FrameRate(Fraction(24)), FrameRate(Fraction(25)),
         FrameRate(Fraction(30000, 1001), drop=True), FrameRate(Fraction(30)))  # fmt: skip


class Key(NamedTuple):
    """A key signature: sharps (flats are negative), and whether it is minor."""

    tick: int
    sharps: int  # -7 to 7
    minor: bool


# a meta event that holds text: tick, place in the file, track, kind, text as it is
Words = tuple[int, int, int, int, bytes]


class Sysex(NamedTuple):
    """A system exclusive message, without its F0, and where in the file it lies."""

    tick: int
    place: int
    message: bytes


@dataclass(slots=True)
class Metas:
    """The meta events of one timeline, each kind sorted by tick."""

    tempos: tuple[tuple[int, int], ...] = ()  # tick, microseconds in a quarter
    meters: tuple[tuple[int, int, int], ...] = ()  # tick, beats, beat unit
    keys: tuple[Key, ...] = ()
    words: tuple[Words, ...] = ()
    sysexes: tuple[Sysex, ...] = ()


def read_metas(data: bytes, rows: list[list[int]], log: WarningLog) -> Metas:
    """Read the meta events of one timeline.

    Args:
        data: the file.
        rows: of `midi_scan.META`, in the order of the file.
        log: gets `bad_tempo`, `bad_meter`, `bad_key`.
    """
    tempos, meters = dict[int, tuple[int, int]](), dict[int, tuple[int, int, int]]()
    keys, words, sysexes = dict[int, Key](), list[Words](), list[Sysex]()
    for track, kind, tick, place, size in rows:
        if kind < 16:
            if kind:
                words.append((tick, place, track, kind, data[place : place + size]))
        elif kind == _TEMPO:
            tempo = int.from_bytes(data[place : place + 3], "big")
            if size < 3 or not tempo:
                log.add("bad_tempo", track, place, "a tempo that can't be, skipped")
                continue
            tempos[tick] = tick, tempo
        elif kind == _METER:
            if size < 2 or not data[place] or data[place + 1] > 7:
                log.add("bad_meter", track, place, "a meter that can't be, skipped")
                continue
            meters[tick] = tick, data[place], 1 << data[place + 1]
        elif kind == _KEY:
            if size < 2 or 7 < data[place] < 249 or data[place + 1] > 1:
                log.add("bad_key", track, place, "a key that can't be, skipped")
                continue
            sharps = data[place] if data[place] < 8 else data[place] - 256
            keys[tick] = Key(tick, sharps, data[place + 1] == 1)
        elif kind == SYSEX:
            sysexes.append(Sysex(tick, place, data[place : place + size]))
    return Metas(
        tuple(sorted(tempos.values())),
        tuple(sorted(meters.values())),
        tuple(sorted(keys.values())) if keys else (),
        tuple(sorted(words)) if words else (),
        tuple(sorted(sysexes)) if sysexes else (),
    )


def text_of(data: bytes) -> str:
    """UTF-8, or else Latin-1, which any bytes are."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def read_start(chunks: Chunks, log: WarningLog) -> Timecode | None:
    """The timecode of tick 0: the first FF 54 of the first track.

    `log` gets `start_ignored`, `start_short`, `start_subframe`, `start_illegal`, `start_late`,
    `start_rate`.
    """
    start = None
    for number, kind, tick, place, size in chunks.metas:
        if kind != _START:
            continue
        if start is not None or (chunks.format == 1 and number):
            log.add("start_ignored", number, place, "only the first track's first FF 54 counts")
            continue
        if size < 5:
            log.add("start_short", number, place, f"FF 54 of {size} bytes, not 5; skipped")
            continue
        head, minutes, seconds, frames, subframe = chunks.data[place : place + 5]
        rate = _FF54[head >> 5 & 3]
        if subframe > 99:
            log.add("start_subframe", number, place, f"subframe {subframe} taken as 99")
        try:
            start = _timecode(head & 31, minutes, seconds, frames, min(subframe, 99), rate)
        except AlignError as error:
            log.add("start_illegal", number, place, f"FF 54 skipped: {error}")
            continue
        if tick:
            log.add("start_late", number, place, f"FF 54 at tick {tick} taken as that of tick 0")
        if chunks.division & 0x8000 and 256 - (chunks.division >> 8) != int(rate.fps):
            log.add("start_rate", number, place, f"FF 54 at {rate.name}, division at another")
    return start


def _timecode(
    hours: int, minutes: int, seconds: int, frames: int, subframe: int, rate: FrameRate
) -> Timecode:
    """The timecode of numbers; `Timecode.parse` tells what is wrong with them.

    Raises:
        AlignError: there is no such label at this rate.
    """
    whole_s = (hours * 60 + minutes) * 60 + seconds
    fps = rate.fps.numerator
    if not rate.drop and hours < 24 and minutes < 60 and seconds < 60 and frames < fps:
        return Timecode(whole_s * fps + frames, rate, subframe)
    separator = ";" if rate.drop else ":"
    label = f"{hours:02}:{minutes:02}:{seconds:02}{separator}{frames:02}.{subframe:02}"
    return Timecode.parse(label, rate)
