"""SMPTE labels, frame numbers and seconds are exact and convert both ways."""

import random
from fractions import Fraction

import pytest
import timecode
from hypothesis import given
from hypothesis import strategies as st

from mmfuse.features.clock import FrameRate, Pull, Timecode, wrap_s
from mmfuse.features.errors import AlignError

RATES = ["23.976", "24", "25", "29.97", "29.97df", "30", "47.952", "48", "50", "59.94", "59.94df",
         "60"]  # fmt: skip


@given(st.sampled_from(RATES), st.integers(0, 10**7))
def test_label_and_frame_number_convert_both_ways(name, number):
    rate = FrameRate.parse(name)
    frame = number % rate.day_frames
    assert Timecode.parse(Timecode(frame, rate).label, rate).frame == frame


@pytest.mark.parametrize("name", RATES)
def test_a_thousand_random_frames_come_back_from_label_and_from_seconds(name):
    rate, rng = FrameRate.parse(name), random.Random(name)
    for _ in range(1000):
        known = Timecode(rng.randrange(rate.day_frames), rate, rng.randrange(100))
        assert known.seconds == (known.frame + Fraction(known.subframe, 100)) / rate.fps
        assert Timecode.parse(known.label, rate) == known
        assert Timecode.from_seconds(known.seconds, rate) == known


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


@pytest.mark.parametrize("label", ["", "1:2:3:4", "00:00:00:00.5", "-1:00:00:00", "٠٠:٠٠:٠٠:٠١"])
def test_what_is_no_label_is_refused(label):
    with pytest.raises(AlignError, match="expected HH:MM:SS:FF"):
        Timecode.parse(label, FrameRate.parse("25"))


@pytest.mark.parametrize(
    ("label", "rate", "neighbours"),
    [
        ("24:00:00:00", "25", "23:59:59:24 is followed by 00:00:00:00"),
        ("99:99:99:99", "60", "23:59:59:59 is followed by 00:00:00:00"),
        ("00:60:00:00", "24", "00:59:59:23 is followed by 01:00:00:00"),
        ("00:00:60:10", "25", "00:00:59:24 is followed by 00:01:00:00"),
        ("00:00:60;10", "29.97df", "00:00:59;29 is followed by 00:01:00;02"),
        ("00:00:00:25", "25", "00:00:00:24 is followed by 00:00:01:00"),
        ("23:59:59;30", "29.97df", "23:59:59;29 is followed by 00:00:00;00"),
        ("12:34:00;01", "29.97df", "12:33:59;29 is followed by 12:34:00;02"),
        ("12:34:00;03", "59.94df", "12:33:59;59 is followed by 12:34:00;04"),
    ],
)
def test_a_label_that_does_not_exist_is_refused_with_its_neighbours(label, rate, neighbours):
    with pytest.raises(AlignError, match=neighbours):
        Timecode.parse(label, FrameRate.parse(rate))


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


def test_labels_start_again_after_a_day():
    rate = FrameRate.parse("29.97df")
    assert Timecode(rate.day_frames, rate).label == Timecode(0, rate).label == "00:00:00;00"
    assert Timecode(-1, rate).label == "23:59:59;29"
    assert Timecode(-1, rate, 50).wrapped == Timecode.parse("23:59:59;29.50", rate)
    assert Timecode.from_seconds(Fraction(-1), FrameRate.parse("25")).label == "23:59:59:00"


def test_seconds_become_the_nearest_hundredth_of_a_frame():
    rate = FrameRate.parse("25")
    assert Timecode.from_seconds(Fraction(1, 5000), rate).subframe == 1
    assert Timecode.from_seconds(Fraction(1, 5001), rate).subframe == 0
    assert Timecode.from_seconds(Fraction(9999, 10000), rate).label == "00:00:01:00"


def test_the_same_digits_are_counted_at_another_rate():
    start = Timecode.parse("01:00:00:10.25", FrameRate.parse("24"))
    assert start.read_at(FrameRate.parse("23.976")).seconds == start.seconds * Fraction(1001, 1000)
    with pytest.raises(AlignError, match="00:00:59;29 is followed by"):
        Timecode.parse("00:01:00:00", FrameRate.parse("30")).read_at(FrameRate.parse("29.97df"))


def test_pull_scales_the_true_rate_and_leaves_the_labels():
    film = FrameRate.parse("24")
    assert film.pulled(Pull.NONE) == film
    assert film.pulled(Pull.DOWN) == FrameRate.parse("23.976")
    assert FrameRate.parse("29.97df").pulled(Pull.UP) == FrameRate(Fraction(30), drop=True)
    fast = FrameRate.parse("25").pulled(Pull.UP)
    assert (fast.fps, fast.nominal, fast.name) == (Fraction(1001, 40), 25, "1001/40")
    hour = Timecode.parse("01:00:00:00", film)
    assert hour.read_at(film.pulled(Pull.DOWN)).seconds - hour.seconds == Fraction(36, 10)
    assert 48000 * Pull.UP.factor == 48048


# -- beside the package `timecode` ---------------------------------------------------------------


def theirs(name, **start):
    """The package takes 29.97 for drop-frame unless told otherwise, and counts frames from 1."""
    non_drop = not name.endswith("df")
    return timecode.Timecode(name.removesuffix("df"), force_non_drop_frame=non_drop, **start)


@pytest.mark.parametrize("name", [name for name in RATES if not name.startswith("47")])
def test_labels_agree_with_another_package(name):
    rate, rng = FrameRate.parse(name), random.Random(name)
    for frame in [rng.randrange(rate.day_frames) for _ in range(200)]:
        label = Timecode(frame, rate).label
        assert str(theirs(name, frames=frame + 1)) == label
        assert theirs(name, start_timecode=label).frames == frame + 1


def test_where_the_other_package_is_wrong():
    rate = FrameRate.parse("29.97")
    hour, still = Timecode.parse("01:00:00:00", rate), theirs("29.97", start_timecode="01:00:00:00")
    assert float(hour.seconds) == 3603.6
    assert still.float == pytest.approx(3600 + 1 / 30)  # at 30 frames a second, and one too many
    assert still.to_realtime() == "01:00:03.633"  # true, but one frame late
    assert str(theirs("29.97df", start_seconds=3600)) == "01:00:03;17"
    an_hour = Timecode.from_seconds(Fraction(3600), FrameRate.parse("29.97df"))
    assert an_hour.label == "01:00:00;00.11"
    assert str(theirs("29.97df", start_timecode="00:01:00;00")) == "00:00:59;28"  # no such label
    assert str(theirs("25", start_timecode="24:00:00:00")) == "00:00:00:00"  # nor this one
