"""The manifest: the one document that says what a store holds, and the only commit point.

It carries its own crc32c, and that of every file beside it that never changes. A store from before
that was so opens all the same; the next commit adds both.
"""

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from crc32c import crc32c

from mmfuse.features import layout
from mmfuse.features.errors import StoreError
from mmfuse.features.failures import seal_fault
from mmfuse.features.spec import StreamSpec

NAME = "manifest.json"
IMMUTABLE = re.compile(r"tokenizer-[0-9a-f]{16}\.json")
MUTABLE = frozenset({"failures.parquet", "run.json", "versions.json"})  # carry a crc32c themselves
_KEY = re.compile(r"\w[\w.-]*-[0-9a-f]{8}")
_HEX = re.compile(r"[0-9a-f]{64}")
_OPTIONAL = {"files", "tombstones", "version", layout.CHECKSUM}  # version: of old stores
_STREAM = {"spec", "fingerprint", "shard_rows", "inner_rows", "root", "shards"}
_SHARD = {"k", "entries", "rows", "bytes", "crc32c", "sidecar_bytes", "sidecar_crc32c"}


def manifest_path(root: Path) -> Path:
    """Where the manifest of a store lies."""
    return root / layout.META / NAME


def new_manifest() -> dict[str, Any]:
    """The manifest of a store that holds nothing yet."""
    return {"format": layout.FORMAT_VERSION, "streams": {}, "root": None}


def read_manifest(root: Path) -> dict[str, Any]:
    """The store's manifest, every part of it of the right kind.

    Raises:
        StoreError: damaged, or written by a newer version.
    """
    return parse_manifest(layout.read_bytes(root, manifest_path(root)), root)


def parse_manifest(raw: bytes, root: Path | str) -> dict[str, Any]:
    """The manifest of the store at `root`, which may be elsewhere, from its bytes.

    Raises:
        StoreError: damaged, or written by a newer version.
    """
    document = layout.parse_json(f"{root}/{layout.META}/{NAME}", raw)
    if not isinstance(document, dict) or not isinstance(document.get("streams"), dict):
        raise _damaged(root, "it has no streams")
    if document.get("format") != layout.FORMAT_VERSION:
        raise StoreError(
            f"{root} has store format {document.get('format')!r}, this mmfuse reads format "
            f"{layout.FORMAT_VERSION}; upgrade with: pip install -U mmfuse"
        )
    if ("files" in document or layout.CHECKSUM in document) and (fault := layout.seal_fault(raw)):
        raise _damaged(root, fault)
    if unknown := sorted(document.keys() - {*new_manifest(), *_OPTIONAL}):
        raise _damaged(root, f"it has a key {unknown[0]!r}, which this mmfuse does not know")
    if fault := _fault(document):
        raise _damaged(root, fault)
    return document


def write_manifest(root: Path, document: dict[str, Any], forget: Collection[str] = ()) -> None:
    """Replace the manifest: the commit. Files in `forget` are no longer named, though there.

    The tombstone of a stream that was made anew is gone with it.
    """
    document.pop("version", None)
    tombstones = set(document.pop("tombstones", ())) - document["streams"].keys()
    if tombstones:
        document["tombstones"] = sorted(tombstones)
    document["files"] = {
        name: crc for name, crc in _files(root, document.get("files", {})).items()
        if name not in forget
    }  # fmt: skip
    layout.write_durably(manifest_path(root), layout.to_sealed_json(document))


def stream_fault(key: str, stream: object) -> str | None:
    """What is wrong with a stream's part of the manifest; None if nothing."""
    if not _KEY.fullmatch(key) or not isinstance(stream, dict) or stream.keys() != _STREAM:
        return f"stream {key!r} has keys it should not have, or lacks some"
    if not isinstance(stream["spec"], dict) or not isinstance(stream["shards"], list):
        return f"stream {key} has no spec or no shards"
    spec = StreamSpec.from_json(stream["spec"])
    if spec.fingerprint != stream["fingerprint"] or spec.key != key:
        return f"stream {key} does not have the fingerprint of its spec"
    if not all(0 < n < 2**31 for n in spec.item) or math.prod(spec.item) > layout.SHARD_BYTES:
        return f"stream {key} has rows of shape {spec.item}"
    rows = stream["shard_rows"]
    if not _count(rows) or rows % layout.INNER_ROWS or not 0 < rows <= _most_rows():
        return f"stream {key} has shards of {rows!r} rows"
    if stream["inner_rows"] != layout.INNER_ROWS:
        return f"stream {key} has inner chunks of {stream['inner_rows']!r} rows"
    if not _root(stream["root"]):
        return f"stream {key} has root {stream['root']!r}"
    for shard in stream["shards"]:
        if fault := _shard_fault(shard, rows, spec.row_bytes):
            return f"stream {key} {fault}"
    numbers = [shard["k"] for shard in stream["shards"]]
    return f"stream {key} names a shard twice" if len(set(numbers)) < len(numbers) else None


def _shard_fault(shard: object, shard_rows: int, row_bytes: int) -> str | None:
    if not isinstance(shard, dict) or shard.keys() != _SHARD:
        return "has a shard with keys it should not have, or lacks some"
    if not all(_count(value) for value in shard.values()):
        return f"has a shard of {shard}"
    size = layout.shard_file_bytes(shard["rows"], shard_rows, row_bytes)
    if shard["rows"] > shard_rows or shard["bytes"] != size:
        return f"gives shard {shard['k']} no sense: {shard['rows']} rows, {shard['bytes']} bytes"
    return None


def _fault(document: Mapping[str, Any]) -> str | None:
    if not _root(document.get("root", "")):
        return "root is missing or of the wrong kind"
    files, tombstones = document.get("files", {}), document.get("tombstones", [])
    if not isinstance(files, dict) or not isinstance(tombstones, list):
        return "files or tombstones are of the wrong kind"
    for name, crc in files.items():
        if not (crc is None if name in MUTABLE else IMMUTABLE.fullmatch(name) and _count(crc)):
            return f"it names a file {name!r}"
    for key in tombstones:
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            return f"it has a tombstone {key!r}"
    faults = (stream_fault(key, stream) for key, stream in document["streams"].items())
    return next(filter(None, faults), None)


def _files(root: Path, known: Mapping[str, int | None]) -> dict[str, int | None]:
    """Files beside the manifest that must stay: name -> crc32c, None where the file has its own."""
    files = dict(known)
    for path in (root / layout.META).iterdir():
        if path.name in MUTABLE and path.name not in files:
            raw = layout.read_bytes(root, path)
            table = path.suffix == ".parquet"
            if (seal_fault(raw, required=True) if table else layout.seal_fault(raw)) is None:
                files[path.name] = None  # else it is from before these were sealed
        elif IMMUTABLE.fullmatch(path.name) and path.name not in files:
            files[path.name] = int(crc32c(layout.read_bytes(root, path)))
    return files


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _root(value: object) -> bool:
    return value is None or (isinstance(value, str) and bool(_HEX.fullmatch(value)))


def _most_rows() -> int:
    return layout.MAX_INNER * layout.INNER_ROWS


def _damaged(root: Path | str, fault: str) -> StoreError:
    return StoreError(
        f"the manifest of {root} is damaged: {fault}; restore {layout.META}/{NAME} from a copy"
    )
