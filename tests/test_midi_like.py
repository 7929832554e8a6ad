"""Notes become tokens on a 10 ms grid and come back from it; no error adds up."""

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfuse.features.errors import ConfigError
from mmfuse.features.midi_like import FIELDS, NOTE_OFF, NOTE_ON, TIME_SHIFT, MidiLike
from mmfuse.features.midi_tokens import midi_tokens_spec, tokens_entry
from mmfuse.features.notes import COLUMN
from mmfuse.features.notes import FIELDS as NOTE_FIELDS

PARAMS = MidiLike()
LOUD = PARAMS.velocity
EXACT = MidiLike(velocity_bins=128, max_events=10**6)


def rows(*notes: tuple[float, float, int, int]) -> np.ndarray:
    """(onset, offset, pitch, velocity) to rows of the notes stream; each note in its own bar."""
    values = np.zeros((len(notes), len(NOTE_FIELDS)))
    for name, column in zip(("onset_s", "offset_s", "pitch", "velocity"), range(4), strict=True):
        values[:, COLUMN[name]] = [note[column] for note in notes]
    values[:, COLUMN["bar"]] = np.arange(len(notes))
    values[:, COLUMN["beat_in_bar"]] = np.arange(len(notes)) / 4
    return values[np.lexsort((values[:, COLUMN["pitch"]], values[:, COLUMN["onset_s"]]))]


def tokens_of(values: np.ndarray, params: MidiLike = PARAMS) -> list[int]:
    return tokens_entry(values, params).values[:, 0].astype(int).tolist()


def test_two_notes_are_spelled_out():
    values = rows((0.0, 0.5, 60, 64), (0.5, 2.0, 64, 65))
    assert tokens_of(values) == [
        LOUD + 16, NOTE_ON + 60, TIME_SHIFT + 49, NOTE_OFF + 60, NOTE_ON + 64,
        TIME_SHIFT + 99, TIME_SHIFT + 49, NOTE_OFF + 64,
    ]  # fmt: skip


def test_a_clip_without_notes_has_no_tokens():
    entry = tokens_entry(rows())
    assert entry.values.shape == (0, len(FIELDS))
    assert (entry.windows, entry.note) == (((Fraction(0), 0),), "")
    assert PARAMS.decode(entry.values[:, 0]).shape == (0, 4)


def test_every_row_has_the_real_time_bar_and_beat_of_its_note():
    entry = tokens_entry(rows((0.0, 0.123, 60, 64), (0.456, 0.789, 64, 8)))
    onset_s, bar, beat = entry.values[:, 1], entry.values[:, 2], entry.values[:, 3]
    assert onset_s.tolist() == [0, 0, 0.123, 0.123, 0.456, 0.456, 0.456, 0.789, 0.789]
    assert bar.tolist() == [0] * 4 + [1] * 5
    assert beat.tolist() == [0] * 4 + [0.25] * 5


def test_velocity_is_said_only_where_its_bin_changes():
    values = rows((0.0, 0.1, 60, 64), (0.1, 0.2, 61, 67), (0.2, 0.3, 62, 68), (0.3, 0.4, 63, 64))
    said = [token - LOUD for token in tokens_of(values) if token >= LOUD]
    assert said == [16, 17, 16]


def test_at_one_time_ends_come_before_beginnings_and_low_before_high():
    values = rows((0, 0.1, 72, 64), (0, 0.1, 60, 64), (0.1, 0.2, 72, 64), (0.1, 0.2, 60, 64))
    at_100_ms = tokens_of(values)[4:8]
    assert at_100_ms == [NOTE_OFF + 60, NOTE_OFF + 72, NOTE_ON + 60, NOTE_ON + 72]


def test_halves_round_up_though_seconds_are_rounded():
    # 0.285 is below 28.5 steps as a float64, 0.145 is above 14.5
    onsets = [Fraction(5 + 10 * k, 1000) for k in range(500)]
    values = rows(*[(float(onset), float(onset + 1), 60, 64) for onset in onsets])
    assert EXACT.decode(tokens_of(values, EXACT))[:, 0].tolist() == [
        (k + 1) / 100 for k in range(500)
    ]


def test_a_note_lasts_a_step_at_least():
    grid = PARAMS.decode(tokens_of(rows((1.0, 1.0, 60, 64), (2.0, 2.001, 61, 64))))
    assert grid[:, :2].tolist() == [[1.0, 1.01], [2.0, 2.01]]


def test_notes_before_the_clip_move_the_origin():
    values = rows((-1.234, -0.5, 60, 64), (0.5, 1.0, 62, 64))
    entry = tokens_entry(values)
    assert entry.origin_s == Fraction(-123, 100)
    grid = PARAMS.decode(entry.values[:, 0], entry.origin_s)
    assert grid[:, :2].tolist() == [[-1.23, -0.5], [0.5, 1.0]]
    assert tokens_entry(rows((3.0, 4.0, 60, 64))).origin_s == 0


pitches, velocities = st.integers(0, 127), st.integers(1, 127)
notes = st.lists(
    st.tuples(st.integers(-3000, 8000), st.integers(1, 4000), pitches, velocities), max_size=40
)


