"""Exact time: SMPTE timecode, frame numbers and seconds.

Conventions: a time is a `Fraction` of a second or a frame number at a stated rate. Floats appear
at the edge only. Drop-frame is a way of *counting* (two labels are skipped each minute, except
each tenth; four at 59.94), never a way of *running*: no frame is dropped. Material that ran 0.1 %
fast or slow says so nowhere reliably: `Pull` is given, never guessed.

Source: SMPTE ST 12-1.
"""

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

from mmfuse.features.errors import AlignError

_FPS = {
    "23.976": Fraction(24000, 1001),
    "24": Fraction(24),
    "25": Fraction(25),
    "29.97": Fraction(30000, 1001),
    "30": Fraction(30),
    "47.952": Fraction(48000, 1001),
    "48": Fraction(48),
    "50": Fraction(50),
    "59.94": Fraction(60000, 1001),
    "60": Fraction(60),
}
_LABEL = re.compile(r"(\d\d):(\d\d):(\d\d)([:;])(\d\d)(?:\.(\d\d))?", re.ASCII)


class Pull(StrEnum):
    """How fast material truly ran, beside the rate that is written in it."""

    NONE = "none"
    UP = "up"  # 0.1 % faster: 48,048 Hz stamped as 48,000
    DOWN = "down"  # 0.1 % slower: 24 frames per second that ran at 23.976

    @property
    def factor(self) -> Fraction:
        """True rate over written rate: 1, 1001/1000 or 1000/1001."""
        factors = {Pull.UP: Fraction(1001, 1000), Pull.DOWN: Fraction(1000, 1001)}
        return factors.get(self, Fraction(1))


@dataclass(frozen=True, slots=True)
class FrameRate:
    """Frames per second, and whether labels are counted with drop-frame."""

    fps: Fraction
    drop: bool = False

    @classmethod
    def parse(cls, name: str) -> "FrameRate":
        """Read a rate by its usual name: `25`, `23.976`, `29.97` (non-drop), `29.97df`.

        Raises:
            AlignError: no such rate, or drop-frame at a rate that has none.
        """
        base = name.strip().lower().removesuffix("df")
        drop = name.strip().lower().endswith("df")
        if base not in _FPS or (drop and base not in ("29.97", "59.94")):
            names = ", ".join([*_FPS, "29.97df", "59.94df"])
            raise AlignError("unknown_rate", f"no SMPTE rate {name!r}; choose from: {names}")
        return cls(_FPS[base], drop)

    @property
    def nominal(self) -> int:
        """Frames in a second of labels: 30 for 29.97."""
        return round(self.fps)

    @property
    def dropped_per_minute(self) -> int:
        """Labels that drop-frame skips in nine minutes of ten."""
        return self.nominal // 15 if self.drop else 0

    @property
    def name(self) -> str:
        """The name that `parse` reads; a rate that has none is written as a fraction."""
        base = next((name for name, fps in _FPS.items() if fps == self.fps), str(self.fps))
        return base + ("df" if self.drop else "")

    @property
    def day_frames(self) -> int:
        """Frames from 00:00:00:00 until the labels start again."""
        return 86400 * self.nominal - self.dropped_per_minute * (1440 - 144)

    @property
    def day_s(self) -> Fraction:
        """Length of that day in real seconds: 86486.4 at 29.97, 86399.9136 at 29.97df."""
        return self.day_frames / self.fps

    def pulled(self, pull: Pull) -> "FrameRate":
        """The rate at which pulled material truly ran; its labels are counted as before."""
        return FrameRate(self.fps * pull.factor, self.drop)


