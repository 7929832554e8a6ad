"""An encoder of audio: how loud each octave is, fifty times a second.

Shapes: B window, N sample, T frame, D octave.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np

from mmfuse.features.config import AudioPreprocessing
from mmfuse.features.encoders import Compute
from mmfuse.features.errors import ConfigError
from mmfuse.features.spec import StreamSpec, Timing
from mmfuse.features.windows import Windows

RATE_HZ, HOP = 16_000, 320
LOWEST_HZ = 62.5


@dataclass(frozen=True)
class Octaves:
    """Mean power in octaves from 62.5 Hz up, in dB, of 20 ms that touch and never overlap."""

    octaves: int = 7
    windows: ClassVar[Windows] = Windows(Fraction(10), Fraction(10))
    rate_hz: ClassVar[int] = RATE_HZ
    shortest: ClassVar[int] = HOP

    @property
    def specs(self) -> tuple[StreamSpec, ...]:
        """One stream; whatever changes a value stands in `params`."""
        timing = Timing("frames", first_s=Fraction(1, 100), hop_s=Fraction(1, 50))
        params = {"octaves": self.octaves, "lowest_hz": LOWEST_HZ, "windows": "10 s"}
        return (StreamSpec("octaves", "audio", (self.octaves,), "float16", params, timing),)

    def frames(self, samples: int) -> int:
        """Rows of a window of so many samples."""
        return samples // HOP

    def encode(self, samples_BN):
        """(B, N) at 16 kHz -> (B, T, D)."""
        B, N = samples_BN.shape
        parts_BTN = samples_BN[:, : N // HOP * HOP].reshape(B, -1, HOP) * np.hanning(HOP)
        power_BTF = np.abs(np.fft.rfft(parts_BTN)) ** 2
        octave_F = np.floor(np.log2(np.fft.rfftfreq(HOP, 1 / RATE_HZ)[1:] / LOWEST_HZ + 1e-9))
        mask_FD = octave_F[:, None] == np.arange(self.octaves)
        mean_BTD = power_BTF[:, :, 1:] @ (mask_FD / np.maximum(mask_FD.sum(axis=0), 1))
        return {"octaves": (10 * np.log10(mean_BTD + 1e-8)).astype(np.float32)}


def build(config: AudioPreprocessing, compute: Compute) -> Octaves:
    """What `[preprocessing.audio] encoder = "octaves"` means; `options` are ours to read."""
    unknown = set(config.options) - {"octaves"}
    octaves = config.options.get("octaves", 7)
    if unknown or octaves not in range(1, 8):
        raise ConfigError(f"octaves: options {config.options}; octaves = 1 to 7 is all there is")
    return Octaves(octaves)
