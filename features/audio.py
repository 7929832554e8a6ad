"""Audio bytes to mono samples.

Conventions: samples are float32, (N,), full scale 1.0, the mean of the channels. Files are decoded
in blocks, under limits, after `containers.py` has found nothing wrong with their outside.

Nothing but `DecodeError` leaves this module. Its reasons: `empty`, `not_audio`, `codec`,
`damaged`, `truncated`, `no_samples`, `non_finite`, `too_long`, `too_large`, `out_of_memory`,
`channels`, `rate`.

Source: libsndfile through soundfile; soxr.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.containers import (
    check_container,
    codec_text,
    container_of,
    has_xing,
    looks_like,
    without_tail,
)
from mmfuse.features.errors import DecodeError

if TYPE_CHECKING:
    import soundfile

Samples = NDArray[np.float32]

DECODER = "soundfile"
RESAMPLER = "soxr-VHQ"
MIXDOWN = "mean"

_CODECS = frozenset({
    "PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW",
    "VORBIS", "OPUS", "MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III",
})  # fmt: skip
_CONTAINERS = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "FLAC", "OGG", "MP3"})
_LOSSY = frozenset({"OGG", "MP3"})  # what is read after a seek depends on what was read before
_BLOCK_SAMPLES = 1 << 18  # one decoded block over all channels, 1 MiB


@dataclass(frozen=True, slots=True)
class AudioLimits:
    """What one file may ask for before it is refused."""

    duration_s: int = 6 * 3600
    channels: int = 64
    min_rate_hz: int = 4_000
    max_rate_hz: int = 768_000
    decoded_bytes: int = 4 << 30  # float32 over all channels


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What a header says. `frames` is as declared (an estimate for MP3 without a Xing tag)."""

    rate_hz: int
    channels: int
    frames: int
    format: str


@dataclass(frozen=True, slots=True)
class Audio:
    """One decoded recording: (N,) float32 mono at `rate_hz`; `frames` is N, as decoded."""

    samples_N: Samples
    rate_hz: int
    channels: int
    frames: int
    format: str

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.frames / self.rate_hz


def read_audio(data: bytes, limits: AudioLimits = AudioLimits()) -> Audio:
    """Decode a whole file, in blocks, to mono.

    Args:
        data: the bytes of a WAV, RF64, BW64, W64, AIFF, FLAC, Ogg or MP3 file.
        limits: a file that asks for more is refused.

    Raises:
        DecodeError: the bytes are no such file, are damaged or cut short, hold nothing or NaN or
            infinity, or ask for more than the limits.
    """
    with _opened(data, limits) as (file, declared):
        info = _info(file, limits)
        blocks = list(_mono_blocks(file, info, limits))
        samples_N = np.concatenate(blocks) if blocks else np.empty(0, np.float32)
        if declared and len(samples_N) < declared:
            raise DecodeError(
                "truncated",
                f"{info.format} header promises {declared} samples, {len(samples_N)} can be read; "
                "copy the file again from its source",
            )
        if not len(samples_N):
            raise DecodeError("no_samples", f"{info.format} file without a single sample")
        return Audio(samples_N, info.rate_hz, info.channels, len(samples_N), info.format)


def read_stretch(
    data: bytes,
    start_s: Fraction,
    duration_s: Fraction,
    channels: tuple[int, ...] | None = None,
    limits: AudioLimits = AudioLimits(),
) -> bytes:
    """A stretch of a recording as a WAV file of float32, mono: the mean of the channels.

    Seconds become samples as lhotse counts them: times the rate, a half rounded up. A sample that
    is missing at the end of the recording, as rounding may have it, is left out.

    Args:
        data: the whole file.
        start_s: where the stretch begins.
        duration_s: how long it is.
        channels: numbers of those to take, from 0; all, where left out.

    Raises:
        DecodeError: as `read_audio`, or the recording ends before the stretch does.
    """
    import soundfile

    with _opened(data, limits) as (file, _):
        info = _info(file, limits)
        first, count = (floor(s * info.rate_hz + Fraction(1, 2)) for s in (start_s, duration_s))
        if max(channels or (0,)) >= info.channels:
            raise DecodeError("channels", f"no channel {max(channels or (0,))} of {info.channels}")
        blocks, at = [], 0
        if info.format not in _LOSSY and 0 < first <= info.frames:
            at = file.seek(first)
        for block_NC in _blocks(file, info, limits, at):
            blocks.append(_mono(block_NC[max(first - at, 0) : first + count - at], channels))
            at += len(block_NC)
            if at >= first + count:
                break
        samples_N = np.concatenate(blocks) if blocks else np.empty(0, np.float32)
    if len(samples_N) < max(count - 1, 1):
        raise DecodeError(
            "truncated",
            f"{info.format} file ends {at / info.rate_hz:.3f} s from its start, the clip only "
            f"{float(start_s + duration_s):.3f} s from there; look at its start and duration",
        )
    out = io.BytesIO()
    soundfile.write(out, samples_N, info.rate_hz, format="WAV", subtype="FLOAT")
    return out.getvalue()


def probe_audio(data: bytes, limits: AudioLimits = AudioLimits()) -> AudioInfo:
    """Read the header only: rate, channels, declared frames, container.

    Raises:
        DecodeError: as `read_audio`, for what can be known without decoding.
    """
    with _opened(data, limits) as (file, _):
        return _info(file, limits)


