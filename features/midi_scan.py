"""The bytes of one MIDI track to columns of numbers: the inner loop of the MIDI reader.

A plain function over bytes and integers, without exceptions, so that it can be compiled.

Source: Standard MIDI Files 1.0 (RP-001), MIDI 1.0 Detailed Specification.
"""

from dataclasses import dataclass

HANGING, ZERO_LENGTH, DRUM = 1, 2, 4  # bits of `flags`

COLUMNS = ("onset_tick", "offset_tick", "pitch", "velocity", "release_velocity",
           "channel", "program", "bank", "flags")  # fmt: skip

FAULTS = {
    "vlq_long": "a quantity of more than four bytes",
    "vlq_wild": "a quantity beyond 28 bits; the rest of the track is lost",
    "no_status": "data without a status byte, skipped",
    "bad_data": "a data byte above 127; the event is dropped",
    "system": "a system message that a file can't hold, skipped",
    "cut": "the track ends inside an event",
    "no_end": "the track has no end-of-track event",
    "stray_off": "a note-off with no note to end",
}


@dataclass(frozen=True, slots=True)
class TrackScan:
    """What one track holds.

    `columns` are notes in the order of their note-ons, named by `COLUMNS`; `metas` are (type,
    tick, place of the data, length); `faults` are code -> (count, first place); `end_tick` is the
    last tick; `stop` is where reading stopped; `budget` is what is left of it, -1 if it ran out.
    """

    columns: tuple[list[int], ...]
    metas: list[tuple[int, int, int, int]]
    faults: dict[str, tuple[int, int]]
    end_tick: int
    stop: int
    budget: int


def scan_track(data: bytes, pos: int, end: int, budget: int) -> TrackScan:
    """Read one track's events from `pos` to `end`, at most `budget` of them.

    A quantity, an event or a size may lie; nothing beyond `end` is read, and nothing is allocated
    that the bytes do not hold.
    """
    onset, offset, pitches, velocities = list[int](), list[int](), list[int](), list[int]()
    releases, channels, programs = list[int](), list[int](), list[int]()
    banks, flags, later = list[int](), list[int](), list[int]()
    metas: list[tuple[int, int, int, int]] = []
    faults: dict[str, tuple[int, int]] = {}
    # notes that sound: a queue for each channel and pitch, `later` links a note to the next
    oldest, newest = [-1] * 2048, [-1] * 2048
    program, bank_high, bank_low = [0] * 16, [0] * 16, [0] * 16
    tick, status, ended = 0, 0, False

    def fault(code: str, place: int) -> None:
        count, first = faults.get(code, (0, place))
        faults[code] = (count + 1, first)

    while pos < end and not ended and budget >= 0:
        begin = pos
        delta, pos = quantity(data, pos, end)
        if pos - begin > 4 and delta >= 0:
            fault("vlq_long", begin)
        tick += max(delta, 0)
        if delta < 0 or pos >= end:
            fault("cut" if pos >= end else "vlq_wild", begin)
            break
        budget -= 1
        first = data[pos]
        if first < 0x80 and not status:
            fault("no_status", pos)
            while pos < end and data[pos] < 0x80:
                pos += 1
            if pos >= end:
                break
            first = data[pos]
        if first >= 0xF0:
            pos += 1
            if first in (0xF0, 0xF7, 0xFF):
                kind = -1
                if first == 0xFF:
                    kind = data[pos] if pos < end else -2
                    pos += 1
                begin = pos
                size, pos = quantity(data, pos, end)
                if size < 0 or pos + size > end:
                    fault("vlq_wild" if pos < end and size < 0 else "cut", begin)
                    pos = end
                    break
                if kind >= 0:
                    metas.append((kind, tick, pos, size))
                pos += size
                ended = kind == 0x2F
            else:
                fault("system", pos - 1)
                pos += 2 if first == 0xF2 else 1 if first in (0xF1, 0xF3) else 0
            continue
        if first >= 0x80:
            status = first
            pos += 1
        message, channel = status >> 4, status & 0x0F
        size = 1 if message in (0xC, 0xD) else 2
        if pos + size > end:
            fault("cut", pos)
            pos = end
            break
        one = data[pos]
        two = data[pos + 1] if size == 2 else 0
        if one > 127 or two > 127:
            fault("bad_data", pos)
            pos += size
            continue
        pos += size
        key = channel << 7 | one
        if message == 0x9 and two:
            note = len(onset)
            onset.append(tick)
            offset.append(-1)
            pitches.append(one)
            velocities.append(two)
            releases.append(64)
            channels.append(channel)
            programs.append(program[channel])
            banks.append(bank_high[channel] << 7 | bank_low[channel])
            flags.append(DRUM if channel == 9 else 0)
            later.append(-1)
            if oldest[key] < 0:
                oldest[key] = note
            else:
                later[newest[key]] = note
            newest[key] = note
        elif message in (0x8, 0x9):
            note = oldest[key]
            if note < 0:
                fault("stray_off", pos - size)
                continue
            oldest[key] = later[note]
            offset[note] = tick
            if message == 0x8:
                releases[note] = two
        elif message == 0xC:
            program[channel] = one
        elif message == 0xB and one == 0:
            bank_high[channel] = two
        elif message == 0xB and one == 32:
            bank_low[channel] = two

    if not ended and "cut" not in faults:
        fault("no_end", min(pos, end))
    for note, off in enumerate(offset):
        if off < 0:
            offset[note] = tick
            flags[note] |= HANGING
        if offset[note] == onset[note]:
            flags[note] |= ZERO_LENGTH
    columns = (onset, offset, pitches, velocities, releases, channels, programs, banks, flags)
    return TrackScan(columns, metas, faults, tick, pos, budget)


def quantity(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """A variable-length quantity and the place after it; -1 if it is cut or above 28 bits."""
    value = 0
    while pos < end and value < 1 << 28:
        byte = data[pos]
        value = value << 7 | byte & 0x7F
        pos += 1
        if byte < 0x80:
            return (value if value < 1 << 28 else -1), pos
    return -1, pos
