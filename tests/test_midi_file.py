"""MIDI files become notes at exact times, or one MidiError; what was mended is said."""

import io
import struct
import time
import warnings
from collections import defaultdict, deque
from fractions import Fraction
from pathlib import Path

import mido
import numpy as np
import pretty_midi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfuse.features.errors import MidiError
from mmfuse.features.midi_file import (
    DRUM,
    HANGING,
    ZERO_LENGTH,
    MidiFile,
    MidiLimits,
    read_midi,
)

LIEDER = Path(__file__).parents[2] / "shared" / "data" / "lieder8"
REASONS = {"empty", "not_midi", "bad_header", "bad_division", "too_many_events",
           "too_many_tracks", "too_long"}  # fmt: skip
END = b"\x00\xff\x2f\x00"
ON, OFF = b"\x90\x3c\x40", b"\x80\x3c\x40"


def short(value: object) -> str | None:
    return f"{len(value)}_bytes" if isinstance(value, bytes) else None


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


def tempo(microseconds: int) -> bytes:
    return b"\xff\x51\x03" + microseconds.to_bytes(3, "big")


def times(midi: MidiFile, sequence: int = 0) -> list[tuple[float, float]]:
    notes = midi.sequences[sequence].notes
    return list(zip(notes["onset_s"].tolist(), notes["offset_s"].tolist(), strict=True))


def codes(midi: MidiFile) -> list[str]:
    return [warning.code for warning in midi.warnings]


def reason_of(data: bytes, *limits: MidiLimits) -> str:
    with pytest.raises(MidiError) as caught:
        read_midi(data, *limits)
    return caught.value.reason


ONE_NOTE = smf(track((0, ON), (480, OFF)))


def test_one_note_of_a_quarter_at_the_default_tempo():
    midi = read_midi(ONE_NOTE)
    note = midi.sequences[0].notes[0]
    assert times(midi) == [(0.0, 0.5)]
    assert (note["pitch"], note["velocity"], note["release_velocity"]) == (60, 64, 64)
    assert (note["onset_tick"], note["offset_tick"], note["flags"]) == (0, 480, 0)
    assert (midi.format, midi.division, midi.start, midi.warnings) == (1, 480, None, ())
    assert midi.sequences[0].end_s == 0.5


def test_a_file_without_notes_or_tracks_is_empty_not_wrong():
    for data in (smf(track()), smf(), smf(kind=2)):
        midi = read_midi(data)
        assert [len(one.notes) for one in midi.sequences] == [0]
        assert midi.warnings == ()


# ---- time


def test_tempo_changes_in_any_track_move_all_tracks():
    midi = read_midi(
        smf(
            track((0, tempo(500_000))),
            track((480, tempo(1_000_000)), (480, tempo(250_000))),
            track((480, ON), (480, OFF), (480, ON), (480, OFF)),
        )
    )
    assert times(midi) == [(0.5, 1.5), (1.75, 2.0)]
    assert midi.sequences[0].tempos == ((0, 500_000), (480, 1_000_000), (960, 250_000))


def test_the_last_tempo_at_a_tick_wins_and_tempo_zero_is_skipped():
    midi = read_midi(
        smf(track((0, tempo(1)), (0, tempo(250_000)), (0, tempo(0)), (480, ON), (480, OFF)))
    )
    assert times(midi) == [(0.25, 0.5)]
    assert codes(midi) == ["bad_tempo"]


tempo_steps = st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 2**24 - 1)), max_size=8)
note_steps = st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 3000)), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 0x7FFF), tempo_steps, note_steps)
def test_seconds_are_the_exact_fraction_rounded_once(division, tempos, notes):
    data = smf(
        track(*[(delta, tempo(value)) for delta, value in tempos]),
        track(*[event for gap, length in notes for event in ((gap, ON), (length, OFF))]),
        division=division,
    )
    changes, tick = {0: 500_000}, 0
    for delta, value in tempos:
        tick += delta
        changes[tick] = value

    def exact(at: int) -> float:
        total, before, rate = Fraction(0), 0, 500_000
        for change, value in sorted(changes.items()):
            if change > at:
                break
            total, before, rate = total + Fraction((change - before) * rate), change, value
        return float((total + (at - before) * rate) / (division * 1_000_000))

    expected, tick = [], 0
    for gap, length in notes:
        expected.append((exact(tick + gap), exact(tick + gap + length)))
        tick += gap + length
    assert sorted(times(read_midi(data, MidiLimits(duration_s=10**9)))) == sorted(expected)


