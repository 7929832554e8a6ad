"""The `waveform` stream: samples at an encoder's rate, decoded once for many encoders.

Conventions: mono in [-1, 1] as int16, `round(x * 32767)`; what is beyond is clipped, and the note
says how many samples were. Row i is at i / rate_hz.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from mmfuse.features.audio import DECODER, MIXDOWN, RESAMPLER, Audio, resample
from mmfuse.features.errors import ConfigError
from mmfuse.features.spec import Entry, StreamSpec, Timing

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
    """Turns one clip's audio into its `waveform` entry."""

    def __init__(self, params: WaveformParams = WaveformParams()) -> None:
        self.spec = waveform_spec(params)
        self._rate_hz = params.rate_hz

    def __call__(self, audio: Audio) -> Entry:
        """The whole clip in one window: values (N,) int16."""
        scaled_N = np.rint(resample(audio.samples_N, audio.rate_hz, self._rate_hz) * _FULL)
        clipped = int((np.abs(scaled_N) > _FULL).sum())
        values = np.clip(scaled_N, -_FULL, _FULL).astype(np.int16)
        note = f"waveform: {clipped} of {len(values)} samples clipped" if clipped else ""
        return Entry(values, windows=((Fraction(0), len(values)),), note=note)
