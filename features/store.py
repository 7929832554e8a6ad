"""Reading a store: `open_store(path)["logmel"]["clip-7"]` is a view of a mapped file, not a copy.

Everything is checked against the manifest before it is believed: format, dtypes, sizes and regular
files at once; a sidecar's checksum and bounds, and a shard's index, when they are first touched. A
lost or short shard is an error here, where plain Zarr would read zeros.
"""

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmfuse.features import layout
from mmfuse.features.entries import Entries
from mmfuse.features.errors import ConfigError, MissingError, StoreError
from mmfuse.features.failures import read_failures
from mmfuse.features.index import SCHEMA
from mmfuse.features.int8 import is_quantised, scales_spec
from mmfuse.features.manifest import manifest_path, read_manifest
from mmfuse.features.shards import ACCESS, open_shards
from mmfuse.features.sidecars import Sidecars
from mmfuse.features.spec import Array, StreamSpec, frame_times_s

if TYPE_CHECKING:
    from mmfuse.features.torch_dataset import TorchDataset


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
            self._open[key] = self._opened(key)
        return self._open[key]

    def _opened(self, key: str) -> "Stream":
        document = self.manifest["streams"][key]
        spec = StreamSpec.from_json(document["spec"])
        if not is_quantised(spec):
            return Stream(self.path, key, document, self.access)
        from mmfuse.features.int8_stream import Int8Stream

        scales = scales_spec(spec).key
        if scales not in self.manifest["streams"]:
            raise StoreError(f"store {self.path} lacks {scales}, without which {key} says nothing")
        return Int8Stream(self.path, key, document, self.access, self[scales])

    def as_torch_dataset(
        self,
        streams: Sequence[str] | None = None,
        clips: Sequence[str] | None = None,
        *,
        labels: Mapping[str, Any] | None = None,
        views: bool = False,
        complete: bool = False,
        times: bool = False,
    ) -> "TorchDataset":
        """A map-style dataset of dicts of tensors: see `TorchDataset` in `torch_dataset.py`.

        Args:
            streams: names or keys; all where left out.
            clips: ids in the order that is wanted; all clips where left out.
            labels: label of each clip by id.
            views: whether augmented views are samples, too.
            complete: leave out clips that lack one of the streams.
            times: seconds of rows, too, as `NAME_times_s`.

        Raises:
            MissingError: a stream or clip is not there.
        """
        from mmfuse.features.joined import Samples
        from mmfuse.features.torch_dataset import TorchDataset

        how = {"views": views, "complete": complete, "times": times}
        return TorchDataset(Samples(self, streams, clips, **how), labels)

    def as_hf_dataset(
        self,
        streams: Sequence[str] | None = None,
        clips: Sequence[str] | None = None,
        *,
        labels: Mapping[str, Any] | None = None,
        views: bool = False,
        complete: bool = False,
        times: bool = False,
    ) -> Any:
        """A `datasets.Dataset` that reads streams when they are asked for, and copies none.

        Arguments are those of `as_torch_dataset`; streams are arrays, (rows, *item), not to be
        written to.

        Raises:
            MissingError: a stream or clip is not there, or `datasets` is not installed.
        """
        from mmfuse.features.hf_dataset import hf_dataset
        from mmfuse.features.joined import Samples

        how = {"views": views, "complete": complete, "times": times}
        return hf_dataset(Samples(self, streams, clips, **how), labels)

    def failures(self) -> pa.Table:
        """The failures table: clip id, stage, reason, detail, stream, content hash."""
        return read_failures(self.path)


