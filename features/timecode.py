"""When an audio file begins, as the file itself says: `bext` and iXML chunks, FLAC blocks and tags.

Conventions: an origin is a count of samples since midnight, divided by the file's own rate before
any resampling, so real seconds and not wall-clock digits. Only headers are read: sizes in a file
steer where to look next and are never believed or allocated. Where several places disagree the
first of `bext`, iXML, FLAC tag counts, and a warning says so.

Source: EBU Tech 3285 (bext), 3306 (RF64), ITU-R BS.2088 (BW64), iXML 3, Wave64, RFC 9639 (FLAC).
"""

import io
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from mmfuse.features.clock import FrameRate, Pull
from mmfuse.features.containers import W64_TAIL, container_of
from mmfuse.features.errors import AlignError, DecodeError

_MAX_CHUNKS = 10_000
_MAX_XML = 2**20  # bytes of an iXML chunk that are looked at; real ones have some thousands
_MAX_WARNINGS = 20
_MAX_TAG = 256  # bytes of a Vorbis comment that can be a count of samples
_BEXT_END = 346  # the time reference is its last field; what follows differs by version
_DAY_S = Fraction("86486.4")  # the longest: 23.976 and 29.97 non-drop
_ELEMENT = re.compile(r"<([A-Z_]{1,64})>([^<>]{1,64})</\1>")
_INTEGER = re.compile(r"[+-]?\d{1,20}", re.ASCII)
_FRACTION = re.compile(r"\d{1,9}/\d{1,9}", re.ASCII)
_HERTZ = re.compile(r"\d{1,9}", re.ASCII)
_SOURCES = ("bext", "FLAC riff bext", "iXML", "FLAC tag")
_WORDS = (  # low and high half of the count, in the order of preference
    ("TIMESTAMP_SAMPLES_SINCE_MIDNIGHT_LO", "TIMESTAMP_SAMPLES_SINCE_MIDNIGHT_HI"),
    ("BWF_TIME_REFERENCE_LOW", "BWF_TIME_REFERENCE_HIGH"),
)

Chunk = tuple[bytes, int, int]  # name, place of the body, bytes of it that are there


@dataclass(frozen=True, slots=True)
class AudioOrigin:
    """Time of day of an audio file's first sample.

    `seconds` since midnight is `time_reference / rate_hz`, exact, with any pull-up or pull-down
    that was asked for. `source` is "bext", "iXML", "FLAC riff bext" or "FLAC tag". `frame_rate` is
    what iXML says; `digitizer_hz` the rate at which it says the sound was truly recorded.
    """

    seconds: Fraction
    source: str
    time_reference: int
    rate_hz: int
    frame_rate: FrameRate | None = None
    digitizer_hz: int | None = None
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class _Found:
    """What the chunks said: sample rate, counts by source, elements of iXML, and what is wrong."""

    rate_hz: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    ixml: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seen: set[bytes] = field(default_factory=set)

    def count(self, source: str, samples: int) -> None:
        if self.counts.setdefault(source, samples) != samples:
            self.warn(f"more than one {source}, and they differ; the first counts")

    def warn(self, text: str) -> None:
        if text not in self.warnings and len(self.warnings) < _MAX_WARNINGS:
            self.warnings.append(text)


