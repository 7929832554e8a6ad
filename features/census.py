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
_WORK = re.compile(
    rf"{layout.META}/{_KEY}/(?:task-[\w-]+-\d+\.(?:part|journal|claim-(?P<k>\d+))|claim-(?P<placed>\d+))"
)
_TASK_LOCK = re.compile(rf"{layout.META}/task-[\w-]+\.lock")
_SIDECAR = re.compile(rf"{layout.META}/{_KEY}/shard-(?P<k>\d+)\.arrow")
_SHARD = re.compile(rf"{_KEY}/values/c/(?P<k>\d+)(?:/0)*")
_DOCUMENT = re.compile(
    rf"{_KEY}/(?:(?:values/|starts/|lengths/)?zarr\.json|(?:starts|lengths)/c/0)"
)


class Extra(Enum):
    """What a file is that no manifest demands."""

    UNFINISHED = "work of a run that ended early; the same command takes it up"
    DROPPED = "part of a stream that was dropped"
    TEMPORARY = "left over by a process that ended"
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


def is_work(path: str) -> bool:
    """Whether a file says that entries wait to be committed."""
    return _WORK.fullmatch(path) is not None


def open_work(paths: Collection[str], manifest: Mapping[str, Any]) -> set[str]:
    """Keys of the streams that have entries which are not committed yet."""
    matches = filter(None, map(_WORK.fullmatch, paths))
    return {match["key"] for match in matches if not _is_committed(match, manifest)}


def placed(paths: Collection[str]) -> list[tuple[str, int]]:
    """Key and number of the shards that a merge was about to commit."""
    matches = filter(None, map(_WORK.fullmatch, paths))
    return [(match["key"], int(match["placed"])) for match in matches if match["placed"]]


def _is_committed(match: re.Match[str], manifest: Mapping[str, Any]) -> bool:
    """Whether a file that says so is about a shard that the manifest names."""
    stream = manifest["streams"].get(match["key"], {"shards": []})
    number = match["k"] or match["placed"]
    return number is not None and int(number) in {shard["k"] for shard in stream["shards"]}


def extra(path: str, manifest: Mapping[str, Any], work: Collection[str]) -> Extra:
    """What a file is that is not demanded; `work` as `open_work` gives it."""
    name = path.removeprefix(f"{layout.META}/")
    if path.endswith(".tmp"):
        whole = path.removesuffix(".tmp")
        known = whole in demanded(manifest) or extra(whole, manifest, work) is not Extra.STRANGER
        return Extra.TEMPORARY if known else Extra.STRANGER
    if path != name and (name in MUTABLE or IMMUTABLE.fullmatch(name)):
        return Extra.LATE
    if _TASK_LOCK.fullmatch(path):
        return Extra.UNFINISHED
    for pattern in (_WORK, _SIDECAR, _SHARD, _DOCUMENT):
        if match := pattern.fullmatch(path):
            break
    else:
        return Extra.STRANGER
    key = match["key"]
    if key in manifest.get("tombstones", ()):
        return Extra.DROPPED
    if pattern is _WORK and _is_committed(match, manifest):
        return Extra.TEMPORARY
    if key in work:
        return Extra.UNFINISHED
    stream = manifest["streams"].get(key)
    late = pattern is _DOCUMENT and stream is not None and stream["root"] is None
    return Extra.UNFINISHED if late else Extra.ORPHAN
