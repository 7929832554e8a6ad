"""One shard against its manifest line and its sidecar, down to the bytes that are asked for."""

import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from blake3 import blake3
from crc32c import crc32c

from mmfuse.features import layout
from mmfuse.features.errors import StoreError
from mmfuse.features.index import read_sidecar
from mmfuse.features.spec import StreamSpec

_BLOCK = 2**22


class Reads(Protocol):
    """Counts what was read."""

    entries_read: int
    bytes_read: int


def check_sidecar(root: Path, key: str, shard: Mapping[str, Any]) -> pa.Table:
    """A shard's sidecar, once it is seen to be the one that was committed and to make sense.

    Raises:
        StoreError: it is not.
    """
    path = layout.sidecar_path(root, key, shard["k"])
    layout.require_regular(root, path, shard["sidecar_bytes"])
    if crc32c(path.read_bytes()) != shard["sidecar_crc32c"]:
        raise StoreError("its checksum is another")
    table = read_sidecar(path, shard["entries"])
    try:
        table.validate(full=True)
    except pa.ArrowException as error:
        raise StoreError(str(error)) from None
    if any(column.null_count for column in table.columns):
        raise StoreError("a cell is empty")
    start, rows = table["start"].to_numpy(), table["rows"].to_numpy()
    order = np.lexsort((rows, start))
    ends = (start + rows)[order]
    if len(rows) and (start.min() < 0 or rows.min() < 0 or ends.max() > shard["rows"]):
        raise StoreError("an entry lies outside the shard")
    if (start[order][1:] < ends[:-1]).any():
        raise StoreError("entries overlap")
    windows = table["windows"].combine_chunks()
    parents = pc.list_parent_indices(windows).to_numpy()
    window_rows = pc.struct_field(pc.list_flatten(windows), "rows").to_numpy()
    if (np.bincount(parents, window_rows, len(rows)) != rows).any():
        raise StoreError("windows of an entry do not add up to its rows")
    return table


def check_shard(
    root: Path,
    key: str,
    stream: Mapping[str, Any],
    shard: Mapping[str, Any],
    table: pa.Table,
    share: float,
    seed: int,
    reads: Reads,
) -> Iterator[tuple[str, str]]:
    """Faults of a shard file, as (path, what): size and index; of `share` of its entries the bytes.

    A share of 1 reads the whole file: its crc32c, every entry, and the zeros behind the last one.
    """
    spec = StreamSpec.from_json(stream["spec"])
    path = layout.shard_path(root, key, shard["k"], spec.item)
    where = path.relative_to(root).as_posix()
    used = layout.used_inner(shard["rows"])
    index = layout.shard_index(used, stream["shard_rows"], spec.row_bytes)
    try:
        layout.require_regular(root, path, shard["bytes"])
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    except (StoreError, OSError) as error:
        if path.exists() and not path.is_symlink():  # else the census has told
            yield where, str(error)
        return
    try:
        if os.pread(descriptor, len(index), shard["bytes"] - len(index)) != index:
            yield where, "its index is not the one written"
        if share >= 1:
            yield from ((where, what) for what in _whole(descriptor, shard, spec.row_bytes, reads))
        chosen = _chosen(table, share, f"{seed}|{key}|{shard['k']}")
        for entry in (
            table.take(chosen).select(["clip_id", "start", "rows", "crc32c", "digest"]).to_pylist()
        ):
            data = _read(
                descriptor, entry["start"] * spec.row_bytes, entry["rows"] * spec.row_bytes
            )
            reads.entries_read += 1
            reads.bytes_read += len(data) if share < 1 else 0
            if crc32c(data) != entry["crc32c"] or blake3(data).digest() != entry["digest"]:
                yield where, f"the data of clip {entry['clip_id']!r} changed"
    finally:
        os.close(descriptor)


def _chosen(table: pa.Table, share: float, seed: str) -> pa.Array:
    """Numbers of the entries to read, the same whenever it is asked again."""
    if share >= 1:
        return pa.array(np.arange(len(table)))
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    count = int(np.ceil(share * len(table)))
    return pa.array(np.sort(rng.choice(len(table), count, replace=False)), pa.int64())


def _whole(
    descriptor: int, shard: Mapping[str, Any], row_bytes: int, reads: Reads
) -> Iterator[str]:
    """Faults of the file's own checksum and of the zeros behind the last row."""
    crc, position = 0, 0
    while block := os.pread(descriptor, _BLOCK, position):
        crc = int(crc32c(block, crc))
        position += len(block)
    reads.bytes_read += position
    if crc != shard["crc32c"]:
        yield "its checksum is another"
    end = shard["rows"] * row_bytes
    padding = layout.used_inner(shard["rows"]) * layout.INNER_ROWS * row_bytes - end
    if any(_read(descriptor, end, padding)):
        yield "behind its last row there are no zeros"


def _read(descriptor: int, offset: int, size: int) -> bytes:
    parts = []
    while size > 0 and (part := os.pread(descriptor, size, offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return b"".join(parts)
