"""Augmented notes are notes still: drums stay, nothing leaves its range, clocks and bars agree."""

import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfuse.features.errors import ConfigError
from mmfuse.features.midi_file import DRUM, read_midi
from mmfuse.features.note_augment import (
    fitting_semitones,
    jitter,
    quantize,
    scale_tempo,
    transpose,
    vary_velocity,
)
from mmfuse.features.notes import COLUMN, FIELDS, notes_entry


def column(values, name):
    return values[:, COLUMN[name]].tolist()


def others(values, *names):
    """All columns but those."""
    return values[:, [number for number, field in enumerate(FIELDS) if field not in names]]


def midi(division, metas, notes):
    """Rows of a file with one track: metas are (tick, bytes), notes (on, off, pitch)."""
    events = [(tick, 0, meta) for tick, meta in metas]
    events += [(on, 2, bytes([0x90, pitch, 64])) for on, _, pitch in notes]
    events += [(off, 1, bytes([0x80, pitch, 0])) for _, off, pitch in notes]
    body, now = b"", 0
    for tick, _, event in sorted(events):
        delta, now = tick - now, tick
        body += bytes([0x80 | delta >> 14 & 0x7F, 0x80 | delta >> 7 & 0x7F, delta & 0x7F]) + event
    body += b"\0\xff\x2f\0"
    header = b"MThd" + struct.pack(">IHHH", 6, 0, 1, division)
    return notes_entry(read_midi(header + b"MTrk" + struct.pack(">I", len(body)) + body)).values


def tempo(microseconds):
    return b"\xff\x51\x03" + microseconds.to_bytes(3, "big")


def test_transposing_moves_every_pitch_and_nothing_else(in_bars):
    values = in_bars((0, 1, 60), (0, 1, 64), (2, 1, 67))
    moved = transpose(values, -5)
    assert column(moved, "pitch") == [55, 59, 62]
    assert np.array_equal(others(moved, "pitch"), others(values, "pitch"))
    assert column(values, "pitch") == [60, 64, 67]  # what was given stays as it was


def test_drums_are_not_transposed_and_rows_stay_sorted(in_bars):
    values = np.concatenate([in_bars((0, 1, 36), flags=DRUM), in_bars((0, 1, 40))])
    moved = transpose(values, -10)
    assert column(moved, "pitch") == [30, 36]
    assert column(moved, "flags") == [0, DRUM]


@given(st.lists(st.integers(0, 127), min_size=1, max_size=9), st.integers(-300, 300))
def test_no_pitch_leaves_its_range_and_every_pitch_class_is_right(in_bars, pitches, semitones):
    values = in_bars(*[(number, 1, pitch) for number, pitch in enumerate(pitches)])
    moved = transpose(values, semitones)[:, COLUMN["pitch"]]
    wanted = np.array(pitches) + semitones
    assert ((moved >= 0) & (moved <= 127)).all()
    assert ((moved - wanted) % 12 == 0).all()
    fits = (wanted >= 0) & (wanted <= 127)
    assert np.array_equal(moved[fits], wanted[fits])


@given(st.lists(st.integers(0, 127), min_size=1, max_size=9), st.integers(0, 200))
def test_fitting_semitones_are_all_that_move_no_note_by_octaves(in_bars, pitches, most):
    values = in_bars(*[(number, 1, pitch) for number, pitch in enumerate(pitches)])
    fitting = fitting_semitones(values, most)
    wanted = [
        n for n in range(-most, most + 1) if min(pitches) + n >= 0 and max(pitches) + n <= 127
    ]
    assert list(fitting) == wanted
    assert 0 in fitting


def test_without_pitched_notes_only_nought_fits(in_bars):
    assert 0 in fitting_semitones(in_bars((0, 1, 36), flags=DRUM), 6)
    assert 0 in fitting_semitones(in_bars(), 6)
    assert len(transpose(in_bars(), 3)) == 0


def test_velocities_vary_within_the_spread_and_the_range(in_bars):
    values = in_bars(*[(n, 1, 60, 1 + n % 127) for n in range(2000)])
    varied = vary_velocity(values, 10, np.random.default_rng(0))
    velocity = varied[:, COLUMN["velocity"]]
    by = velocity - values[:, COLUMN["velocity"]]
    assert set(by) == set(range(-10, 11))
    assert (velocity.min(), velocity.max()) == (1, 127)
    assert np.array_equal(others(varied, "velocity"), others(values, "velocity"))
    assert np.array_equal(vary_velocity(values, 0, np.random.default_rng(0)), values)


