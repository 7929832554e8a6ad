"""The files of a stream that follow from its manifest and sidecars: documents and arrays of Zarr.

Nothing of ours reads them; they are there for other readers of Zarr, and can be written anew.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mmfuse.features import layout
from mmfuse.features.spec import StreamSpec


def group_bytes() -> bytes:
    """The store's own `zarr.json`."""
    return layout.to_json(layout.group_document())


def documents(key: str, stream: Mapping[str, Any], shards: int | None = None) -> dict[str, bytes]:
    """`zarr.json` of a stream and of its values, by path; `shards` where not those of the manifest.

    `shards` counts numbers, not files: the highest number that the array has room for, plus one.
    """
    spec = StreamSpec.from_json(stream["spec"])
    if shards is None:
        shards = max((shard["k"] for shard in stream["shards"]), default=-1) + 1
    group = {**layout.group_document(), "attributes": {"mmfuse": spec.to_json()}}
    rows = shards * stream["shard_rows"]
    array = layout.array_document(rows, spec.item, spec.dtype, stream["shard_rows"], sharded=True)
    return {
        f"{key}/zarr.json": layout.to_json(group),
        f"{key}/values/zarr.json": layout.to_json(array),
    }


def offsets(key: str, stream: Mapping[str, Any], sidecars: Sequence[pa.Table]) -> dict[str, bytes]:
    """`starts` (rows of `values`) and `lengths` of all entries in the manifest's order, by path."""
    starts = [
        table["start"].to_numpy() + shard["k"] * stream["shard_rows"]
        for shard, table in zip(stream["shards"], sidecars, strict=True)
    ]
    lengths = [table["rows"].to_numpy() for table in sidecars]
    files = {}
    for name, parts in (("starts", starts), ("lengths", lengths)):
        array = np.concatenate([np.empty(0, "<i8"), *parts]).astype("<i8")
        document = layout.array_document(len(array), (), "int64", len(array), sharded=False)
        files[f"{key}/{name}/c/0"] = array.tobytes()
        files[f"{key}/{name}/zarr.json"] = layout.to_json(document)
    return files
