"""Reading a store: `open_store(path)["logmel"]["clip-7"]` is a view of a mapped file, not a copy.

Everything is checked against the manifest before a byte is mapped: format, dtypes, sizes, bounds,
regular files only. A lost or short shard is an error here, where plain Zarr would read zeros.
"""

import os
from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmfuse.features import layout
from mmfuse.features.errors import ConfigError, MissingError, StoreError
from mmfuse.features.failures import read_failures
from mmfuse.features.index import SCHEMA, read_sidecar
from mmfuse.features.manifest import manifest_path, read_manifest
from mmfuse.features.shards import ACCESS, open_shards
from mmfuse.features.spec import Array, StreamSpec, frame_times_s


def open_store(path: Path | str, access: str = "map") -> "FeatureStore":
    """Open a feature store for reading; no lock is taken, writers may go on.

    Args:
        access: `map` gives views of mapped files. `read` gives copies: on network file systems it
            takes one request a clip where a map takes one a page.

    Raises:
        ConfigError: there is no such access.
        MissingError: there is no store at `path`.
        StoreError: the store is damaged, or newer than this mmfuse.
    """
    root = Path(path)
    if not manifest_path(root).exists():
        raise MissingError(
            f"no feature store at {root}; make one with: mmfeat run CONFIG --store {root}"
        )
    if access not in ACCESS:
        raise ConfigError(f"no access {access!r}; choose from: {', '.join(ACCESS)}")
    return FeatureStore(root, access)


class FeatureStore:
    """A store as its manifest describes it at the moment of opening."""

    def __init__(self, root: Path, access: str = "map") -> None:
        self.path, self.access = root, access
        self.manifest = read_manifest(root)
        self._open: dict[str, Stream] = {}

    @property
    def root(self) -> str | None:
        """blake3 root over all entries; None while a run is unfinished."""
        root = self.manifest["root"]
        return None if root is None else str(root)

    def keys(self) -> list[str]:
        """Stream folders, `name-fingerprint8`."""
        return sorted(self.manifest["streams"])

    def specs(self) -> dict[str, StreamSpec]:
        """Spec of each stream by its key."""
        streams = self.manifest["streams"]
        return {key: StreamSpec.from_json(streams[key]["spec"]) for key in self.keys()}

    def __getitem__(self, name: str) -> "Stream":
        """A stream by its key, or by its plain name where only one spec of it is stored."""
        matches = [key for key in self.keys() if key == name or key.rpartition("-")[0] == name]
        if not matches:
            raise MissingError(
                f"store {self.path} has no stream {name!r}; it holds: "
                f"{', '.join(self.keys()) or 'nothing'}"
            )
        if len(matches) > 1:
            raise MissingError(
                f"store {self.path} holds several {name!r} streams; name one: {', '.join(matches)}"
            )
        key = matches[0]
        if key not in self._open:
            self._open[key] = Stream(self.path, key, self.manifest["streams"][key], self.access)
        return self._open[key]

    def failures(self) -> pa.Table:
        """The failures table: clip id, stage, reason, detail, stream, content hash."""
        return read_failures(self.path)


