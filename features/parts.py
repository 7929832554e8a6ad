"""Sources that are a part of a file: a member of an archive, a stretch of a recording."""

import io
from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO

from mmfuse.features.clip import Source
from mmfuse.features.errors import ClipError


@dataclass(frozen=True, slots=True)
class Member(Source):
    """`size` bytes of a file from `offset` on, e.g. one file of a tar."""

    offset: int = 0
    size: int = 0

    def read(self) -> bytes:
        """The bytes of the part. Raises ClipError as `Source.read`, or if the file is shorter."""
        with Source.open(self) as file:
            try:
                file.seek(self.offset)
                data = file.read(self.size)
            except OSError as error:
                raise self._unreadable(error) from None
        if len(data) < self.size:
            raise ClipError(
                "unreadable", f"{self.where}: {self.path!r} is shorter than it was; read it again"
            )
        return data

    def open(self) -> BinaryIO:
        """The part, in memory, open for reading."""
        return io.BytesIO(self.read())


@dataclass(frozen=True, slots=True)
class Stretch(Source):
    """`duration_s` of a recording from `start_s` on, of some of its channels; None: of all.

    `open` gives the whole recording, whose headers say when it begins.
    """

    duration_s: Fraction = Fraction(0)
    channels: tuple[int, ...] | None = None

    def read(self) -> bytes:
        """The stretch as a WAV file of float32, mono.

        Raises:
            ClipError: as `Source.read`, and where the recording can't be decoded or ends before.
        """
        from mmfuse.features.audio import read_stretch

        whole = Source.read(self)
        return read_stretch(whole, self.start_s, self.duration_s, self.channels)
