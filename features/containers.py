"""Audio containers: which one it is, and whether it is whole, before a decoder sees it.

libsndfile shortens a cut WAV, AIFF or Ogg file, and leaves out damaged Ogg pages, without a word.
So the data chunk must be there whole, every Ogg page must carry its checksum and follow the one
before, and a codec that we don't open is refused by its number. Sizes are read, never believed.

Source: RIFF/RF64 (EBU Tech 3306), BW64 (ITU-R BS.2088), AIFF-C, Wave64, Ogg (RFC 3533), Xing tag.
"""

import zlib
from collections.abc import Iterator
from typing import Literal

from mmfuse.features.errors import DecodeError

_WAVE_TAGS = {1, 3, 6, 7, 0xFFFE}  # PCM, float, A-law, mu-law, extensible
_AIFC_CODECS = {b"NONE", b"twos", b"sowt", b"raw ", b"in24", b"in32", b"42ni", b"23ni",
                b"fl32", b"FL32", b"fl64", b"FL64", b"ulaw", b"ULAW", b"alaw", b"ALAW"}  # fmt: skip
W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # of the GUIDs that end a FourCC
_MAX_CHUNKS = 10_000
_SEVERAL_OGG = "several Ogg streams in one file; split them first"


def container_of(data: bytes) -> str | None:
    """The container, by its magic; None if it is none that we read."""
    if data[8:12] == b"WAVE" and data[:4] in (b"RIFF", b"RF64", b"BW64"):
        return "WAV" if data[:4] == b"RIFF" else data[:4].decode()
    if data[:4] == b"FORM" and data[8:12] in (b"AIFF", b"AIFC"):
        return "AIFF"
    if data[:4] == b"riff" and data[4:8] == bytes.fromhex("2e91cf11"):
        return "W64"
    if data[:4] in (b"fLaC", b"OggS"):
        return "FLAC" if data[:4] == b"fLaC" else "Ogg"
    # ff fe could begin a frame of layer I with a checksum, but begins UTF-16 texts
    is_frame = len(data) > 2 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0 and data[1] != 0xFE
    # layer, bit rate and sample rate have values that no frame uses
    if is_frame and data[1] & 0x06 and data[1] & 0x18 != 0x08 and data[2] < 0xF0:
        return "MP3" if data[2] & 0x0C != 0x0C else None
    return "MP3" if data[:3] == b"ID3" else None