class Stream:
    """One ragged array of the store: an entry per clip (and view), mapped, never copied."""

    def __init__(self, root: Path, key: str, document: dict[str, Any], access: str = "map") -> None:
        self._root, self.key = root, key
        self.spec = StreamSpec.from_json(document["spec"])
        self._shard_rows = int(document["shard_rows"])
        self._shards = {int(shard["k"]): shard for shard in document["shards"]}
        self._data = open_shards(root, key, self.spec, document, access)
        tables, shard_of = [SCHEMA.empty_table()], []
        for k, shard in self._shards.items():
            tables.append(self._checked_sidecar(k, shard))
            shard_of.append(np.full(shard["entries"], k, dtype=np.int32))
        self.table = _last_of_each_id(pa.concat_tables(tables), shard_of)
        self._shard_of = self.table["shard"].to_numpy()
        self._start = self.table["start"].to_numpy()
        self.views: NDArray[np.int32] = self.table["view"].to_numpy()
        self.lengths: NDArray[np.int64] = self.table["rows"].to_numpy()

    @classmethod
    def empty(cls, root: Path, spec: StreamSpec) -> "Stream":
        """A stream without entries, as a store would hold that has made none of it."""
        document = {"spec": spec.to_json(), "shard_rows": layout.shard_rows_of(spec), "shards": []}
        return cls(root, spec.key, document)

    def _checked_sidecar(self, k: int, shard: dict[str, Any]) -> pa.Table:
        path = layout.shard_path(self._root, self.key, k, self.spec.item)
        size = layout.shard_file_bytes(shard["rows"], self._shard_rows, self.spec.row_bytes)
        layout.require_regular(self._root, path, size)
        sidecar = layout.sidecar_path(self._root, self.key, k)
        layout.require_regular(self._root, sidecar, shard["sidecar_bytes"])
        table = read_sidecar(sidecar, shard["entries"])
        start, rows = table["start"].to_numpy(), table["rows"].to_numpy()
        if len(rows) and (min(start.min(), rows.min()) < 0 or (start + rows).max() > shard["rows"]):
            raise StoreError(f"{sidecar} points outside its shard")
        return table

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def ids(self) -> list[str]:
        """Clip id of every entry, in stored order."""
        return self.table["clip_id"].to_pylist()  # type: ignore[no-any-return]

    @cached_property
    def _row_of_id(self) -> dict[tuple[str, int], int]:
        return {one: row for row, one in enumerate(zip(self.ids, self.views.tolist(), strict=True))}

    def __contains__(self, clip_id: str) -> bool:
        return (clip_id, 0) in self._row_of_id

    def find(self, clip_ids: Sequence[str], view: int = 0) -> NDArray[np.int64]:
        """Entry numbers of a view of clips, (n,) int64; -1 where the stream has no such entry.

        View 0 is the clip as it is. `views` has the view of every entry, in stored order.
        """
        rows = np.append(np.flatnonzero(self.views == view), -1)
        ids = self.table["clip_id"].take(pa.array(rows[:-1]))
        found = pc.index_in(pa.array(clip_ids, pa.string()), ids)
        return rows[np.asarray(found.fill_null(-1), dtype=np.int64)]

    def __getitem__(self, clip: str | tuple[str, int]) -> Array:
        """Values of a clip, or of (clip, view): (rows, *item), read-only; a view of the map.

        Raises:
            MissingError: no such clip, or no such view of it.
        """
        clip_id, view = (clip, 0) if isinstance(clip, str) else clip
        row = self._row_of_id.get((clip_id, view))
        if row is None:
            what = f"view {view} of clip" if view else "clip"
            raise MissingError(f"stream {self.key} has no {what} {clip_id!r}")
        return self.at(row)

    def at(self, entry: int) -> Array:
        """Values of an entry by its number, (rows, *item), read-only; a view of the map."""
        start = int(self._start[entry])
        stop = start + int(self.lengths[entry])
        return self._data.rows(int(self._shard_of[entry]), start, stop)

    def gather(self, entries: Sequence[int] | NDArray[np.int64], out: Array) -> NDArray[np.int64]:
        """Copy entries one behind the other into `out`; the bounds of each, (n + 1,) int64.

        `out` is (at least the sum of lengths, *item) in the stream's dtype and is reused from
        batch to batch: a fresh buffer costs three times as much as the copy.
        """
        bounds = np.concatenate([[0], np.cumsum(self.lengths[entries])])
        shards, starts = self._shard_of[entries].tolist(), self._start[entries].tolist()
        to, copy = bounds.tolist(), self._data.copy
        for shard, start, first, last in zip(shards, starts, to[:-1], to[1:], strict=True):
            copy(shard, start, out[first:last])
        return bounds

    def will_need(self, entries: Sequence[int] | NDArray[np.int64]) -> None:
        """Ask the system to read entries ahead; on a cold cache seven times the speed of faults."""
        if not hasattr(os, "posix_fadvise"):
            return
        for shard in np.unique(self._shard_of[entries]):
            path = layout.shard_path(self._root, self.key, int(shard), self.spec.item)
            descriptor = os.open(path, os.O_RDONLY)
            try:
                for entry in np.asarray(entries)[self._shard_of[entries] == shard]:
                    offset = int(self._start[entry]) * self.spec.row_bytes
                    size = int(self.lengths[entry]) * self.spec.row_bytes
                    os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)

    def frame_times_s(self, entry: int) -> NDArray[np.float64]:
        """Seconds on the clip's timeline of every row of an entry: (rows,) float64."""
        row = self.table.slice(entry, 1).to_pylist()[0]
        windows = tuple((Fraction(w["start_s"]), int(w["rows"])) for w in row["windows"])
        origin_s = Fraction(row["origin_s"])
        return frame_times_s(self.spec.timing, self.spec.fields, self.at(entry), origin_s, windows)


def _last_of_each_id(table: pa.Table, shard_of: list[NDArray[np.int32]]) -> pa.Table:
    """Add the shard column; where a clip was stored anew, only its last entry counts."""
    shards = np.concatenate(shard_of) if shard_of else np.empty(0, dtype=np.int32)
    table = table.append_column("shard", pa.array(shards))
    if pc.count_distinct(table["clip_id"]).as_py() == len(table):
        return table
    numbered = table.select(["clip_id", "view"]).append_column(
        "row", pa.array(np.arange(len(table)))
    )
    last = numbered.group_by(["clip_id", "view"]).aggregate([("row", "max")])["row_max"]
    return table.take(pa.array(np.sort(last.to_numpy())))
