"""The `waveform` stream: samples at an encoder's rate, decoded once for many encoders.

Conventions: mono in [-1, 1] as int16, `round(x * 32767)`; what is beyond is clipped, and the note
says how many samples were. Row i is at i / rate_hz.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from mmfuse.features.audio import DECODER, MIXDOWN, RESAMPLER, Samples
from mmfuse.features.errors import ConfigError
from mmfuse.features.spec import StreamSpec, Timing

_FULL = 32767


@dataclass(frozen=True, slots=True)
class WaveformParams:
    """What changes the numbers."""

    rate_hz: int = 16_000

    def __post_init__(self) -> None:
        if self.rate_hz < 1:
            raise ConfigError("waveform: rate_hz is at least 1")


def waveform_spec(params: WaveformParams = WaveformParams()) -> StreamSpec:
    """The `waveform` stream: int16 (N,)."""
    return StreamSpec(
        name="waveform",
        modality="audio",
        item=(),
        dtype="int16",
        params={
            "rate_hz": params.rate_hz,
            "decoder": DECODER,
            "resampler": RESAMPLER,
            "mono": MIXDOWN,
            "full_scale": _FULL,
        },
        timing=Timing("frames", hop_s=Fraction(1, params.rate_hz)),
    )


class Waveform:
    """The recording itself as an encoder of one window; see `encoders.WindowEncoder`."""

    windows = None
    shortest = 1

    def __init__(self, params: WaveformParams = WaveformParams()) -> None:
        self.specs = (waveform_spec(params),)
        self.rate_hz = params.rate_hz

    def frames(self, samples: int) -> int:
        """A row a sample."""
        return samples

    def encode(self, samples_BN: Samples) -> dict[str, Samples]:
        """(B, N) in [-1, 1] -> (B, N) scaled to int16 and rounded, not clipped yet."""
        with np.errstate(over="ignore"):  # of floats near their limit, which are clipped as well
            return {"waveform": np.rint(samples_BN * _FULL)}
