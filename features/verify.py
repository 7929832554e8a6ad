"""Whether a store is what it says: every file, every bit that is asked for, and every root.

Nothing is locked or changed. A finding is a fault; a note is what is unusual and harms nobody. The
fault of one file is told once: what is missing is the census', what is there is its own check's.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from crc32c import crc32c

from mmfuse.features import derived, layout
from mmfuse.features.census import LOCK, Extra, demanded, extra, files_of, open_work
from mmfuse.features.errors import MissingError, StoreError
from mmfuse.features.failures import seal_fault
from mmfuse.features.index import read_sidecar, root_of, store_root_of
from mmfuse.features.manifest import MUTABLE, NAME, read_manifest
from mmfuse.features.store import open_store
from mmfuse.features.verify_shard import check_shard, check_sidecar

_MANIFEST = f"{layout.META}/{NAME}"
_HARMFUL = {Extra.ORPHAN, Extra.STRANGER}


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, where in the store, and what to do about it."""

    where: str
    what: str
    then: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.then}"


@dataclass(slots=True)
class Verification:
    """The outcome: `findings` are faults, `notes` are not."""

    store: str
    root: str | None = None
    streams: int = 0
    shards: int = 0
    entries: int = 0
    entries_read: int = 0
    bytes_read: int = 0
    recomputed: int = 0
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0, or 4 where something is wrong."""
        return StoreError.exit_code if self.findings else 0


def verify_store(root: Path, share: float = 0.0, seed: int = 0) -> Verification:
    """Check a store.

    Args:
        share: of each shard's entries, those whose bytes are read; 1.0 reads every byte there is.
        seed: other entries, where the share is below 1.

    Raises:
        MissingError: there is no store.
    """
    report = Verification(str(root))
    if not (root / layout.META).is_dir():
        raise MissingError(f"no feature store at {root}; make one with mmfeat run")
    try:
        manifest = read_manifest(root)
    except StoreError as error:
        report.findings.append(Finding(_MANIFEST, str(error), "nothing else could be checked"))
        return report
    report.root = manifest["root"]
    if report.root is None:
        report.notes.append("a run is unfinished; the same mmfeat command goes on with it")
    if layout.CHECKSUM not in manifest:
        report.notes.append("the manifest has no checksum yet; the next mmfeat run adds it")
    found = files_of(root)
    work = open_work(found, manifest)
    report.findings += _check_census(root, manifest, found, work, report)
    report.findings += _check_beside(root, manifest)
    for key, stream in manifest["streams"].items():
        report.findings += _check_stream(root, key, stream, share, seed, report)
        if key not in work:  # else what follows may be ahead of the manifest
            report.findings += _check_derived(root, key, stream)
    if not report.findings:
        report.findings += _check_scales(root, manifest)
    roots = [stream["root"] for stream in manifest["streams"].values()]
    if report.root is not None and (None in roots or store_root_of(roots) != report.root):
        what = "the root of the store is not that of its streams"
        report.findings.append(Finding(_MANIFEST, what, _restore()))
    return report


def _check_census(
    root: Path,
    manifest: dict[str, Any],
    found: Mapping[str, os.stat_result],
    work: Collection[str],
    report: Verification,
) -> Iterator[Finding]:
    """Files that are missing, too many, links, devices, or open to others."""
    wanted = demanded(manifest)
    notes: dict[Extra, int] = {}
    for path in sorted(wanted - found.keys()):
        yield Finding(path, "missing", _restore(_stream_of(path)))
    for path, status in found.items():
        try:
            layout.require_regular(root, root / path)
        except StoreError:
            yield Finding(path, "a link or a device", "put the file itself there")
            continue
        if path == LOCK:
            continue
        if path not in wanted:
            kind = extra(path, manifest, work)
            if kind in _HARMFUL:
                then = "remove it" if kind is Extra.STRANGER else f"mmfeat gc {root} removes it"
                yield Finding(path, kind.value, then)
            else:
                notes[kind] = notes.get(kind, 0) + 1
        elif status.st_mode & 0o002:
            report.notes.append(f"{path}: anybody may write to it; chmod o-w")
        elif "/values/c/" in path and status.st_mode & 0o222:
            report.notes.append(f"{path}: a shard that can be written to; chmod a-w")
    for kind, count in notes.items():
        report.notes.append(f"{count} {'file' if count == 1 else 'files'}: {kind.value}")


def _check_beside(root: Path, manifest: Mapping[str, Any]) -> Iterator[Finding]:
    """The store's group, and the files in `_mm` that carry or have a checksum."""
    yield from _check_bytes(root, {"zarr.json": derived.group_bytes()})
    kept: dict[str, int | None] = manifest.get("files", {})
    for path in sorted((root / layout.META).iterdir()):
        sealed = path.name in MUTABLE
        if path.is_symlink() or not path.is_file() or not (sealed or path.name in kept):
            continue
        raw, fault = path.read_bytes(), None
        if path.name.endswith(".parquet"):
            fault = seal_fault(raw, required=path.name in kept)
        elif sealed and (path.name in kept or b'"checksum"' in raw):
            fault = layout.seal_fault(raw)
        elif not sealed and crc32c(raw) != kept[path.name]:
            fault = "its checksum is another"
        if fault:
            then = "remove it, and the next mmfeat run writes it anew"
            yield Finding(f"{layout.META}/{path.name}", fault, then)


