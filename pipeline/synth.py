"""Additive synthesis: tones as sums of harmonic partials under an envelope.

Two timbres. A `reed` is hollow: odd partials alone, falling fast. A `bow` is bright: all partials,
falling slowly, with vibrato. Both are brought to the same loudness by `level`, so that only the
spectrum and the envelope tell them apart.

Shapes: N samples.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator
Samples = NDArray[np.float64]

RELEASE_S = 0.09  # the longest tail after a tone's end
_TOP = 0.45  # partials stay below this share of the sample rate


@dataclass(frozen=True, slots=True)
class Tone:
    """A note in seconds from the first sample; pitch is a MIDI key, velocity 1..127."""

    onset_s: float
    offset_s: float
    pitch: int
    velocity: int


@dataclass(frozen=True, slots=True)
class Timbre:
    """Partials 1, 1 + step, ... up to `partials`, with amplitude k ** -slope, and an envelope."""

    step: int
    partials: int
    slope: float
    attack_s: float
    release_s: float
    vibrato: float  # greatest deviation of frequency, as a share


TIMBRES = {
    "reed": Timbre(2, 11, 1.35, 0.008, 0.05, 0.0),
    "bow": Timbre(1, 16, 0.7, 0.02, RELEASE_S, 0.004),
}


def render(tones: list[Tone], timbre: str, rate_hz: int, num_samples: int, rng: Rng) -> Samples:
    """Play tones.

    Args:
        tones: at any times; what lies outside 0 <= t < num_samples / rate_hz is cut.
        timbre: a key of `TIMBRES`.
        rate_hz: sample rate.
        rng: draws the player's shade of the timbre (spectral slope, vibrato rate) and phases.
    Returns:
        (N,) float64, of no particular level.
    """
    voice = TIMBRES[timbre]
    time_s = np.arange(num_samples) / rate_hz
    slope = voice.slope + rng.uniform(-0.1, 0.1)
    sway_hz = rng.uniform(4.5, 6.0)
    sway_s = voice.vibrato / (2 * np.pi * sway_hz) * np.sin(2 * np.pi * sway_hz * time_s)
    decay = 0.55 + 0.45 * np.exp(-time_s / 0.18)
    mix_N = np.zeros(num_samples)
    for tone in tones:
        first = max(0, int(np.ceil(tone.onset_s * rate_hz)))
        last = min(num_samples, int(np.ceil((tone.offset_s + voice.release_s) * rate_hz)))
        if last <= first:
            continue
        since_s = time_s[first:last] - tone.onset_s
        hz = 440 * 2 ** ((tone.pitch - 69) / 12)
        phase = 2 * np.pi * hz * (since_s + sway_s[first:last]) + rng.uniform(0, 2 * np.pi)
        sound = _partials(phase, _amplitudes(voice, slope, hz, rate_hz), voice.step)
        left_s = tone.offset_s + voice.release_s - tone.onset_s - since_s
        sound *= np.minimum(since_s * (1 / voice.attack_s), 1)
        sound *= np.minimum(left_s * (1 / voice.release_s), 1)
        sound *= decay[: last - first]
        mix_N[first:last] += sound * (tone.velocity / 127) ** 1.5
    return mix_N


def level(samples: Samples, rms_db: float, noise_db: float, rng: Rng) -> NDArray[np.float32]:
    """Bring samples of any shape to an RMS in dBFS, over a floor of white noise in dBFS.

    The peak is held below 0.95 by lowering the whole, never by clipping.
    """
    rms = float(np.sqrt(np.mean(samples**2)))
    out = samples * (10 ** (rms_db / 20) / max(rms, 1e-9))
    out += 10 ** (noise_db / 20) * rng.standard_normal(samples.shape)
    peak = float(np.abs(out).max(initial=0))
    return (out * min(1, 0.95 / max(peak, 1e-9))).astype(np.float32)


def _amplitudes(voice: Timbre, slope: float, hz: float, rate_hz: int) -> Samples:
    """Amplitudes of the partials that fit under the sample rate, with unit energy."""
    numbers = np.arange(1, voice.partials + 1, voice.step, dtype=np.float64)
    amplitudes = numbers[numbers * hz < _TOP * rate_hz] ** -slope
    return np.asarray(amplitudes / np.sqrt(np.sum(amplitudes**2)))


def _partials(phase_N: Samples, amplitudes: Samples, step: int) -> Samples:
    """Sum of a_k sin(k x), by sin((k + s) x) = 2 cos(s x) sin(k x) - sin((k - s) x)."""
    now = np.sin(phase_N)
    before = np.zeros_like(now) if step == 1 else -now  # sin(0), sin(-x)
    twice = 2 * np.cos(step * phase_N)
    total, product = amplitudes[0] * now, np.empty_like(now)
    for amplitude in amplitudes[1:]:
        np.multiply(twice, now, out=product)
        np.subtract(product, before, out=before)
        now, before = before, now
        np.multiply(amplitude, now, out=product)
        total += product
    return np.asarray(total)
