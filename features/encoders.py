"""What a frozen audio encoder promises, and how one recording goes through it.

Conventions: an encoder sees windows, never clips. Windows that go through it together have the same
number of samples, so nothing is padded, and on the CPU each of them has the numbers that it would
have alone. Values come back in single precision; the cast to the stream's dtype is made here, once.

Encoders are found by name: those of mmfuse, and those that other packages bring (`plugins.py`).
`conformance.py` checks that an encoder keeps the promise.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np

from mmfuse.features import plugins
from mmfuse.features.audio import Audio, Samples, resample
from mmfuse.features.config import AudioPreprocessing
from mmfuse.features.errors import ConfigError, DecodeError
from mmfuse.features.int8 import Int8Encoder, is_quantised, is_scales, quantised_entries
from mmfuse.features.spec import Array, Entry, StreamSpec, all_finite
from mmfuse.features.windows import Window, Windows

Outputs = Mapping[str, Array]


class WindowEncoder(Protocol):
    """A frozen encoder of audio: the same window gives the same numbers, whatever is beside it.

    `specs` has one stream for each layer asked for and is known before a model is loaded. `windows`
    says how a recording is cut; None takes it whole. One row takes `shortest` samples.
    """

    @property
    def specs(self) -> tuple[StreamSpec, ...]: ...  # noqa: D102
    @property
    def rate_hz(self) -> int: ...  # noqa: D102
    @property
    def windows(self) -> Windows | None: ...  # noqa: D102
    @property
    def shortest(self) -> int: ...  # noqa: D102

    def frames(self, samples: int) -> int:
        """Rows of a window of so many samples."""

    def encode(self, samples_BN: Samples) -> Outputs:
        """B windows of one length at `rate_hz` -> (B, T, *item) by stream name, T = frames(N)."""


@dataclass(frozen=True, slots=True)
class Compute:
    """Where an encoder runs, and how much at once: never part of a spec."""

    device: str = "cpu"
    batch: int = 1


CPU = Compute()
Factory = Callable[[AudioPreprocessing, Compute], WindowEncoder]


def cut(encoder: WindowEncoder, audio: Audio) -> tuple[Window, ...]:
    """A recording as the windows that an encoder wants.

    Raises:
        DecodeError: `too_short` for one row.
    """
    samples_N = resample(audio.samples_N, audio.rate_hz, encoder.rate_hz)
    if encoder.windows is None:
        found: tuple[Window, ...] = (Window(Fraction(0), samples_N, len(samples_N)),)
    else:
        found = tuple(encoder.windows.cut(samples_N, encoder.rate_hz, encoder.shortest))
    if not found or found[0].real < encoder.shortest:
        raise DecodeError(
            "too_short",
            f"{len(samples_N)} samples at {encoder.rate_hz} Hz; one frame takes {encoder.shortest}",
        )
    return found


def join(
    encoder: WindowEncoder, windows: Sequence[Window], outputs: Sequence[Outputs]
) -> dict[str, Entry]:
    """What came out for each window, without its first axis, as one entry a stream.

    Raises:
        DecodeError: `non_finite` in the stream's dtype.
    """
    rows = [encoder.frames(window.real) for window in windows]
    overlap = encoder.windows.overlap if encoder.windows else "keep"
    entries: dict[str, Entry] = {}
    for spec in (spec for spec in encoder.specs if not is_scales(spec)):
        parts = [found[spec.name][:n] for found, n in zip(outputs, rows, strict=True)]
        if overlap == "average":
            values, table = _averaged(spec, windows, parts)
        else:
            values = np.concatenate(parts)
            table = tuple((w.start_s, n) for w, n in zip(windows, rows, strict=True))
        if is_quantised(spec):
            entries |= quantised_entries(spec, values, table)
            continue
        values, note = _cast(spec, values)
        entries[spec.name] = Entry(values, windows=table, note=note)
    return entries


def encode_clip(encoder: WindowEncoder, audio: Audio) -> dict[str, Entry]:
    """A whole recording through an encoder, window by window.

    Raises:
        DecodeError: `too_short` for one row, or `non_finite` in the stream's dtype.
    """
    windows = cut(encoder, audio)
    outputs = []
    for window in windows:
        found = encoder.encode(window.samples_N[None])
        outputs.append({name: values[0] for name, values in found.items()})
    return join(encoder, windows, outputs)


def _averaged(
    spec: StreamSpec, windows: Sequence[Window], parts: Sequence[Array]
) -> tuple[Array, tuple[tuple[Fraction, int], ...]]:
    """Rows on one grid, each the mean of all windows that have it; gaps split the table."""
    firsts = [window.start_s / spec.timing.hop_s for window in windows]
    if any(first.denominator > 1 for first in firsts):
        raise ConfigError(
            f'overlap = "average": windows begin between the frames of {spec.name}; choose hop_s '
            f"as a multiple of {float(spec.timing.hop_s)} s"
        )
    total = max(int(first) + len(part) for first, part in zip(firsts, parts, strict=True))
    sums = np.zeros((total, *spec.item), np.float64)
    counts = np.zeros(total, np.int64)
    for first, part in zip(firsts, parts, strict=True):
        sums[int(first) : int(first) + len(part)] += part
        counts[int(first) : int(first) + len(part)] += 1
    there = np.flatnonzero(counts)
    runs = np.split(there, np.flatnonzero(np.diff(there) > 1) + 1)
    table = tuple((int(run[0]) * spec.timing.hop_s, len(run)) for run in runs)
    shape = (-1, *(1 for _ in spec.item))
    return (sums[there] / counts[there].reshape(shape)).astype(np.float32), table


def _cast(spec: StreamSpec, values: Array) -> tuple[Array, str]:
    """Values in the stream's dtype: whole numbers are clipped and counted, floats are finite."""
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "i" and values.dtype.kind == "f":
        most = np.iinfo(dtype).max
        clipped = int((np.abs(values) > most).sum())
        note = f"{spec.name}: {clipped} of {values.size} samples clipped" if clipped else ""
        return np.clip(values, -most, most).astype(dtype), note
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(values, dtype=dtype)
    if dtype.kind == "f" and not all_finite(stored):
        raise DecodeError("non_finite", f"{spec.name}: values that {spec.dtype} can't hold")
    return stored, ""


