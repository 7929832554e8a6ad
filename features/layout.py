"""The store's shape on disk: folders, Zarr documents, shard indexes, and the file calls they need.

A stream is one Zarr v3 array `values` of (rows, *item). Its chunks are shards of `shard_rows`
rows; a shard file holds inner chunks of 512 rows back to back from byte 0, then Zarr's own index
(offset and size of each inner chunk, then crc32c). Rows of a clip therefore lie as plain C-order
bytes that can be mapped, and any Zarr reader can open the same files.

Source: Zarr v3 core specification; ZEP 2 (sharding_indexed codec).
"""

import json
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from crc32c import crc32c

from mmfuse.features.errors import StoreError
from mmfuse.features.spec import StreamSpec

FORMAT_VERSION = 1
INNER_ROWS = 512
SHARD_BYTES = 256 * 2**20
MAX_INNER = 8192  # keeps a shard's index under 128 KiB however small a row is
MAX_JSON_BYTES = 256 * 2**20  # a manifest of ten million clips in forty streams
META = "_mm"
CHECKSUM = "checksum"
_ABSENT = 2**64 - 1


def shard_rows_of(spec: StreamSpec) -> int:
    """Rows of a full shard: at most 256 MiB, a whole number of inner chunks."""
    return min(max(SHARD_BYTES // (spec.row_bytes * INNER_ROWS), 1), MAX_INNER) * INNER_ROWS


def shard_path(root: Path, key: str, shard: int, item: tuple[int, ...]) -> Path:
    """Where Zarr's default chunk keys put a shard: `c/<k>/0` for rows of one dimension."""
    return root / key / "values" / "c" / "/".join([str(shard), *("0" for _ in item)])


def sidecar_path(root: Path, key: str, shard: int) -> Path:
    """The index of a shard's entries."""
    return root / META / key / f"shard-{shard}.arrow"


def group_document() -> dict[str, Any]:
    """`zarr.json` of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": {}}


def array_document(
    rows: int, item: tuple[int, ...], dtype: str, chunk_rows: int, *, sharded: bool
) -> dict[str, Any]:
    """`zarr.json` of an array of (rows, *item): sharded values, or one plain chunk."""
    little = [{"name": "bytes", "configuration": {"endian": "little"}}]
    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [INNER_ROWS, *item],
            "codecs": little,
            "index_codecs": [*little, {"name": "crc32c"}],
            "index_location": "end",
        },
    }
    fill: Any = 0
    if dtype == "bool":
        fill = False
    elif dtype.startswith("float"):
        fill = 0.0
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [rows, *item],
        "data_type": dtype,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [chunk_rows, *item]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": [sharding] if sharded else little,
        "attributes": {},
        "storage_transformers": [],
    }


def shard_index(used_inner: int, shard_rows: int, row_bytes: int) -> bytes:
    """Zarr's index of a shard whose first `used_inner` inner chunks are there, with its crc32c."""
    inner_bytes = INNER_ROWS * row_bytes
    index = np.full((shard_rows // INNER_ROWS, 2), _ABSENT, dtype="<u8")
    index[:used_inner, 0] = np.arange(used_inner, dtype=np.uint64) * np.uint64(inner_bytes)
    index[:used_inner, 1] = inner_bytes
    raw = index.tobytes()
    return raw + int(crc32c(raw)).to_bytes(4, "little")


def used_inner(rows: int) -> int:
    """Inner chunks that hold `rows` rows."""
    return -(-rows // INNER_ROWS)


def shard_file_bytes(rows: int, shard_rows: int, row_bytes: int) -> int:
    """Size of a sealed shard file with `rows` rows of data."""
    return used_inner(rows) * INNER_ROWS * row_bytes + shard_rows // INNER_ROWS * 16 + 4


def to_json(document: Any) -> bytes:
    """Canonical bytes (sorted keys, indent 1): equal documents are equal files."""
    return (json.dumps(document, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def to_sealed_json(document: dict[str, Any]) -> bytes:
    """Canonical bytes with the crc32c of the document without it in key `checksum`, as hex."""
    body = {key: value for key, value in document.items() if key != CHECKSUM}
    raw = to_json(body)
    if min(body, default="") > CHECKSUM:  # its line comes first, and the rest is written once
        return b'{\n "%s": "%08x",' % (CHECKSUM.encode(), crc32c(raw)) + raw[1:]
    return to_json({**body, CHECKSUM: f"{crc32c(raw):08x}"})


def seal_fault(raw: bytes) -> str | None:
    """What is wrong with a file of `to_sealed_json`; None if not a bit of it was changed."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return "it is not JSON"
    if not isinstance(document, dict) or CHECKSUM not in document:
        return "it has no checksum"
    before, _, after = raw.partition(f'\n "{CHECKSUM}": "'.encode())
    if after[8:10] == b'",':  # its line can be taken out, which is faster than to write all anew
        whole = b"%08x" % crc32c(before + after[10:]) == after[:8]
    else:
        whole = to_sealed_json(document) == raw
    return None if whole else "its checksum is another"


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file as one step: temporary file, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


def file_crc(path: Path) -> int:
    """crc32c of a whole file."""
    crc = 0
    with path.open("rb") as file:
        while block := file.read(2**22):
            crc = int(crc32c(block, crc))
    return crc


def sync(path: Path) -> None:
    """Make a file, or the renames inside a folder, survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_regular(root: Path, path: Path, expected_bytes: int | None = None) -> int:
    """Size of a regular file that is reached from `root` through no symbolic link.

    Raises:
        StoreError: it is missing, a link, a device, or not of the size the manifest names.
    """
    relative = path.relative_to(root)
    steps = [root / Path(*relative.parts[: i + 1]) for i in range(len(relative.parts))]
    for step in steps:
        try:
            status = step.lstat()
        except FileNotFoundError:
            raise StoreError(
                f"{relative} is missing from store {root}; restore it from a copy, or make the "
                "store anew with `mmfeat run`"
            ) from None
        kind_ok = stat.S_ISREG(status.st_mode) if step == path else stat.S_ISDIR(status.st_mode)
        if not kind_ok:
            raise StoreError(f"{step.relative_to(root)} in store {root} is a link or a device")
    if expected_bytes is not None and status.st_size != expected_bytes:
        raise StoreError(
            f"{relative} in store {root} has {status.st_size} bytes, its manifest says "
            f"{expected_bytes}: it was cut or changed; restore it from a copy"
        )
    return status.st_size


def require_all(root: Path, sizes: Iterable[tuple[Path, int]]) -> None:
    """`require_regular` of many files; a folder that several of them are in is looked at once.

    Raises:
        StoreError: as `require_regular`.
    """
    folders = {str(root)}

    def is_there(path: str, kind: Callable[[int], bool]) -> os.stat_result | None:
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return None
        return status if kind(status.st_mode) else None

    def is_folder(path: str) -> bool:
        if path not in folders:
            if not is_folder(path.rpartition("/")[0]) or not is_there(path, stat.S_ISDIR):
                return False
            folders.add(path)
        return True

    for path, size in sizes:
        status = is_there(str(path), stat.S_ISREG)
        if status is None or status.st_size != size or not is_folder(str(path.parent)):
            require_regular(root, path, size)  # which tells what is wrong


def read_bytes(root: Path, path: Path) -> bytes:
    """A whole file of bounded size.

    Raises:
        StoreError: missing, not a regular file, or too large.
    """
    if require_regular(root, path) > MAX_JSON_BYTES:
        raise StoreError(f"{path} is larger than {MAX_JSON_BYTES} bytes; refusing to read it")
    return path.read_bytes()


def parse_json(path: Path | str, raw: bytes) -> Any:
    """JSON that was read from `path`.

    Raises:
        StoreError: it is no JSON.
    """
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is not JSON: {error}; restore it from a copy") from None
