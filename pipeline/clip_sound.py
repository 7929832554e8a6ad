"""The sound of a clip for a page: small enough to carry along, and where in it something begins."""

import io

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.alignment import DETECTOR_LAG_S, FIRST_S, HOP, RATE_HZ, onset_strength
from mmfuse.features.audio import Samples, resample
from mmfuse.features.containers import with_serial

_POINTS = 1200  # of a curve of onset strength, at most
_PLAYED_HZ = 24_000
_BLOCK = 1 << 14  # samples handed to the Vorbis encoder at once: it keeps them on its stack


def vorbis(samples_N: Samples, rate_hz: int) -> bytes:
    """Mono samples as Ogg Vorbis of 24 kHz at most, from the first to the last; always the same."""
    import soundfile

    if rate_hz > _PLAYED_HZ:
        samples_N, rate_hz = resample(samples_N, rate_hz, _PLAYED_HZ), _PLAYED_HZ
    sink = io.BytesIO()
    with soundfile.SoundFile(
        sink, "w", rate_hz, 1, format="OGG", subtype="VORBIS", compression_level=0.6
    ) as file:
        for first in range(0, len(samples_N), _BLOCK):
            file.write(samples_N[first : first + _BLOCK])
    return with_serial(sink.getvalue(), 0)


def onset_curve(
    samples_N: Samples, rate_hz: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Seconds (P,) and onset strength (P,), 0 to 1: the peaks of so many stretches, in their place.

    What the detector itself adds is taken off, as `estimate_lag` does.
    """
    strength_T = np.maximum(onset_strength(resample(samples_N, rate_hz, RATE_HZ)), 0)
    if not len(strength_T):
        return np.empty(0), np.empty(0)
    stride = -(-len(strength_T) // _POINTS)
    filled = np.pad(strength_T, (0, -len(strength_T) % stride)).reshape(-1, stride)
    place_P = filled.argmax(axis=1) + stride * np.arange(len(filled))
    loudest = max(float(np.percentile(strength_T, 99.7)), 1e-9)
    at_P = FIRST_S - DETECTOR_LAG_S + place_P * HOP / RATE_HZ
    return at_P, np.minimum(filled.max(axis=1) / loudest, 1.0).astype(np.float64)
