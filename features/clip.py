"""One clip: any non-empty subset of text, audio and MIDI, with what its manifest says about it."""

import io
import os
import stat
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from mmfuse.features.errors import ClipError

MAX_FILE_BYTES = 8 * 2**30
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe put in the file's place hangs nobody


@lru_cache(1024)
def _real_folder(path: str) -> str:
    """A folder with symbolic links resolved; most files of a corpus lie in few folders."""
    return os.path.realpath(path, strict=True)


def _real(path: str) -> str:
    """A file with symbolic links resolved."""
    folder, _, name = path.rpartition(os.sep)
    real = f"{_real_folder(folder or os.sep)}{os.sep}{name}"
    is_plain = name not in ("", ".", "..") and not stat.S_ISLNK(os.lstat(real).st_mode)
    return real if is_plain else os.path.realpath(path, strict=True)


@dataclass(frozen=True, slots=True)
class Source:
    """Bytes of one modality: in a file below `root`, or at hand.

    `where` names row and column of the manifest, for messages. `start_s` is what lies before them
    in the recording of which they are a part.
    """

    where: str
    root: Path
    path: str | None = None
    data: bytes | None = None
    start_s: Fraction = Fraction(0)

    def read(self) -> bytes:
        """The bytes.

        Raises:
            ClipError: no such file, not a regular file, or outside the corpus' root.
        """
        if self.data is not None:
            return self.data
        with self.open() as file:
            try:
                return file.read()
            except OSError as error:
                raise self._unreadable(error) from None

    def open(self) -> BinaryIO:
        """The bytes, open for reading; for whoever needs a part of them.

        Raises:
            ClipError: as `read`.
        """
        if self.data is not None:
            return io.BytesIO(self.data)
        assert self.path is not None
        try:
            root = str(self.root.absolute())
            real = _real(self.path if self.path.startswith(os.sep) else f"{root}/{self.path}")
            if not f"{real}/".startswith(_real_folder(root).rstrip(os.sep) + os.sep):
                raise ClipError(
                    "outside_root",
                    f"{self.where}: {self.path!r} leads out of the corpus folder {self.root}; "
                    "copy the file into it",
                )
            status = os.lstat(real)
            if not stat.S_ISREG(status.st_mode):
                raise ClipError(
                    "not_a_file", f"{self.where}: {self.path!r} is a folder or a device"
                )
            if status.st_size > MAX_FILE_BYTES:
                raise ClipError(
                    "too_large", f"{self.where}: {self.path!r} has {status.st_size} bytes"
                )
            return os.fdopen(os.open(real, _OPEN), "rb")
        except FileNotFoundError:
            raise ClipError(
                "missing_file",
                f"{self.where}: no file {self.path!r} below {self.root}; restore it, or leave the "
                "cell empty if the clip has none",
            ) from None
        except OSError as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: OSError) -> ClipError:
        return ClipError("unreadable", f"{self.where}: can't read {self.path!r}: {error.strerror}")


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

    @property
    def audio(self) -> str | None:
        """When the audio begins, as a label or a number of seconds."""
        return self.audio_smpte or self.audio_start_s

    @property
    def midi(self) -> str | None:
        """When the MIDI begins."""
        return self.midi_smpte or self.midi_start_s


@dataclass(frozen=True, slots=True)
class Estimate:
    """MIDI start minus audio start as found by listening; counts where no start is told."""

    offset_s: Fraction
    confidence: float


@dataclass(frozen=True, slots=True)
class Clip:
    """A row of a manifest. None means that the modality is missing, which is no error.

    A label is a tuple where the manifest has a list.
    """

    id: str
    text: str | None = None
    audio: Source | None = None
    midi: Source | None = None
    label: str | tuple[str, ...] | None = None
    split: str | None = None
    group: str | None = None
    origins: Origins = Origins()
    estimate: Estimate | None = None
