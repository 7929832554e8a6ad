"""What a stream holds already, found by clip id: 12 bytes of memory an entry, however long its id.

Ids are looked up by their crc32; the few that share one are told apart by the sidecar itself.
"""

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmfuse.features import layout
from mmfuse.features.index import read_sidecar
from mmfuse.features.spec import Array


class Known:
    """Content hashes of the entries of some shards.

    Raises:
        StoreError: a sidecar is damaged.
    """

    def __init__(self, root: Path, key: str, shards: Iterable[dict[str, Any]]) -> None:
        self._sidecars = [
            (layout.sidecar_path(root, key, shard["k"]), int(shard["entries"])) for shard in shards
        ]
        codes = [_codes(read_sidecar(*sidecar)["clip_id"]) for sidecar in self._sidecars]
        every = np.concatenate([np.empty(0, np.uint32), *codes])
        self._order = np.argsort(every, kind="stable")
        self._codes = every[self._order]
        self._ends = np.cumsum([entries for _, entries in self._sidecars], dtype=np.int64)

    def of(self, clip_ids: list[str]) -> dict[tuple[str, int], bytes]:
        """Content of each view of these clips; the last one where a view was stored anew."""
        wanted = set(clip_ids)
        codes = np.unique(_codes(clip_ids))
        lows = np.searchsorted(self._codes, codes, "left")
        highs = np.searchsorted(self._codes, codes, "right")
        found = [self._order[low:high] for low, high in zip(lows, highs, strict=True) if high > low]
        rows = np.sort(np.concatenate([np.empty(0, np.int64), *found]))
        shard_of = np.searchsorted(self._ends, rows, "right")
        contents: dict[tuple[str, int], bytes] = {}
        for shard in np.unique(shard_of):
            path, entries = self._sidecars[shard]
            table = read_sidecar(path, entries).select(["clip_id", "view", "content"])
            local = rows[shard_of == shard] - (self._ends[shard] - entries)
            columns = table.take(pa.array(local))
            for clip_id, view, content in zip(*(c.to_pylist() for c in columns), strict=True):
                if clip_id in wanted:
                    contents[clip_id, view] = content
        return contents


def _codes(clip_ids: "Iterable[str] | pa.ChunkedArray") -> Array:
    ids = clip_ids.to_pylist() if isinstance(clip_ids, pa.ChunkedArray) else list(clip_ids)
    return np.fromiter((zlib.crc32(name.encode()) for name in ids), np.uint32, len(ids))