@pytest.mark.parametrize(
    ("division", "per_second"),
    [
        (0xE728, Fraction(1000)),  # -25 x 40
        (0xE250, Fraction(2400)),  # -30 x 80
        (0xE864, Fraction(2400)),  # -24 x 100
        (0xE350, Fraction(30000 * 80, 1001)),  # -29 x 80
    ],
)
def test_smpte_division_counts_subframes_and_ignores_tempo(division, per_second):
    data = smf(
        track((0, tempo(123_456)), (2400, ON), (100, tempo(99_999)), (2300, OFF)),
        division=division,
    )
    midi = read_midi(data)
    assert times(midi) == [(float(2400 / per_second), float(4800 / per_second))]
    assert midi.division == division
    note = midi.sequences[0].notes[0]
    assert note["bar"] == int(2400 / per_second) // 2
    assert note["beat_in_bar"] == float(2400 / per_second % 2)


def test_a_tick_of_four_bytes_is_not_too_much():
    data = smf(track((0x0FFFFFFF, ON), (1, OFF)))
    assert times(read_midi(data, MidiLimits(duration_s=300_000)))[0][0] == 0x0FFFFFFF / 960


def test_bars_follow_the_meters_and_start_again_at_a_change():
    def meter(beats: int, power: int) -> bytes:
        return b"\xff\x58\x04" + bytes([beats, power, 24, 8])

    def hit(gap: int) -> bytes:
        return vlq(gap) + ON + vlq(0) + OFF

    midi = read_midi(
        smf(
            track((0, meter(3, 2)), (5 * 480, meter(6, 3))),  # 3/4, then 6/8 inside the second bar
            track(hit(0), hit(3 * 480), hit(480), hit(480), hit(720), hit(720)),
        )
    )
    notes = midi.sequences[0].notes
    assert midi.sequences[0].meters == ((0, 3, 4), (2400, 6, 8))
    assert notes["bar"].tolist() == [0, 1, 1, 2, 2, 3]
    assert notes["beat_in_bar"].tolist() == [0, 0, 1, 0, 1.5, 0]


def test_four_four_is_assumed_and_impossible_meters_are_skipped():
    bad = b"\xff\x58\x04\x00\x02\x18\x08", b"\xff\x58\x04\x04\x20\x18\x08", b"\xff\x58\x01\x04"
    midi = read_midi(smf(track(*[(0, one) for one in bad], (5 * 480, ON), (1, OFF))))
    note = midi.sequences[0].notes[0]
    assert (note["bar"], note["beat_in_bar"]) == (1, 1.0)
    assert codes(midi) == ["bad_meter"] * 3


# ---- the timecode of tick 0


def ff54(*data: int) -> bytes:
    return b"\xff\x54" + vlq(len(data)) + bytes(data)


@pytest.mark.parametrize(
    ("head", "rate", "label"),
    [
        (0x01, "24", "01:02:03:04.50"),
        (0x21, "25", "01:02:03:04.50"),
        (0x41, "29.97df", "01:02:03;04.50"),
        (0x61, "30", "01:02:03:04.50"),
    ],
)
def test_ff54_gives_the_timecode_of_tick_zero(head, rate, label):
    midi = read_midi(smf(track((0, ff54(head, 2, 3, 4, 50)), (0, ON), (480, OFF))))
    assert midi.start is not None
    assert (midi.start.rate.name, midi.start.label) == (rate, label)
    assert midi.warnings == ()


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (ff54(0x21, 2, 3, 4), "start_short"),
        (ff54(0x39, 0, 0, 0, 0), "start_illegal"),  # 25 o'clock
        (ff54(0x21, 255, 0, 0, 0), "start_illegal"),
        (ff54(0x21, 0, 0, 25, 0), "start_illegal"),
        (ff54(0x41, 1, 0, 0, 0), "start_illegal"),  # a label that drop-frame skips
    ],
    ids=short,
)
def test_an_ff54_that_can_not_be_is_skipped_with_a_warning(event, code):
    midi = read_midi(smf(track((0, event), (0, ON), (480, OFF))))
    assert midi.start is None
    assert codes(midi) == [code]
    assert times(midi) == [(0.0, 0.5)]


