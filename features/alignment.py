"""How far a recording and its MIDI are apart: measured, not believed.

Conventions: a lag is audio minus MIDI in seconds: +0.04 means that notes sound 40 ms later than
the MIDI says. Onset strength is the rise of compressed band magnitudes from one 2 ms frame to the
fifth after it, at the middle of the rise; what that detector itself adds, measured on notes of
known time that rise within 20 ms, is taken off (`DETECTOR_LAG_S`). Notes that begin at once come
out 3 ms early by it.

Source: spectral flux after Bello et al., IEEE TSAP 13(5), 2005; power-law compression and log
bands after Böck & Widmer, DAFx 2013.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.audio import Audio, Samples, resample
from mmfuse.features.notes import COLUMN

RATE_HZ = 16_000
HOP = 32  # samples: 2 ms
DETECTOR_LAG_S = -0.0027
_N_FFT, _RISE, _BANDS = 256, 5, 40
FIRST_S = (_N_FFT + _RISE * HOP) / 2 / RATE_HZ  # time of the first value
_FPS = RATE_HZ / HOP
_BLOCK = 1 << 14  # frames at once: 32 MiB of windows
_PEAK = 25  # frames on either side of the best lag that belong to its peak
_PART_S, _PART_SEARCH_S = 4.0, 0.1  # drift: length of a part, and how far it may lie off


@dataclass(frozen=True, slots=True)
class Lag:
    """What was found for one clip.

    Attributes:
        lag_s: audio minus MIDI.
        confidence: 0 to 1: how much the best lag stands above the second best, apart from it.
        drift_s: change of the lag from the clip's beginning to its end; NaN below two parts of 4 s.
        onsets: notes that lie inside the audio.
    """

    lag_s: float
    confidence: float
    drift_s: float
    onsets: int


def onset_strength(samples_N: Samples) -> NDArray[np.float32]:
    """How much begins at each moment: (N,) samples at 16 kHz -> (T,) at 500 Hz.

    Value i is at `FIRST_S` + i / 500 s, 13 ms and later. Its mean over 0.2 s is taken off.
    """
    if len(samples_N) < _N_FFT + (_RISE + 1) * HOP:
        return np.zeros(0, np.float32)
    window = np.hanning(_N_FFT).astype(np.float32)
    edges = np.unique(np.round(np.geomspace(1, _N_FFT // 2, _BANDS + 1)).astype(int))
    frames = np.lib.stride_tricks.sliding_window_view(samples_N, _N_FFT)[::HOP]
    bands = np.empty((len(frames), len(edges) - 1), np.float32)
    for first in range(0, len(frames), _BLOCK):
        part = np.abs(np.fft.rfft(frames[first : first + _BLOCK] * window, axis=1))
        sums = np.add.reduceat(part, edges[:-1], axis=1)
        bands[first : first + _BLOCK] = (sums / np.diff(edges)) ** 0.3
    rise = np.maximum(bands[_RISE:] - bands[:-_RISE], 0).sum(axis=1)
    mean = np.convolve(rise, np.ones(101, np.float32) / 101, "same")
    return np.asarray(rise - mean, dtype=np.float32)


def estimate_lag(
    audio: Audio, notes_values: NDArray[np.float64], search_s: float = 1.0
) -> Lag | None:
    """Find the lag at which onsets in the audio and onsets in the MIDI agree best.

    Args:
        audio: the recording.
        notes_values: (n, fields) rows of the `notes` stream, on the clip's timeline.
        search_s: lags from -search_s to search_s are tried.

    Returns:
        None where the audio is too short, or no note lies within reach of it.
    """
    strength = onset_strength(resample(audio.samples_N, audio.rate_hz, RATE_HZ))
    onset_s = notes_values[:, COLUMN["onset_s"]]
    loudness = notes_values[:, COLUMN["velocity"]] / 127
    found = _best(strength, 0.0, onset_s, loudness, 0.0, search_s)
    if found is None:
        return None
    lag_s, confidence = found
    end_s = len(audio.samples_N) / audio.rate_hz
    inside = (onset_s + lag_s >= 0) & (onset_s + lag_s < end_s)
    drift_s = _drift(strength, onset_s, loudness, lag_s)
    return Lag(lag_s, confidence, drift_s, int(inside.sum()))


def warp(
    audio: Audio, notes_values: NDArray[np.float64], max_frames: int = 6000
) -> NDArray[np.float64]:
    """Where each moment of the MIDI lies in the audio, by dynamic time warping of chroma.

    For pairs that drift: other performances, tape, a wrong sample rate. It is good to a frame, 20
    ms in clips of up to two minutes and longer beyond; `estimate_lag` is ten times as fine.

    Args:
        audio: the recording.
        notes_values: (n, fields) rows of the `notes` stream.
        max_frames: longer clips get longer frames, so that memory stays below 300 MB.

    Returns:
        (K, 2) float64, rising: seconds in the MIDI, seconds in the audio.

    Source: librosa's `chroma_stft` and `sequence.dtw`; Müller, Fundamentals of Music Processing.
    """
    import librosa

    samples_N = resample(audio.samples_N, audio.rate_hz, RATE_HZ)
    end_s = max(len(samples_N) / RATE_HZ, float(notes_values[:, COLUMN["offset_s"]].max(initial=0)))
    hop = 320 * max(1, -(-int(end_s * 50) // max_frames))
    heard_CT = librosa.feature.chroma_stft(
        y=samples_N, sr=RATE_HZ, n_fft=4096, hop_length=hop, tuning=0.0
    )
    written_CT = _chroma(notes_values, hop / RATE_HZ, heard_CT.shape[1])
    noise = 1e-3  # silence is like silence
    _, path = librosa.sequence.dtw(written_CT + noise, heard_CT + noise, metric="cosine")
    return np.asarray(path[::-1], dtype=np.float64) * hop / RATE_HZ


def _chroma(notes_values: NDArray[np.float64], frame_s: float, frames: int) -> NDArray[np.float64]:
    """Loudness of each pitch class in each frame, (12, frames)."""
    chroma_CT = np.zeros((12, frames))
    for onset_s, offset_s, pitch, velocity in notes_values[
        :, [COLUMN[name] for name in ("onset_s", "offset_s", "pitch", "velocity")]
    ]:
        first, last = int(max(onset_s, 0) / frame_s), int(max(offset_s, 0) / frame_s)
        chroma_CT[int(pitch) % 12, first : last + 1] += velocity
    return np.asarray(chroma_CT / np.maximum(chroma_CT.max(axis=0), 1))


def _drift(
    strength: NDArray[np.float32],
    onset_s: NDArray[np.float64],
    loudness: NDArray[np.float64],
    lag_s: float,
) -> float:
    """Slope of the lags of parts of the clip, times its length."""
    duration_s = len(strength) / _FPS
    parts = int(duration_s // _PART_S)
    size = len(strength) // max(parts, 1)
    middles, lags = [], []
    for part in range(parts):
        begin_s = part * size / _FPS
        here = strength[part * size : (part + 1) * size]
        found = _best(here, begin_s, onset_s, loudness, lag_s, _PART_SEARCH_S)
        if found is not None and found[1] > 0:
            middles.append(begin_s + size / 2 / _FPS)
            lags.append(found[0])
    if len(lags) < 2:
        return float("nan")
    return float(np.polyfit(middles, lags, 1)[0] * duration_s)


def _best(
    strength: NDArray[np.float32],
    begin_s: float,
    onset_s: NDArray[np.float64],
    loudness: NDArray[np.float64],
    around_s: float,
    search_s: float,
) -> tuple[float, float] | None:
    """(lag, confidence) of the peak of the cross-correlation within `around_s` +- `search_s`."""
    reach = max(int(search_s * _FPS), 1)
    pulses = np.zeros(len(strength) + 2 * reach)
    shift_s = around_s + DETECTOR_LAG_S - begin_s - FIRST_S
    place = np.round((onset_s + shift_s) * _FPS).astype(np.int64) + reach
    kept = (place >= 0) & (place < len(pulses))
    if not kept.any() or not strength.any():
        return None
    np.maximum.at(pulses, place[kept], loudness[kept])
    pulses = np.convolve(pulses, np.hanning(11), "same")
    size = 1 << (len(pulses) + len(strength)).bit_length()
    spectrum = np.fft.rfft(pulses, size) * np.conj(np.fft.rfft(strength, size))
    match = np.fft.irfft(spectrum, size)[2 * reach :: -1]  # match[i] is lag (i - reach) / 500
    best = int(match.argmax())
    if match[best] <= 0:
        return None
    away = np.ones(len(match), np.bool_)
    away[max(best - _PEAK, 0) : best + _PEAK + 1] = False
    second = max(float(match[away].max(initial=0)), 0.0)
    exact = best + _vertex(match, best)
    return around_s + (exact - reach) / _FPS, 1 - second / float(match[best])


def _vertex(curve: NDArray[np.float64], at: int) -> float:
    """Where the parabola through a peak and its neighbours is highest, in steps from the peak."""
    if not 0 < at < len(curve) - 1:
        return 0.0
    before, peak, after = curve[at - 1 : at + 2]
    bend = before - 2 * peak + after
    return float(0.5 * (before - after) / bend) if bend else 0.0
