"""Notes land on the clip's timeline exactly, and say what had to be mended."""

import struct
import subprocess
import sys
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfuse.features.midi_file import HANGING, MidiLimits, read_midi
from mmfuse.features.notes import COLUMN, FIELDS, notes_entry, notes_spec

TEMPO = b"\xff\x51\x03"


def vlq(value: int) -> bytes:
    out = [value & 0x7F]
    while value := value >> 7:
        out.append(0x80 | value & 0x7F)
    return bytes(reversed(out))


def smf(*tracks: list[tuple[int, bytes]], division: int = 480, kind: int = 1) -> bytes:
    data = b"MThd" + struct.pack(">IHHH", 6, kind, len(tracks), division)
    for events in tracks:
        body = b"".join(vlq(delta) + event for delta, event in events) + b"\0\xff\x2f\0"
        data += b"MTrk" + struct.pack(">I", len(body)) + body
    return data


def on(pitch: int, velocity: int = 64, channel: int = 0) -> bytes:
    return bytes([0x90 | channel, pitch, velocity])


def off(pitch: int, channel: int = 0) -> bytes:
    return bytes([0x80 | channel, pitch, 0])


def test_a_row_holds_every_field_of_its_note():
    data = smf([], [(0, b"\xc3\x07"), (2400, on(61, 99, 3)), (120, off(61, 3))])
    entry = notes_entry(read_midi(data))
    row = dict(zip(FIELDS, entry.values[0].tolist(), strict=True))
    assert row == {
        "tick": 2400, "offset_tick": 2520, "onset_s": 2.5, "offset_s": 2.625, "pitch": 61,
        "velocity": 99, "program": 7, "channel": 3, "track": 1, "flags": 0, "bar": 1,
        "beat_in_bar": 1, "bar_length": 4, "ticks_per_quarter": 480, "quarter_s": 0.5,
    }  # fmt: skip
    assert entry.values.dtype == notes_spec().dtype == "float64"
    assert entry.values.shape[1:] == notes_spec().item == (len(FIELDS),)
    assert (entry.origin_s, entry.windows, entry.note) == (0, ((Fraction(0), 1),), "")


def test_a_midi_without_notes_has_no_rows():
    entry = notes_entry(read_midi(smf([])))
    assert entry.values.shape == (0, len(FIELDS))
    assert entry.windows == ((Fraction(0), 0),)


def test_notes_before_the_audio_have_negative_onsets():
    midi = read_midi(smf([(0, on(60)), (480, off(60)), (480, on(62)), (480, off(62))]))
    values = notes_entry(midi, Fraction(-3, 4)).values
    assert values[:, COLUMN["onset_s"]].tolist() == [-0.75, 0.25]
    assert values[:, COLUMN["offset_s"]].tolist() == [-0.25, 0.75]
    assert values[:, COLUMN["tick"]].tolist() == [0, 960]


shifts = st.fractions(-90_000, 90_000, max_denominator=30_000) | st.builds(
    lambda frame: Fraction(frame * 1001, 30_000), st.integers(-2_589_408, 2_589_408)
)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 0x7FFF), st.integers(1, 2**24 - 1), st.lists(st.integers(0, 50_000), max_size=9),
    shifts,
)  # fmt: skip
def test_a_shift_is_added_exactly_and_rounded_once(division, tempo, gaps, shift_s):
    events = [(0, TEMPO + tempo.to_bytes(3, "big"))]
    events += [event for gap in gaps for event in ((gap, on(60)), (gap, off(60)))]
    midi = read_midi(smf(events, division=division), MidiLimits(duration_s=10**9))
    values = notes_entry(midi, shift_s).values

    def exact(tick: float) -> float:
        return float(Fraction(int(tick) * tempo, division * 1_000_000) + shift_s)

    for name, tick in (("onset_s", "tick"), ("offset_s", "offset_tick")):
        expected = [exact(at) for at in values[:, COLUMN[tick]].tolist()]
        assert values[:, COLUMN[name]].tolist() == expected


def test_smpte_division_shifts_exactly_too():
    midi = read_midi(smf([(1, on(60)), (1, off(60))], division=0xE350))
    values = notes_entry(midi, Fraction(-1001, 30_000)).values
    assert values[0, COLUMN["onset_s"]] == float(Fraction(1001, 30_000 * 80) * (1 - 80))


def meter(beats: int, unit_log2: int) -> bytes:
    return bytes([0xFF, 0x58, 4, beats, unit_log2, 24, 8])


def column(data: bytes, name: str) -> list[float]:
    return notes_entry(read_midi(data)).values[:, COLUMN[name]].tolist()