def test_odd_ff54_events_are_mended_with_a_warning():
    midi = read_midi(smf(track((7, ff54(0x21, 0, 0, 1, 120)), (0, ff54(0x21, 9, 9, 9, 9)))))
    assert midi.start is not None
    assert midi.start.label == "01:00:00:01.99"
    assert codes(midi) == ["start_subframe", "start_late", "start_ignored"]
    other = read_midi(smf(track(), track((0, ff54(0x21, 0, 0, 0, 0)))))
    assert (other.start, codes(other)) == (None, ["start_ignored"])
    clash = read_midi(smf(track((0, ff54(0x01, 0, 0, 0, 0))), division=0xE728))
    assert codes(clash) == ["start_rate"]
    assert clash.start is not None


# ---- notes


def test_overlapping_notes_of_one_pitch_pair_first_in_first_out():
    midi = read_midi(
        smf(track((0, b"\x90\x3c\x10"), (480, b"\x90\x3c\x20"), (480, OFF), (480, OFF)))
    )
    assert times(midi) == [(0.0, 1.0), (0.5, 1.5)]
    assert midi.sequences[0].notes["velocity"].tolist() == [0x10, 0x20]


def test_tracks_and_channels_pair_apart():
    midi = read_midi(
        smf(
            track((0, ON), (0, b"\x91\x3c\x40"), (480, b"\x81\x3c\x00"), (480, OFF)),
            track((0, ON), (1440, OFF)),
        )
    )
    assert sorted(times(midi)) == [(0.0, 0.5), (0.0, 1.0), (0.0, 1.5)]
    assert sorted(midi.sequences[0].notes["track"].tolist()) == [0, 0, 1]


def test_a_note_on_of_velocity_zero_ends_a_note_under_running_status():
    midi = read_midi(smf(track((0, ON), (480, b"\x3c\x00"), (0, b"\x3e\x40"), (480, b"\x3e\x00"))))
    assert times(midi) == [(0.0, 0.5), (0.5, 1.0)]
    assert midi.sequences[0].notes["release_velocity"].tolist() == [64, 64]
    assert midi.warnings == ()


@pytest.mark.parametrize(
    "between", [b"\xff\x01\x02hi", b"\xf0\x03\x41\x10\xf7", b"\xf7\x01\xf8", b"\xf8", b"\xf3\x01"]
)
def test_running_status_survives_meta_and_system_events(between):
    midi = read_midi(smf(track((0, ON), (480, between), (0, b"\x3c\x00"))))
    assert times(midi) == [(0.0, 0.5)]
    assert codes(midi) == (["system"] if between[0] in (0xF8, 0xF3) else [])


def test_a_hanging_note_is_closed_at_the_end_of_its_track_and_flagged():
    midi = read_midi(smf(track((0, ON), (480, b"\xff\x2f\x00"), end=b""), track((0, ON), (9, OFF))))
    hanging = midi.sequences[0].notes[midi.sequences[0].notes["track"] == 0][0]
    assert (hanging["offset_s"], hanging["flags"]) == (0.5, HANGING)


def test_a_note_of_no_length_is_kept_and_flagged():
    midi = read_midi(smf(track((480, ON), (0, OFF))))
    assert times(midi) == [(0.5, 0.5)]
    assert midi.sequences[0].notes["flags"].tolist() == [ZERO_LENGTH]


def test_drums_are_flagged_and_programs_and_banks_count_at_the_onset():
    midi = read_midi(
        smf(
            track(
                (0, b"\x99\x24\x40"),
                (0, b"\xb0\x00\x02"),
                (0, b"\xb0\x20\x03"),
                (0, b"\xc0\x05"),
                (0, ON),
                (1, b"\xc0\x06"),
                (1, OFF),
                (1, b"\x89\x24\x11"),
            )
        )
    )
    drum, note = midi.sequences[0].notes
    assert (drum["flags"], drum["channel"], drum["release_velocity"]) == (DRUM, 9, 0x11)
    assert (note["program"], note["bank"], note["flags"]) == (5, 2 * 128 + 3, 0)


def test_notes_are_sorted_by_onset_then_pitch():
    low, high = b"\x90\x30\x40", b"\x90\x50\x40"
    midi = read_midi(smf(track((5, high)), track((0, high), (5, low))))
    notes = midi.sequences[0].notes
    assert notes["pitch"].tolist() == [0x50, 0x30, 0x50]


# ---- what is mended


