"""The windows in which encoders see a recording.

Conventions: window k begins at sample k * hop and holds `duration` samples. The last one may be
shorter: `short` keeps it as it is (nothing is padded, the encoder sees exactly what is there),
`drop` leaves it out, `pad` fills it with zeros and counts only what is real. Where windows overlap,
`keep` keeps the frames of all of them, each with its own time; `average` takes the mean of those
that stand at the same time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from mmfuse.features.audio import Samples
from mmfuse.features.errors import ConfigError

Tail = Literal["short", "drop", "pad"]
Overlap = Literal["keep", "average"]


@dataclass(frozen=True, slots=True)
class Windows:
    """How recordings are cut; part of a stream's spec. Times in seconds, exact."""

    duration_s: Fraction
    hop_s: Fraction
    tail: Tail = "short"
    overlap: Overlap = "keep"

    def __post_init__(self) -> None:
        if self.duration_s <= 0 or not 0 < self.hop_s <= self.duration_s:
            raise ConfigError(
                f"windows: duration_s {float(self.duration_s)} and hop_s {float(self.hop_s)}; both "
                "are above 0, and hop_s is at most duration_s"
            )

    def to_json(self) -> dict[str, str]:
        """For a spec's params."""
        return {
            "duration_s": str(self.duration_s),
            "hop_s": str(self.hop_s),
            "tail": self.tail,
            "overlap": self.overlap,
        }

    def cut(self, samples_N: Samples, rate_hz: int, shortest: int) -> Iterator["Window"]:
        """Cut (N,) samples at `rate_hz`.

        Args:
            samples_N: a whole recording.
            rate_hz: of the samples.
            shortest: samples that an encoder needs; a tail below it belongs to no window.

        Raises:
            ConfigError: a window is no whole number of samples, or below `shortest`.
        """
        duration, hop = self.duration_s * rate_hz, self.hop_s * rate_hz
        if duration.denominator > 1 or hop.denominator > 1 or duration < shortest:
            raise ConfigError(
                f"windows of {float(self.duration_s)} s every {float(self.hop_s)} s are no whole "
                f"samples at {rate_hz} Hz, or below {shortest} samples"
            )
        size = int(duration)
        for first in range(0, max(len(samples_N), 1), int(hop)):
            part = samples_N[first : first + size]
            new = len(samples_N) - max(first + size - int(hop), 0) if first else len(part)
            if len(part) < shortest or new <= 0 or (self.tail == "drop" and len(part) < size):
                return
            real = len(part)
            if self.tail == "pad" and real < size:
                part = np.pad(part, (0, size - real))
            yield Window(Fraction(first, rate_hz), part, real)


@dataclass(frozen=True, slots=True)
class Window:
    """`samples_N` from `start_s` on; the first `real` of them are the recording's."""

    start_s: Fraction
    samples_N: Samples
    real: int
