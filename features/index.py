"""The index of a shard: one row per entry, kept as an Arrow IPC file that is memory-mapped.

Columns: clip id, content hash of what the entry was made from, view, first row and number of rows
in the shard, crc32c and blake3 of the bytes, the table of windows, the origin on the clip's
timeline, a note where something had to be assumed, and how the view was augmented. Exact times are
written as "n/d".
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from blake3 import blake3

from mmfuse.features.errors import StoreError

_BLOCK = 65536
SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("content", pa.binary(32)),
        ("view", pa.int32()),
        ("start", pa.int64()),
        ("rows", pa.int64()),
        ("crc32c", pa.uint32()),
        ("digest", pa.binary(32)),
        ("windows", pa.list_(pa.struct([("start_s", pa.string()), ("rows", pa.int64())]))),
        ("origin_s", pa.string()),
        ("note", pa.string()),
        ("augmentation", pa.string()),
    ]
)
_BEFORE_VIEWS = pa.schema(list(SCHEMA)[:-1])
_ONE_THREAD = pa.ipc.IpcReadOptions(use_threads=False)  # a pool costs more than it saves here


@dataclass(frozen=True, slots=True)
class Record:
    """Where one entry lies in a shard, and what it is.

    `augmentation` is what was drawn for the entry's view, as JSON; "" for view 0.
    """

    clip_id: str
    content: bytes
    view: int
    start: int
    rows: int
    crc32c: int
    digest: bytes
    windows: tuple[tuple[Fraction, int], ...]
    origin_s: Fraction
    note: str
    augmentation: str = ""

    def to_json(self) -> list[object]:
        """The record as a journal line holds it."""
        windows = [[str(start), rows] for start, rows in self.windows]
        return [self.clip_id, self.content.hex(), self.view, self.start, self.rows, self.crc32c,
                self.digest.hex(), windows, str(self.origin_s), self.note,
                self.augmentation]  # fmt: skip

    @classmethod
    def from_json(cls, line: Sequence[object]) -> "Record":
        """Read what `to_json` wrote, or wrote before there were views."""
        clip_id, content, view, start, rows, crc, digest, windows, origin_s, note, *drawn = line
        return cls(
            str(clip_id),
            bytes.fromhex(str(content)),
            int(str(view)),
            int(str(start)),
            int(str(rows)),
            int(str(crc)),
            bytes.fromhex(str(digest)),
            tuple((Fraction(s), int(n)) for s, n in windows),  # type: ignore[attr-defined]
            Fraction(str(origin_s)),
            str(note),
            *(str(text) for text in drawn[:1]),
        )


def sidecar_bytes(records: Sequence[Record]) -> bytes:
    """The records as an Arrow IPC file."""
    columns = {
        "clip_id": [r.clip_id for r in records],
        "content": [r.content for r in records],
        "view": [r.view for r in records],
        "start": [r.start for r in records],
        "rows": [r.rows for r in records],
        "crc32c": [r.crc32c for r in records],
        "digest": [r.digest for r in records],
        "windows": [[{"start_s": str(s), "rows": n} for s, n in r.windows] for r in records],
        "origin_s": [str(r.origin_s) for r in records],
        "note": [r.note for r in records],
        "augmentation": [r.augmentation for r in records],
    }
    return table_bytes(pa.table(columns, schema=SCHEMA))


def table_bytes(table: pa.Table) -> bytes:
    """A table of `SCHEMA` as an Arrow IPC file."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def read_sidecar(path: Path, expected_entries: int) -> pa.Table:
    """Map a shard's index; one from before there were views gets its last column.

    Raises:
        StoreError: it is no Arrow file, has other columns, or another number of entries.
    """
    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source, options=_ONE_THREAD).read_all()
        table.validate()
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{path} is damaged: {error}") from None
    if table.schema == _BEFORE_VIEWS:
        empty = pa.array([""] * table.num_rows, pa.string())
        table = table.append_column(SCHEMA.field("augmentation"), empty)
    if table.schema != SCHEMA or table.num_rows != expected_entries:
        raise StoreError(
            f"{path} has {table.num_rows} entries in columns {table.schema.names}; the manifest "
            f"says {expected_entries} in {SCHEMA.names}"
        )
    return table


def root_of(fingerprint: str, sidecars: Sequence[pa.Table]) -> str:
    """blake3 root of a stream from the sidecars of its shards, in the manifest's order.

    Entries are sorted by (clip id, view), so the root does not depend on shards, order or workers.
    Where a clip and view come twice, the last one counts.
    """
    hasher = blake3(fingerprint.encode())
    before: tuple[bytes, int] | None = None
    entry = b""
    for clip_id, view, content, digest in _sorted_entries(sidecars):
        key = (clip_id.encode(), view)
        if key != before:
            hasher.update(entry)
        before = key
        entry = len(key[0]).to_bytes(4, "little") + key[0]
        entry += view.to_bytes(4, "little") + content + digest
    hasher.update(entry)
    return hasher.hexdigest()


def _sorted_entries(sidecars: Sequence[pa.Table]) -> Iterator[tuple[str, int, bytes, bytes]]:
    """Clip id, view, content hash and digest of all entries, a block at a time in memory."""
    names = ["clip_id", "view", "content", "digest"]
    tables = [table.select(names) for table in sidecars if len(table)]
    if not tables:
        return
    keys = pa.concat_tables([table.select(names[:2]) for table in tables])
    by = [("clip_id", "ascending"), ("view", "ascending")]
    order = pc.sort_indices(keys, by).to_numpy().astype(np.int64)
    ends = np.cumsum([len(table) for table in tables])
    for block in np.split(order, range(_BLOCK, len(order), _BLOCK)):
        rows = np.sort(block)
        bounds = np.searchsorted(rows, ends)
        parts = [
            table.take(pa.array(rows[first:last] - (end - len(table))))
            for table, first, last, end in zip(tables, [0, *bounds[:-1]], bounds, ends, strict=True)
            if last > first
        ]
        columns = pa.concat_tables(parts).take(pa.array(np.searchsorted(rows, block)))
        yield from zip(*(columns[name].to_pylist() for name in names), strict=True)


def store_root_of(stream_roots: Sequence[str]) -> str:
    """blake3 root of a store from the roots of its streams, in any order."""
    return blake3("\n".join(sorted(stream_roots)).encode()).hexdigest()
