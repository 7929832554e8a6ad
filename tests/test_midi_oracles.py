"""mido, symusic and pretty_midi read the same notes where they are right."""

import io
import warnings
from collections import defaultdict, deque
from itertools import pairwise

import mido
import numpy as np
import pretty_midi
import pytest
import symusic
from hypothesis import given, settings
from hypothesis import strategies as st
from midi_bytes import codes, control, smf, tempo, track

from mmfuse.features.midi_file import MidiLimits, read_midi


def mido_notes(data: bytes) -> list[tuple[int, int, int, int, int]]:
    """(onset, offset, pitch, velocity, channel) in ticks, paired first in, first out."""
    notes = []
    for one in mido.MidiFile(file=io.BytesIO(data)).tracks:
        tick = 0
        open_notes: defaultdict[tuple[int, int], deque[tuple[int, int]]] = defaultdict(deque)
        for message in one:
            tick += message.time
            if message.type == "note_on" and message.velocity:
                open_notes[message.channel, message.note].append((tick, message.velocity))
            elif message.type in ("note_on", "note_off"):
                key = message.channel, message.note
                if open_notes[key]:
                    onset, velocity = open_notes[key].popleft()
                    notes.append((onset, tick, message.note, velocity, message.channel))
        for (channel, pitch), left in open_notes.items():
            notes += [(onset, tick, pitch, velocity, channel) for onset, velocity in left]
    return sorted(notes)


channel_messages = st.builds(
    lambda kind, channel, note, velocity, gap: mido.Message(
        kind, channel=channel, note=note, velocity=velocity, time=gap
    ),
    st.sampled_from(["note_on", "note_off"]),
    st.sampled_from([0, 1, 9]),
    st.integers(58, 62),
    st.integers(0, 127),
    st.integers(0, 70_000),
)
other_messages = st.sampled_from(
    [
        mido.MetaMessage("set_tempo", tempo=612_345, time=77),
        mido.MetaMessage("text", text="la la", time=3),
        mido.MetaMessage("time_signature", numerator=6, denominator=8, time=0),
        mido.Message("sysex", data=(1, 2, 3), time=5),
        mido.Message("control_change", control=64, value=100, time=0),
        mido.Message("program_change", program=7, time=0),
        mido.Message("pitchwheel", pitch=99, time=12),
    ]
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(channel_messages | other_messages, max_size=30), min_size=1, max_size=3),
    st.integers(24, 960),
)
def test_mido_reads_the_same_notes(messages, division):
    file = mido.MidiFile(type=1, ticks_per_beat=division)
    file.tracks.extend(mido.MidiTrack(one) for one in messages)
    buffer = io.BytesIO()
    file.save(file=buffer)
    midi = read_midi(buffer.getvalue(), MidiLimits(duration_s=10**9))
    names = ["onset_tick", "offset_tick", "pitch", "velocity", "channel"]
    assert sorted(midi.sequences[0].notes[names].tolist()) == mido_notes(buffer.getvalue())
    assert set(codes(midi)) <= {"stray_off"}
    total_s = sum(message.time for message in mido.MidiFile(file=io.BytesIO(buffer.getvalue())))
    assert midi.sequences[0].end_s == pytest.approx(total_s, rel=1e-9, abs=1e-9)


def pretty_times(data: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of tempo changes outside track 0
        theirs = pretty_midi.PrettyMIDI(io.BytesIO(data))
    notes = [note for instrument in theirs.instruments for note in instrument.notes]
    rows = [(note.start, note.pitch, note.end, note.velocity) for note in notes]
    return np.array(sorted(rows), np.float64).reshape(-1, 4)


def our_times(data: bytes) -> np.ndarray:
    notes = read_midi(data).sequences[0].notes
    rows = notes[["onset_s", "pitch", "offset_s", "velocity"]].tolist()
    return np.array(sorted(rows), np.float64).reshape(-1, 4)


def apart(notes: list[tuple[int, int, int]], tempos: list[tuple[int, int]], division: int) -> bytes:
    """Notes of (gap, length, velocity), each of a pitch of its own, and tempos in track 0."""
    events = [
        event
        for number, (gap, length, velocity) in enumerate(notes)
        for event in (
            (gap, bytes([0x90, 40 + number, velocity])),
            (length, bytes([0x80, 40 + number, 0])),
        )
    ]
    changes = [(delta, tempo(value)) for delta, value in tempos]
    return smf(track(*changes), track(*events), division=division)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 900), st.integers(1, 900), st.integers(1, 127)),
        min_size=1, max_size=20,
    ),
    st.lists(st.tuples(st.integers(1, 2000), st.integers(20_000, 2_000_000)), max_size=5),
    st.integers(24, 960),
)  # fmt: skip
def test_pretty_midi_reads_the_same_times(notes, tempos, division):
    data = apart(notes, tempos, division)
    np.testing.assert_allclose(our_times(data), pretty_times(data), rtol=0, atol=1e-9)