def test_a_bar_has_the_length_of_its_meter_and_a_change_cuts_it_short():
    # 3/8 from the start; 4/4 after a bar and two thirds; 7/8 a whole bar later
    data = smf(
        [(0, meter(3, 3)), (1200, meter(4, 2)), (1920, meter(7, 3))],
        [event for _ in range(10) for event in ((0, on(60)), (480, off(60)))],
    )
    assert column(data, "bar") == [0, 0, 1, 2, 2, 2, 2, 3, 3, 3]
    assert column(data, "bar_length") == [1.5, 1.5, 1, 4, 4, 4, 4, 3.5, 3.5, 3.5]
    assert column(data, "ticks_per_quarter") == [480] * 10


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 0x7FFF),
    st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 255), st.integers(0, 7)), max_size=5),
    st.lists(st.integers(0, 3000), max_size=30),
)
def test_no_note_is_beyond_its_bar_and_bars_join(division, meters, gaps):
    data = smf(
        [(gap, meter(beats, unit)) for gap, beats, unit in meters],
        [event for gap in gaps for event in ((gap, on(60)), (1, off(60)))],
        division=division,
    )
    values = notes_entry(read_midi(data)).values
    beat, length = values[:, COLUMN["beat_in_bar"]], values[:, COLUMN["bar_length"]]
    assert (beat < length).all()
    # what a bar begins at, in ticks, is where the one before it ends
    begins = values[:, COLUMN["tick"]] - beat * division
    ends = begins + length * division
    bar = values[:, COLUMN["bar"]]
    following = np.flatnonzero(np.diff(bar) == 1)
    assert np.allclose(begins[following + 1], ends[following], rtol=0, atol=1e-6)


def test_a_note_has_the_tempo_at_which_it_begins():
    data = smf(
        [(480, TEMPO + (250_000).to_bytes(3, "big")), (480, TEMPO + b"\x10\0\0")],
        [(0, on(60)), (480, on(61)), (479, on(62)), (1, on(63)), (0, off(60))],
    )
    assert column(data, "quarter_s") == [0.5, 0.25, 0.25, 1.048576]


def test_smpte_division_has_no_quarters_and_bars_of_two_seconds():
    data = smf([(0, meter(3, 2)), (3000, on(60)), (1, off(60))], division=0xE728)
    for name, value in (("bar", 1), ("beat_in_bar", 1), ("bar_length", 2),
                        ("ticks_per_quarter", 0), ("quarter_s", 0)):  # fmt: skip
        assert column(data, name) == [value], name


def test_what_was_mended_is_said_in_one_line():
    midi = read_midi(smf([(0, off(60)), (0, b"\xff\x51\x01\x01"), (0, b"\xff\x51\x01\x01")]))
    assert notes_entry(midi).note == "midi: bad_tempo x2, stray_off"


def test_hanging_notes_keep_their_flag():
    values = notes_entry(read_midi(smf([(0, on(60)), (480, b"\xff\x01\x00")]))).values
    assert values[0, COLUMN["flags"]] == HANGING
    assert values[0, COLUMN["offset_s"]] == 0.5


def test_format_2_gives_the_first_sequence_with_notes_and_says_so():
    first, second = [(0, on(60)), (1, off(60))], [(0, on(72)), (1, off(72))]
    entry = notes_entry(read_midi(smf([], first, second, kind=2)))
    assert entry.values[:, COLUMN["pitch"]].tolist() == [60]
    assert entry.note == "midi: format 2: one of 3 sequences"


def test_whole_numbers_stay_whole_after_ten_minutes():
    events = [event for _ in range(6000) for event in ((48, on(60)), (48, off(60)))]
    values = notes_entry(read_midi(smf(events))).values
    ticks = 48 + 96 * np.arange(6000)
    assert np.array_equal(values[:, COLUMN["tick"]], ticks)
    assert np.array_equal(values[:, COLUMN["onset_s"]], ticks / 960)


def test_specs_are_made_without_loading_torch_or_tokenizers():
    code = (
        "import sys\n"
        "from mmfuse.features import logmel, midi_tokens, notes, piano_roll, text\n"
        "specs = [logmel.logmel_spec(), notes.notes_spec(), midi_tokens.midi_tokens_spec(),\n"
        "         piano_roll.piano_roll_spec(), text.text_tokens_spec(text.TextParams(), '{}')]\n"
        "assert len({spec.fingerprint for spec in specs}) == 5\n"
        "heavy = {'torch', 'torchaudio', 'tokenizers', 'transformers', 'soundfile', 'soxr'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
