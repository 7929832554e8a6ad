"""MIDI files become notes at exact times, or one MidiError; what was mended is said."""

import os
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from midi_bytes import (
    END,
    OFF,
    ON,
    ONE_NOTE,
    codes,
    control,
    ff54,
    meta,
    meter,
    riff,
    smf,
    tempo,
    times,
    track,
    vlq,
)

from mmfuse.features.errors import MidiError
from mmfuse.features.midi_file import (
    CONTROL,
    DRUM,
    HANGING,
    Key,
    MidiLimits,
    read_midi,
)


def short(value: object) -> str | None:
    return f"{len(value)}_bytes" if isinstance(value, bytes) else None


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


def test_bars_follow_the_meters_and_start_again_at_a_change():
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


def test_tracks_and_channels_pair_apart():
    midi = read_midi(
        smf(
            track((0, ON), (0, b"\x91\x3c\x40"), (480, b"\x81\x3c\x00"), (480, OFF)),
            track((0, ON), (1440, OFF)),
        )
    )
    assert sorted(times(midi)) == [(0.0, 0.5), (0.0, 1.0), (0.0, 1.5)]
    assert sorted(midi.sequences[0].notes["track"].tolist()) == [0, 0, 1]


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


def test_an_end_beyond_all_notes_does_not_count():
    far = [(0x0FFFFFFF, tempo(0xFFFFFF))] * 2000
    midi = read_midi(smf(track((0, ON), (1, OFF), *far), division=1))
    assert times(midi) == [(0.0, 0.5)]
    assert midi.sequences[0].end_s > 2**40


# ---- what is cut


def test_a_limit_keeps_what_was_read_and_warns():
    few = read_midi(ONE_NOTE, MidiLimits(events=2))
    assert (times(few), codes(few)) == ([(0.0, 0.5)], ["too_many_events"])
    fewer = read_midi(ONE_NOTE, MidiLimits(events=1))
    assert (times(fewer), fewer.sequences[0].notes["flags"][0] & HANGING) == ([(0.0, 0.0)], HANGING)
    assert read_midi(ONE_NOTE, MidiLimits(events=3)).warnings == ()
    two = smf(track((0, ON), (480, OFF)), track((0, ON), (960, OFF)))
    one = read_midi(two, MidiLimits(tracks=1))
    assert (times(one), codes(one)) == ([(0.0, 0.5)], ["too_many_tracks", "track_count"])
    assert times(read_midi(two, MidiLimits(events=3))) == [(0.0, 0.5)]


@pytest.mark.parametrize("limits", [MidiLimits(duration_s=2), MidiLimits(ticks=1920)])
def test_notes_and_controls_beyond_the_longest_time_are_left_out_with_a_warning(limits):
    pedal = control(64, 127)
    data = smf(track((0, pedal), (0, ON), (960, OFF), (0, ON), (1920, OFF), (0, pedal), (0, ON)))
    midi = read_midi(data, limits)
    assert times(midi) == [(0.0, 1.0), (1.0, 2.0)]
    assert midi.sequences[0].notes["flags"].tolist() == [0, HANGING]
    assert midi.sequences[0].controls["tick"].tolist() == [0]
    (warning,) = midi.warnings
    assert warning.code == "too_long"
    assert warning.text == "after 2 s 1 notes and 1 controls left out, 1 notes ended"
    assert read_midi(data).warnings == ()


def test_a_day_is_the_longest_time_unless_another_is_asked_for():
    day = 960 * 86400
    assert len(read_midi(smf(track((day - 1, ON), (1, OFF)))).sequences[0].notes) == 1
    late = smf(track((day, ON), (1, OFF)))
    assert codes(read_midi(late)) == ["too_long"]
    assert times(read_midi(late, MidiLimits(duration_s=90_000)))[0][0] == 86400


# ---- what else a file says


