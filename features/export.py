"""A store's features in a form that other libraries read: every clip once, with all its streams.

Values are what `stream[clip]` gives, in its dtype; beside them go the seconds of their rows, and
what the sidecar says of origin, windows, notes and augmentation. `streams.json` has the specs. The
folder appears whole, by one rename, or not at all; a clip at a time is in memory.
"""

import json
import os
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

from mmfuse.features.errors import ConfigError
from mmfuse.features.int8 import is_quantised
from mmfuse.features.joined import Named, joined, named_streams
from mmfuse.features.spec import Array
from mmfuse.features.store import FeatureStore, open_store

STREAMS = "streams.json"
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


def part_of(one: Named, entry: int) -> Part:
    """What goes out of an entry."""
    record = one.stream.record(entry)
    told = {name: record.get(name, "") for name in ("origin_s", "note", "augmentation")}
    told["windows"] = [[w["start_s"], w["rows"]] for w in record["windows"]]
    told["content"] = bytes(record["content"]).hex()
    times_s = one.stream.frame_times_s(entry) if one.is_timed else None
    return Part(one.stream.at(entry), times_s, told)


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


def items(named: Sequence[Named]) -> Iterator[Item]:
    """Every clip and view that any of the streams has, in the order of the fullest stream."""
    for ids, views, entries in joined(named):
        for clip_id, view, row in zip(ids, views.tolist(), entries.tolist(), strict=True):
            its = [(one, entry) for one, entry in zip(named, row, strict=True) if entry >= 0]
            yield Item(clip_id, view, {one.name: part_of(one, entry) for one, entry in its})


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
