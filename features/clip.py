"""One clip: any non-empty subset of text, audio and MIDI, with what its manifest says about it."""

import stat
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from mmfuse.features.clock import FrameRate, Timecode, wrap_s
from mmfuse.features.errors import AlignError, ClipError

MAX_FILE_BYTES = 8 * 2**30


@dataclass(frozen=True, slots=True)
class Source:
    """Bytes of one modality: in a file below `root`, or at hand.

    `where` names row and column of the manifest, for messages.
    """

    where: str
    root: Path
    path: str | None = None
    data: bytes | None = None

    def read(self) -> bytes:
        """The bytes.

        Raises:
            ClipError: no such file, not a regular file, or outside the corpus' root.
        """
        if self.data is not None:
            return self.data
        assert self.path is not None
        file = self.root / self.path
        try:
            resolved = file.resolve(strict=True)
            if not resolved.is_relative_to(self.root.resolve()):
                raise ClipError(
                    "outside_root",
                    f"{self.where}: {self.path!r} leads out of the corpus folder {self.root}; "
                    "copy the file into it",
                )
            status = resolved.stat()
            if not stat.S_ISREG(status.st_mode):
                raise ClipError(
                    "not_a_file", f"{self.where}: {self.path!r} is a folder or a device"
                )
            if status.st_size > MAX_FILE_BYTES:
                raise ClipError(
                    "too_large", f"{self.where}: {self.path!r} has {status.st_size} bytes"
                )
            return resolved.read_bytes()
        except FileNotFoundError:
            raise ClipError(
                "missing_file",
                f"{self.where}: no file {self.path!r} below {self.root}; restore it, or leave the "
                "cell empty if the clip has none",
            ) from None
        except OSError as error:
            raise ClipError(
                "unreadable", f"{self.where}: can't read {self.path!r}: {error.strerror}"
            ) from None


@dataclass(frozen=True, slots=True)
class Origins:
    """When the two streams begin, as the manifest says; all of it may be missing.

    SMPTE labels are read at `rate`; `*_start_s` are plain seconds, as text so that they stay exact.
    """

    rate: str | None = None
    audio_smpte: str | None = None
    midi_smpte: str | None = None
    audio_start_s: str | None = None
    midi_start_s: str | None = None


@dataclass(frozen=True, slots=True)
class Clip:
    """A row of a manifest. None means that the modality is missing, which is no error."""

    id: str
    text: str | None = None
    audio: Source | None = None
    midi: Source | None = None
    label: str | None = None
    split: str | None = None
    group: str | None = None
    origins: Origins = Origins()


def midi_offset_s(clip: Clip) -> tuple[Fraction, str]:
    """MIDI start minus audio start in seconds, exact, and a note where it had to be assumed.

    Add it to a MIDI time to have the time on the clip's timeline (0 = first audio sample). SMPTE
    differences are wrapped into half a day of the rate's own day. Without audio it is zero.

    Raises:
        AlignError: a rate, label or number can't be read.
    """
    if clip.audio is None:
        return Fraction(0), ""
    origins = clip.origins
    rate = FrameRate.parse(origins.rate) if origins.rate else None
    audio = _start_s(origins.audio_smpte, origins.audio_start_s, rate)
    midi = _start_s(origins.midi_smpte, origins.midi_start_s, rate)
    if audio is None or midi is None:
        if audio is None and midi is None:
            return Fraction(0), "no time origins: aligned at zero"
        missing = "audio" if audio is None else "MIDI"
        return Fraction(0), f"no time origin of the {missing}: aligned at zero"
    return (wrap_s(midi - audio, rate.day_s) if rate else midi - audio), ""


def _start_s(label: str | None, seconds: str | None, rate: FrameRate | None) -> Fraction | None:
    if label:
        if rate is None:
            raise AlignError(
                "no_rate", f"timecode {label!r} has no frame rate; fill the column smpte_rate"
            )
        return Timecode.parse(label, rate).seconds
    if not seconds:
        return None
    try:
        return Fraction(seconds)
    except (ValueError, ZeroDivisionError):
        raise AlignError("bad_start", f"{seconds!r} is no number of seconds") from None