def test_controls_are_all_there_in_the_order_of_time():
    midi = read_midi(
        smf(
            track((480, control(64, 127)), (480, control(64, 0))),
            track((240, control(7, 100, 3)), (240, control(66, 1)), (0, control(67, 2))),
        )
    )
    sequence = midi.sequences[0]
    assert sequence.controls.dtype == CONTROL
    assert sequence.controls.tolist() == [
        (240, 0.25, 3, 7, 100, 1), (480, 0.5, 0, 64, 127, 0), (480, 0.5, 0, 66, 1, 1),
        (480, 0.5, 0, 67, 2, 1), (960, 1.0, 0, 64, 0, 0),
    ]  # fmt: skip
    assert sequence.pedals["number"].tolist() == [64, 66, 67, 64]
    assert len(read_midi(ONE_NOTE).sequences[0].controls) == 0


def test_lyrics_markers_texts_and_names_have_times_and_are_utf8_or_latin1():
    midi = read_midi(
        smf(
            track((0, meta(3, b"first")), (480, meta(6, "Strophe ä".encode())), (9, meta(1, b"x"))),
            track(
                (0, meta(3, b"Fl\xf6te")), (240, meta(5, b"gr\xfc-")), (480, meta(5, b"\xc3\xbc"))
            ),
        )
    )
    sequence = midi.sequences[0]
    assert sequence.lyrics == ((240, 0.25, "grü-"), (720, 0.75, "ü"))
    assert sequence.markers == ((480, 0.5, "Strophe ä"),)
    assert [text.text for text in sequence.texts] == ["x"]
    assert sequence.track_names == {0: "first", 1: "Flöte"}


def test_keys_are_sharps_and_mode_and_the_last_at_a_tick_wins():
    midi = read_midi(
        smf(track((0, meta(0x59, b"\x01\x00"))), track((0, meta(0x59, b"\xf9\x01")), (9, END[1:])))
    )
    assert midi.sequences[0].keys == (Key(0, -7, True),)
    assert midi.sequences[0].keys[0].sharps == -7


def test_what_is_said_in_a_track_of_format_2_is_said_there_only():
    said = (5, control(64, 127)), (0, meta(5, b"la")), (0, meta(0x59, b"\2\0")), (9, meter(3, 2))
    midi = read_midi(smf(track(*said), track((0, ON), (1, OFF)), kind=2))
    first, second = midi.sequences
    assert (len(first.controls), len(first.lyrics), len(first.keys), len(first.meters)) == (1,) * 4
    assert (len(second.controls), second.lyrics, second.keys, second.meters) == (0, (), (), ())


# ---- compiling


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


READ = f"from mmfuse.features import midi_file\nmidi = midi_file.read_midi({ONE_NOTE!r})\n"
SHOW = "print(midi.sequences[0].notes['offset_s'].tolist(), midi.warnings)"


def test_numba_is_imported_by_the_first_read_only():
    code = "import sys\nfrom mmfuse.features import midi_file, notes, piano_roll\n"
    assert run(code + "print('numba' in sys.modules)") == "False"


def test_a_second_process_takes_the_compiled_code_from_disk():
    code = (
        "from mmfuse.features.midi_scan import loops\n"
        "for loop in loops().scan_file, loops().sort_notes:\n"
        "    print(sum(loop.stats.cache_hits.values()), sum(loop.stats.cache_misses.values()))\n"
    )
    read_midi(ONE_NOTE)
    assert run(READ + code).split() == ["1", "0", "1", "0"]


def test_compiling_can_be_turned_off():
    code = "from mmfuse.features.midi_scan import loops\nprint(hasattr(loops().scan_file, 'stats'))"
    assert run(READ + SHOW, NUMBA_DISABLE_JIT="1") == "[0.5] ()"
    assert run(READ + code, NUMBA_DISABLE_JIT="1") == "False"


def test_without_a_place_for_the_cache_plain_python_reads_and_says_so():
    nowhere = (
        "from numba.core import caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "import warnings\n"
        "with warnings.catch_warnings(record=True) as said:\n"
        "    warnings.simplefilter('always')\n"
    )
    read = "".join(f"    {line}\n" for line in READ.splitlines())
    out = run(nowhere + read + SHOW + "\nprint(*(one.message for one in said))")
    assert out.startswith("[0.5] ()\nMIDI is read by plain Python")
    assert "NUMBA_CACHE_DIR" in out
