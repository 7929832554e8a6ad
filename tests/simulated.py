"""Stores and manifests of any size in seconds: real indexes over sparse shards."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from crc32c import crc32c

from mmfuse.features import layout
from mmfuse.features.index import SCHEMA, table_bytes
from mmfuse.features.manifest import new_manifest, write_manifest
from mmfuse.features.spec import StreamSpec, Timing

SPEC = StreamSpec(
    "simulated", "audio", (768,), "float16", {}, Timing("frames", Fraction(1, 80), Fraction(1, 50))
)
ROWS = 100  # an entry
PER_SHARD = 1024  # entries, as many as a task of a large corpus has clips
PER_GROUP = 65536  # rows of a manifest


def clip_id(number: int) -> str:
    """The id of a simulated clip."""
    return f"clip-{number:010d}"


def simulate_store(root: Path, entries: int) -> None:
    """A store of one stream whose shards hold zeros that take no disk."""
    key, shard_rows = SPEC.key, layout.shard_rows_of(SPEC)
    (root / layout.META / key).mkdir(parents=True)
    rest = _rest(np.random.default_rng(0), PER_SHARD)
    shards = []
    for k, first in enumerate(range(0, entries, PER_SHARD)):
        count = min(PER_SHARD, entries - first)
        ids = pa.array([clip_id(number) for number in range(first, first + count)])
        table = rest.slice(0, count).set_column(0, SCHEMA.field("clip_id"), ids)
        sidecar = table_bytes(table.combine_chunks())
        layout.sidecar_path(root, key, k).write_bytes(sidecar)
        rows = count * ROWS
        size = layout.shard_file_bytes(rows, shard_rows, SPEC.row_bytes)
        index = layout.shard_index(layout.used_inner(rows), shard_rows, SPEC.row_bytes)
        path = layout.shard_path(root, key, k, SPEC.item)
        path.parent.mkdir(parents=True)
        with path.open("wb") as file:
            file.seek(size - len(index))
            file.write(index)
        shards.append(
            {"k": k, "entries": count, "rows": rows, "bytes": size, "crc32c": 0,
             "sidecar_bytes": len(sidecar), "sidecar_crc32c": int(crc32c(sidecar))}
        )  # fmt: skip
    manifest = new_manifest()
    manifest["streams"][key] = {
        "spec": SPEC.to_json(), "fingerprint": SPEC.fingerprint, "shard_rows": shard_rows,
        "inner_rows": layout.INNER_ROWS, "root": None, "shards": shards,
    }  # fmt: skip
    write_manifest(root, manifest)


def simulate_manifest(path: Path, clips: int, *, durations: bool = True) -> None:
    """A Parquet manifest of clips with audio and MIDI, every third with text; no file is there."""
    schema = pa.schema(
        [(name, pa.string()) for name in ("id", "text", "split", "audio_path", "midi_path")]
        + ([("duration_s", pa.float32())] if durations else [])
    )
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for first in range(0, clips, PER_GROUP):
            numbers = range(first, min(first + PER_GROUP, clips))
            columns = [
                [clip_id(number) for number in numbers],
                [None if number % 3 else f"the clip of number {number}" for number in numbers],
                ["test" if number % 10 == 9 else "train" for number in numbers],
                [f"audio/{number // 1000}/{number}.flac" for number in numbers],
                [f"midi/{number // 1000}/{number}.mid" for number in numbers],
            ]
            if durations:
                columns.append([5.0 + number % 11 for number in numbers])
            writer.write_table(pa.table(columns, schema=schema))


def _rest(rng: np.random.Generator, count: int) -> pa.Table:
    """All columns of a sidecar; the ids are to be replaced."""
    hashes = [pa.array([rng.bytes(32) for _ in range(count)], pa.binary(32)) for _ in range(2)]
    columns = {
        "clip_id": [""] * count,
        "content": hashes[0],
        "view": np.zeros(count, np.int32),
        "start": np.arange(count) * ROWS,
        "rows": np.full(count, ROWS),
        "crc32c": rng.integers(0, 2**32, count, dtype=np.uint32),
        "digest": hashes[1],
        "windows": [[{"start_s": "0", "rows": ROWS}]] * count,
        "origin_s": ["0"] * count,
        "note": [""] * count,
        "augmentation": [""] * count,
    }
    return pa.table(columns, schema=SCHEMA)
