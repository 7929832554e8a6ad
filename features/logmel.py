"""Log-mel spectrogram: what a frozen audio encoder without weights would see.

Conventions: frame i covers samples [i * hop, i * hop + n_fft) and its time is their middle;
nothing is padded, so a clip of N samples has 1 + (N - n_fft) // hop frames. Values are decibels,
10 log10(max(power, 1e-10)), with no reference level and no floor under the loudest frame: a value
depends on its own samples only. The sums are done in double precision, so that neither the number
of threads nor the block size shows in what is stored.

Source: mel bands after M. Slaney's Auditory Toolbox. The result is librosa's within 1e-4 dB; the
bands of torchaudio, in single precision, would be 4e-3 dB away.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from mmfuse.features.audio import DECODER, MIXDOWN, RESAMPLER, Samples
from mmfuse.features.errors import ConfigError, DecodeError
from mmfuse.features.spec import StreamSpec, Timing

_FLOOR = 1e-10  # power
_BLOCK_FRAMES = 128  # frames transformed at once: 1 MiB of doubles at n_fft 1024 stays in the cache
_GROUP_BANDS = 8  # bands summed together, over the bins that any of them sees


@dataclass(frozen=True, slots=True)
class LogMelParams:
    """What changes the numbers. The defaults leave no mel band without a bin of its own."""

    rate_hz: int = 16_000
    n_fft: int = 1024  # samples in a frame: 64 ms
    hop: int = 320  # samples between frames: 20 ms, as wav2vec2's
    n_mels: int = 80
    f_min_hz: float = 0.0
    f_max_hz: float = 8_000.0
    dtype: str = "float16"  # steps of 1/16 dB at -100 dB

    def __post_init__(self) -> None:
        if min(self.rate_hz, self.n_fft, self.hop, self.n_mels) < 1:
            raise ConfigError("logmel: rate_hz, n_fft, hop and n_mels are at least 1")
        if not 0 <= self.f_min_hz < self.f_max_hz <= self.rate_hz / 2:
            raise ConfigError(
                f"logmel: f_min_hz {self.f_min_hz} and f_max_hz {self.f_max_hz} must rise from 0 "
                f"to at most half of rate_hz ({self.rate_hz / 2})"
            )
        if self.dtype not in ("float16", "float32"):
            raise ConfigError(f"logmel: dtype {self.dtype!r}; choose float16 or float32")


def logmel_spec(params: LogMelParams = LogMelParams()) -> StreamSpec:
    """The stream that `LogMel(params)` makes; loads nothing heavy."""
    return StreamSpec(
        name="logmel",
        modality="audio",
        item=(params.n_mels,),
        dtype=params.dtype,
        params={
            **{name: value for name, value in asdict(params).items() if name != "dtype"},
            "decoder": DECODER,
            "resampler": RESAMPLER,
            "mono": MIXDOWN,
            "window": "hann",
            "center": False,
            "mel_scale": "slaney",
            "norm": "slaney",
            "power": 2,
            "amin": _FLOOR,
            "unit": "dB",
        },
        timing=Timing(
            "frames",
            first_s=Fraction(params.n_fft, 2 * params.rate_hz),
            hop_s=Fraction(params.hop, params.rate_hz),
        ),
    )


class LogMel:
    """Log-mel frames as an encoder of one window, the whole recording.

    Raises:
        ConfigError: a mel band so narrow that no bin falls into it.
    """

    windows = None

    def __init__(self, params: LogMelParams = LogMelParams()) -> None:
        self.params = params
        self.specs = (logmel_spec(params),)
        self.rate_hz, self.shortest = params.rate_hz, params.n_fft
        bands_FM = _slaney_bands(params)
        empty = int((bands_FM.max(axis=0) == 0).sum())
        if empty:
            raise ConfigError(
                f"logmel: {empty} of {params.n_mels} mel bands hold no bin of the transform; "
                "raise n_fft or lower n_mels"
            )
        self._groups = tuple(_grouped(bands_FM))
        self._window_N = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(params.n_fft) / params.n_fft)

    def frames(self, samples: int) -> int:
        """Frames of so many samples."""
        return max(1 + (samples - self.params.n_fft) // self.params.hop, 0)

    def encode(self, samples_BN: Samples) -> dict[str, NDArray[np.float32]]:
        """(B, N) samples at `rate_hz` -> (B, T, n_mels) float32 dB."""
        return {"logmel": np.stack([self.decibels(samples_N) for samples_N in samples_BN])}

    def decibels(self, samples_N: Samples) -> NDArray[np.float32]:
        """(N,) samples at `params.rate_hz` -> (T, n_mels) float32 dB, before the cast.

        Raises:
            DecodeError: `too_short`.
        """
        n_fft, hop = self.params.n_fft, self.params.hop
        if len(samples_N) < n_fft:
            raise DecodeError(
                "too_short",
                f"{len(samples_N)} samples at {self.params.rate_hz} Hz; one frame takes {n_fft}",
            )
        frames = 1 + (len(samples_N) - n_fft) // hop
        db_TM = np.empty((frames, self.params.n_mels), np.float32)
        for first in range(0, frames, _BLOCK_FRAMES):
            last = min(first + _BLOCK_FRAMES, frames)
            part_N = samples_N[first * hop : (last - 1) * hop + n_fft].astype(np.float64)
            frames_TN = sliding_window_view(part_N, n_fft)[::hop]
            spectrum_TF = np.fft.rfft(frames_TN * self._window_N, axis=1)
            power_TF = spectrum_TF.real**2 + spectrum_TF.imag**2
            mel_TM = np.empty((last - first, self.params.n_mels))
            for bins, bands, weights_FM in self._groups:
                mel_TM[:, bands] = power_TF[:, bins] @ weights_FM
            db_TM[first:last] = 10 * np.log10(np.maximum(mel_TM, _FLOOR))
        return db_TM


def band_centres_hz(params: LogMelParams = LogMelParams()) -> NDArray[np.float64]:
    """Frequency at which each mel band is strongest, (n_mels,)."""
    return _edges_hz(params)[1:-1]


def _edges_hz(params: LogMelParams) -> NDArray[np.float64]:
    """Feet and peaks of the triangles, (n_mels + 2,): band m rises from m to m + 1."""
    lowest, highest = _hz_to_mel(np.array([params.f_min_hz, params.f_max_hz]))
    return _mel_to_hz(np.linspace(lowest, highest, params.n_mels + 2))


def _grouped(bands_FM: NDArray[np.float64]) -> Iterator[tuple[slice, slice, NDArray[np.float64]]]:
    """Neighbouring bands with the bins that they share; a band sees few of the bins."""
    for first in range(0, bands_FM.shape[1], _GROUP_BANDS):
        part_FM = bands_FM[:, first : first + _GROUP_BANDS]
        seen = np.flatnonzero(part_FM.any(axis=1))
        bins = slice(int(seen[0]), int(seen[-1]) + 1)
        yield bins, slice(first, first + _GROUP_BANDS), np.ascontiguousarray(part_FM[bins])


def _slaney_bands(params: LogMelParams) -> NDArray[np.float64]:
    """(F bins, M bands): triangles on the slaney mel scale, each of unit area."""
    edges_hz = _edges_hz(params)
    bins_hz = np.fft.rfftfreq(params.n_fft, 1 / params.rate_hz)
    below_hz = bins_hz[:, None] - edges_hz[None, :]
    widths_hz = np.diff(edges_hz)
    rising = below_hz[:, :-2] / widths_hz[:-1]
    falling = -below_hz[:, 2:] / widths_hz[1:]
    area = 2 / (edges_hz[2:] - edges_hz[:-2])
    return np.maximum(0, np.minimum(rising, falling)) * area


def _hz_to_mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linear below 1 kHz (three mels in 200 Hz), 27 mels to a factor of 6.4 above."""
    above = 15 + np.log(np.maximum(hz, 1000) / 1000) * 27 / np.log(6.4)
    return np.where(hz < 1000, hz * 3 / 200, above)


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    above = 1000 * np.exp((mel - 15) * np.log(6.4) / 27)
    return np.where(mel < 15, mel * 200 / 3, above)