def test_a_cut_track_is_kept_to_the_cut():
    data = smf(track((0, ON), (480, OFF), (0, ON), (480, OFF)))
    for missing in (1, 2, 3):  # of the last note-off's three bytes
        midi = read_midi(data[: len(data) - len(END) - missing])
        assert times(midi) == [(0.0, 0.5), (0.5, 1.0)]
        assert codes(midi) == ["truncated", "cut"]
        assert midi.sequences[0].notes["flags"].tolist() == [0, HANGING]


def riff(data: bytes) -> bytes:
    chunks = b"RMIDLIST\x03\0\0\0abc\0data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (riff(ONE_NOTE), ["rmid"]),
        (smf(track((0, ON), (480, OFF), end=b"")), ["no_end"]),
        (smf(track((0, ON), (480, OFF)), count=3), ["track_count"]),
        (smf(b"XFIH\0\0\0\2ab", track((0, ON), (480, OFF)), count=1), ["alien_chunk"]),
        (smf(b"XFIH\x7f\0\0\2ab", track((0, ON), (480, OFF)), count=1), ["alien_chunk"]),
        (smf(b"\xff\1\2\3junk", track((0, ON), (480, OFF)), count=1), ["alien_chunk"]),
        (smf(track((0, ON), (480, OFF)), kind=7), ["format"]),
        (b"MThd\0\0\0\x08\0\1\0\1\1\xe0??" + ONE_NOTE[14:], ["long_header"]),
        (b"MThd\xff\0\0\x08\0\1\0\1\1\xe0" + ONE_NOTE[14:], ["long_header"]),
        (smf(track((0, b"\x3c\x40"), (0, ON), (480, OFF))), ["no_status"]),
        (smf(track((0, ON), (0, b"\x90\xff\x40"), (480, OFF))), ["bad_data"]),
        (smf(track((0, ON), b"\x80\x80\x80\x83\x60" + OFF)), ["vlq_long"]),
        (smf(track((0, ON), (480, OFF), (0, OFF))), ["stray_off"]),
        (smf(track((0, ON), (480, OFF), end=END + b"junk")), []),
        (smf(track((0, ON), (480, OFF), end=END + ONE_NOTE[14:]), count=2), ["track_size"]),
    ],
    ids=short,
)
def test_faults_are_mended_and_said(data, code):
    midi = read_midi(data)
    assert times(midi)[0] == (0.0, 0.5)
    assert codes(midi) == code


def test_a_quantity_beyond_28_bits_ends_its_track_only():
    wild = track((0, ON), (480, OFF), b"\xff\xff\xff\xff\x7f" + ON)
    midi = read_midi(smf(wild, track((0, ON), (960, OFF))))
    assert times(midi) == [(0.0, 0.5), (0.0, 1.0)]
    assert "vlq_wild" in codes(midi)


def test_warnings_say_how_often_and_where():
    data = smf(track((0, OFF), (0, OFF), (0, OFF)))
    (warning,) = read_midi(data).warnings
    assert (warning.track, warning.offset) == (0, 14 + 8 + 2)
    assert warning.text == "a note-off with no note to end (3 times)"


def test_tracks_of_format_2_are_timelines_of_their_own():
    midi = read_midi(
        smf(
            track((0, tempo(1_000_000)), (480, ON), (480, OFF)),
            track((480, ON), (480, OFF)),
            kind=2,
        )
    )
    assert times(midi, 0) == [(1.0, 2.0)]
    assert times(midi, 1) == [(0.5, 1.0)]


# ---- what is refused


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (b"", "empty", "0 bytes"),
        (b"RIFF\0\0\0\0WAVEfmt ", "not_midi", "52 49 46 46"),
        (b"MT", "not_midi", "begins with 4d 54"),
        (b"MThd", "bad_header", "of 0 bytes, not 6"),
        (ONE_NOTE[:13], "bad_header", "of 5 bytes, not 6"),
        (smf(division=0), "bad_division", "a tick has no length"),
        (smf(division=0xE700), "bad_division", "25 frames of 0 ticks"),
        (smf(division=0xFF28), "bad_division", "1 frames of 40 ticks"),
    ],
    ids=short,
)
def test_what_is_no_midi_is_refused(data, reason, words):
    with pytest.raises(MidiError, match=words) as caught:
        read_midi(data)
    assert caught.value.reason == reason


