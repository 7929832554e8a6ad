"""Windows cover a recording once, exactly, and never invent samples."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfuse.features.audio import Audio
from mmfuse.features.encoders import encode_clip
from mmfuse.features.errors import ConfigError
from mmfuse.features.spec import StreamSpec, Timing
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


class Ramp:
    """An encoder whose row i of a window says the sample at which it stands; a sample a row."""

    shortest, rate_hz = 1, RATE_HZ

    def __init__(self, overlap, hop_s=Fraction(1, 2)):
        self.windows = Windows(Fraction(1), hop_s, "short", overlap)
        timing = Timing("frames", hop_s=Fraction(1, RATE_HZ))
        self.specs = (StreamSpec("ramp", "audio", (), "float32", timing=timing),)

    def frames(self, samples):
        return samples

    def encode(self, samples_BN):
        return {"ramp": samples_BN + samples_BN[:, :1]}  # a row that depends on its window


def ramp(samples, overlap, **options):
    values = np.arange(samples, dtype=np.float32)
    return encode_clip(Ramp(overlap, **options), Audio(values, RATE_HZ, 1, samples, "WAV"))["ramp"]


def test_frames_of_overlapping_windows_are_kept_or_averaged():
    kept = ramp(200, "keep")
    assert kept.windows == ((0, 100), (Fraction(1, 2), 100), (1, 100))
    averaged = ramp(200, "average")
    assert averaged.windows == ((0, 200),)
    n = np.arange(200)
    first, last = np.maximum((n - 50) // 50, 0) * 50, np.minimum(n // 50, 2) * 50
    np.testing.assert_allclose(averaged.values, n + (first + last) / 2)


def test_an_average_needs_frames_that_stand_at_the_same_time():
    encoder = Ramp("average", Fraction(3, 4))
    encoder.specs = (replace(encoder.specs[0], timing=Timing("frames", hop_s=Fraction(1, 2))),)
    with pytest.raises(ConfigError, match=r"choose hop_s as a multiple of 0\.5 s"):
        encode_clip(encoder, Audio(np.zeros(200, np.float32), RATE_HZ, 1, 200, "WAV"))