@pytest.mark.slow
def test_pretty_midi_reads_the_same_times_of_thousands_of_files():
    rng = np.random.default_rng(1)
    for _ in range(2_000):
        notes = rng.integers([0, 1, 1], [900, 900, 128], (rng.integers(1, 80), 3)).tolist()
        tempos = rng.integers([1, 20_000], [2000, 2_000_000], (rng.integers(6), 2)).tolist()
        data = apart(notes, tempos, int(rng.integers(24, 960)))
        np.testing.assert_allclose(our_times(data), pretty_times(data), rtol=0, atol=1e-9)


# ---- generated files by the thousand


def generated(rng: np.random.Generator) -> bytes:
    """A file of format 1 without faults: tempos, programs, controls, words, overlaps."""
    tempos = [
        (int(gap), tempo(int(us)))
        for gap, us in zip(rng.integers(0, 3000, 4), rng.integers(2**16, 2**22, 4), strict=True)
    ]
    tracks = [track(*tempos)]
    for channel in rng.integers(0, 16, rng.integers(1, 4)).tolist():
        events, held = list[tuple[int, bytes]](), list[int]()
        for kind, pitch, value in rng.integers([0, 40, 1], [10, 56, 128], (60, 3)).tolist():
            gap = int(rng.integers(400)) if rng.random() < 0.7 else 0
            if kind < 4:
                events.append((gap, bytes([0x90 | channel, pitch, value])))
                held.append(pitch)
            elif kind < 8 and held:
                ended = held.pop(int(rng.integers(len(held))))
                off = (0x80 | channel, ended, value) if value % 2 else (0x90 | channel, ended, 0)
                events.append((gap, bytes(off)))
            elif kind == 8:
                events.append((gap, control(value % 120, pitch, channel)))
            elif value < 20:
                events.append((gap, bytes([0xC0 | channel, pitch])))
        events += [(5, bytes([0x80 | channel, pitch, 0])) for pitch in held]
        running = [
            (gap, event[1:] if before[1][0] == event[0] and rng.random() < 0.8 else event)
            for before, (gap, event) in pairwise([(0, b"\0"), *events])
        ]
        tracks.append(track(*running))
    return smf(*tracks, division=int(rng.integers(24, 1000)))


def symusic_notes(data: bytes) -> list[tuple[int, int, int, int, int]]:
    """(onset tick, offset tick, pitch, velocity, program) of all but drums."""
    return sorted(
        (note.time, note.time + note.duration, note.pitch, note.velocity, part.program)
        for part in symusic.Score.from_midi(data).tracks
        if not part.is_drum
        for note in part.notes
    )


def symusic_times(data: bytes) -> np.ndarray:
    parts = symusic.Score.from_midi(data, ttype="second").tracks
    rows = [(n.start, n.pitch, n.end, n.velocity) for part in parts for n in part.notes]
    return np.array(sorted(rows), np.float64).reshape(-1, 4)


def agree(seed: int, files: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(files):
        data = generated(rng)
        midi = read_midi(data)
        assert midi.warnings == ()
        notes = midi.sequences[0].notes
        names = ["onset_tick", "offset_tick", "pitch", "velocity"]
        assert sorted(notes[[*names, "channel"]].tolist()) == mido_notes(data)
        tuned = notes[notes["channel"] != 9]
        assert sorted(tuned[[*names, "program"]].tolist()) == symusic_notes(data)
        # symusic keeps float32 seconds
        seconds = our_times(data)[:, [0, 2]].ravel(), symusic_times(data)[:, [0, 2]].ravel()
        np.testing.assert_allclose(np.sort(seconds[0]), np.sort(seconds[1]), rtol=3e-6, atol=1e-6)


def test_mido_and_symusic_read_the_same_notes_of_generated_files():
    agree(seed=1, files=200)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_mido_and_symusic_read_the_same_notes_of_thousands_of_files(seed):
    agree(seed, files=2_500)


# ---- real files


def test_every_real_file_reads_without_a_warning(lieder8):
    files = [read_midi(path.read_bytes()) for path in sorted((lieder8 / "midi").iterdir())]
    assert len(files) > 400
    assert {midi.warnings for midi in files} == {()}
    assert all(len(midi.sequences[0].notes) for midi in files)
    assert sum(midi.start is not None for midi in files) == 226
    divisions = [midi.division for midi in files]
    assert (divisions.count(0xE728), divisions.count(0xE250)) == (6, 2)


def test_other_readers_read_the_same_notes_and_times_from_real_files(lieder8):
    compared = 0
    for number, path in enumerate(sorted((lieder8 / "midi").iterdir())):
        data = path.read_bytes()
        if data[12] & 0x80:
            continue  # SMPTE division, which they can't read
        notes = read_midi(data).sequences[0].notes
        names = ["onset_tick", "offset_tick", "pitch", "velocity", "program"]
        assert sorted(notes[names].tolist()) == symusic_notes(data)
        if number % 20 == 0:
            np.testing.assert_allclose(our_times(data), pretty_times(data), rtol=0, atol=1e-9)
        compared += 1
    assert compared > 400
