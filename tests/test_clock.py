"""SMPTE labels, frame numbers and seconds are exact and convert both ways."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfuse.features.clock import FrameRate, Timecode, wrap_s
from mmfuse.features.errors import AlignError

RATES = ["23.976", "24", "25", "29.97", "29.97df", "30", "47.952", "48", "50", "59.94", "59.94df",
         "60"]  # fmt: skip


@given(st.sampled_from(RATES), st.integers(0, 10**7))
def test_label_and_frame_number_convert_both_ways(name, number):
    rate = FrameRate.parse(name)
    frame = number % rate.day_frames
    assert Timecode.parse(Timecode(frame, rate).label, rate).frame == frame


@pytest.mark.parametrize("name", RATES)
def test_rate_name_round_trips(name):
    assert FrameRate.parse(name).name == name


# (label, rate, frames since midnight, seconds): SMPTE ST 12-1 counting, worked by hand
GOLDEN = [
    ("00:00:01:00", "25", 25, Fraction(1)),
    ("01:00:00:00", "29.97", 108000, Fraction(18018, 5)),
    ("01:00:00;00", "29.97df", 107892, Fraction(107892 * 1001, 30000)),
    ("00:01:00;02", "29.97df", 1800, Fraction(1800 * 1001, 30000)),
    ("00:10:00;00", "29.97df", 17982, Fraction(17982 * 1001, 30000)),
    ("00:01:00;04", "59.94df", 3600, Fraction(3600 * 1001, 60000)),
    ("23:59:59:23", "23.976", 2073599, Fraction(2073599 * 1001, 24000)),
]


@pytest.mark.parametrize(("label", "rate", "frame", "seconds"), GOLDEN)
def test_known_labels(label, rate, frame, seconds):
    timecode = Timecode.parse(label, FrameRate.parse(rate))
    assert (timecode.frame, timecode.seconds) == (frame, seconds)


def test_day_lengths():
    assert FrameRate.parse("25").day_s == 86400
    assert FrameRate.parse("29.97").day_s == Fraction("86486.4")
    assert FrameRate.parse("23.976").day_s == Fraction("86486.4")
    assert FrameRate.parse("29.97df").day_s == Fraction("86399.9136")
    assert FrameRate.parse("29.97df").day_frames == 2589408


def test_drop_frame_skips_two_numbers_each_minute_except_every_tenth():
    rate = FrameRate.parse("29.97df")
    with pytest.raises(AlignError, match="00:00:59;29 is followed by 00:01:00;02"):
        Timecode.parse("00:01:00;00", rate)
    assert Timecode.parse("00:10:00;00", rate).label == "00:10:00;00"


def test_separator_must_say_what_the_rate_says():
    with pytest.raises(AlignError, match="';' means drop-frame"):
        Timecode.parse("01:00:00:00", FrameRate.parse("29.97df"))


@pytest.mark.parametrize("label", ["", "1:2:3:4", "24:00:00:00", "00:60:00:00", "00:00:00:25"])
def test_what_is_no_label_is_refused(label):
    with pytest.raises(AlignError):
        Timecode.parse(label, FrameRate.parse("25"))


def test_unknown_rates_are_refused_with_the_known_ones():
    for name in ("26", "24df", ""):
        with pytest.raises(AlignError, match=r"choose from: 23\.976"):
            FrameRate.parse(name)


def test_subframes_are_hundredths():
    timecode = Timecode.parse("00:00:01:00.50", FrameRate.parse("25"))
    assert timecode.seconds == Fraction(51, 50)
    assert timecode.label == "00:00:01:00.50"


def test_midnight_wraps_into_half_a_day():
    day = FrameRate.parse("25").day_s
    assert wrap_s(Fraction(1) - Fraction(86398), day) == 3
    assert wrap_s(Fraction(86398) - Fraction(1), day) == -3
    assert wrap_s(day / 2, day) == day / 2
    assert wrap_s(-day / 2, day) == day / 2