def _check_stream(
    root: Path, key: str, stream: dict[str, Any], share: float, seed: int, report: Verification
) -> Iterator[Finding]:
    """Sidecars, shards and root of one stream."""
    finished = stream["root"] is not None
    report.streams += 1
    sidecars: list[pa.Table] = []
    for shard in stream["shards"]:
        report.shards += 1
        report.entries += shard["entries"]
        where = layout.sidecar_path(Path(), key, shard["k"]).as_posix()
        if (root / where).is_symlink() or not (root / where).is_file():
            continue
        try:
            table = check_sidecar(root, key, shard)
        except (StoreError, OSError) as error:
            yield Finding(where, str(error), _restore(key))
            continue
        sidecars.append(table)
        for path, what in check_shard(root, key, stream, shard, table, share, seed, report):
            yield Finding(path, what, _restore(key))
    whole = len(sidecars) == len(stream["shards"])
    if whole and finished and root_of(stream["fingerprint"], sidecars) != stream["root"]:
        yield Finding(_MANIFEST, f"the root of {key} is not that of its entries", _restore(key))


def _check_derived(root: Path, key: str, stream: dict[str, Any]) -> Iterator[Finding]:
    """Documents and arrays for other readers of Zarr."""
    yield from _check_bytes(root, derived.documents(key, stream))
    if stream["root"] is None:
        return
    try:
        sidecars = [
            read_sidecar(layout.sidecar_path(root, key, shard["k"]), shard["entries"])
            for shard in stream["shards"]
        ]
    except (StoreError, OSError):
        return  # it has been told
    yield from _check_bytes(root, derived.offsets(key, stream, sidecars))


def _check_scales(root: Path, manifest: Mapping[str, Any]) -> Iterator[Finding]:
    """Entries of int8 streams without the scales that make numbers of them."""
    from mmfuse.features.int8_stream import Int8Stream

    store = open_store(root)
    for key in [key for key, stream in manifest["streams"].items() if stream["root"] is not None]:
        try:
            stream = store[key]
            if isinstance(stream, Int8Stream):
                stream.scale_entries  # noqa: B018
        except StoreError as error:
            yield Finding(key, str(error), _restore(key))


def _check_bytes(root: Path, files: Mapping[str, bytes]) -> Iterator[Finding]:
    for path, expected in files.items():
        file = root / path
        if file.is_symlink() or not file.is_file():
            continue  # the census has told
        if file.stat().st_size != len(expected) or file.read_bytes() != expected:
            yield Finding(
                path, "is not what follows from the manifest", f"mmfeat gc {root} writes it anew"
            )


def _stream_of(path: str) -> str | None:
    parts: Sequence[str] = path.split("/")
    if parts[0] != layout.META:
        return parts[0] if len(parts) > 1 else None
    return parts[1] if len(parts) > 2 else None


def _restore(key: str | None = None) -> str:
    if key is None:
        return "restore it from a copy"
    return (
        f"restore it from a copy, or drop the stream with mmfeat gc --stream {key} and make it anew"
    )