def resample(samples_N: Samples, from_hz: int, to_hz: int) -> Samples:
    """Band-limited resampling, soxr at its very high quality, in one piece; (N,) -> (M,).

    M is N * to_hz / from_hz rounded, and sample 0 stays at time 0. Equal rates: the same array.
    """
    if from_hz == to_hz:
        return samples_N
    import soxr

    return np.ascontiguousarray(
        soxr.resample(samples_N, from_hz, to_hz, quality="VHQ"), dtype=np.float32
    )


class _Bytes(io.BytesIO):
    """Bytes that never raise inside a callback of the C library: a wild seek stops at an end."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        size = self.getbuffer().nbytes
        start = (0, self.tell(), size)[whence]
        return super().seek(min(max(start + offset, 0), size))


@contextmanager
def _opened(data: bytes, limits: AudioLimits) -> Iterator[tuple["soundfile.SoundFile", int]]:
    """The open file and the samples it must hold (0: not known); errors become DecodeError."""
    if not data:
        raise DecodeError("empty", "audio file of 0 bytes")
    container = container_of(data)
    if container is None:
        raise DecodeError(
            "not_audio",
            f"these bytes look like {looks_like(data)}; "
            "expected WAV, RF64, BW64, W64, AIFF, FLAC, Ogg or MP3",
        )
    check_container(container, data)
    data = without_tail(container, data)
    import soundfile

    # libsndfile knows RF64 but not its successor's name; the layout is the same
    stream = _Bytes(b"RF64" + data[4:] if data[:4] == b"BW64" else data)
    try:
        with soundfile.SoundFile(stream) as file:
            if file.format not in _CONTAINERS or file.subtype not in _CODECS:
                raise DecodeError("codec", codec_text(f"{file.format}/{file.subtype}"))
            trusted = file.frames < 1 << 62 and (file.format != "MP3" or has_xing(data))
            yield file, file.frames if trusted else 0
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        text = str(error).replace(repr(stream), "the bytes").rstrip(": ")
        cut = container == "FLAC" and stream.tell() >= len(data)
        hint = "; it is cut short, or damaged near its end: copy it again" if cut else ""
        raise DecodeError(
            "truncated" if cut else "damaged", f"{container} file can't be decoded: {text}{hint}"
        ) from None
    except MemoryError:
        raise DecodeError(
            "out_of_memory", f"{container} file wants more memory than is left"
        ) from None


def _info(file: "soundfile.SoundFile", limits: AudioLimits) -> AudioInfo:
    rate_hz, channels, frames = int(file.samplerate), int(file.channels), int(file.frames)
    if not limits.min_rate_hz <= rate_hz <= limits.max_rate_hz:
        allowed = f"{limits.min_rate_hz} to {limits.max_rate_hz} Hz are read"
        raise DecodeError("rate", f"sample rate of {rate_hz} Hz; {allowed}")
    if not 1 <= channels <= limits.channels:
        raise DecodeError("channels", f"{channels} channels; up to {limits.channels} are read")
    if frames < 1 << 62:  # above: a stream of unknown length, counted while it is read
        _check_length(frames, rate_hz, channels, limits)
    return AudioInfo(rate_hz, channels, frames if frames < 1 << 62 else 0, str(file.format))


def _check_length(frames: int, rate_hz: int, channels: int, limits: AudioLimits) -> None:
    if frames > limits.duration_s * rate_hz:
        raise DecodeError(
            "too_long", f"{frames / rate_hz:.0f} s of audio; up to {limits.duration_s} s are read"
        )
    if frames * channels * 4 > limits.decoded_bytes:
        raise DecodeError(
            "too_large",
            f"{frames} x {channels} samples; up to {limits.decoded_bytes} decoded bytes are read",
        )


def _mono_blocks(
    file: "soundfile.SoundFile", info: AudioInfo, limits: AudioLimits
) -> Iterator[Samples]:
    """Blocks of mono; checked for NaN and for the limits as they come."""
    for block_NC in _blocks(file, info, limits):
        yield _mono(block_NC)


def _blocks(
    file: "soundfile.SoundFile", info: AudioInfo, limits: AudioLimits, total: int = 0
) -> Iterator[Samples]:
    """Blocks of (N, C), each in the place of the one before; `total` samples lie before them."""
    block_NC = np.empty((_BLOCK_SAMPLES // info.channels, info.channels), np.float32)
    while True:
        read_NC = file.read(out=block_NC)
        if not len(read_NC):
            return
        total += len(read_NC)
        _check_length(total, info.rate_hz, info.channels, limits)
        if not np.isfinite(read_NC).all():
            raise DecodeError("non_finite", f"NaN or infinity before sample {total}")
        yield read_NC


def _mono(block_NC: Samples, channels: tuple[int, ...] | None = None) -> Samples:
    """Mean of channels, (N, C) -> (N,); a copy."""
    if channels is not None:
        block_NC = block_NC[:, list(channels)]
    if block_NC.shape[1] == 1:
        return block_NC[:, 0].copy()
    # double sums: the same mean whatever the order of the additions
    mean_N: Samples = block_NC.mean(axis=1, dtype=np.float64).astype(np.float32)
    return mean_N
