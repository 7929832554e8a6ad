"""Which notes are drums: channel 10, and what GS, XG and GM2 say about other channels.

Conventions: channels count from 0, so channel 10 is 9. A message counts from its tick on, on its
channel, whatever the track. Bank selects mean drums only after the system was named: MSB 126 and
127 in XG, 120 in GM2 (121 there means none, on channel 10 too). `GM on` and the resets take all
back. In a file that names no system channel 10 is drums and nothing else is.

Source: General MIDI 2 (RP-024), Roland GS ("use for rhythm part"), Yamaha XG ("part mode").
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.midi_meta import Sysex
from mmfuse.features.midi_scan import DRUM, DRUM_CHANNEL

_SYSTEMS = {  # what follows the maker and device bytes
    b"\x7e\x09\x01": "GM", b"\x7e\x09\x02": "GM", b"\x7e\x09\x03": "GM2",
    b"\x41\x42\x12\x40\x00\x7f": "GS", b"\x41\x42\x12\x00\x00\x7f": "GS",
    b"\x43\x4c\x00\x00\x7e": "XG",
}  # fmt: skip
_GS_PART = b"\x41\x42\x12\x40"  # then 1p 15 vv
_XG_PART = b"\x43\x4c\x08"  # then pp 07 vv
_GS_CHANNELS = (9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15)  # of part p
_DRUM_BANKS = {"XG": (126, 127), "GM2": (120,)}
_BANK = 0  # control number

Change = tuple[int, int, int, bool]  # tick, first and last channel, whether they become drums


def flag_drums(
    notes: NDArray[np.void], controls: NDArray[np.void], sysexes: Iterable[Sysex]
) -> None:
    """Set the `DRUM` bit of notes by the system messages of their timeline, if it has any.

    Args:
        notes: rows of `NOTE` whose bit says channel 10; `flags` is written.
        controls: rows of `CONTROL`, sorted by tick.
        sysexes: system exclusives, sorted by tick.
    """
    changes = _changes(controls, sysexes)
    if not changes:
        return
    drums = np.zeros(len(notes), np.bool_)
    for channel in range(16):
        mine = notes["channel"] == channel
        turns = [(-1, channel == DRUM_CHANNEL)]
        turns += [
            (tick, becomes) for tick, first, last, becomes in changes if first <= channel <= last
        ]
        ticks, states = (np.array(column) for column in zip(*turns, strict=True))
        at = np.searchsorted(ticks, notes["onset_tick"][mine], side="right") - 1
        drums[mine] = states[at]
    notes["flags"] = (notes["flags"] & ~np.uint8(DRUM)) | drums * np.uint8(DRUM)


def _changes(controls: NDArray[np.void], sysexes: Iterable[Sysex]) -> list[Change]:
    """What becomes drums or no drums, by tick; nothing where no message names a system or part."""
    events: list[tuple[int, int, bytes]] = [(one.tick, -1, one.message) for one in sysexes]
    if not any(_system(message) or _part(message) for _, _, message in events):
        return []
    banks = controls[controls["number"] == _BANK]
    events += [
        (tick, channel, bytes([value]))
        for tick, channel, value in banks[["tick", "channel", "value"]].tolist()
    ]
    changes, system = list[Change](), "GM"
    for tick, channel, message in sorted(events, key=lambda event: event[:2]):
        if channel >= 0:
            drums = message[0] in _DRUM_BANKS.get(system, ())
            melodic = system == "GM2" and message[0] == 121
            if drums or melodic or (channel != DRUM_CHANNEL and system in _DRUM_BANKS):
                changes.append((tick, channel, channel, drums))
        elif named := _system(message):
            system = named
            changes.append((tick, 0, 15, False))
            changes.append((tick, DRUM_CHANNEL, DRUM_CHANNEL, True))
        elif part := _part(message):
            changes.append((tick, part[0], part[0], part[1]))
    return changes


def _system(message: bytes) -> str | None:
    """The system that a message turns on."""
    said = message[:1] + message[2:]  # without the device
    return next((name for start, name in _SYSTEMS.items() if said.startswith(start)), None)


def _part(message: bytes) -> tuple[int, bool] | None:
    """The channel that a message makes drums, or no drums."""
    said = message[:1] + message[2:]
    if said.startswith(_GS_PART) and len(said) > 6 and said[4] >> 4 == 1 and said[5] == 0x15:
        return _GS_CHANNELS[said[4] & 15], said[6] > 0
    if said.startswith(_XG_PART) and len(said) > 5 and said[3] < 16 and said[4] == 7:
        return said[3], said[5] > 0
    return None
