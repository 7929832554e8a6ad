"""Streams joined by clip: which entries of several streams belong to a clip, or a view of it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmfuse.features.errors import ConfigError, MissingError, StoreError
from mmfuse.features.int8 import is_scales
from mmfuse.features.spec import StreamSpec

if TYPE_CHECKING:
    from mmfuse.features.store import FeatureStore, Stream

_CHUNK = 1024  # entries
Entries = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Named:
    """A stream that is handed on, and the name that it has there."""

    name: str
    stream: "Stream"

    @property
    def spec(self) -> StreamSpec:
        """The stream's."""
        return self.stream.spec

    @property
    def is_timed(self) -> bool:
        """Whether its rows have times."""
        return self.spec.timing.kind != "none"


def named_streams(store: "FeatureStore", names: Sequence[str] | None) -> list[Named]:
    """Streams by name or key, or all that are no scales of others, with plain names if these do.

    Raises:
        ConfigError: the store has none.
        MissingError: there is no such stream, or several.
        StoreError: a name of a stream is no plain word.
    """
    scales = {key for key, spec in store.specs().items() if is_scales(spec)}
    keys = [store[name].key for name in names or sorted(set(store.keys()) - scales)]
    keys = list(dict.fromkeys(keys))
    if not keys:
        raise ConfigError(f"{store.path} has no streams; make some with: mmfeat run CONFIG")
    plain = [key.rpartition("-")[0] for key in keys]
    found = []
    for key, name in zip(keys, plain, strict=True):
        chosen = name if plain.count(name) == 1 else key
        if not re.fullmatch(r"[A-Za-z0-9_-]+", chosen):
            raise StoreError(f"a stream named {chosen!r} can't be a file's name")
        found.append(Named(chosen, store[key]))
    return found


def joined(named: Sequence[Named]) -> Iterator[tuple[list[str], NDArray[np.int32], Entries]]:
    """Every clip and view that any of the streams has, in the order of the fullest stream.

    Yields:
        Some clips at a time: ids (n,), views (n,), and the entry of each in each stream, (n, S)
        int64, -1 for none.
    """
    order = sorted(range(len(named)), key=lambda i: -len(named[i].stream))
    for place, leader in enumerate(order):
        stream = named[leader].stream
        table = stream.table.select(["clip_id"])
        for start in range(0, len(stream), _CHUNK):
            ids: list[str] = table.slice(start, _CHUNK)["clip_id"].to_pylist()
            views = stream.views[start : start + _CHUNK]
            entries = np.stack([entries_of(one.stream, ids, views) for one in named], axis=1)
            new = np.flatnonzero((entries[:, order[:place]] < 0).all(axis=1))
            yield [ids[row] for row in new.tolist()], views[new], entries[new]


def entries_of(stream: "Stream", ids: list[str], views: NDArray[np.int32]) -> Entries:
    """Entry of each clip and view, (n,) int64, -1 for none."""
    found = np.full(len(ids), -1, np.int64)
    for view in np.unique(views).tolist():
        rows = np.flatnonzero(views == view)
        found[rows] = stream.find([ids[row] for row in rows.tolist()], view)
    return found


class Samples:
    """Clips of a store by number, each with all its streams; opens the store where it is read.

    It travels to other processes as a path and numbers. What a clip lacks has no rows.

    Args:
        store: opened.
        streams: names or keys; all where left out.
        clips: ids in the order that is wanted; all clips where left out.
        views: whether augmented views are samples, too.
        complete: leave out clips that lack one of the streams.
        times: seconds of rows, too, as `NAME_times_s`.

    Raises:
        MissingError: a clip or stream is not there.
    """

    def __init__(
        self,
        store: "FeatureStore",
        streams: Sequence[str] | None = None,
        clips: Sequence[str] | None = None,
        *,
        views: bool = False,
        complete: bool = False,
        times: bool = False,
    ) -> None:
        self._named: list[Named] | None = named_streams(store, streams)
        self.path, self.access, self.root = store.path.absolute(), store.access, store.root
        self.keys, self.times = [one.stream.key for one in self._named], times
        parts = [*joined(self._named)] if clips is None or views else [self._of(list(clips))]
        ids = [clip_id for part in parts for clip_id in part[0]]
        of_all = np.concatenate([part[1] for part in parts] or [np.zeros(0, np.int32)])
        entries = np.concatenate([part[2] for part in parts] or [np.zeros((0, 1), np.int64)])
        keep = np.ones(len(ids), np.bool_) if views else of_all == 0
        if complete:
            keep &= (entries >= 0).all(axis=1)
        if clips is not None and views:
            keep &= np.isin(np.array(ids, object), np.array(list(clips), object))
        rows = np.flatnonzero(keep)
        self.ids = pa.array(ids, pa.string()).take(pa.array(rows))
        self.views, self.entries = of_all[rows], entries[rows]

    def _of(self, clips: list[str]) -> tuple[list[str], NDArray[np.int32], Entries]:
        assert self._named is not None
        views = np.zeros(len(clips), np.int32)
        entries = np.stack([entries_of(one.stream, clips, views) for one in self._named], axis=1)
        absent = np.flatnonzero((entries < 0).all(axis=1)).tolist()
        if absent:
            raise MissingError(f"none of {', '.join(self.keys)} has clip {clips[absent[0]]!r}")
        return clips, views, entries

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_named": None}

    def __len__(self) -> int:
        return len(self.views)

    @property
    def named(self) -> list[Named]:
        """The streams, open in this process.

        Raises:
            StoreError: the store is another than it was.
        """
        if self._named is None:
            from mmfuse.features.store import open_store

            store = open_store(self.path, self.access)
            if store.root != self.root:
                raise StoreError(f"{self.path} was changed while it is read; open it anew")
            self._named = named_streams(store, self.keys)
        return self._named

    def __getitem__(self, number: int) -> dict[str, Any]:
        """`id`, `view`, and of each stream (rows, *item), read-only, a view of the map."""
        sample: dict[str, Any] = {"id": self.ids[number].as_py(), "view": int(self.views[number])}
        for one, entry in zip(self.named, self.entries[number].tolist(), strict=True):
            is_there = entry >= 0
            empty = np.zeros((0, *one.spec.item), one.stream.dtype)
            sample[one.name] = one.stream.at(entry) if is_there else empty
            if self.times and one.is_timed:
                times_s = one.stream.frame_times_s(entry) if is_there else np.zeros(0)
                sample[f"{one.name}_times_s"] = times_s
        return sample
