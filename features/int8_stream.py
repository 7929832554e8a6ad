"""Reading an int8 stream: values come back as floats, `raw` has what is stored."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.errors import StoreError
from mmfuse.features.int8 import BLOCK_ROWS, dequantise
from mmfuse.features.spec import Array
from mmfuse.features.store import Stream


class Int8Stream(Stream):
    """`stream[clip]` and `at` give float32 copies, `gather` fills float16 or float32 buffers."""

    def __init__(
        self, root: Path, key: str, document: dict[str, Any], access: str, scales: Stream
    ) -> None:
        super().__init__(root, key, document, access)
        self.scales = scales

    @property
    def dtype(self) -> "np.dtype[Any]":
        """Of what `at` gives."""
        return np.dtype(np.float32)

    @cached_property
    def scale_entries(self) -> NDArray[np.int64]:
        """The entry of `scales` that belongs to each entry, (n,) int64.

        Raises:
            StoreError: an entry has none, or one of another number of blocks or another content.
        """
        names = ["clip_id", "view", "content", "rows"]
        ours, theirs = self.table.select(names), self.scales.table.select(names)
        found = np.full(len(self), -1, np.int64)
        for view in np.unique(self.views).tolist():
            rows = np.flatnonzero(self.views == view)
            found[rows] = self.scales.find(ours["clip_id"].take(rows).to_pylist(), view)
        wrong = found < 0
        if not wrong.any():
            wrong = self.scales.lengths[found] != -(-self.lengths // BLOCK_ROWS)
            others = theirs["content"].take(found)
            wrong |= ~np.asarray([a == b for a, b in zip(ours["content"], others, strict=True)])
        if wrong.any():
            clip_id = ours["clip_id"][int(np.flatnonzero(wrong)[0])].as_py()
            raise StoreError(
                f"{self.scales.key} of {self._root} does not hold the scales of clip {clip_id!r} "
                f"in {self.key}; give the mmfeat command again that makes them"
            )
        return found

    def raw(self, entry: int) -> tuple[Array, Array]:
        """Views of (T, *item) int8 and of (ceil(T / 512), *item) float32."""
        return self.stored(entry), self.scales.stored(int(self.scale_entries[entry]))

    def at(self, entry: int) -> Array:
        """Values of an entry, (T, *item) float32, read-only; a copy."""
        stored, scales = self.raw(entry)
        out = np.empty(stored.shape, np.float32)
        dequantise(stored, scales, out)
        out.flags.writeable = False
        return out

    def gather(self, entries: Sequence[int] | NDArray[np.int64], out: Array) -> NDArray[np.int64]:
        """As `Stream.gather`; `out` is float16 or float32."""
        bounds = np.concatenate([[0], np.cumsum(self.lengths[entries])])
        for entry, first, last in zip(entries, bounds[:-1], bounds[1:], strict=True):
            stored, scales = self.raw(int(entry))
            dequantise(stored, scales, out[first:last])
        return bounds

    def will_need(self, entries: Sequence[int] | NDArray[np.int64]) -> None:
        """Ask the system to read entries and their scales ahead."""
        super().will_need(entries)
        if len(entries):
            self.scales.will_need(self.scale_entries[np.asarray(entries, np.int64)])
