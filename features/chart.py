"""Axes and marks of charts: numbers to percent of a plot, ready for the macros of `charts.html`.

Conventions: places are percent of the plot, from the left and from the bottom; paths are SVG
points in a box of 1000 x 1000 whose y runs down. Nothing here knows colours or pixels: a chart
is as wide as the page lets it be, and takes its colours from the page's style sheet.

Source of the steps of ticks: 1, 2 and 5 times a power of ten, Heckbert, Graphics Gems (1990).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

BOX = 1000.0


@dataclass(frozen=True, slots=True)
class Tick:
    """A label at a place of an axis; a `minor` one gives way on a narrow screen."""

    at: float
    label: str
    minor: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """A stretch of numbers, laid out linearly or by logarithm."""

    low: float
    high: float
    title: str = ""
    ticks: tuple[Tick, ...] = ()
    log: bool = False

    def at(self, value: float) -> float:
        """Percent of the way from `low` to `high`; beyond the ends it goes on."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, 1e-300))
        return round(100 * (value - low) / (high - low), 3)


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart, in the colour of a class of the style sheet.

    `marks` are dots: left and up in percent, radius in pixels, what they say.
    """

    name: str
    colour: str
    paths: tuple[str, ...]
    marks: tuple[tuple[float, float, float, str], ...] = ()
    dashed: bool = False
    faint: bool = False  # dots that count, and a line that only joins them


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines over one pair of axes; `label` says in words what they show."""

    x: Axis
    y: Axis
    label: str
    series: tuple[Series, ...] = field(default=())


def step_of(low: float, high: float, count: int = 5) -> float:
    """A round step that goes about so many times into the way from `low` to `high`."""
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(n * power for n in (1, 2, 5, 10) if n * power >= rough * 0.79)


def linear(
    values: Iterable[float],
    title: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    count: int = 5,
) -> Axis:
    """An axis that holds all values, ends at round numbers and has about `count` steps.

    Args:
        low: where it begins whatever the values are; `high` likewise where it ends.
    """
    known = [value for value in values if math.isfinite(value)]
    least = min(known, default=0.0) if low is None else low
    most = max(known, default=1.0) if high is None else high
    if most <= least:
        most = least + (abs(least) or 1.0)
    step = step_of(least, most, count)
    if low is None:
        least = math.floor(least / step + 1e-9) * step
    if high is None:
        most = math.ceil(most / step - 1e-9) * step
    axis = Axis(least, most, title)
    first, last = math.ceil(least / step - 1e-9), math.floor(most / step + 1e-9)
    style = f".{max(0, -math.floor(math.log10(step) + 1e-9))}f"
    ticks = tuple(
        Tick(axis.at(n * step), plain(n * step, style), n % 2 == 1) for n in range(first, last + 1)
    )
    return Axis(least, most, title, ticks)


def logarithmic(values: Iterable[float], title: str = "") -> Axis:
    """An axis by powers of ten that holds all values above zero."""
    known = [value for value in values if value > 0 and math.isfinite(value)]
    first = math.floor(math.log10(min(known, default=1)))
    last = max(math.ceil(math.log10(max(known, default=10))), first + 1)
    axis = Axis(10.0**first, 10.0**last, title, log=True)
    stride = -(-(last - first) // 6)
    marks = tuple(Tick(axis.at(10.0**n), _power(n)) for n in range(first, last + 1, stride))
    return Axis(axis.low, axis.high, title, marks, log=True)


def _power(n: int) -> str:
    """`0.01`, `1`, `100`, and `10⁻⁵` where zeros would have to be counted."""
    if -3 < n < 4:
        return f"{10.0**n:g}"
    return "10" + str(n).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def paths(x: Axis, y: Axis, xs: Sequence[float], ys: Sequence[float]) -> tuple[str, ...]:
    """Points of a line, as many pieces as NaN cuts it into."""
    pieces: list[list[str]] = [[]]
    for one, other in zip(xs, ys, strict=True):
        if math.isfinite(one) and math.isfinite(other):
            pieces[-1].append(point(x.at(one), y.at(other)))
        elif pieces[-1]:
            pieces.append([])
    return tuple(" ".join(piece) for piece in pieces if piece)


def point(left: float, up: float) -> str:
    """A place in percent as a point of the box."""
    return f"{left * BOX / 100:.1f},{BOX - up * BOX / 100:.1f}"


def plain(value: float, style: str = "g") -> str:
    """A number with a true minus."""
    text = format(value, style)
    return text.replace("-", "−")
