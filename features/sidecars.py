"""The sidecars of a stream's shards, opened when one of their entries is touched.

Sizes are looked at before; what is inside is checked whenever a sidecar is opened, its crc32c the
first time. So ten million entries cost nothing until somebody asks for them, and a sidecar that was
lost, cut or changed is an error before anything that it says is believed. Entries are numbered
through all shards, in the manifest's order: these numbers are called rows here.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from crc32c import crc32c
from numpy.typing import NDArray

from mmfuse.features import layout
from mmfuse.features.errors import StoreError
from mmfuse.features.index import read_sidecar

_OPEN = 1024  # sidecars kept open; opening one takes less than a millisecond
Rows = NDArray[np.int64]


class Sidecars:
    """What the sidecars of some shards say, one Arrow table each."""

    def __init__(self, root: Path, key: str, shards: Iterable[Mapping[str, Any]]) -> None:
        self._root, self._key, self.shards = root, key, list(shards)
        entries = [int(shard["entries"]) for shard in self.shards]
        self.ends: Rows = np.cumsum(entries, dtype=np.int64)
        self.firsts: Rows = self.ends - np.array(entries, np.int64)
        self._tables: dict[int, pa.Table] = {}
        self._seen: set[int] = set()

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __iter__(self) -> Iterator[tuple[slice, pa.Table]]:
        """Every sidecar, with the rows that it is about."""
        for i in range(len(self.shards)):
            yield slice(int(self.firsts[i]), int(self.ends[i])), self.table(i)

    def table(self, i: int) -> pa.Table:
        """The i-th shard's sidecar.

        Raises:
            StoreError: it is not the one that was committed.
        """
        table = self._tables.get(i)
        if table is None:
            table = self._checked(i)
            if len(self._tables) >= _OPEN:
                self._tables.pop(next(iter(self._tables)))
            self._tables[i] = table
        return table

    def shard_of(self, rows: Rows) -> Rows:
        """Which shard each row lies in, counted from 0."""
        return np.searchsorted(self.ends, rows, "right")

    def by_shard(self, rows: Rows) -> Iterator[tuple[NDArray[np.intp], pa.Table, pa.Array]]:
        """Rows shard by shard: where they stand in `rows`, the sidecar, and their places in it."""
        order = np.argsort(rows, kind="stable")
        shard_of = self.shard_of(rows[order])
        cuts = np.flatnonzero(np.diff(shard_of)) + 1
        for part in np.split(order, cuts) if len(rows) else ():
            i = int(self.shard_of(rows[part[:1]])[0])
            yield part, self.table(i), pa.array(rows[part] - self.firsts[i])

    def record(self, row: int) -> dict[str, Any]:
        """All that the sidecar says of one row."""
        ((_, table, place),) = self.by_shard(np.array([row]))
        return dict(table.slice(place[0].as_py(), 1).to_pylist()[0])

    def are(self, rows: Rows, clip_ids: pa.Array) -> NDArray[np.bool_]:
        """Whether each row has the clip id that stands beside it."""
        same = np.empty(len(rows), np.bool_)
        for part, table, places in self.by_shard(rows):
            wanted = clip_ids.take(pa.array(part))
            same[part] = pc.equal(table["clip_id"].take(places), wanted).to_numpy()
        return same

    def _checked(self, i: int) -> pa.Table:
        shard = self.shards[i]
        path = layout.sidecar_path(self._root, self._key, shard["k"])
        layout.require_regular(self._root, path, shard["sidecar_bytes"])
        if i not in self._seen and crc32c(path.read_bytes()) != shard["sidecar_crc32c"]:
            raise StoreError(f"{path} is damaged: its checksum is another; restore it from a copy")
        table = read_sidecar(path, shard["entries"])
        start, rows = table["start"].to_numpy(), table["rows"].to_numpy()
        if len(rows) and (min(start.min(), rows.min()) < 0 or (start + rows).max() > shard["rows"]):
            raise StoreError(f"{path} points outside its shard")
        self._seen.add(i)
        return table


class Ids:
    """Rows by clip id: 12 bytes a row, however long the ids are.

    Ids are looked up by their hash; whoever asks has to compare the few that are found.
    """

    def __init__(self, hashes: NDArray[np.int64]) -> None:
        order = np.argsort(hashes)
        self._hashes = hashes[order]
        self._rows = order.astype(np.uint32 if len(order) < 2**32 else np.int64)

    def candidates(self, clip_ids: Sequence[str]) -> tuple[Rows, Rows]:
        """Rows that may be those of ids: (which id, row), (n,) each; all others are not."""
        lows, counts = self._runs(clip_ids)
        which = np.repeat(np.arange(len(counts)), counts)
        first = np.repeat(lows - (np.cumsum(counts) - counts), counts)
        return which, self._rows[first + np.arange(len(which))].astype(np.int64)

    def counts(self, clip_ids: Sequence[str]) -> Rows:
        """How many rows have the hash of each id, (n,): nearly surely, how many are its own."""
        return self._runs(clip_ids)[1]

    def _runs(self, clip_ids: Sequence[str]) -> tuple[Rows, Rows]:
        hashes = hashes_of(clip_ids)
        by = np.argsort(hashes)  # sorted, so that the search stays in the cache
        lows, highs = (np.empty(len(hashes), np.int64) for _ in range(2))
        lows[by] = np.searchsorted(self._hashes, hashes[by], "left")
        highs[by] = np.searchsorted(self._hashes, hashes[by], "right")
        return lows, highs - lows

    def shared(self) -> Rows:
        """Rows whose hash is not theirs alone, in order."""
        same = self._hashes[1:] == self._hashes[:-1]
        either = np.zeros(len(self._rows), np.bool_)
        either[1:] = same
        either[:-1] |= same
        return np.sort(self._rows[either].astype(np.int64))


def hashes_of(clip_ids: Iterable[str]) -> NDArray[np.int64]:
    """Python's own hash of each id; its key is the process' own, so nobody prepares collisions."""
    return np.fromiter(map(hash, clip_ids), np.int64)
