"""A picture of one value per pixel as a PNG with a palette, by nothing but zlib.

Source: PNG specification, third edition (W3C, 2025); the colours are eleven samples of `magma` by
Stéfan van der Walt and Nathaniel Smith (CC0), straight lines between them: lightness rises evenly,
and so it does for the colour-blind.
"""

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

_MAGMA = ("000004", "140e36", "3b0f70", "641a80", "8c2981", "b73779", "de4968", "f7705c", "fe9f6d",
          "fecf92", "fcfdbf")  # fmt: skip


def palette() -> NDArray[np.uint8]:
    """The 256 colours from black to pale yellow, (256, 3)."""
    known = np.array([list(bytes.fromhex(colour)) for colour in _MAGMA], np.float64)
    at = np.linspace(0, len(known) - 1, 256)
    columns = [np.interp(at, np.arange(len(known)), known[:, c]) for c in range(3)]
    return np.round(np.stack(columns, axis=1)).astype(np.uint8)


def png(levels_HW: NDArray[np.uint8]) -> bytes:
    """(H, W) places in the palette, the top row first -> the file."""
    height, width = levels_HW.shape
    rows = np.zeros((height, width + 1), np.uint8)  # before each row, its filter: none
    rows[:, 1:] = levels_HW
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    parts = (
        (b"IHDR", header),
        (b"PLTE", palette().tobytes()),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in parts)


def data_uri(data: bytes, kind: str) -> str:
    """Bytes as they stand in a page: `data:image/png;base64,...`."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
