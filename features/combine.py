"""Stores out of stores: merging several, or taking a part of one. No data is read or rewritten.

Shards are hard links, or checked copies where the file system has none; a shard of which some
entries are left out keeps its rows and gets a sidecar without them. The manifest of the new store
is written last, so until then there is none, and the same command begins anew.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmfuse.features import layout
from mmfuse.features.assemble import Assembly, Combined
from mmfuse.features.errors import ConfigError, MissingError, StoreError
from mmfuse.features.failures import read_failures
from mmfuse.features.index import read_sidecar
from mmfuse.features.int8 import with_scales
from mmfuse.features.lock import store_lock
from mmfuse.features.manifest import manifest_path, new_manifest, read_manifest


@dataclass(slots=True)
class Part:
    """One shard of a source, and which of its entries are wanted."""

    source: Path
    key: str
    shard: dict[str, Any]
    table: pa.Table
    keep: NDArray[np.bool_]


def merge(out: Path, stores: Sequence[Path]) -> Combined:
    """Put all entries of `stores` into `out`, which may be a store already.

    A clip and view that several stores have is taken once.

    Raises:
        MissingError: one of `stores` is no store.
        StoreError: it is unfinished or damaged, or two stores differ about a clip.
        LockedError: a writer holds `out`.
    """
    _require_apart(out, stores)
    manifests = {store: _finished(store) for store in stores}
    with store_lock(out):
        assembly = Assembly(out, _own_manifest(out))
        if assembly.manifest["streams"]:
            manifests = {out: assembly.manifest, **manifests}
        for key in sorted({key for manifest in manifests.values() for key in manifest["streams"]}):
            parts: list[Part] = []
            for source, manifest in manifests.items():
                if key in manifest["streams"]:
                    stream = manifest["streams"][key]
                    assembly.begin(key, stream, source)
                    parts += _parts(source, key, stream)
            assembly.combined.duplicates += _keep_one_of_each(key, parts, out)
            for part in parts:
                if part.source != out:
                    assembly.add(part.source, key, part.shard, part.table, part.keep)
        for store, manifest in manifests.items():
            assembly.add_files(store, manifest.get("files", {}), read_failures(store))
        return assembly.commit()


def subset(
    store: Path, out: Path, ids: Collection[str] | None = None, keys: Collection[str] | None = None
) -> Combined:
    """Put the entries of some clips, of some streams, into a new store; None means all.

    Raises:
        MissingError: `store` is no store, or has none of the clips.
        StoreError: it is unfinished or damaged, or `out` is there.
        LockedError: a writer holds `out`.
    """
    _require_apart(out, [store])
    manifest = _finished(store)
    if manifest_path(out).exists():
        raise StoreError(f"{out} is a store already; name a new folder")
    wanted = None if ids is None else pa.array(sorted(ids), pa.string())
    keys = None if keys is None else with_scales(manifest, keys)
    with store_lock(out):
        assembly = Assembly(out, _own_manifest(out))
        for key, stream in manifest["streams"].items():
            if keys is not None and key not in keys:
                continue
            parts = _parts(store, key, stream)
            _keep_one_of_each(key, parts, out)
            for part in parts:
                if wanted is not None:
                    part.keep &= pc.is_in(part.table["clip_id"], wanted).to_numpy()
                if part.keep.any():
                    assembly.begin(key, stream, store)
                    assembly.add(store, key, part.shard, part.table, part.keep)
        if not assembly.manifest["streams"]:
            raise MissingError(f"no stream of {store} has one of these clips")
        failures = read_failures(store)
        if wanted is not None:
            failures = failures.filter(pc.is_in(failures["clip_id"], wanted))
        if keys is not None:
            failures = failures.filter(pc.is_in(failures["stream"], pa.array(["", *keys])))
        assembly.add_files(store, manifest.get("files", {}), failures)
        return assembly.commit()


def _parts(source: Path, key: str, stream: dict[str, Any]) -> list[Part]:
    parts = []
    for shard in stream["shards"]:
        sidecar = layout.sidecar_path(source, key, shard["k"])
        layout.require_regular(source, sidecar, shard["sidecar_bytes"])
        table = read_sidecar(sidecar, shard["entries"])
        parts.append(Part(source, key, shard, table, np.ones(len(table), dtype=bool)))
    return parts


def _keep_one_of_each(key: str, parts: list[Part], out: Path) -> int:
    """Unset `keep` of entries that are superseded or in an earlier source; how many of the latter.

    Raises:
        StoreError: two sources differ about a clip.
    """
    if not parts:
        return 0
    sources = list(dict.fromkeys(part.source for part in parts))
    names = ("clip_id", "view", "content", "digest")
    table = pa.concat_tables([part.table.select(list(names)) for part in parts])
    lengths = [len(part.table) for part in parts]
    table = table.append_column(
        "source", pa.array(np.repeat([sources.index(part.source) for part in parts], lengths))
    ).append_column("row", pa.array(np.arange(len(table))))
    last = table.group_by(["source", "clip_id", "view"]).aggregate([("row", "max")])["row_max"]
    live = table.take(pa.array(np.sort(last.to_numpy())))
    for name in ("content", "digest"):
        live = live.set_column(
            live.schema.get_field_index(name), name, live[name].cast(pa.binary())
        )
    groups = live.group_by(["clip_id", "view"]).aggregate(
        [("row", "min"), ("content", "count_distinct"), ("digest", "count_distinct")]
    )
    unequal = pc.or_(
        pc.greater(groups["content_count_distinct"], 1),
        pc.greater(groups["digest_count_distinct"], 1),
    )
    for conflict in groups.filter(unequal).slice(0, 1).to_pylist():
        _refuse(key, conflict["clip_id"], live, sources)
    keep = np.zeros(len(table), dtype=bool)
    keep[groups["row_min"].to_numpy()] = True
    for part, end in zip(parts, np.cumsum(lengths).tolist(), strict=True):
        part.keep = keep[end - len(part.table) : end]
    return len(live) - len(groups)


def _refuse(key: str, clip_id: str, live: pa.Table, sources: list[Path]) -> None:
    rows = live.filter(pc.equal(live["clip_id"], clip_id))
    names = [str(sources[i]) for i in dict.fromkeys(rows["source"].to_pylist())]
    same = len(set(rows["content"].to_pylist())) == 1
    what = "the same source, but other values" if same else "another source"
    raise StoreError(
        f"clip {clip_id!r} of {key} has {what} in {names[1]} than in {names[0]}; take the clips "
        "that you want of one of them with mmfeat subset, and merge that"
    )


def _finished(store: Path) -> dict[str, Any]:
    """The manifest of a store that no run has left half done."""
    if not manifest_path(store).exists():
        raise MissingError(f"no feature store at {store}")
    manifest = read_manifest(store)
    if manifest["root"] is None:
        raise StoreError(f"{store} is unfinished; give the mmfeat command again that makes it")
    return manifest


def _own_manifest(out: Path) -> dict[str, Any]:
    return _finished(out) if manifest_path(out).exists() else new_manifest()


def _require_apart(out: Path, stores: Sequence[Path]) -> None:
    """See that `out` is a store, or may become one, and has nothing to do with the sources."""
    if out.exists() and not (out / layout.META).is_dir() and any(out.iterdir()):
        raise StoreError(f"{out} is not a feature store and not empty; name a new folder")
    for store in stores:
        one, other = out.resolve(), store.resolve()
        if one == other or one.is_relative_to(other) or other.is_relative_to(one):
            raise ConfigError(f"{out} and {store} are one inside the other; name another folder")
