"""Whatever the bytes are, the reader gives notes or a MidiError: soon, and in little memory."""

import resource
import sys
import time
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
from midi_bytes import (
    HARD,
    ONE_NOTE,
    control,
    ff54,
    meta,
    meter,
    plain_loops,
    riff,
    smf,
    sysex,
    tempo,
    track,
    use_loops,
)

from mmfuse.features.errors import MidiError
from mmfuse.features.midi_file import MidiFile, read_midi

REASONS = {"empty", "not_midi", "bad_header", "bad_division"}
MAX_S, MAX_BYTES = 5, 200 << 20

NOTE, XG = b"\x90\x3c\x40", sysex(0x43, 0x10, 0x4C, 0, 0, 0x7E, 0)
GS_DRUMS = sysex(0x41, 0x10, 0x42, 0x12, 0x40, 0x11, 0x15, 1)
RICH = smf(
    track((0, tempo(400_000)), (0, ff54(0x21, 0, 0, 0, 0)), (9, meter(3, 2)),
          (0, meta(0x59, b"\xfd\1"))),
    track((0, NOTE), (480, b"\x3c\x00"), (0, sysex(0x41, 1)), (3, b"\xc0\x05"), (0, NOTE),
          (0, meta(5, b"la")), (0, meta(6, b"\xff"))),
    track((0, b"\x99\x24\x7f"), (1, b"\xb9\x00\x01"), (0, control(64, 127)),
          (200_000, b"\x89\x24\x00"), (0, XG), (0, control(0, 127, 3)), (0, b"\x93\x30\x30")),
)  # fmt: skip
LIKELY = [0, 1, 0x3C, 0x40, 0x7F, 0x80, 0x90, 0xB0, 0xF0, 0xFF]
FILES = [hard.data for hard in HARD] + [RICH, riff(RICH), RICH[:12] + b"\xe7\x28" + RICH[14:]]


def cut() -> Iterator[bytes]:
    """Every file, cut behind each of its bytes."""
    for data in FILES:
        for end in range(len(data)):
            yield data[:end]


def damaged(seed: int) -> Iterator[bytes]:
    """Files with flipped bits, files with parts of others, and noise; without end."""
    rng = np.random.default_rng(seed)
    while True:
        data = bytearray(FILES[rng.integers(len(FILES))] or ONE_NOTE)
        kind = rng.integers(8)
        if kind < 4:  # up to 16 bits anywhere
            for bit in rng.integers(8 * len(data), size=rng.integers(1, 17)).tolist():
                data[bit // 8] ^= 1 << bit % 8
        elif kind < 6:  # a part of another file in place of a part of this one
            other = FILES[rng.integers(len(FILES))]
            first, last = np.sort(rng.integers(len(data) + 1, size=2)).tolist()
            begin, end = np.sort(rng.integers(len(other) + 1, size=2)).tolist()
            data[first:last] = other[begin:end]
        elif kind == 6:  # noise in a track
            data = bytearray(
                smf(track(rng.bytes(int(rng.integers(300)))), count=int(rng.integers(4)))
            )
        else:  # events that look like some
            events = rng.choice(
                [0, 1, 0x3C, 0x40, 0x7F, 0x80, 0x90, 0xB0, 0xF0, 0xFF], 200
            ).tolist()
            data = bytearray(smf(track(bytes(events))))
        yield bytes(data)


def check(midi: MidiFile) -> None:
    for one in midi.sequences:
        assert (one.notes["onset_s"] <= one.notes["offset_s"]).all()
        assert (np.diff(one.notes["onset_tick"]) >= 0).all()
        assert np.isfinite(one.notes["offset_s"]).all()
        assert (one.notes["velocity"] > 0).all()
        assert (one.notes["bar"] >= 0).all()
        assert (one.notes["beat_in_bar"] >= 0).all()
        assert (np.diff(one.controls["tick"]) >= 0).all()
        assert one.end_s >= 0
        assert all(text.time_s >= 0 for text in (*one.lyrics, *one.markers))
        sounding = one.sustained().notes
        assert (sounding["offset_tick"] >= one.notes["offset_tick"]).all()


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def survive(files: Iterator[bytes]) -> int:
    """How many of them could be read."""
    readable, before = 0, peak_bytes()
    for data in files:
        started = time.perf_counter()
        try:
            midi = read_midi(data)
        except MidiError as error:
            assert error.reason in REASONS
            assert str(error)
        else:
            readable += 1
            check(midi)
        assert time.perf_counter() - started < MAX_S
    assert peak_bytes() - before < MAX_BYTES
    return readable


def test_files_cut_at_every_byte_give_notes_or_midi_errors():
    files = list(cut())
    assert len(files) > 1_500
    assert survive(iter(files)) > len(files) // 2


def test_damaged_files_give_notes_or_midi_errors():
    count = 4_000 - len(list(cut()))
    assert survive(islice(damaged(1), count)) > count // 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_200_000_damaged_files_give_notes_or_midi_errors(seed):
    assert survive(islice(damaged(seed), 50_000)) > 25_000


def everything(data: bytes) -> object:
    """All that is read, to be compared."""
    try:
        midi = read_midi(data)
    except MidiError as error:
        return error.reason
    tables = [(one.notes.tobytes(), one.controls.tobytes()) for one in midi.sequences]
    return midi.warnings, midi.start, tables, [one[2:] for one in midi.sequences]


def test_plain_python_reads_the_same_bytes_for_bytes(monkeypatch):
    files = [*islice(damaged(7), 300), *FILES]
    found = [everything(data) for data in files]
    use_loops(monkeypatch, plain_loops())
    assert [everything(data) for data in files] == found


@pytest.mark.parametrize(
    "data",
    [
        smf(track(b"\x80" * 3_000_000)),  # a quantity that never ends
        smf(track(*[b"\x00\xff\x01" + b"\x80" * 10] * 200_000)),
        smf(track(b"\x00\x90" + b"\x3c\x40\x00" * 500_000)),  # one pitch, begun and never ended
        smf(b"MTrk\xff\xff\xff\xff" * 300_000),  # tracks inside tracks
        smf(b"MTrk\x00\x00\x00\x00" * 300_000, kind=2),
        smf(b"\0" * 3_000_000),
        smf(b"abcd\0\0\0\0" * 300_000),
        smf(*[track((0, tempo(9)), (9, meter(1, 7)))] * 1_000, kind=2),
        smf(track(*[(1, tempo(9)), (1, meter(1, 7))] * 60_000, *[(0, NOTE)] * 60_000)),
        smf(
            track(
                *[(0, sysex(0x41, 16, 0x42, 0x12, 0x40, 0x11, 0x15, 1)), (0, NOTE), (0, XG)]
                * 60_000
            )
        ),
        smf(track(*[(1, control(64, 127)), (1, control(64, 0)), (0, NOTE)] * 60_000)),
        b"RIFF\0\0\0\0RMID" + b"abcd\0\0\0\0" * 300_000,
    ],
    ids=lambda data: f"{len(data)}_bytes",
)
def test_large_files_that_mean_harm_are_read_in_bounded_time_and_memory(data):
    survive(iter([data]))
