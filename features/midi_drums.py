"""Which notes are drums: channel 10, and what GS, XG and GM2 say about other channels.

Conventions: channels count from 0, so channel 10 is 9. A message counts from its tick on, on its
channel, whatever the track. Bank selects mean drums only after the system was named: MSB 126 and
127 in XG, 120 in GM2 (121 there means none, on channel 10 too). `GM on` and the resets take all
back. In a file that names no system channel 10 is drums and nothing else is.

Source: General MIDI 2 (RP-024), Roland GS ("use for rhythm part"), Yamaha XG ("part mode").
"""

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any

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

Change = tuple[int, bool]  # tick, whether a channel becomes drums


def flag_drums(
    notes: NDArray[np.void], controls: NDArray[np.void], sysexes: Sequence[Sysex]
) -> None:
    """Set the `DRUM` bit of notes by the system messages of their timeline, if it has any.

    Args:
        notes: rows of `NOTE` whose bit says channel 10; `flags` is written.
        controls: rows of `CONTROL`, sorted by tick.
        sysexes: system exclusives, sorted by tick.
    """
    events = [(one.tick, -1, meaning) for one in sysexes if (meaning := _meaning(one.message))]
    if not events:
        return
    banks = controls[controls["number"] == _BANK]
    events += banks[["tick", "channel", "value"]].tolist()
    drums = np.zeros(len(notes), np.bool_)
    for channel, changes in enumerate(_changes(sorted(events, key=itemgetter(0, 1)))):
        mine = notes["channel"] == channel
        ticks, states = (np.array(column) for column in zip(*changes, strict=True))
        drums[mine] = states[np.searchsorted(ticks, notes["onset_tick"][mine], side="right") - 1]
    notes["flags"] = (notes["flags"] & ~np.uint8(DRUM)) | drums * np.uint8(DRUM)


def _changes(events: Iterable[tuple[int, int, Any]]) -> list[list[Change]]:
    """When each channel becomes drums or no drums, from messages and banks by tick."""
    changes: list[list[Change]] = [[(-1, channel == DRUM_CHANNEL)] for channel in range(16)]
    system = "GM"
    for tick, channel, said in events:
        if channel < 0 and isinstance(said, str):
            system = said
            for each, turns in enumerate(changes):
                if turns[-1][1] != (each == DRUM_CHANNEL):
                    turns.append((tick, each == DRUM_CHANNEL))
        elif channel < 0:
            changes[said[0]].append((tick, said[1]))
        else:
            drums = said in _DRUM_BANKS.get(system, ())
            melodic = system == "GM2" and said == 121
            if drums or melodic or (channel != DRUM_CHANNEL and system in _DRUM_BANKS):
                changes[channel].append((tick, drums))
    return changes


def _meaning(message: bytes) -> str | tuple[int, bool] | None:
    """The system that a message turns on, or a channel and whether it becomes drums."""
    said = message[:1] + message[2:]  # without the device
    if said.startswith(_GS_PART) and len(said) > 6 and said[4] >> 4 == 1 and said[5] == 0x15:
        return _GS_CHANNELS[said[4] & 15], said[6] > 0
    if said.startswith(_XG_PART) and len(said) > 5 and said[3] < 16 and said[4] == 7:
        return said[3], said[5] > 0
    return next((name for start, name in _SYSTEMS.items() if said.startswith(start)), None)
