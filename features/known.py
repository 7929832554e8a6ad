"""What a stream holds already, found by clip id, in 12 bytes of memory an entry."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmfuse.features.sidecars import Ids, Sidecars, hashes_of

_COLUMNS = ("clip_id", "view", "content")


class Known:
    """Content hashes of the entries of some shards.

    Raises:
        StoreError: a sidecar is damaged.
    """

    def __init__(self, root: Path, key: str, shards: Iterable[dict[str, Any]]) -> None:
        self._sidecars = Sidecars(root, key, shards)
        hashes = np.empty(len(self._sidecars), np.int64)
        for rows, table in self._sidecars:
            hashes[rows] = hashes_of(table["clip_id"].to_pylist())
        self._ids = Ids(hashes)

    def counts(self, clip_ids: Sequence[str]) -> NDArray[np.int64]:
        """How many entries each of these ids has, (n,), by its hash alone."""
        return self._ids.counts(clip_ids)

    def of(self, clip_ids: Sequence[str]) -> dict[tuple[str, int], bytes]:
        """Content of each view of these clips; the last one where a view was stored anew."""
        which, rows = self._ids.candidates(clip_ids)
        rows = np.sort(rows[self._sidecars.are(rows, pa.array(clip_ids, pa.string()).take(which))])
        contents: dict[tuple[str, int], bytes] = {}
        for _, table, places in self._sidecars.by_shard(rows):
            columns = table.select(_COLUMNS).take(places)
            for clip_id, view, content in zip(*(c.to_pylist() for c in columns), strict=True):
                contents[clip_id, view] = content
        return contents