class Stream:
    """One ragged array of the store: an entry per clip (and view), mapped, never copied.

    To open one costs a look at the size of each file. Sidecars are read when the first entry is
    asked for, shards when one of theirs is.
    """

    def __init__(self, root: Path, key: str, document: dict[str, Any], access: str = "map") -> None:
        self._root, self.key = root, key
        self.spec = StreamSpec.from_json(document["spec"])
        self._data = open_shards(root, key, self.spec, document, access)
        self._numbers = np.array([shard["k"] for shard in document["shards"]], np.int64)
        self._sidecars = Sidecars(root, key, document["shards"])
        layout.require_all(root, self._files(document["shards"]))

    @classmethod
    def empty(cls, root: Path, spec: StreamSpec) -> "Stream":
        """A stream without entries, as a store would hold that has made none of it."""
        document = {"spec": spec.to_json(), "shard_rows": layout.shard_rows_of(spec), "shards": []}
        return cls(root, spec.key, document)

    def _files(self, shards: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Path, int]]:
        for shard in shards:
            k = shard["k"]
            yield layout.shard_path(self._root, self.key, k, self.spec.item), shard["bytes"]
            yield layout.sidecar_path(self._root, self.key, k), shard["sidecar_bytes"]

    @cached_property
    def _entries(self) -> Entries:
        return Entries.of(self._sidecars)

    def __len__(self) -> int:
        return len(self._entries.rows)

    @property
    def views(self) -> NDArray[np.int32]:
        """View of every entry, in stored order."""
        return self._entries.views

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of rows of every entry, in stored order."""
        return self._entries.lengths

    @property
    def table(self) -> pa.Table:
        """All that the sidecars say of every entry, in stored order; mapped where none is dead."""
        table = pa.concat_tables([SCHEMA.empty_table(), *(one for _, one in self._sidecars)])
        return table if len(table) == len(self) else table.take(pa.array(self._entries.rows))

    @property
    def ids(self) -> list[str]:
        """Clip id of every entry, in stored order."""
        return self.table["clip_id"].to_pylist()  # type: ignore[no-any-return]

    def __contains__(self, clip_id: str) -> bool:
        return bool(self.find([clip_id])[0] >= 0)

    def find(self, clip_ids: Sequence[str], view: int = 0) -> NDArray[np.int64]:
        """Entry numbers of a view of clips, (n,) int64; -1 where the stream has no such entry.

        View 0 is the clip as it is. `views` has the view of every entry, in stored order.
        """
        return self._entries.find(clip_ids, view)

    def __getitem__(self, clip: str | tuple[str, int]) -> Array:
        """Values of a clip, or of (clip, view): (rows, *item), read-only; a view of the map.

        Raises:
            MissingError: no such clip, or no such view of it.
        """
        clip_id, view = (clip, 0) if isinstance(clip, str) else clip
        entry = int(self.find([clip_id], view)[0])
        if entry < 0:
            what = f"view {view} of clip" if view else "clip"
            raise MissingError(f"stream {self.key} has no {what} {clip_id!r}")
        return self.at(entry)

    @property
    def dtype(self) -> "np.dtype[Any]":
        """Of the values that `at` and `[]` give."""
        return np.dtype(self.spec.dtype)

    def at(self, entry: int) -> Array:
        """Values of an entry by its number, (rows, *item), read-only; a view of the map.

        Of an int8 stream a float32 copy: `Int8Stream` in `int8_stream.py`.
        """
        return self.stored(entry)

    def stored(self, entry: int) -> Array:
        """What is on disk of an entry, in the spec's dtype; a view of the map."""
        start = int(self._entries.starts[entry])
        stop = start + int(self._entries.lengths[entry])
        return self._data.rows(int(self._shards_of([entry])[0]), start, stop)

    def record(self, entry: int) -> dict[str, Any]:
        """All that the sidecar says of an entry, by column: see `features/index.py`."""
        return self._entries.record(entry)

    def _shards_of(self, entries: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        return self._numbers[self._entries.shards_of(entries)]

    def gather(self, entries: Sequence[int] | NDArray[np.int64], out: Array) -> NDArray[np.int64]:
        """Copy entries one behind the other into `out`; the bounds of each, (n + 1,) int64.

        `out` is (at least the sum of lengths, *item) in the stream's dtype and is reused from
        batch to batch: a fresh buffer costs three times as much as the copy.
        """
        bounds = np.concatenate([[0], np.cumsum(self.lengths[entries])])
        shards, starts = self._shards_of(entries).tolist(), self._entries.starts[entries].tolist()
        to, copy = bounds.tolist(), self._data.copy
        for shard, start, first, last in zip(shards, starts, to[:-1], to[1:], strict=True):
            copy(shard, start, out[first:last])
        return bounds

    def will_need(self, entries: Sequence[int] | NDArray[np.int64]) -> None:
        """Ask the system to read entries ahead; on a cold cache six times the speed of faults."""
        chosen = np.asarray(entries, dtype=np.int64)
        shards, starts = self._shards_of(chosen), self._entries.starts[chosen]
        for shard in np.unique(shards).tolist():
            there = shards == shard
            self._data.will_need(shard, starts[there], self.lengths[chosen[there]])

    def frame_times_s(self, entry: int) -> NDArray[np.float64]:
        """Seconds on the clip's timeline of every row of an entry: (rows,) float64."""
        row = self.record(entry)
        windows = tuple((Fraction(w["start_s"]), int(w["rows"])) for w in row["windows"])
        origin_s = Fraction(row["origin_s"])
        return frame_times_s(
            self.spec.timing, self.spec.fields, self.stored(entry), origin_s, windows
        )
