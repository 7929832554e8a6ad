"""Drums are channel 10, and what GS, XG and GM2 files say they are."""

import pytest
from midi_bytes import control, smf, sysex, track

from mmfuse.features.midi_file import DRUM, read_midi

GM_ON, GM2_ON = sysex(0x7E, 0x7F, 9, 1), sysex(0x7E, 0x7F, 9, 3)
GS_RESET = sysex(0x41, 0x10, 0x42, 0x12, 0x40, 0, 0x7F, 0, 0x41)
XG_ON = sysex(0x43, 0x10, 0x4C, 0, 0, 0x7E, 0)


def gs_part(part: int, drums: int) -> bytes:
    return sysex(0x41, 0x10, 0x42, 0x12, 0x40, 0x10 | part, 0x15, drums, 0)


def xg_part(part: int, mode: int) -> bytes:
    return sysex(0x43, 0x10, 0x4C, 8, part, 7, mode)


def hit(channel: int) -> bytes:
    return bytes([0x90 | channel, 36, 100])


def drums(*events: bytes) -> list[int]:
    """Which of the notes are drums."""
    (sequence,) = read_midi(smf(track(*[(10, event) for event in events]))).sequences
    return [number for number, flags in enumerate(sequence.notes["flags"]) if flags & DRUM]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([hit(9), hit(8)], [0]),
        ([control(0, 127, 3), control(0, 120, 4), hit(3), hit(4), hit(9)], [2]),  # no system named
        ([GS_RESET, control(0, 127, 3), hit(3), hit(9)], [1]),  # a bank of another module
        ([GS_RESET, gs_part(1, 1), hit(0), hit(1), hit(9)], [0, 2]),
        ([gs_part(0, 0), hit(9), gs_part(0xB, 2), hit(11)], [1]),
        ([gs_part(1, 1), hit(0), GS_RESET, hit(0)], [0]),
        ([XG_ON, control(0, 127, 3), hit(3), control(0, 0, 3), hit(3)], [0]),
        ([XG_ON, control(0, 126, 2), control(0, 0, 9), hit(2), hit(9)], [0, 1]),
        ([xg_part(4, 2), hit(4), xg_part(9, 0), hit(9)], [0]),
        ([GM2_ON, control(0, 120, 10), control(0, 121, 9), hit(10), hit(9)], [0]),
        ([XG_ON, control(0, 127, 3), hit(3), GM_ON, hit(3), hit(9)], [0, 2]),
    ],
)
def test_channels_become_drums_and_go_back(events, expected):
    assert drums(*events) == expected


def test_a_message_counts_from_its_tick_on_in_every_track():
    data = smf(track((100, gs_part(1, 1))), track((99, hit(0)), (1, hit(0))))
    assert (read_midi(data).sequences[0].notes["flags"] & DRUM).tolist() == [0, DRUM]