def test_limits_hold():
    assert reason_of(ONE_NOTE, MidiLimits(events=2)) == "too_many_events"
    assert read_midi(ONE_NOTE, MidiLimits(events=3)).warnings == ()
    two = smf(track(), track())
    assert reason_of(two, MidiLimits(tracks=1)) == "too_many_tracks"
    day = 960 * 86400
    assert reason_of(smf(track((day, ON), (1, OFF)))) == "too_long"
    assert len(read_midi(smf(track((day - 1, ON), (1, OFF)))).sequences[0].notes) == 1


def test_an_end_beyond_all_notes_does_not_count():
    far = [(0x0FFFFFFF, tempo(0xFFFFFF))] * 2000
    midi = read_midi(smf(track((0, ON), (1, OFF), *far), division=1))
    assert times(midi) == [(0.0, 0.5)]
    assert midi.sequences[0].end_s > 2**40


def only_midi_errors(data: bytes) -> None:
    started = time.perf_counter()
    try:
        midi = read_midi(data)
    except MidiError as error:
        assert error.reason in REASONS
        assert str(error)
    else:
        for one in midi.sequences:
            assert (one.notes["onset_s"] <= one.notes["offset_s"]).all()
            assert np.isfinite(one.notes["offset_s"]).all()
            assert (one.notes["velocity"] > 0).all()
    assert time.perf_counter() - started < 5


RICH = smf(
    track((0, tempo(400_000)), (0, ff54(0x21, 0, 0, 0, 0)), (9, b"\xff\x58\x04\x03\x02\x18\x08")),
    track((0, ON), (480, b"\x3c\x00"), (0, b"\xf0\x02\x41\xf7"), (3, b"\xc0\x05"), (0, ON)),
    track((0, b"\x99\x24\x7f"), (1, b"\xb9\x00\x01"), (200_000, b"\x89\x24\x00")),
)


@pytest.mark.parametrize("data", [RICH, riff(RICH)], ids=["plain", "wrapped"])
def test_a_file_cut_anywhere_raises_midi_errors_only(data):
    for cut in range(len(data)):
        only_midi_errors(data[:cut])


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from([RICH, riff(RICH), RICH[:12] + b"\xe7\x28" + RICH[14:]]),
    st.lists(st.tuples(st.integers(0, len(RICH) - 1), st.integers(0, 255)), max_size=8),
    st.binary(max_size=12),
)
def test_damaged_files_raise_midi_errors_only(data, changes, inserted):
    damaged = bytearray(data)
    for at, value in changes:
        damaged[at] = value
    if changes:
        damaged[changes[0][0] : changes[0][0]] = inserted
    only_midi_errors(bytes(damaged))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_noise_in_a_track_raises_midi_errors_only(noise):
    only_midi_errors(smf(track(noise)))


def test_a_quantity_that_never_ends_is_read_in_no_time():
    only_midi_errors(smf(track(b"\x80" * 300_000)))
    only_midi_errors(smf(track(*[b"\x00\xff\x01" + b"\x80" * 10] * 20_000)))


# ---- other readers


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
    events = [
        event
        for number, (gap, length, velocity) in enumerate(notes)
        for event in (
            (gap, bytes([0x90, 40 + number, velocity])),
            (length, bytes([0x80, 40 + number, 0])),
        )
    ]
    data = smf(
        track(*[(delta, tempo(value)) for delta, value in tempos]),
        track(*events),
        division=division,
    )
    np.testing.assert_allclose(our_times(data), pretty_times(data), rtol=0, atol=1e-9)


needs_lieder = pytest.mark.skipif(
    not LIEDER.exists(), reason="lieder8 corpus is not beside the project"
)


@needs_lieder
def test_every_real_file_reads_without_a_warning():
    paths = sorted((LIEDER / "midi").iterdir())
    files = [read_midi(path.read_bytes()) for path in paths]
    assert len(files) > 400
    assert {midi.warnings for midi in files} == {()}
    assert all(len(midi.sequences[0].notes) for midi in files)
    assert sum(midi.start is not None for midi in files) == 226
    divisions = [midi.division for midi in files]
    assert (divisions.count(0xE728), divisions.count(0xE250)) == (6, 2)


@needs_lieder
def test_pretty_midi_reads_the_same_times_from_real_files():
    compared = 0
    for path in sorted((LIEDER / "midi").iterdir())[::20]:
        data = path.read_bytes()
        if data[12] & 0x80:
            continue  # SMPTE division, which it can't read
        np.testing.assert_allclose(our_times(data), pretty_times(data), rtol=0, atol=1e-9)
        compared += 1
    assert compared > 15