# -- by name ---------------------------------------------------------------------------------------


def _logmel(config: AudioPreprocessing, compute: Compute) -> WindowEncoder:
    """Log-mel frames; needs no model."""
    from mmfuse.features.logmel import LogMel, LogMelParams

    names = ("rate_hz", "n_fft", "hop", "n_mels", "f_min_hz", "f_max_hz")
    return LogMel(LogMelParams(**config.model_dump(include=set(names))))


def _waveform(config: AudioPreprocessing, compute: Compute) -> WindowEncoder:
    """Samples as they are, for training through; needs no model."""
    from mmfuse.features.waveform import Waveform, WaveformParams

    return Waveform(WaveformParams(config.rate_hz))


def _audio_statistics(config: AudioPreprocessing, compute: Compute) -> WindowEncoder:
    """Timbre, pitch and pulse of a whole recording in one row; needs no model."""
    from mmfuse.features.audio_statistics import AudioStatistics

    return AudioStatistics()


def _wav2vec2(config: AudioPreprocessing, compute: Compute) -> WindowEncoder:
    """Frames of wav2vec2, HuBERT, WavLM and their family; needs --model."""
    from mmfuse.features.wav2vec2 import Wav2vec2, Wav2vec2Params

    names = ("model", "layers", "random_weights", "threads", "precision", "backend")
    chosen = config.model_dump(include=set(names))
    params = Wav2vec2Params(windows=windows_of(config, 30), **chosen)
    return Wav2vec2(params, compute)


def _clap(config: AudioPreprocessing, compute: Compute) -> WindowEncoder:
    """One vector for ten seconds, in the space of CLAP's texts; needs --model."""
    from mmfuse.features.clap import WINDOW_S, Clap, ClapParams

    if config.layers != "last":
        raise ConfigError(f"layers {config.layers!r}: clap has one row a window; leave layers out")
    chosen = config.model_dump(include={"model", "random_weights", "threads", "precision"})
    return Clap(ClapParams(windows=windows_of(config, WINDOW_S), **chosen), compute)


ENCODERS: dict[str, Factory] = {
    "logmel": _logmel,
    "waveform": _waveform,
    "audio_statistics": _audio_statistics,
    "wav2vec2": _wav2vec2,
    "clap": _clap,
}

# of text, by their names on a command line: `encoder` of [preprocessing.text], and what it is
TEXT_ENCODERS = {
    "text": ("transformer", "Vectors of BERT, RoBERTa, MPNet and their kin; needs --model."),
    "clap-text": ("clap", "One vector a text, in the space of CLAP's audio; needs --model."),
}


def windows_of(config: AudioPreprocessing, duration_s: float) -> Windows:
    """The windows that a configuration asks for; `duration_s` where it names none."""
    long_s = Fraction(str(config.duration_s or duration_s))
    hop_s = long_s if config.hop_s is None else Fraction(str(config.hop_s))
    return Windows(long_s, hop_s, config.tail, config.overlap)


def own_encoders() -> dict[str, str]:
    """Our encoders by the names of a command line, with what each says of itself."""
    found = {name: (factory.__doc__ or "").strip() for name, factory in ENCODERS.items()}
    return found | {name: about for name, (_, about) in TEXT_ENCODERS.items()}


def build_encoder(config: AudioPreprocessing, compute: Compute = CPU) -> WindowEncoder:
    """The encoder that `[preprocessing.audio]` names.

    Raises:
        ConfigError: no encoder of this name, or one that refuses its settings.
        MissingError: a model or an extra that is not there.
    """
    factory = ENCODERS.get(config.encoder) or plugins.load("encoder", config.encoder, ENCODERS)
    encoder = factory(config, compute)
    return Int8Encoder(encoder) if config.dtype == "int8" else encoder
