"""The entries of a stream: which row of which shard each is, and which of them count.

Where a clip and view were stored anew, only the last entry counts; entries are numbered without
the others, in the manifest's order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmfuse.features.sidecars import Ids, Rows, Sidecars, hashes_of


@dataclass(frozen=True, slots=True)
class Entries:
    """All entries that count, (n,) each: first row in the shard, rows, view, place in the sidecars.

    32 bytes an entry, index of ids and all.
    """

    sidecars: Sidecars
    starts: NDArray[np.int32]
    lengths: NDArray[np.int64]
    views: NDArray[np.int32]
    rows: NDArray[np.uint32]
    ids: Ids

    @classmethod
    def of(cls, sidecars: Sidecars) -> "Entries":
        """Read every sidecar once.

        Raises:
            StoreError: one is damaged.
        """
        count = len(sidecars)
        starts, views = np.empty(count, np.int32), np.zeros(count, np.int32)
        lengths, hashes = np.empty(count, np.int64), np.empty(count, np.int64)
        for rows, table in sidecars:
            starts[rows], lengths[rows] = table["start"].to_numpy(), table["rows"].to_numpy()
            hashes[rows] = hashes_of(table["clip_id"].to_pylist())
            if (view := table["view"].to_numpy()).any():  # else the zeros take no memory
                views[rows] = view
        ids = Ids(hashes)
        dead = _superseded(sidecars, ids.shared(), views)
        every = np.arange(count, dtype=np.uint32)
        if not len(dead):
            return cls(sidecars, starts, lengths, views, every, ids)
        live = np.delete(every, dead)
        return cls(sidecars, starts[live], lengths[live], views[live], live, Ids(hashes[live]))

    def find(self, clip_ids: Sequence[str], view: int) -> Rows:
        """Entry numbers of a view of clips, (n,) int64; -1 for none."""
        which, entries = self.ids.candidates(clip_ids)
        here = self.views[entries] == view
        which, entries = which[here], entries[here]
        asked = pa.array(clip_ids, pa.string())
        same = self.sidecars.are(self.rows[entries].astype(np.int64), asked.take(pa.array(which)))
        found = np.full(len(clip_ids), -1, np.int64)
        found[which[same]] = entries[same]
        return found

    def shards_of(self, entries: Sequence[int] | Rows) -> Rows:
        """Which shard each entry lies in, counted from 0."""
        return self.sidecars.shard_of(self.rows[entries].astype(np.int64))

    def record(self, entry: int) -> dict[str, Any]:
        """All that the sidecar says of an entry, by column."""
        return self.sidecars.record(int(self.rows[entry]))


def _superseded(sidecars: Sidecars, rows: Rows, views: NDArray[np.int32]) -> Rows:
    """Of rows, those whose clip id and view come again behind them."""
    parts = [pa.array([], pa.string())]
    parts += [table["clip_id"].take(places) for _, table, places in sidecars.by_shard(rows)]
    chunks = [chunk for part in parts for chunk in getattr(part, "chunks", [part])]
    table = pa.table({"clip_id": pa.chunked_array(chunks), "view": views[rows], "row": rows})
    last = table.group_by(["clip_id", "view"]).aggregate([("row", "max")])["row_max"]
    return np.setdiff1d(rows, last.to_numpy())