def read_audio_origin(
    source: bytes | BinaryIO | Path, pull: Pull = Pull.NONE
) -> AudioOrigin | None:
    """Read the time of day at which WAV, RF64, BW64, W64 or FLAC audio begins.

    Args:
        source: the file's bytes, the file open for reading and seeking, or its path.
        pull: how fast the recorder truly ran; scales the file's rate.

    Returns:
        None where the file says nothing about it, or is of another kind.

    Raises:
        DecodeError: `bad_origin`, it says something that can't be read; `unreadable`.
    """
    try:
        with _opened(source) as file:
            found = _look(file)
    except OSError as error:
        raise DecodeError("unreadable", f"can't read the audio file: {error}") from None
    sources = [name for name in _SOURCES if name in found.counts]
    if not sources:
        if found.warnings:
            raise DecodeError("bad_origin", f"no time origin: {'; '.join(found.warnings)}")
        return None
    first, others = sources[0], sources[1:]
    samples, ixml = found.counts[first], found.ixml
    # iXML states the rate of its own count; all else counts at the file's
    own_hz = _hertz(ixml, "TIMESTAMP_SAMPLE_RATE") if first == "iXML" else None
    rate_hz = own_hz or found.rate_hz
    if not rate_hz:
        raise DecodeError("bad_origin", f"{first} counts {samples} samples of a rate that is 0")
    true_hz = Fraction(own_hz) if own_hz else rate_hz * pull.factor
    for other in others:
        if found.counts[other] != samples:
            found.warn(f"{first} says {samples} samples, {other} {found.counts[other]}; "
                       f"{first} counts")  # fmt: skip
    for name in ("FILE_SAMPLE_RATE", "TIMESTAMP_SAMPLE_RATE", "DIGITIZER_SAMPLE_RATE"):
        hertz = _hertz(ixml, name)
        if hertz and hertz not in (found.rate_hz, found.rate_hz * pull.factor):
            found.warn(f"iXML says {name} {hertz} Hz, the file {found.rate_hz} Hz")
    if samples / true_hz >= _DAY_S:
        found.warn(f"{first} counts {samples} samples, more than a day")
    frame_rate = _frame_rate(found)
    digitizer_hz = _hertz(ixml, "DIGITIZER_SAMPLE_RATE")
    return AudioOrigin(samples / true_hz, first, samples, rate_hz, frame_rate, digitizer_hz,
                       tuple(found.warnings))  # fmt: skip


def _opened(source: bytes | BinaryIO | Path) -> AbstractContextManager[BinaryIO]:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    return source.open("rb") if isinstance(source, Path) else nullcontext(source)


def _read(file: BinaryIO, place: int, size: int) -> bytes:
    """Bytes at a place that is known to lie in the file."""
    file.seek(place)
    return file.read(size)


def _look(file: BinaryIO) -> _Found:
    """Go through all chunks; those after the samples count too."""
    found, end = _Found(), file.seek(0, io.SEEK_END)
    container = container_of(_read(file, 0, 40))
    walk = {"WAV": _riff_chunks, "RF64": _riff_chunks, "BW64": _riff_chunks,
            "W64": _w64_chunks, "FLAC": _flac_chunks}.get(container or "")  # fmt: skip
    for name, place, size in walk(file, end) if walk else ():
        if name == b"fmt " and size >= 8 and not found.rate_hz:
            found.rate_hz = int.from_bytes(_read(file, place + 4, 4), "little")
        elif name == b"streaminfo" and size >= 13 and not found.rate_hz:
            found.rate_hz = int.from_bytes(_read(file, place + 10, 3), "big") >> 4
        elif name == b"bext" and size < _BEXT_END:
            found.warn(f"bext of {size} bytes; its time reference ends at {_BEXT_END}")
        elif name == b"bext":
            reference = _read(file, place + _BEXT_END - 8, 8)
            source = "FLAC riff bext" if container == "FLAC" else "bext"
            found.count(source, int.from_bytes(reference, "little"))
        elif name in found.seen:
            if name == b"iXML":
                found.warn("more than one iXML; the first counts")
        elif name == b"iXML":
            _take_ixml(_read(file, place, min(size, _MAX_XML)), found)
        elif name == b"comments":
            _take_tags(file, place, place + size, found)
        found.seen.add(name)
    return found


def _riff_chunks(file: BinaryIO, end: int) -> Iterator[Chunk]:
    place, long_sizes = 12, dict[bytes, int]()
    for _ in range(_MAX_CHUNKS):
        if place + 8 > end:
            return
        head = _read(file, place, 8)
        name, size, body = head[:4], int.from_bytes(head[4:], "little"), place + 8
        if size == 0xFFFFFFFF:  # without a true size it was written to a pipe: all that is there
            size = long_sizes.get(name, end - body)
        if name == b"ds64" and not long_sizes:
            long_sizes = _long_sizes(_read(file, body, min(size, 28 + 12 * 64, end - body)))
        yield name, body, min(size, end - body)
        place = body + size + size % 2


def _long_sizes(ds64: bytes) -> dict[bytes, int]:
    """Sizes that don't fit 32 bits: that of `data`, then a table of others."""
    rows = [ds64[start : start + 12] for start in range(28, len(ds64) - 11, 12)]
    rows = rows[: int.from_bytes(ds64[24:28], "little")]
    sizes = {row[:4]: int.from_bytes(row[4:], "little") for row in rows}
    return {**sizes, b"data": int.from_bytes(ds64[8:16], "little")}