def check_container(container: str, data: bytes) -> None:
    """Refuse what is cut short, damaged, or in a codec that we don't open.

    Raises:
        DecodeError: reasons `truncated`, `damaged`, `codec`.
    """
    if container in ("WAV", "RF64", "BW64"):
        _check_riff(container, data)
    elif container == "AIFF":
        for name, body, size in _chunks(data, 12, "big"):
            if name == b"COMM":
                _check_whole(container, body + size, len(data))
                kind = data[body + 18 : body + 22]
                if data[8:12] == b"AIFC" and kind not in _AIFC_CODECS:
                    raise DecodeError("codec", codec_text(f"AIFF-C {kind!r}"))
            if name == b"SSND":
                _check_whole(container, body + size, len(data))
                return
        _check_whole(container, 8 + int.from_bytes(data[4:8], "big"), len(data))
    elif container == "W64":
        for name, body, size in _w64_chunks(data):
            if name == b"fmt ":
                _check_wave_tag(container, data, body, size)
            if name == b"data":
                _check_whole(container, body + size, len(data))
                return
        _check_whole(container, int.from_bytes(data[16:24], "little"), len(data))
    elif container == "FLAC":
        _check_whole(container, _flac_header_end(data), len(data))
    elif container == "Ogg":
        _check_ogg(data)
    elif container == "MP3":
        start, tag = _xing(data)
        flags = int.from_bytes(data[tag + 4 : tag + 8], "big") if tag else 0
        at = tag + 8 + 4 * (flags & 1)
        size = int.from_bytes(data[at : at + 4], "big") if flags & 2 else 0
        # a percent of grace: encoders differ in what they count; the samples are counted too
        _check_whole(container, start + size - size // 100, len(data))


def without_tail(container: str, data: bytes) -> bytes:
    """The bytes without what follows the samples, where libsndfile would take it for samples."""
    if container == "W64":
        for name, body, size in _w64_chunks(data):
            if name == b"data":
                return data[: body + size]
    return data[:-128] if container == "FLAC" and data[-128:-125] == b"TAG" else data  # ID3v1


def _check_riff(container: str, data: bytes) -> None:
    long_size = None
    for name, body, size in _chunks(data, 12, "little"):
        if name == b"ds64":
            long_size = int.from_bytes(data[body + 8 : body + 16], "little")
        elif name == b"fmt ":
            _check_wave_tag(container, data, body, size)
        elif name == b"data":
            if size < 0xFFFFFFFF:
                _check_whole(container, body + size, len(data))
            elif long_size is not None:  # without it: written to a pipe, all there is counts
                _check_whole(container, body + long_size, len(data))
            return
    _check_whole(container, 8 + int.from_bytes(data[4:8], "little"), len(data))


def _check_wave_tag(container: str, data: bytes, body: int, size: int) -> None:
    _check_whole(container, body + size, len(data))
    tag = int.from_bytes(data[body : body + 2], "little")
    if tag == 0xFFFE and size >= 26:
        tag = int.from_bytes(data[body + 24 : body + 26], "little")
    if tag not in _WAVE_TAGS:
        raise DecodeError("codec", codec_text(f"{container} codec 0x{tag:04x}"))


def _chunks(
    data: bytes, start: int, order: Literal["little", "big"]
) -> Iterator[tuple[bytes, int, int]]:
    """(name, place of the body, size) of each chunk; sizes are as declared, not believed."""
    for _ in range(_MAX_CHUNKS):
        if start + 8 > len(data):
            return
        size = int.from_bytes(data[start + 4 : start + 8], order)
        yield data[start : start + 4], start + 8, size
        start += 8 + size + size % 2


def _w64_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    start = 40
    for _ in range(_MAX_CHUNKS):
        if start + 24 > len(data):
            return
        size = int.from_bytes(data[start + 16 : start + 24], "little")
        known = data[start + 4 : start + 16] == W64_TAIL
        yield data[start : start + 4] if known else b"", start + 24, max(size - 24, 0)
        start += max(size + -size % 8, 24)


def _check_whole(container: str, end: int, size: int) -> None:
    if end > size:
        raise DecodeError(
            "truncated",
            f"{container} file of {size} bytes is cut: its header promises {end} bytes; "
            "copy the file again from its source",
        )


def _flac_header_end(data: bytes) -> int:
    """Where the metadata blocks end and the frames begin, as declared."""
    start = 4
    for _ in range(_MAX_CHUNKS):
        head = data[start : start + 4]
        start += 4 + int.from_bytes(head[1:], "big")
        if len(head) < 4 or head[0] & 0x80:
            break
    return start


def _check_ogg(data: bytes) -> None:
    """Every page whole, intact and in turn, to the page that ends the stream.

    A decoder skips a page that is damaged or missing, and all that follows moves in time.
    """
    start, expected, ended, serial = 0, 0, False, data[14:18]
    while start < len(data) and not ended:
        header = data[start : start + 27]
        if not b"OggS".startswith(header[:4]):
            raise DecodeError("damaged", f"Ogg file without a page at byte {start}")
        lacing = data[start + 27 : start + 27 + header[26]] if len(header) == 27 else b""
        end = start + 27 + len(lacing) + sum(lacing)
        if len(header) < 27 or len(lacing) < header[26] or end > len(data):
            raise DecodeError("truncated", f"Ogg file of {len(data)} bytes ends inside a page")
        page = header[:22] + bytes(4) + data[start + 26 : end]
        if _ogg_crc(page) != int.from_bytes(header[22:26], "little"):
            raise DecodeError("damaged", f"the Ogg page at byte {start} fails its checksum")
        if header[14:18] != serial:
            raise DecodeError("codec", _SEVERAL_OGG)
        number = int.from_bytes(header[18:22], "little")
        if number != expected:
            raise DecodeError("damaged", f"Ogg page {number} where {expected} was expected")
        start, expected, ended = end, expected + 1, bool(header[5] & 4)
    if not ended:
        raise DecodeError("truncated", "Ogg file without the page that ends its stream")
    if data[start : start + 4] == b"OggS":
        raise DecodeError("codec", _SEVERAL_OGG)


def with_serial(data: bytes, serial: int) -> bytes:
    """A whole Ogg file under another serial number; libogg draws one by the clock."""
    pages, start = [], 0
    while start < len(data):
        lacing = data[start + 27 : start + 27 + data[start + 26]]
        end = start + 27 + len(lacing) + sum(lacing)
        head = (
            data[start : start + 14] + serial.to_bytes(4, "little") + data[start + 18 : start + 22]
        )
        crc = _ogg_crc(head + bytes(4) + data[start + 26 : end])
        pages += [head, crc.to_bytes(4, "little"), data[start + 26 : end]]
        start = end
    return b"".join(pages)


_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _ogg_crc(page: bytes) -> int:
    """CRC-32 of Ogg: zlib's polynomial with the bits the other way round and no inversion."""
    crc = zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)


def _xing(data: bytes) -> tuple[int, int]:
    """(place of the first MP3 frame, place of its Xing or Info tag, 0 if there is none)."""
    start = 0
    if data[:3] == b"ID3" and len(data) >= 10:
        size = data[6:10]
        start = 10 + (size[0] << 21) + (size[1] << 14) + (size[2] << 7) + size[3]
    tags = [data.find(tag, start, start + 64) for tag in (b"Xing", b"Info")]
    return start, max(*tags, 0)


def has_xing(data: bytes) -> bool:
    """Whether an MP3 states its length; otherwise the length is an estimate."""
    return _xing(data)[1] > 0


def codec_text(found: str) -> str:
    """What to say of a codec that is refused."""
    return f"{found} is not read; write PCM, float, FLAC, Vorbis, Opus or MP3"


def looks_like(data: bytes) -> str:
    """What bytes that are no audio seem to be, in words."""
    magics = {
        b"MThd": "a MIDI file", b"caff": "a CAF file", b".snd": "an AU file",
        b"RIFF": "a RIFF file that is not WAVE", b"\xff\xfe": "UTF-16 text",
        b"\x1aE\xdf\xa3": "a Matroska or WebM file",
        b"\x89PNG": "a PNG image", b"%PDF": "a PDF", b"PK\x03\x04": "a zip archive",
    }  # fmt: skip
    for magic, name in magics.items():
        if data.startswith(magic):
            return name
    if data[4:8] == b"ftyp":
        return "an MP4 or M4A file"
    if not data[:512].strip(b"\0"):
        return "zeros"
    try:
        text = data[:512].decode("utf-8", "strict" if len(data) <= 512 else "ignore")
    except UnicodeDecodeError:
        return f"no known kind of file (first bytes {data[:8].hex(' ')})"
    if all(letter.isprintable() or letter.isspace() for letter in text):
        return "HTML" if text.lstrip().lower().startswith(("<!doctype", "<html")) else "text"
    return f"no known kind of file (first bytes {data[:8].hex(' ')})"