def test_equal_generators_give_equal_rows(in_bars):
    values = in_bars(*[(n, 1, 60) for n in range(50)])
    first, second = (vary_velocity(values, 10, np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, vary_velocity(values, 10, np.random.default_rng(8)))


def test_quantizing_moves_a_note_to_its_sixteenth_and_its_end_along(in_bars):
    values = in_bars((Fraction(26, 100), 1, 60), ticks=100)
    moved = dict(zip(FIELDS, quantize(values, 4)[0].tolist(), strict=True))
    assert (moved["tick"], moved["offset_tick"]) == (25, 125)
    assert (moved["onset_s"], moved["offset_s"]) == (0.125, 0.625)
    assert (moved["bar"], moved["beat_in_bar"]) == (0, 0.25)


@pytest.mark.parametrize(("strength", "tick"), [(0, 36), (0.25, 39), (0.5, 42), (1, 48)])
def test_strength_says_how_far(in_bars, strength, tick):
    values = in_bars((Fraction(36, 96), 1, 60), ticks=96)
    moved = quantize(values, 2, strength)
    assert column(moved, "tick") == [tick]
    assert column(moved, "beat_in_bar") == [tick / 96]
    assert column(moved, "onset_s") == pytest.approx([tick / 192], abs=1e-12)


def test_a_note_at_the_end_of_its_bar_begins_the_next_with_its_length():
    # 3/4, then 2/4; the note before the change is late in its bar, the other makes the bar known
    meters = [(0, b"\xff\x58\x04\x03\x02\x18\x08"), (1440, b"\xff\x58\x04\x02\x02\x18\x08")]
    values = midi(480, meters, [(1430, 1500, 60), (1700, 1800, 62)])
    moved = quantize(values, 4)
    assert column(moved, "tick") == [1440, 1680]
    assert column(moved, "bar") == [1, 1]
    assert column(moved, "beat_in_bar") == [0, 0.5]
    assert column(moved, "bar_length") == [2, 2]
    alone = quantize(values[:1], 4)
    assert column(alone, "bar") == [1]
    assert column(alone, "bar_length") == [3]  # of the bar it came from


def test_rows_are_sorted_after_quantizing(in_bars):
    values = in_bars((Fraction(99, 100), 1, 72), (1, 1, 60))
    assert column(values, "pitch") == [72, 60]
    assert column(quantize(values, 4), "pitch") == [60, 72]


times = st.integers(0, 4000)
spans = st.tuples(times, st.integers(1, 2000), st.integers(0, 127))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(spans, min_size=1, max_size=20),
    st.lists(st.tuples(times, st.integers(100_000, 2_000_000)), max_size=4),
    st.sampled_from([1, 2, 3, 4, 6, 8]),
    st.floats(0, 1),
)
def test_quantized_notes_are_those_of_a_file_with_the_new_ticks(notes, tempos, steps, strength):
    # a note at tick 0 and at every tempo change, so that the rows know the clock; one pitch each,
    # so that ends stay with their beginnings
    changes = sorted({0: 500_000, **dict(tempos)}.items())
    spans = {
        pitch: (on, on + length)
        for pitch, (on, length, _) in enumerate([*notes, *((tick, 1, 0) for tick, _ in changes)])
    }
    metas = [(tick, tempo(value)) for tick, value in changes]
    values = midi(480, metas, [(on, off, pitch) for pitch, (on, off) in spans.items()])
    moved = quantize(values, steps, strength)
    ticks = moved[:, [COLUMN[name] for name in ("tick", "offset_tick", "pitch")]].astype(int)
    again = midi(480, metas, ticks.tolist())
    assert np.allclose(others(again, "quarter_s"), others(moved, "quarter_s"), rtol=0, atol=1e-9)
    by_pitch = {row[2]: row for row in ticks.tolist()}
    for pitch, (on, off) in spans.items():
        target = 480 / steps * np.floor(on % 1920 * steps / 480 + 0.5) + on // 1920 * 1920
        assert abs(by_pitch[pitch][0] - (on + strength * (target - on))) <= 0.5 + 1e-6
        assert by_pitch[pitch][1] - by_pitch[pitch][0] == off - on


def test_quantizing_twice_is_quantizing_once(in_bars):
    rng = np.random.default_rng(0)
    values = in_bars(*[(Fraction(int(n), 480), 1, 60) for n in rng.integers(0, 9999, 99)])
    once = quantize(values, 4)
    assert np.array_equal(quantize(once, 4), once)
    assert np.array_equal(quantize(values, 4, 0), values)


