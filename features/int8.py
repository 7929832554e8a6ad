"""Frames as int8: half the bytes of float16, each channel scaled by its largest value in 512 rows.

Such a stream is two: whole numbers under the encoder's own name, and `NAME_scales` beside them, a
row of float32 for each block of 512 rows. Blocks begin with the entry, so its bytes do not depend
on what lies before it. Both are streams as any other, to be committed, checked, merged and read.

    scale = max |x| / 127 over a block's rows      q = round(x / scale)      x ~ q * scale

Source: symmetric per-channel quantisation, Jacob et al., arXiv 1712.05877, section 2.1, with zero
point 0.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mmfuse.features.errors import ConfigError, DecodeError
from mmfuse.features.spec import Array, Entry, StreamSpec, all_finite

BLOCK_ROWS = 512
_LARGEST = np.float32(127)
_PARAM, _OF = "int8_block_rows", "scales_of"


def is_quantised(spec: StreamSpec) -> bool:
    """Whether a stream's values are to be multiplied by those of `scales_spec`."""
    return _PARAM in spec.params


def is_scales(spec: StreamSpec) -> bool:
    """Whether a stream holds the scales of another."""
    return _OF in spec.params


def values_spec(spec: StreamSpec) -> StreamSpec:
    """The int8 variant of a stream of floats.

    Raises:
        ConfigError: it does not hold floats.
    """
    if not spec.dtype.startswith("float"):
        raise ConfigError(
            f'dtype = "int8": {spec.name} is {spec.dtype}, not frames of floats; leave dtype out'
        )
    return replace(spec, dtype="int8", params={**spec.params, _PARAM: BLOCK_ROWS})


def scales_spec(values: StreamSpec) -> StreamSpec:
    """The stream beside a quantised one: (ceil(rows / 512), *item) float32."""
    params = {_OF: values.fingerprint}
    return StreamSpec(f"{values.name}_scales", values.modality, values.item, "float32", params)


def with_scales(manifest: Mapping[str, Any], keys: Collection[str]) -> list[str]:
    """Keys of streams of a manifest, and of the scales that belong to them."""
    found = list(keys)
    for key in keys:
        if key in manifest["streams"]:
            spec = StreamSpec.from_json(manifest["streams"][key]["spec"])
            if is_quantised(spec) and (scales := scales_spec(spec).key) in manifest["streams"]:
                found.append(scales)
    return list(dict.fromkeys(found))


def quantise(values: Array) -> tuple[Array, Array]:
    """(T, *item) floats -> int8 of that shape, and (ceil(T / 512), *item) float32 scales."""
    wide = np.asarray(values, np.float32)
    blocks = -(-len(wide) // BLOCK_ROWS)
    stored = np.zeros(wide.shape, np.int8)
    scales = np.zeros((blocks, *wide.shape[1:]), np.float32)
    for block in range(blocks):
        rows = slice(block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS)
        peak = np.abs(wide[rows]).max(axis=0)
        peak[peak < 1e-30] = 0  # below it 1 / scale is no longer a float32
        scales[block] = peak / _LARGEST
        inverse = np.divide(_LARGEST, peak, out=np.zeros_like(peak), where=peak > 0)
        stored[rows] = np.clip(np.rint(wide[rows] * inverse), -_LARGEST, _LARGEST)
    return stored, scales


def dequantise(stored: Array, scales: Array, out: Array) -> None:
    """Write (T, *item) int8 times scales into contiguous `out`, float32 or, slower, float16."""
    from mmfuse.features.int8_loops import scale_rows

    if not len(stored):
        return
    wide = out if out.dtype == np.float32 else np.empty(stored.shape, np.float32)
    assert wide.flags.c_contiguous
    rows: list[Array] = [one.reshape(len(one), -1) for one in (stored, scales, wide)]
    scale_rows(rows[0], rows[1], BLOCK_ROWS, rows[2])
    if wide is not out:
        out[:] = wide


def quantised_entries(
    spec: StreamSpec, values: Array, windows: tuple[Any, ...]
) -> dict[str, Entry]:
    """Both entries of a clip, by stream name.

    Raises:
        DecodeError: `non_finite`.
    """
    if not all_finite(values):
        raise DecodeError("non_finite", f"{spec.name}: NaN or Inf")
    stored, scales = quantise(values)
    return {spec.name: Entry(stored, windows=windows), scales_spec(spec).name: Entry(scales)}


class Int8Encoder:
    """An encoder whose frames are kept as int8; `join` of `encoders.py` quantises whole clips."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        values = [values_spec(spec) for spec in encoder.specs]
        self.specs: tuple[StreamSpec, ...] = (*values, *map(scales_spec, values))

    def __getattr__(self, name: str) -> Any:
        """All else is the encoder's: rate, windows, frames, encode."""
        return getattr(self._encoder, name)
