"""A store's features in a form that other libraries read: every clip once, with all its streams.

Values are what `stream[clip]` gives, in its dtype; beside them go the seconds of their rows, and
what the sidecar says of origin, windows, notes and augmentation. `streams.json` has the specs. The
folder appears whole, by one rename, or not at all; a clip at a time is in memory.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from mmfuse.features.errors import ConfigError, StoreError
from mmfuse.features.int8 import is_quantised, is_scales
from mmfuse.features.spec import Array, StreamSpec
from mmfuse.features.store import FeatureStore, Stream, open_store

STREAMS = "streams.json"
_CHUNK = 1024  # entries
_MAX_NAME = 200  # bytes of a file's name without suffixes


@dataclass(frozen=True, slots=True)
class Part:
    """One stream's entry of a clip: (rows, *item), seconds of rows if they have any, the rest."""

    values: Array
    times_s: NDArray[np.float64] | None
    told: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """A clip, or a view of it; `key` names it where a name of a file is needed."""

    clip_id: str
    view: int
    parts: dict[str, Part]

    @property
    def key(self) -> str:
        """The id in letters, digits, `_`, `-` and `%`, and @view; a hash if that is too long."""
        name = quote(self.clip_id, safe="", errors="surrogatepass").replace(".", "%2E")
        name = name.replace("~", "%7E")
        if len(name) > _MAX_NAME:
            name = blake3(name.encode()).hexdigest()
        return f"{name}@{self.view}" if self.view else name

    def told(self) -> dict[str, Any]:
        """All but the arrays, as plain JSON."""
        streams = {name: part.told for name, part in self.parts.items()}
        return {"id": self.clip_id, "view": self.view, "key": self.key, "streams": streams}


@dataclass(frozen=True, slots=True)
class Named:
    """A stream to export, by the name that it has there; `dtype` is that of its values there."""

    name: str
    stream: Stream
    is_timed: bool

    @property
    def spec(self) -> StreamSpec:
        """The stream's."""
        return self.stream.spec

    def part(self, entry: int) -> Part:
        """What goes out of an entry."""
        record = self.stream.record(entry)
        told = {name: record.get(name, "") for name in ("origin_s", "note", "augmentation")}
        told["windows"] = [[w["start_s"], w["rows"]] for w in record["windows"]]
        told["content"] = bytes(record["content"]).hex()
        times_s = self.stream.frame_times_s(entry) if self.is_timed else None
        return Part(self.stream.at(entry), times_s, told)


class Form(Protocol):
    """Writes items into a folder; built with the folder, its final place, and the streams."""

    def add(self, item: Item) -> None:
        """Write a clip."""

    def finish(self) -> None:
        """Write what is left."""

    def close(self) -> None:
        """Close all files, whatever has happened."""


@dataclass(slots=True)
class Exported:
    """What was written."""

    out: str
    form: str
    clips: int = 0
    streams: list[str] = field(default_factory=list)
    files: int = 0
    bytes: int = 0


def export(path: Path, form: str, out: Path, streams: Sequence[str] | None = None) -> Exported:
    """Write the features of a store for other libraries.

    Args:
        path: the store.
        form: one of `FORMS` in `export_forms.py`.
        out: folder to make.
        streams: names or keys; all that are no scales of others, where left out.

    Raises:
        ConfigError: there is no such form, `out` is there already, or no stream.
        MissingError: no such store or stream.
        StoreError: the store is damaged, or holds what the form can't.
    """
    from mmfuse.features.export_forms import FORMS

    if form not in FORMS:
        raise ConfigError(f"--to {form!r}; choose from: {', '.join(FORMS)}")
    if os.path.lexists(out):
        raise ConfigError(f"{out} is there already; name another folder with --out DIR")
    store = open_store(path)
    named = named_streams(store, streams)
    report = Exported(str(out), form, streams=[one.name for one in named])
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        folder.chmod(0o777 & ~_umask())
        with closing(FORMS[form](folder, out, named)) as writer:
            for item in items(named):
                writer.add(item)
                report.clips += 1
            writer.finish()
        text = json.dumps(_document(store, named), indent=1, sort_keys=True) + "\n"
        (folder / STREAMS).write_text(text, encoding="ascii")
        for file in filter(Path.is_file, folder.rglob("*")):
            report.files += 1
            report.bytes += file.stat().st_size
        if os.path.lexists(out):
            raise ConfigError(f"{out} came to be meanwhile; name another folder with --out DIR")
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return report


def named_streams(store: FeatureStore, names: Sequence[str] | None) -> list[Named]:
    """Streams to hand on, with plain names where these say enough.

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
        stream = store[key]
        found.append(Named(chosen, stream, stream.spec.timing.kind != "none"))
    return found


def items(named: Sequence[Named]) -> Iterator[Item]:
    """Every clip and view that any of the streams has, in the order of the fullest stream."""
    order = sorted(named, key=lambda one: -len(one.stream))
    for place, leader in enumerate(order):
        table = leader.stream.table.select(["clip_id"])
        views = leader.stream.views
        for start in range(0, len(leader.stream), _CHUNK):
            ids: list[str] = table.slice(start, _CHUNK)["clip_id"].to_pylist()
            its = views[start : start + _CHUNK]
            found = {one.name: _entries(one.stream, ids, its) for one in named}
            done = np.zeros(len(ids), np.bool_)
            for earlier in order[:place]:
                done |= found[earlier.name] >= 0
            for row in np.flatnonzero(~done).tolist():
                parts = {
                    one.name: one.part(int(found[one.name][row]))
                    for one in named
                    if found[one.name][row] >= 0
                }
                yield Item(ids[row], int(its[row]), parts)


def _entries(stream: Stream, ids: list[str], views: NDArray[np.int32]) -> NDArray[np.int64]:
    """Entry of each (clip, view), -1 for none."""
    found = np.full(len(ids), -1, np.int64)
    for view in np.unique(views).tolist():
        rows = np.flatnonzero(views == view)
        found[rows] = stream.find([ids[row] for row in rows.tolist()], view)
    return found


def _document(store: FeatureStore, named: Sequence[Named]) -> dict[str, Any]:
    streams = {}
    for one in named:
        streams[one.name] = {
            "key": one.stream.key,
            "spec": one.spec.to_json(),
            "fingerprint": one.spec.fingerprint,
            "dtype": str(one.stream.dtype),
            "is_int8_in_store": is_quantised(one.spec),
            "root": store.manifest["streams"][one.stream.key]["root"],
        }
    return {"mmfuse": version("mmfuse"), "store_root": store.root, "streams": streams}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
