"""The `audio_statistics` stream: one row of numbers that describe a whole recording.

Conventions: a log-mel spectrogram fine enough to tell semitones (frames of 256 ms every 40 ms, 256
bands) is read twice: as cepstra, which say timbre, and as a pitch spectrum, which is the level at
every half semitone above its surroundings, in dB. Nothing changes with the gain of the recording.

Source: mean and deviation of cepstra, as since Tzanetakis & Cook, IEEE TSAP 10(5), 2002; the rest
are autocorrelations of the pitch spectrum in pitch and in time.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.audio import DECODER, MIXDOWN, RESAMPLER, Samples
from mmfuse.features.logmel import LogMel, LogMelParams, band_centres_hz
from mmfuse.features.spec import StreamSpec, Timing

SPECTRUM = LogMelParams(n_fft=4096, hop=640, n_mels=256)
PITCHES = np.arange(40, 101, 0.5)  # MIDI numbers: 82 Hz to 2.6 kHz
AROUND = 12  # half semitones on either side that are a level's surroundings
CEPSTRA = 20
LAGS = (1, 2, 4, 8, 16, 32, 64)  # frames
SIZES: Mapping[str, int] = {
    "cepstrum_mean": CEPSTRA - 1,  # without the first, which is the gain
    "cepstrum_deviation": CEPSTRA,
    "cepstrum_change": CEPSTRA,  # deviation from frame to frame
    "level": 5,  # deviation, and quantiles below the loudest frame, dB
    "salience": len(PITCHES),  # share of each half semitone in the pitch spectrum
    "interval": 24,  # product of the pitch spectrum with itself, 1 to 24 semitones up
    "onset": 5,  # mean rise of the pitch spectrum; deviation and quantiles of it over its mean
    "pulse": 50,  # autocorrelation of the rise, 40 ms to 2 s
    "persistence": len(LAGS),  # product of the pitch spectrum with itself some frames later
}
FIELDS = tuple(f"{name}.{number}" for name, size in SIZES.items() for number in range(size))
_TINY = 1e-9
Floats = NDArray[np.float64]


def audio_statistics_spec() -> StreamSpec:
    """The `audio_statistics` stream: float32 (1, 272), without times."""
    return StreamSpec(
        name="audio_statistics",
        modality="audio",
        item=(len(FIELDS),),
        dtype="float32",
        params={
            "spectrum": {
                "rate_hz": SPECTRUM.rate_hz,
                "n_fft": SPECTRUM.n_fft,
                "hop": SPECTRUM.hop,
                "n_mels": SPECTRUM.n_mels,
            },
            "decoder": DECODER,
            "resampler": RESAMPLER,
            "mono": MIXDOWN,
        },
        timing=Timing("none"),
        fields=FIELDS,
    )


class AudioStatistics:
    """Descriptors of a whole recording, as one window; see `encoders.WindowEncoder`."""

    windows = None
    rate_hz, shortest = SPECTRUM.rate_hz, SPECTRUM.n_fft

    def __init__(self) -> None:
        self.specs = (audio_statistics_spec(),)
        self._spectrum = LogMel(SPECTRUM)

    def frames(self, samples: int) -> int:
        """A row for all that takes a frame of the spectrum."""
        return int(samples >= self.shortest)

    def encode(self, samples_BN: Samples) -> dict[str, NDArray[np.float32]]:
        """(B, N) samples at 16 kHz -> (B, 1, 272) float32."""
        rows = [describe(self._spectrum.decibels(samples_N)) for samples_N in samples_BN]
        joined = [np.concatenate(list(row.values())) for row in rows]
        return {"audio_statistics": np.array(joined, np.float32)[:, None]}


def describe(db_TM: NDArray[np.float32]) -> dict[str, Floats]:
    """Descriptors of a log-mel spectrogram (T, 256) in dB by name, of the sizes of `SIZES`."""
    level_TM = db_TM.astype(np.float64)
    cepstrum_TC = level_TM @ _cosines(SPECTRUM.n_mels)
    change_TC = np.diff(cepstrum_TC, axis=0, prepend=cepstrum_TC[:1])
    loudness_T = 10 * np.log10((10 ** (level_TM / 10)).sum(axis=1))
    pitch_TP = pitch_spectrum(level_TM)
    rise_T = np.maximum(np.diff(pitch_TP, axis=0, prepend=pitch_TP[:1]), 0).sum(axis=1)
    salience_P = pitch_TP.mean(axis=0)
    power = float((pitch_TP**2).mean()) + _TINY
    mean_rise = float(rise_T.mean())
    return {
        "cepstrum_mean": cepstrum_TC[:, 1:].mean(axis=0),
        "cepstrum_deviation": cepstrum_TC.std(axis=0),
        "cepstrum_change": change_TC.std(axis=0),
        "level": np.array(
            [loudness_T.std(), *np.percentile(loudness_T - loudness_T.max(), [10, 25, 50, 75])]
        ),
        "salience": salience_P / (salience_P.sum() + _TINY),
        "interval": np.array(
            [(pitch_TP[:, : -2 * k] * pitch_TP[:, 2 * k :]).mean() / power for k in range(1, 25)]
        ),
        "onset": np.array(
            [mean_rise, *(np.array([rise_T.std(), *np.percentile(rise_T, [50, 75, 90])])
                          / (mean_rise + _TINY))]
        ),
        "pulse": _later(rise_T[:, None] - mean_rise, range(1, 51)),
        "persistence": _later(pitch_TP, LAGS),
    }  # fmt: skip


def pitch_spectrum(level_TM: Floats) -> Floats:
    """Level at each of `PITCHES` above the mean of its surroundings, or 0: (T, P) in dB."""
    spectrum_TP: Floats = np.maximum(level_TM @ _PITCH_MP, 0)
    return spectrum_TP


def _later(x_TP: Floats, lags: tuple[int, ...] | range) -> Floats:
    """Mean product of frames with those some frames later, over their mean square."""
    power = float((x_TP**2).mean()) + _TINY
    return np.array([(x_TP[k:] * x_TP[:-k]).mean() / power if k < len(x_TP) else 0.0 for k in lags])


def _cosines(bands: int) -> Floats:
    """The orthonormal cosine transform (DCT-II) to `CEPSTRA` coefficients, (M, C)."""
    band_M1, order_C = np.arange(bands)[:, None] + 0.5, np.arange(CEPSTRA)
    cosines_MC: Floats = np.sqrt(2 / bands) * np.cos(np.pi / bands * band_M1 * order_C)
    cosines_MC[:, 0] /= np.sqrt(2)
    return cosines_MC


def _pitch_matrix() -> Floats:
    """From bands to pitches, their surroundings' mean taken off, (M, P); linear between bands."""
    centres_hz = band_centres_hz(SPECTRUM)
    wanted_hz = 440 * 2 ** ((PITCHES - 69) / 12)
    bands_MM = np.eye(len(centres_hz))
    between_MP = np.array([np.interp(wanted_hz, centres_hz, band_M) for band_M in bands_MM])
    edged = np.pad(between_MP, ((0, 0), (AROUND, AROUND)), mode="edge")
    window = np.ones(2 * AROUND + 1) / (2 * AROUND + 1)
    around_MP = np.array([np.convolve(row, window, mode="valid") for row in edged])
    matrix_MP: Floats = between_MP - around_MP
    return matrix_MP


_PITCH_MP = _pitch_matrix()