@dataclass(frozen=True, slots=True)
class Timecode:
    """A frame number since 00:00:00:00 at a rate, with subframes in 1/100 frame."""

    frame: int
    rate: FrameRate
    subframe: int = 0

    @classmethod
    def parse(cls, label: str, rate: FrameRate) -> "Timecode":
        """Read `HH:MM:SS:FF`, or `HH:MM:SS;FF` at a drop-frame rate; `.cc` adds subframes.

        Raises:
            AlignError: not a label, a separator that contradicts the rate, or a label that does
                not exist, out of range or skipped by drop-frame (the message names its neighbours).
        """
        match = _LABEL.fullmatch(label.strip())
        if match is None:
            raise AlignError(
                "bad_timecode", f"{label!r} is no SMPTE timecode; expected HH:MM:SS:FF"
            )
        hours, minutes, seconds, frames = (int(match[i]) for i in (1, 2, 3, 5))
        if (match[4] == ";") != rate.drop:
            raise AlignError(
                "bad_timecode",
                f"{label!r} at {rate.name}: ';' means drop-frame and ':' does not; "
                f"write {'HH:MM:SS;FF' if rate.drop else 'HH:MM:SS:FF'} or name the other rate",
            )
        dropped = rate.dropped_per_minute
        before = None  # the second whose last frame comes before a label that does not exist
        if hours > 23:
            before = 23, 59, 59
        elif minutes > 59:
            before = hours, 59, 59
        elif seconds > 59:
            before = hours, minutes, 59
        elif frames >= rate.nominal:
            before = hours, minutes, seconds
        elif seconds == 0 and frames < dropped and minutes % 10:
            before = hours, minutes - 1, 59
        if before is not None:
            digits = ":".join(f"{part:02}" for part in before)
            last = cls.parse(f"{digits}{match[4]}{rate.nominal - 1:02}", rate)
            raise AlignError(
                "bad_timecode",
                f"{label!r} does not exist {'in drop-frame' if rate.drop else f'at {rate.name}'}: "
                f"{last.label} is followed by {cls(last.frame + 1, rate).label}",
            )
        total_minutes = 60 * hours + minutes
        frame = (total_minutes * 60 + seconds) * rate.nominal + frames
        frame -= dropped * (total_minutes - total_minutes // 10)
        return cls(frame, rate, int(match[6] or 0))

    @classmethod
    def from_seconds(cls, seconds: Fraction, rate: FrameRate) -> "Timecode":
        """The hundredth of a frame nearest to a time since 00:00:00:00, half up.

        Times before midnight and after a day give frame numbers below 0 and beyond the day.
        """
        frame, subframe = divmod(math.floor(seconds * rate.fps * 100 + Fraction(1, 2)), 100)
        return cls(frame, rate, subframe)

    def read_at(self, rate: FrameRate) -> "Timecode":
        """The same digits counted at another rate.

        Raises:
            AlignError: that rate does not have them.
        """
        digits = self.label.replace(";", ":")
        return Timecode.parse(digits[:8] + (";" if rate.drop else ":") + digits[9:], rate)

    @property
    def wrapped(self) -> "Timecode":
        """The same label within the day: frame 0 follows the day's last."""
        return Timecode(self.frame % self.rate.day_frames, self.rate, self.subframe)

    @property
    def label(self) -> str:
        """The label of this frame; subframes are written only where there are some."""
        frame, rate = self.frame % self.rate.day_frames, self.rate
        dropped = rate.dropped_per_minute
        if dropped:
            ten_minutes = 600 * rate.nominal - 9 * dropped
            minute = 60 * rate.nominal - dropped
            tens, rest = divmod(frame, ten_minutes)
            frame += 9 * dropped * tens
            if rest >= dropped:
                frame += dropped * ((rest - dropped) // minute)
        seconds, frames = divmod(frame, rate.nominal)
        separator = ";" if rate.drop else ":"
        label = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        label += f"{separator}{frames:02}"
        return f"{label}.{self.subframe:02}" if self.subframe else label

    @property
    def seconds(self) -> Fraction:
        """Real seconds since 00:00:00:00, exact."""
        return (self.frame + Fraction(self.subframe, 100)) / self.rate.fps


def wrap_s(difference_s: Fraction, day_s: Fraction) -> Fraction:
    """A difference of two times of day, brought into (-day/2, day/2].

    A take that starts at 23:59:58 and one that starts at 00:00:01 are three seconds apart.
    """
    wrapped = difference_s % day_s
    return wrapped - day_s if wrapped > day_s / 2 else wrapped
