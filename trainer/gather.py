"""Copies rows of many clips side by side, each clip's in one stretch, by compiled loops.

Importing this imports numba. Arrays are flat; a row has `width` numbers. Padding is zeros, without
a time. Not compiled, the same functions run, clip by clip.

Shapes: B batch, T row of a clip, R row of all.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.compiled import compiled, inner


@inner
def clock(
    times_R: NDArray[np.float32],
    starts_B: NDArray[np.int64],
    rows_B: NDArray[np.int64],
    times_BT: NDArray[np.float32],
    mask_BT: NDArray[np.bool_],
) -> None:
    """Seconds of rows `starts_B[b]` on, `rows_B[b]` of them, and where there are any."""
    for b in range(len(starts_B)):
        start, count = starts_B[b], rows_B[b]
        times_BT[b, :count] = times_R[start : start + count]
        times_BT[b, count:] = np.nan
        mask_BT[b, :count] = True
        mask_BT[b, count:] = False


@compiled
def spread(
    values: NDArray[Any],
    width: int,
    starts_B: NDArray[np.int64],
    rows_B: NDArray[np.int64],
    out: NDArray[Any],
    times_R: NDArray[np.float32],
    times_BT: NDArray[np.float32],
    mask_BT: NDArray[np.bool_],
) -> None:
    """`clock`, and the same rows to the b-th part of `out`, in its dtype."""
    clock(times_R, starts_B, rows_B, times_BT, mask_BT)
    part = len(out) // len(starts_B)
    for b in range(len(starts_B)):
        start, count, to = starts_B[b] * width, rows_B[b] * width, b * part
        out[to : to + count] = values[start : start + count]
        out[to + count : to + part] = 0


@compiled
def spread_halves(
    bits: NDArray[np.uint16],
    width: int,
    starts_B: NDArray[np.int64],
    rows_B: NDArray[np.int64],
    out: NDArray[np.float32],
    out_bits: NDArray[np.uint32],
    times_R: NDArray[np.float32],
    times_BT: NDArray[np.float32],
    mask_BT: NDArray[np.bool_],
) -> None:
    """`spread` of float16, which numba does not know as numbers, from its bits.

    `out_bits` is `out`. Exponents of float16 are those of float32 less 112, of subnormals too, so
    one product mends them; of infinities and NaN all bits of the exponent are set.
    """
    clock(times_R, starts_B, rows_B, times_BT, mask_BT)
    part = len(out) // len(starts_B)
    sign, rest, infinite = np.uint32(0x8000), np.uint32(0x7FFF), np.uint32(0x7C00)
    for b in range(len(starts_B)):
        for row in range(rows_B[b]):
            start, to = (starts_B[b] + row) * width, b * part + row * width
            half, whole = bits[start : start + width], out_bits[to : to + width]
            number = out[to : to + width]
            for i in range(width):
                whole[i] = (np.uint32(half[i]) & rest) << np.uint32(13)
            for i in range(width):
                number[i] *= np.float32(2.0**112)
            for i in range(width):
                told = np.uint32(half[i])
                full = np.uint32(0x7F800000) if (told & infinite) == infinite else np.uint32(0)
                whole[i] |= ((told & sign) << np.uint32(16)) | full
        out[b * part + rows_B[b] * width : (b + 1) * part] = 0


@compiled
def crop(
    times_R: NDArray[np.float32],
    starts_B: NDArray[np.int64],
    rows_B: NDArray[np.int64],
    spans_2B: NDArray[np.float32],
) -> None:
    """Narrow rows to those between two times, in place."""
    for b in range(len(starts_B)):
        times_T = times_R[starts_B[b] : starts_B[b] + rows_B[b]]
        first = np.searchsorted(times_T, spans_2B[0, b])
        last = np.searchsorted(times_T, spans_2B[1, b])
        starts_B[b], rows_B[b] = starts_B[b] + first, last - first
