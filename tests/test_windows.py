"""Windows cover a recording once, exactly, and never invent samples."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfuse.features.errors import ConfigError
from mmfuse.features.windows import Windows

RATE_HZ = 100


def cut(samples, duration_s, hop_s=None, tail="short", shortest=1):
    windows = Windows(Fraction(duration_s), Fraction(hop_s or duration_s), tail)
    numbers = np.arange(samples, dtype=np.float32)
    return [
        (window.start_s, window.samples_N.tolist(), window.real)
        for window in windows.cut(numbers, RATE_HZ, shortest)
    ]


@given(st.integers(1, 2000), st.integers(1, 500))
def test_windows_side_by_side_hold_every_sample_once(samples, duration):
    found = cut(samples, Fraction(duration, RATE_HZ))
    assert [value for _, part, _ in found for value in part] == list(range(samples))
    assert [start for start, _, _ in found] == [
        Fraction(k * duration, RATE_HZ) for k in range(len(found))
    ]


def test_a_tail_is_kept_dropped_or_padded():
    assert [(s, len(p), r) for s, p, r in cut(250, 1)] == [
        (0, 100, 100),
        (1, 100, 100),
        (2, 50, 50),
    ]
    assert [len(part) for _, part, _ in cut(250, 1, tail="drop")] == [100, 100]
    start, part, real = cut(250, 1, tail="pad")[-1]
    assert (start, len(part), real) == (2, 100, 50)
    assert part[50:] == [0] * 50


def test_a_recording_shorter_than_a_window_is_one_tail():
    assert [(len(part), real) for _, part, real in cut(30, 1)] == [(30, 30)]
    assert cut(30, 1, tail="drop") == []
    assert [(len(part), real) for _, part, real in cut(30, 1, tail="pad")] == [(100, 30)]


def test_what_an_encoder_can_not_see_is_in_no_window():
    assert [len(part) for _, part, _ in cut(205, 1, shortest=10)] == [100, 100]
    assert cut(5, 1, shortest=10) == []


def test_overlapping_windows_end_where_nothing_new_comes():
    found = cut(200, 1, Fraction(1, 2))
    assert [(start, len(part)) for start, part, _ in found] == [
        (0, 100), (Fraction(1, 2), 100), (1, 100)]  # fmt: skip
    assert [len(part) for _, part, _ in cut(220, 1, Fraction(1, 2))] == [100, 100, 100, 70]


@pytest.mark.parametrize(
    ("duration_s", "hop_s"), [(0, 1), (1, 0), (1, 2), (Fraction(1, 3), Fraction(1, 3))]
)
def test_windows_that_can_not_be_are_refused(duration_s, hop_s):
    with pytest.raises(ConfigError, match="windows"):
        list(Windows(Fraction(duration_s), Fraction(hop_s)).cut(np.zeros(500), RATE_HZ, 1))
