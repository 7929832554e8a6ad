"""Removing what no manifest names, and dropping streams.

A stream is dropped in three steps: a manifest without it that holds a tombstone (the commit), its
files, a manifest without the tombstone. Whatever dies in between, the next `gc` goes on. It holds
the store's lock, so nothing that a writer works on is touched; readers that opened the store before
keep what they have mapped.
"""

import os
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from mmfuse.features import derived, layout
from mmfuse.features.census import LOCK, Extra, demanded, extra, files_of, is_work, open_work
from mmfuse.features.errors import LockedError, MissingError, StoreError
from mmfuse.features.index import read_sidecar, store_root_of
from mmfuse.features.int8 import with_scales
from mmfuse.features.lock import store_lock
from mmfuse.features.manifest import IMMUTABLE, manifest_path, read_manifest, write_manifest
from mmfuse.features.task import held_tasks


@dataclass(slots=True)
class Sweep:
    """What was, or with `dry_run` would be, removed, kept and written anew."""

    store: str
    dry_run: bool
    removed: list[str] = field(default_factory=list)
    bytes: int = 0
    written: list[str] = field(default_factory=list)
    unfinished: int = 0
    strangers: list[str] = field(default_factory=list)


def collect(
    root: Path, drop: Collection[str] = (), *, unfinished: bool = False, dry_run: bool = False
) -> Sweep:
    """Bring a store down to what its manifest names.

    Args:
        drop: keys of streams to drop.
        unfinished: remove the work of runs that ended early, too.
        dry_run: change nothing, tell what would be.

    Raises:
        MissingError: there is no store, or no such stream in it.
        LockedError: a writer holds the store, or work that would be removed is being done.
    """
    if not manifest_path(root).exists():
        raise MissingError(f"no feature store at {root}; nothing to remove")
    with nullcontext() if dry_run else store_lock(root):
        if unfinished and (held := held_tasks(root)):
            raise LockedError(
                f"{len(held)} workers of a run that ended are still at work in {root}; wait for "
                "them, or leave --unfinished out"
            )
        manifest, sweep = read_manifest(root), Sweep(str(root), dry_run)
        _drop(root, manifest, drop, dry_run=dry_run)
        files = files_of(root)
        doomed = _doomed(files, manifest, sweep, unfinished=unfinished)
        needless = _needless(root, manifest, files) if not sweep.unfinished else set()
        if needless and not dry_run:
            _commit(root, manifest, forget=needless)
        for path in (*doomed, *sorted(needless)):
            sweep.removed.append(path)
            sweep.bytes += files[path].st_size
            if not dry_run:
                (root / path).unlink()
        _mend(root, manifest, sweep)
        if not dry_run:
            _remove_empty(root)
            if manifest.pop("tombstones", None) is not None:
                _commit(root, manifest)
    return sweep


def _drop(root: Path, manifest: dict[str, Any], drop: Collection[str], *, dry_run: bool) -> None:
    """Take streams out of the manifest, and commit that."""
    for key in drop:
        if key not in manifest["streams"]:
            known = ", ".join(sorted(manifest["streams"])) or "nothing"
            raise MissingError(f"store {root} has no stream {key!r}; it holds: {known}")
    drop = with_scales(manifest, drop)
    if not drop:
        return
    for key in drop:
        manifest["streams"].pop(key, None)
    manifest["tombstones"] = sorted({*manifest.get("tombstones", ()), *drop})
    roots = [stream["root"] for stream in manifest["streams"].values()]
    if manifest["root"] is not None:
        manifest["root"] = store_root_of(roots)
    if not dry_run:
        _commit(root, manifest)


def _commit(root: Path, manifest: dict[str, Any], forget: Collection[str] = ()) -> None:
    write_manifest(root, manifest, forget=[path.rpartition("/")[2] for path in forget])


def _doomed(
    files: Mapping[str, os.stat_result],
    manifest: Mapping[str, Any],
    sweep: Sweep,
    *,
    unfinished: bool,
) -> list[str]:
    """Files to remove; a shard's journal last, which says that the shard is one of a writer's."""
    wanted = {*demanded(manifest), LOCK}
    work = open_work(files, manifest)
    doomed = []
    for path in files:
        kind = None if path in wanted else extra(path, manifest, work)
        if kind is Extra.UNFINISHED and not unfinished:
            sweep.unfinished += 1
        elif kind is Extra.STRANGER:
            sweep.strangers.append(path)
        elif kind not in {None, Extra.LATE}:
            doomed.append(path)
    return sorted(doomed, key=lambda path: (bool(is_work(path)), path))


def _needless(root: Path, manifest: Mapping[str, Any], files: Collection[str]) -> set[str]:
    """Tokenizers whose vocabulary no stream has."""
    specs = [stream["spec"] for stream in manifest["streams"].values()]
    used = {spec["params"].get("vocabulary_blake3") for spec in specs}
    folder = root / layout.META
    return {
        f"{layout.META}/{path.name}"
        for path in folder.iterdir()
        if IMMUTABLE.fullmatch(path.name) and blake3(path.read_bytes()).hexdigest() not in used
    }


def _mend(root: Path, manifest: Mapping[str, Any], sweep: Sweep) -> None:
    """Write anew what follows from the manifest and is not so on disk."""
    follows = {"zarr.json": derived.group_bytes()}
    for key, stream in manifest["streams"].items():
        if stream["root"] is None:
            continue
        follows |= derived.documents(key, stream)
        try:
            sidecars = [
                read_sidecar(layout.sidecar_path(root, key, shard["k"]), shard["entries"])
                for shard in stream["shards"]
            ]
        except StoreError:
            continue  # `verify` tells
        follows |= derived.offsets(key, stream, sidecars)
    for path, expected in follows.items():
        file = root / path
        if file.is_symlink() or not file.is_file() or file.read_bytes() != expected:
            sweep.written.append(path)
            if not sweep.dry_run:
                layout.write_durably(file, expected)


def _remove_empty(root: Path) -> None:
    for folder, folders, names in os.walk(root, topdown=False):
        if not names and not any((Path(folder) / name).exists() for name in folders):
            Path(folder).rmdir()