@settings(max_examples=150, deadline=None)
@given(notes, st.integers(1, 200))
def test_tokens_come_back_as_the_notes_on_the_grid(steps, max_shift):
    # one note a pitch sounds at a time: tokens can't tell which of two ends
    by_pitch = {pitch: (on, length, pitch, velocity) for on, length, pitch, velocity in steps}
    chosen = list(by_pitch.values())
    values = rows(*[(on / 100, (on + length) / 100, p, v) for on, length, p, v in chosen])
    params = MidiLike(max_shift_steps=max_shift, velocity_bins=128, max_events=10**6)
    entry = tokens_entry(values, params)
    assert entry.note == ""
    assert entry.values[:, 0].max(initial=0) < params.vocabulary_size
    grid = params.decode(entry.values[:, 0], entry.origin_s)
    expected = sorted((on / 100, p, (on + length) / 100, v) for on, length, p, v in chosen)
    assert [(row[0], row[2], row[1], row[3]) for row in grid.tolist()] == expected


def test_ten_minutes_of_odd_gaps_add_up_no_error():
    # 1/7 s is no whole number of steps: rounding gaps would drift by 4 ms a note
    onsets = [Fraction(k, 7) for k in range(4200)]
    values = rows(*[(float(s), float(s + Fraction(1, 20)), 60, 64) for s in onsets])
    grid = EXACT.decode(tokens_of(values, EXACT))
    nearest = [int(s * 100 + Fraction(1, 2)) / 100 for s in onsets]
    assert grid[:, 0].tolist() == nearest
    assert np.abs(grid[:, 0] - values[:, COLUMN["onset_s"]]).max() <= 0.005 + 1e-9


@pytest.mark.parametrize("bins", [1, 3, 32, 128])
def test_velocities_come_back_within_their_bin(bins):
    params = MidiLike(velocity_bins=bins)
    values = rows(*[(0.1 * v, 0.1 * v + 0.05, 60, v) for v in range(1, 128)])
    back = params.decode(tokens_of(values, params))[:, 3].astype(int)
    assert (back * bins // 128 == np.arange(1, 128) * bins // 128).all()


def test_overlapping_notes_of_one_pitch_end_oldest_first():
    values = rows((0.0, 1.0, 60, 64), (0.5, 1.5, 60, 64))
    assert PARAMS.decode(tokens_of(values))[:, :2].tolist() == [[0.0, 1.0], [0.5, 1.5]]


@pytest.mark.parametrize("kept", [1, 2, 7, 8, 100, 399, 400])
def test_what_is_beyond_max_events_is_counted(kept):
    values = rows(*[(1.5 * k, 1.5 * k + 1.25, 60, 4 + k % 2 * 60) for k in range(60)])
    whole = tokens_entry(values)
    entry = tokens_entry(values, MidiLike(max_events=kept))
    total = len(whole.values)
    assert total < 4096
    assert len(entry.values) == min(kept, total)
    assert np.array_equal(entry.values, whole.values[:kept])
    assert entry.windows == ((Fraction(0), len(entry.values)),)
    left_out = max(total - kept, 0)
    said = f"midi_tokens: {left_out} of {total} tokens left out" if left_out else ""
    assert entry.note == said


def test_a_day_of_silence_costs_no_more_than_max_events():
    entry = tokens_entry(rows((86_000.0, 86_001.0, 60, 64)), MidiLike(max_shift_steps=1))
    assert len(entry.values) == 4096
    assert entry.note.endswith(f"of {86_000 * 100 + 100 + 3} tokens left out")


def test_decode_skips_padding_and_stray_ends_and_closes_what_is_open():
    tokens = [0, NOTE_OFF + 60, LOUD, NOTE_ON + 60, TIME_SHIFT + 9, 0, -1]
    assert PARAMS.decode(np.array(tokens)).tolist() == [[0.0, 0.1, 60.0, 2.0]]


def test_the_vocabulary_is_in_the_spec():
    spec = midi_tokens_spec()
    vocabulary = spec.params["vocabulary"]
    ranges = [vocabulary[name] for name in ("note_on", "note_off", "time_shift", "velocity")]
    covered = [vocabulary["pad"]]
    for first, count in ranges:
        covered += range(first, first + count)
    assert covered == list(range(vocabulary["size"]))  # no gap, no overlap
    assert vocabulary["size"] == PARAMS.vocabulary_size == 1 + 128 + 128 + 100 + 32
    assert spec.params["step_s"] == "1/100"
    assert spec.fields == FIELDS
    assert spec.timing.field == "onset_s"
    json.dumps(spec.to_json())
    other = midi_tokens_spec(MidiLike(velocity_bins=16))
    assert other.fingerprint != spec.fingerprint


@pytest.mark.parametrize(
    "wrong", [{"max_shift_steps": 0}, {"max_events": 0}, {"velocity_bins": 0},
              {"velocity_bins": 129}]
)  # fmt: skip
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(ConfigError, match="at least 1, velocity_bins 1 to 128"):
        MidiLike(**wrong)
