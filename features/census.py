"""Every file of a store: those that its manifest demands, and what the others are.

Paths are relative to the store, with slashes.
"""

import os
import re
from collections.abc import Collection, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from mmfuse.features import layout
from mmfuse.features.manifest import IMMUTABLE, MUTABLE, NAME
from mmfuse.features.spec import StreamSpec

LOCK = f"{layout.META}/writer.lock"
_KEY = r"(?P<key>\w[\w.-]*-[0-9a-f]{8})"
_WORK = re.compile(rf"{layout.META}/{_KEY}/task-[\w-]+-\d+\.(?:part|journal|claim-(?P<k>\d+))")
_SIDECAR = re.compile(rf"{layout.META}/{_KEY}/shard-(?P<k>\d+)\.arrow")
_SHARD = re.compile(rf"{_KEY}/values/c/(?P<k>\d+)(?:/0)*")
_DOCUMENT = re.compile(
    rf"{_KEY}/(?:(?:values/|starts/|lengths/)?zarr\.json|(?:starts|lengths)/c/0)"
)


class Extra(Enum):
    """What a file is that no manifest demands."""

    UNFINISHED = "work of a run that ended early; the same command takes it up"
    DROPPED = "part of a stream that was dropped"
    TEMPORARY = "a file that was being written when a process ended"
    LATE = "newer than the manifest"
    ORPHAN = "not named by the manifest"
    STRANGER = "nothing that belongs into a store"


def files_of(root: Path) -> dict[str, os.stat_result]:
    """`lstat` of everything in a store but folders, by path; links are not followed."""
    found: dict[str, os.stat_result] = {}
    for folder, folders, names in os.walk(root):
        inside = Path(folder)
        links = [name for name in folders if (inside / name).is_symlink()]
        for name in (*names, *links):
            path = inside / name
            found[path.relative_to(root).as_posix()] = path.lstat()
    return dict(sorted(found.items()))


def demanded(manifest: Mapping[str, Any]) -> set[str]:
    """Files that must be there."""
    paths = {"zarr.json", f"{layout.META}/{NAME}"}
    paths |= {f"{layout.META}/{name}" for name in manifest.get("files", {})}
    for key, stream in manifest["streams"].items():
        item = StreamSpec.from_json(stream["spec"]).item
        paths |= {f"{key}/zarr.json", f"{key}/values/zarr.json"}
        if stream["root"] is not None:
            paths |= {f"{key}/{name}" for name in _OFFSETS}
        here = Path()
        for shard in stream["shards"]:
            paths.add(layout.shard_path(here, key, shard["k"], item).as_posix())
            paths.add(layout.sidecar_path(here, key, shard["k"]).as_posix())
    return paths


_OFFSETS = ("starts/zarr.json", "starts/c/0", "lengths/zarr.json", "lengths/c/0")


def open_work(paths: Collection[str]) -> dict[str, set[int]]:
    """Shard numbers that a writer began and did not commit, by stream key."""
    work: dict[str, set[int]] = {}
    for path in paths:
        if match := _WORK.fullmatch(path):
            claimed = {int(match["k"])} if match["k"] else set()
            work.setdefault(match["key"], set()).update(claimed)
    return work


def extra(path: str, manifest: Mapping[str, Any], work: Mapping[str, set[int]]) -> Extra:
    """What a file is that is not demanded; `work` as `open_work` gives it."""
    name = path.removeprefix(f"{layout.META}/")
    if path.endswith(".tmp"):
        whole = path.removesuffix(".tmp")
        known = whole in demanded(manifest) or extra(whole, manifest, work) is not Extra.STRANGER
        return Extra.TEMPORARY if known else Extra.STRANGER
    if path != name and (name in MUTABLE or IMMUTABLE.fullmatch(name)):
        return Extra.LATE
    for pattern in (_WORK, _SIDECAR, _SHARD, _DOCUMENT):
        if match := pattern.fullmatch(path):
            break
    else:
        return Extra.STRANGER
    key = match["key"]
    if key in manifest.get("tombstones", ()):
        return Extra.DROPPED
    if pattern is _WORK or (pattern is not _DOCUMENT and int(match["k"]) in work.get(key, ())):
        return Extra.UNFINISHED
    if pattern is _DOCUMENT:
        stream = manifest["streams"].get(key)
        unfinished = key in work if stream is None else stream["root"] is None
        return Extra.UNFINISHED if unfinished else Extra.ORPHAN
    return Extra.ORPHAN
