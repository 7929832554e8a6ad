"""TensorBoard's event files, written without TensorBoard: numbers by step, and a text.

A file is records of: length as uint64, its masked crc32c, an `Event` protobuf, its masked crc32c.
The few fields that are needed are encoded here; the tests read them with TensorBoard itself.
Importing a library for it would take longer than an epoch of a small model.

Source: TensorFlow, `core/lib/io/record_writer.cc`, `core/util/event.proto`,
`core/framework/summary.proto`.
"""

import struct
import time
from collections.abc import Mapping
from pathlib import Path

from crc32c import crc32c

PREFIX = "events.out.tfevents."


class EventFile:
    """One new file in a folder; what is written is on its way to the disk at once."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / f"{PREFIX}{time.time_ns() // 1000}.mmfuse").open("xb")
        self._write(0, _bytes(3, b"brain.Event:2"))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by tag, at a step."""
        parts = [_bytes(1, tag.encode()) + _float(2, value) for tag, value in values.items()]
        self._write(step, _bytes(5, b"".join(_bytes(1, part) for part in parts)))

    def text(self, tag: str, text: str) -> None:
        """A text (Markdown) without a step."""
        string = _varint(1, 7) + _bytes(2, b"") + _bytes(8, text.encode())
        plugin = _bytes(1, _bytes(1, b"text"))
        value = _bytes(1, tag.encode()) + _bytes(8, string) + _bytes(9, plugin)
        self._write(0, _bytes(5, _bytes(1, value)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, step: int, what: bytes) -> None:
        event = struct.pack("<Bd", 1 << 3 | 1, time.time()) + _varint(2, step) + what
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked(length) + event + _masked(event))
        self._file.flush()


def _masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _varint(field: int, value: int) -> bytes:
    return _number(field << 3) + _number(value)


def _float(field: int, value: float) -> bytes:
    return _number(field << 3 | 5) + struct.pack("<f", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _number(field << 3 | 2) + _number(len(value)) + value