def _w64_chunks(file: BinaryIO, end: int) -> Iterator[Chunk]:
    place = 40
    for _ in range(_MAX_CHUNKS):
        if place + 24 > end:
            return
        head = _read(file, place, 24)
        size = max(int.from_bytes(head[16:], "little"), 24)  # that of the head included
        yield _w64_name(head), place + 24, min(size - 24, end - place - 24)
        place += size + -size % 8


def _w64_name(head: bytes) -> bytes:
    return head[:4] if head[4:16] == W64_TAIL else b""


def _flac_chunks(file: BinaryIO, end: int) -> Iterator[Chunk]:
    """Blocks of metadata; a chunk that was kept from a RIFF or Wave64 file comes as itself."""
    place, last = 4, False
    for _ in range(_MAX_CHUNKS):
        if last or place + 4 > end:
            return
        head = _read(file, place, 28)
        kind, last, body = head[0] & 0x7F, head[0] >= 0x80, place + 4
        size = int.from_bytes(head[1:4], "big")
        there = min(size, end - body)
        place = body + size
        if kind in (0, 4):
            yield b"streaminfo" if kind == 0 else b"comments", body, there
        elif kind == 2 and head[4:8] == b"riff" and there >= 12:
            inner = int.from_bytes(head[12:16], "little")
            yield head[8:12], body + 12, min(inner, there - 12)
        elif kind == 2 and head[4:8] == b"w64 " and there >= 28:
            inner = int.from_bytes(_read(file, body + 20, 8), "little")
            yield _w64_name(head[8:]), body + 28, min(max(inner - 24, 0), there - 28)


def _take_tags(file: BinaryIO, place: int, end: int, found: _Found) -> None:
    """The tag `time_reference` of a Vorbis comment. Source: Vorbis I, section 5."""
    if place + 8 > end:
        return
    place += 4 + int.from_bytes(_read(file, place, 4), "little") + 4  # the vendor's name, a number
    for _ in range(_MAX_CHUNKS):
        if place + 4 > end:
            return
        size = int.from_bytes(_read(file, place, 4), "little")
        place += 4
        if 0 < size <= min(_MAX_TAG, end - place):
            name, _, value = _read(file, place, size).decode("utf-8", "replace").partition("=")
            if name.upper() == "TIME_REFERENCE" and _INTEGER.fullmatch(value := value.strip()):
                found.count("FLAC tag", int(value) % 2**64)
            elif name.upper() == "TIME_REFERENCE":
                found.warn(f"FLAC tag time_reference {value[:40]!r} is no number")
        place += size


def _take_ixml(data: bytes, found: _Found) -> None:
    """Elements without markup inside, by name; entities stay as they are and comments go."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    head, *rest = data.decode(encoding, "replace").split("<!--")
    text = head + "".join(part.partition("-->")[2] for part in rest)
    for match in _ELEMENT.finditer(text):
        found.ixml.setdefault(match[1], match[2].strip())
    for names in _WORDS:
        words = [found.ixml.get(name) for name in names]
        if words == [None, None]:
            continue
        if all(word is None or _INTEGER.fullmatch(word) for word in words):
            # some write the low word as a signed one
            low, high = (int(word or 0) % 2**32 for word in words)
            return found.count("iXML", high << 32 | low)
        found.warn(f"iXML counts samples in words that are no numbers: {words}")
    return None


def _frame_rate(found: _Found) -> FrameRate | None:
    """TIMECODE_RATE, "30000/1001" or "29.97", with its flag."""
    text = found.ixml.get("TIMECODE_RATE")
    if text is None:
        return None
    flag = found.ixml.get("TIMECODE_FLAG", "")
    try:
        name = FrameRate(Fraction(text)).name if _FRACTION.fullmatch(text) else text
        return FrameRate.parse(name + "df" * (flag.upper() == "DF"))
    except (AlignError, ZeroDivisionError):
        found.warn(f"iXML says TIMECODE_RATE {text!r} {flag!r}, which is no SMPTE rate")
        return None


def _hertz(ixml: dict[str, str], name: str) -> int | None:
    text = ixml.get(name, "")
    return int(text) or None if _HERTZ.fullmatch(text) else None
