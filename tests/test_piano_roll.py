"""A piano roll shows what sounds in each frame: the loudest, never the sum, drums apart."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfuse.features.config import MidiPreprocessing, validate
from mmfuse.features.errors import ConfigError, MidiError
from mmfuse.features.midi_file import DRUM
from mmfuse.features.notes import COLUMN, FIELDS
from mmfuse.features.piano_roll import PianoRollParams, piano_roll_spec, roll_entry
from mmfuse.features.spec import frame_times_s
from mmfuse.pipeline.makers import MidiMaker

ONSET, SUSTAIN, VELOCITY = 0, 1, 2


def rows(*notes: tuple[float, float, int, int], flags: int = 0) -> np.ndarray:
    values = np.zeros((len(notes), len(FIELDS)))
    for name, column in zip(("onset_s", "offset_s", "pitch", "velocity"), range(4), strict=True):
        values[:, COLUMN[name]] = [note[column] for note in notes]
    values[:, COLUMN["flags"]] = flags
    return values


def test_a_note_fills_the_frames_it_sounds_in():
    entry = roll_entry(rows((0.04, 0.10, 60, 90)))
    assert entry.values.shape == (5, 3, 128)
    assert entry.values.dtype == piano_roll_spec().dtype == "uint8"
    assert entry.values[:, VELOCITY, 60].tolist() == [0, 0, 90, 90, 90]
    assert entry.values[:, ONSET, 60].tolist() == [0, 0, 90, 0, 0]
    assert entry.values[:, SUSTAIN, 60].tolist() == [0, 0, 1, 1, 1]
    assert int(entry.values.astype(int).sum()) == 4 * 90 + 3
    assert (entry.origin_s, entry.windows) == (0, ((Fraction(0), 5),))


def test_a_clip_without_notes_has_no_frames():
    for values in (rows(), rows((0.0, 1.0, 36, 99), flags=DRUM)):
        entry = roll_entry(values)
        assert entry.values.shape == (0, 3, 128)
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
    roll[:, SUSTAIN] = roll[:, VELOCITY] > 0
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
    assert (spec.item, spec.params["planes"]) == ((3, 128), ["onset", "sustain", "velocity"])
    assert spec.fingerprint != piano_roll_spec().fingerprint
    drums = piano_roll_spec(PianoRollParams(planes=("velocity", "drums")))
    assert (drums.item, drums.params["drums"]) == ((2, 128), "a plane")


def test_each_plane_is_the_same_whatever_stands_beside_it():
    values = rows((0.0, 0.5, 60, 64), (0.3, 0.9, 60, 90), (-0.1, 0.2, 72, 5))
    whole = roll_entry(values).values
    for number, plane in enumerate(PianoRollParams().planes):
        alone = roll_entry(values, PianoRollParams(planes=(plane,))).values
        assert np.array_equal(alone[:, 0], whole[:, number])
    turned = roll_entry(values, PianoRollParams(planes=("velocity", "onset"))).values
    assert np.array_equal(turned, whole[:, [VELOCITY, ONSET]])


def test_drums_have_a_plane_of_their_own_where_it_is_wanted():
    piano, drums = rows((0.0, 0.06, 36, 64)), rows((0.02, 9.0, 36, 127), flags=DRUM)
    params = PianoRollParams(planes=("onset", "velocity", "drums"))
    roll = roll_entry(np.concatenate([piano, drums]), params).values
    assert roll[:, 0, 36].tolist() == [64, 0, 0]
    assert roll[:, 1, 36].tolist() == [64, 64, 64]
    assert roll[:, 2, 36].tolist() == [0, 127, 0]  # struck, not held
    assert int(roll.astype(int).sum()) == 4 * 64 + 127


def test_a_window_cuts_the_roll_of_the_whole():
    rng = np.random.default_rng(0)
    onsets = rng.uniform(-1, 9, 200)
    values = rows(
        *[(s, s + rng.uniform(0, 2), rng.integers(128), rng.integers(1, 128)) for s in onsets]
    )
    whole = roll_entry(values)
    for start, stop in ((0, 5), (-100, 700), (123, 124), (60, 60), (-40, 31)):
        cut = roll_entry(values, start_s=Fraction(start, 50), stop_s=Fraction(stop, 50))
        assert (cut.origin_s, len(cut.values)) == (Fraction(start, 50), stop - start)
        padded = np.zeros((2000, 3, 128), np.uint8)
        at = 500 + int(whole.origin_s * 50)
        padded[at : at + len(whole.values)] = whole.values
        assert np.array_equal(cut.values, padded[500 + start : 500 + stop])


def test_a_window_begins_anywhere_and_its_frames_with_it():
    # 1/30 s, a frame at 30 fps, is on no border at 50 fps
    entry = roll_entry(rows((0.05, 0.08, 60, 64)), start_s=Fraction(1, 30), stop_s=Fraction(1, 10))
    assert entry.origin_s == Fraction(1, 30)
    assert entry.values[:, VELOCITY, 60].tolist() == [64, 64, 64, 0]  # 33.3, 53.3, 73.3, 93.3 ms
    assert entry.values[:, ONSET, 60].tolist() == [64, 0, 0, 0]


def test_a_note_that_began_before_the_window_has_no_onset_in_it():
    roll = roll_entry(rows((0.0, 1.0, 60, 64)), start_s=Fraction(1, 2)).values
    assert roll.shape == (25, 3, 128)
    assert not roll[:, ONSET].any()
    assert (roll[:, VELOCITY, 60] == 64).all()


def test_a_window_without_notes_is_silence_and_one_that_ends_early_is_empty():
    silence = roll_entry(rows(), start_s=Fraction(3), stop_s=Fraction(4))
    assert silence.values.shape == (50, 3, 128)
    assert not silence.values.any()
    assert silence.windows == ((Fraction(0), 50),)
    assert len(roll_entry(rows((0.0, 1.0, 60, 64)), start_s=Fraction(4)).values) == 0
    none = roll_entry(rows((0.0, 1.0, 60, 64)), start_s=Fraction(4), stop_s=Fraction(3))
    assert len(none.values) == 0
    early = roll_entry(rows((1.0, 2.0, 60, 64)), stop_s=Fraction(-3))
    assert len(early.values) == 0


def test_a_window_is_refused_for_its_own_length_only():
    values = rows((0.0, 1.0, 60, 64), (9_999_999.0, 9_999_999.5, 60, 64))
    params = PianoRollParams(max_s=10)
    assert len(roll_entry(values, params, stop_s=Fraction(10)).values) == 500
    with pytest.raises(MidiError, match="up to 10 s"):
        roll_entry(values, params, stop_s=Fraction(11))


def test_many_notes_are_filled_in_parts():
    values = rows(*[(0.0, 100.0 + k, k % 128, 1 + k % 127) for k in range(700)])  # 1.6e6 cells
    roll = roll_entry(values).values
    for key in (0, 77, 127):
        for frame in (0, 3000, 20_000):
            sounding = [1 + k % 127 for k in range(key, 700, 128) if (100 + k) * 50 > frame]
            assert roll[frame, VELOCITY, key] == max(sounding, default=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fps": 0}, "at least 1"),
        ({"max_s": 0}, "at least 1"),
        ({"planes": ()}, "some of"),
        ({"planes": ("onset", "onset")}, "each once"),
        ({"planes": ("offset",)}, r"\['offset'\]; some of \['onset', 'sustain'"),
    ],
)
def test_impossible_parameters_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        PianoRollParams(**wrong)


def test_a_configuration_chooses_rate_and_planes():
    config = MidiPreprocessing(roll_fps=25, roll_planes=("velocity", "drums"))
    spec = MidiMaker(config).specs[2]
    assert (spec.name, spec.item, spec.params["fps"]) == ("piano_roll", (2, 128), 25)
    with pytest.raises(ConfigError, match="each once"):
        MidiMaker(MidiPreprocessing(roll_planes=("velocity", "velocity")))
    with pytest.raises(ConfigError, match="roll_planes"):
        validate(MidiPreprocessing, {"roll_planes": ["pedal"]}, "x.toml")
