"""A piano roll shows what sounds in each frame: the loudest, never the sum, never drums."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfuse.features.errors import ConfigError, MidiError
from mmfuse.features.midi_file import DRUM
from mmfuse.features.notes import COLUMN, FIELDS
from mmfuse.features.piano_roll import PianoRollParams, piano_roll_spec, roll_entry
from mmfuse.features.spec import frame_times_s

ONSET, VELOCITY = 0, 1


def rows(*notes: tuple[float, float, int, int], flags: int = 0) -> np.ndarray:
    values = np.zeros((len(notes), len(FIELDS)))
    for name, column in zip(("onset_s", "offset_s", "pitch", "velocity"), range(4), strict=True):
        values[:, COLUMN[name]] = [note[column] for note in notes]
    values[:, COLUMN["flags"]] = flags
    return values


def test_a_note_fills_the_frames_it_sounds_in():
    entry = roll_entry(rows((0.04, 0.10, 60, 90)))
    assert entry.values.shape == (5, 2, 128)
    assert entry.values.dtype == piano_roll_spec().dtype == "uint8"
    assert entry.values[:, VELOCITY, 60].tolist() == [0, 0, 90, 90, 90]
    assert entry.values[:, ONSET, 60].tolist() == [0, 0, 90, 0, 0]
    assert int(entry.values.astype(int).sum()) == 4 * 90
    assert (entry.origin_s, entry.windows) == (0, ((Fraction(0), 5),))


def test_a_clip_without_notes_has_no_frames():
    for values in (rows(), rows((0.0, 1.0, 36, 99), flags=DRUM)):
        entry = roll_entry(values)
        assert entry.values.shape == (0, 2, 128)
        assert entry.windows == ((Fraction(0), 0),)


def test_drums_are_left_out():
    piano, drums = rows((0.0, 0.5, 60, 64)), rows((0.0, 9.0, 36, 127), flags=DRUM)
    roll = roll_entry(np.concatenate([piano, drums])).values
    assert np.array_equal(roll, roll_entry(piano).values)


def test_where_notes_overlap_the_louder_wins():
    loud, soft = (0.0, 0.06, 60, 100), (0.04, 0.1, 60, 50)
    for values in (rows(loud, soft), rows(soft, loud)):
        roll = roll_entry(values).values
        assert roll[:, VELOCITY, 60].tolist() == [100, 100, 100, 50, 50]
        assert roll[:, ONSET, 60].tolist() == [100, 0, 50, 0, 0]


def test_a_note_that_touches_a_frame_sounds_in_it():
    roll = roll_entry(rows((0.019, 0.0401, 60, 64))).values
    assert roll[:, VELOCITY, 60].tolist() == [64, 64, 64]


def test_a_note_of_no_length_sounds_in_the_frame_of_its_onset():
    roll = roll_entry(rows((0.04, 0.04, 60, 64))).values
    assert roll[:, VELOCITY, 60].tolist() == [0, 0, 64]


def test_times_rounded_to_float64_stay_on_their_frame_border():
    borders = [Fraction(k, 50) for k in range(1, 5000)]
    values = rows(*[(float(s), float(s + Fraction(1, 50)), 60, 64) for s in borders])
    roll = roll_entry(values).values
    assert (roll[1:, ONSET, 60] == 64).all()
    assert len(roll) == 5000


def test_notes_before_the_clip_move_the_origin_by_whole_frames():
    entry = roll_entry(rows((-0.05, 0.02, 60, 64), (0.02, 0.04, 62, 64)))
    assert entry.origin_s == Fraction(-3, 50)
    assert entry.values[:, VELOCITY, 60].tolist() == [64, 64, 64, 64, 0]
    times_s = frame_times_s(
        piano_roll_spec().timing, (), entry.values, entry.origin_s, entry.windows
    )
    assert times_s.tolist() == [-0.05, -0.03, -0.01, 0.01, 0.03]


pitches, velocities = st.integers(59, 62), st.integers(1, 127)
notes = st.lists(
    st.tuples(st.integers(-200, 400), st.integers(0, 200), pitches, velocities),
    min_size=1,
    max_size=20,
)


@settings(max_examples=100, deadline=None)
@given(notes, st.sampled_from([1, 25, 50, 100]))
def test_every_frame_is_the_maximum_over_its_notes(steps, fps):
    ms = Fraction(1, 1000)
    exact = [(10 * on * ms, 10 * (on + length) * ms, p, v) for on, length, p, v in steps]
    entry = roll_entry(
        rows(*[(float(on), float(off), p, v) for on, off, p, v in exact]), PianoRollParams(fps)
    )
    roll = np.zeros_like(entry.values)
    for frame in range(len(roll)):
        begin = entry.origin_s + Fraction(frame, fps)
        end = begin + Fraction(1, fps)
        for on, off, pitch, velocity in exact:
            begins = begin <= on < end
            if begins or (on < end and off > begin):
                roll[frame, VELOCITY, pitch] = max(roll[frame, VELOCITY, pitch], velocity)
            if begins:
                roll[frame, ONSET, pitch] = max(roll[frame, ONSET, pitch], velocity)
    assert np.array_equal(entry.values, roll)
    assert roll[-1, VELOCITY].any()


def test_a_roll_too_long_is_refused():
    params = PianoRollParams(max_s=10)
    assert len(roll_entry(rows((0.0, 10.0, 60, 64)), params).values) == 500
    with pytest.raises(MidiError, match="up to 10 s") as caught:
        roll_entry(rows((0.0, 10.1, 60, 64)), params)
    assert caught.value.reason == "too_long"


def test_notes_that_pile_up_without_end_are_refused():
    values = rows(*[(0.0, 20_000.0, 60, 64)] * 1100)
    with pytest.raises(MidiError, match="never end") as caught:
        roll_entry(values)
    assert caught.value.reason == "too_dense"


def test_the_spec_says_what_a_frame_is():
    spec = piano_roll_spec(PianoRollParams(fps=25))
    assert (spec.timing.first_s, spec.timing.hop_s) == (Fraction(1, 50), Fraction(1, 25))
    assert (spec.item, spec.params["planes"]) == ((2, 128), ["onset", "velocity"])
    assert spec.fingerprint != piano_roll_spec().fingerprint


@pytest.mark.parametrize("wrong", [{"fps": 0}, {"max_s": 0}])
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(ConfigError, match="at least 1"):
        PianoRollParams(**wrong)