def test_files_without_beats_are_neither_quantized_nor_jittered():
    values = midi(0xE728, [], [(123, 456, 60), (789, 1000, 61)])
    assert np.array_equal(quantize(values, 4), values)
    assert np.array_equal(jitter(values, 0.1, np.random.default_rng(0)), values)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(spans, min_size=1, max_size=20),
    st.lists(st.tuples(times, st.integers(100_000, 2_000_000)), max_size=4),
    st.integers(0, 2**32),
)
def test_jittered_notes_are_those_of_a_file_with_the_new_ticks(notes, tempos, seed):
    changes = sorted({0: 500_000, **dict(tempos)}.items())
    spans = {
        pitch: (on, on + length)
        for pitch, (on, length, _) in enumerate([*notes, *((tick, 1, 0) for tick, _ in changes)])
    }
    metas = [(tick, tempo(value)) for tick, value in changes]
    values = midi(480, metas, [(on, off, pitch) for pitch, (on, off) in spans.items()])
    moved = jitter(values, 0.05, np.random.default_rng(seed))
    ticks = moved[:, [COLUMN[name] for name in ("tick", "offset_tick", "pitch")]].astype(int)
    again = midi(480, metas, ticks.tolist())
    known = np.isin(again[:, COLUMN["bar"]], values[:, COLUMN["bar"]])
    assert np.allclose(
        others(again, "quarter_s")[known], others(moved, "quarter_s")[known], rtol=0, atol=1e-9
    )
    quarter_s = dict(zip(column(values, "pitch"), column(values, "quarter_s"), strict=True))
    for on, off, pitch in ticks.tolist():
        assert on >= 0
        assert off - on == spans[pitch][1] - spans[pitch][0]
        assert abs(on - spans[pitch][0]) * quarter_s[pitch] / 480 <= 0.05 + quarter_s[pitch] / 960


def test_a_note_that_is_jittered_over_the_bar_line_gets_the_other_bar(in_bars):
    values = in_bars(*[(4, 1, pitch) for pitch in range(40)], (1, 1, 99))
    moved = jitter(values, 0.05, np.random.default_rng(0))
    before = moved[:, COLUMN["onset_s"]] < 2
    assert 10 < before.sum() < 35
    assert set(moved[before, COLUMN["bar"]]) == {0}
    assert set(moved[~before, COLUMN["bar"]]) == {1}
    assert (moved[before & (moved[:, COLUMN["pitch"]] < 99), COLUMN["beat_in_bar"]] > 3.8).all()
    assert (moved[~before, COLUMN["beat_in_bar"]] < 0.2).all()


def test_scaling_by_a_fraction_rounds_each_second_once(in_bars):
    rng = np.random.default_rng(0)
    values = in_bars(*[(float(on), 1, 60) for on in rng.uniform(0, 1000, 500)])
    slower = scale_tempo(values, Fraction(100, 107))
    for name in ("onset_s", "offset_s", "quarter_s"):
        exact = [Fraction(second) * Fraction(107, 100) for second in column(values, name)]
        assert column(slower, name) == [float(second) for second in exact]


@pytest.mark.parametrize(("steps", "strength"), [(0, 1), (4, -0.1), (4, 1.5)])
def test_an_impossible_quantization_is_refused(in_bars, steps, strength):
    with pytest.raises(ConfigError, match="steps are at least 1, strength is 0 to 1"):
        quantize(in_bars((0, 1, 60)), steps, strength)


def test_scaling_tempo_shrinks_seconds_and_leaves_bars_and_ticks(in_bars):
    values = in_bars((2, 1, 60), (7, 2, 62))
    values[:, [COLUMN["onset_s"], COLUMN["offset_s"]]] -= 1.5  # the audio begins later
    faster = scale_tempo(values, Fraction(5, 4))
    assert column(faster, "onset_s") == pytest.approx([-0.4, 1.6])
    assert column(faster, "offset_s") == pytest.approx([0, 2.4])
    assert column(faster, "quarter_s") == [0.4, 0.4]
    seconds = ("onset_s", "offset_s", "quarter_s")
    assert np.array_equal(others(faster, *seconds), others(values, *seconds))


def test_a_scaled_file_is_one_with_a_scaled_tempo():
    notes = [(0, 480, 60), (700, 1000, 61), (2000, 2001, 62)]
    slow = midi(480, [(0, tempo(600_000)), (960, tempo(300_000))], notes)
    fast = midi(480, [(0, tempo(400_000)), (960, tempo(200_000))], notes)
    assert np.allclose(scale_tempo(slow, Fraction(3, 2)), fast, rtol=0, atol=1e-12)


def test_with_smpte_division_ticks_and_two_second_bars_scale_too():
    slow = midi(0xE728, [], [(300, 600, 60), (4500, 4501, 61), (6000, 7500, 62)])
    fast = midi(0xE728, [], [(200, 400, 60), (3000, 3001, 61), (4000, 5000, 62)])
    assert np.allclose(
        others(scale_tempo(slow, 1.5), "offset_s"), others(fast, "offset_s"), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("factor", [0, -1, float("nan")])
def test_an_impossible_tempo_is_refused(in_bars, factor):
    with pytest.raises(ConfigError, match="the factor is above 0"):
        scale_tempo(in_bars((0, 1, 60)), factor)


def test_a_clip_without_notes_stays_empty(in_bars):
    none = in_bars()
    for rows in (
        quantize(none, 4),
        scale_tempo(none, 2),
        vary_velocity(none, 5, np.random.default_rng(0)),
    ):
        assert rows.shape == none.shape
