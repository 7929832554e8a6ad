"""The bytes of a stream's shards: mapped, or read where mapping is slow (network file systems).

Either way a shard is opened when it is first asked for, after its own index was seen to be the one
that the layout demands, and no more than a bounded number of them is open at a time. What was
handed out stays valid when its shard is closed.
"""

import mmap
import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmfuse.features import layout
from mmfuse.features.errors import StoreError
from mmfuse.features.spec import Array, StreamSpec

ACCESS = ("map", "read")


class Shards(Protocol):
    """Rows of shards by their number."""

    def rows(self, shard: int, start: int, stop: int) -> Array:
        """Rows `start` to `stop`, (stop - start, *item), not to be written to."""

    def copy(self, shard: int, start: int, out: Array) -> None:
        """Copy len(out) rows from `start` on into `out`."""

    def will_need(self, shard: int, starts: Array, lengths: Array) -> None:
        """Have runs of rows read ahead, without waiting for it."""


def open_shards(
    root: Path, key: str, spec: StreamSpec, stream: Mapping[str, Any], access: str
) -> Shards:
    """The shards of a stream, by one of `ACCESS`."""
    return (_Mapped if access == "map" else _Read)(root, key, spec, stream)


def most_open() -> int:
    """Shards that a stream keeps open: a sixteenth of the files that the process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(max(soft // 16, 16), 2048)


class _Opened:
    """Opens shards once their index was seen to be right."""

    def __init__(self, root: Path, key: str, spec: StreamSpec, stream: Mapping[str, Any]) -> None:
        self._root, self._key, self._spec = root, key, spec
        self._shard_rows = stream["shard_rows"]
        self._shards = {shard["k"]: shard for shard in stream["shards"]}
        self._most = most_open()

    def _open(self, k: int) -> int:
        shard = self._shards[k]
        path = layout.shard_path(self._root, self._key, k, self._spec.item)
        index = layout.shard_index(
            layout.used_inner(shard["rows"]), self._shard_rows, self._spec.row_bytes
        )
        layout.require_regular(self._root, path, shard["bytes"])
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        if os.pread(descriptor, len(index), shard["bytes"] - len(index)) != index:
            os.close(descriptor)
            raise StoreError(f"{path} is damaged: its index is not the one written")
        return descriptor

    def will_need(self, shard: int, starts: Array, lengths: Array) -> None:
        """Have runs of rows read ahead, unless they are in memory.

        To hint what is there takes as long as to copy a third of it; to look at both ends, nothing.
        """
        if not hasattr(os, "posix_fadvise"):
            return
        path = layout.shard_path(self._root, self._key, shard, self._spec.item)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            offsets, sizes = starts * self._spec.row_bytes, lengths * self._spec.row_bytes
            for offset, size in zip(offsets.tolist(), sizes.tolist(), strict=True):
                if size and not _in_memory(descriptor, offset, offset + size - 1):
                    os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)


def _in_memory(descriptor: int, *offsets: int) -> bool:
    """Whether these bytes of a file can be read without waiting for the disk."""
    try:
        return all(os.preadv(descriptor, [bytearray(1)], at, os.RWF_NOWAIT) for at in offsets)
    except OSError:  # not there, or a file system that can't tell
        return False


class _Mapped(_Opened):
    """Views of mapped files; the oldest map is let go first, and unmapped with its last view."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._maps: dict[int, Array] = {}

    def rows(self, shard: int, start: int, stop: int) -> Array:
        values = self._maps.get(shard)
        return (self._map(shard) if values is None else values)[start:stop]

    def copy(self, shard: int, start: int, out: Array) -> None:
        out[:] = self.rows(shard, start, start + len(out))

    def _map(self, k: int) -> Array:
        descriptor = self._open(k)
        try:
            mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
        rows = self._shards[k]["rows"]
        count = rows * int(np.prod(self._spec.item, dtype=np.int64))
        flat = np.frombuffer(mapped, dtype=self._spec.dtype, count=count)
        while len(self._maps) >= self._most:
            self._maps.pop(next(iter(self._maps)))
        self._maps[k] = flat.reshape(rows, *self._spec.item)
        return self._maps[k]


class _Read(_Opened):
    """Fresh arrays, filled by `preadv`: one request a clip instead of one a page."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._descriptors: dict[int, int] = {}

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def rows(self, shard: int, start: int, stop: int) -> Array:
        out = np.empty((stop - start, *self._spec.item), self._spec.dtype)
        self.copy(shard, start, out)
        out.flags.writeable = False
        return out

    def copy(self, shard: int, start: int, out: Array) -> None:
        descriptor = self._descriptors.get(shard)
        if descriptor is None:
            while len(self._descriptors) >= self._most:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            descriptor = self._descriptors[shard] = self._open(shard)
        straight = out.flags.c_contiguous and out.dtype == self._spec.dtype
        target = out if straight else np.empty(out.shape, self._spec.dtype)
        left = target.reshape(-1).view(np.uint8).data
        offset = start * self._spec.row_bytes
        while left:
            size = os.preadv(descriptor, [left], offset)
            if size == 0:
                path = layout.shard_path(self._root, self._key, shard, self._spec.item)
                raise StoreError(f"{path} was cut short while it was open; restore it from a copy")
            left, offset = left[size:], offset + size
        if not straight:
            out[:] = target
