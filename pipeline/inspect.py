"""What a store holds, as a document for `--json` and as lines for a person."""

import json
from collections import Counter
from typing import Any

import numpy as np

from mmfuse.features.errors import MissingError
from mmfuse.features.store import FeatureStore, Stream
from mmfuse.pipeline.report import SCHEMA_VERSION

View = tuple[dict[str, Any], list[str]]


def overview(store: FeatureStore) -> View:
    """Streams with entries, rows, bytes and roots; failures by reason."""
    streams = []
    for key, spec in store.specs().items():
        stream, manifest = store[key], store.manifest["streams"][key]
        streams.append(
            {
                "stream": key,
                "modality": spec.modality,
                "item": list(spec.item),
                "dtype": spec.dtype,
                "entries": len(stream),
                "views": int(stream.views.max(initial=0)),
                "rows": int(stream.lengths.sum()),
                "bytes": sum(shard["bytes"] for shard in manifest["shards"]),
                "shards": len(manifest["shards"]),
                "root": manifest["root"],
                "params": dict(spec.params),
            }
        )
    table = store.failures()
    reasons = Counter(zip(table["stage"].to_pylist(), table["reason"].to_pylist(), strict=True))
    document = {
        "schema_version": SCHEMA_VERSION,
        "store": str(store.path),
        "root": store.root,
        "streams": streams,
        "failures": [{"stage": s, "reason": r, "entries": n} for (s, r), n in reasons.items()],
    }
    lines = [
        f"{'stream':24} {'row':>14} {'entries':>8} {'views':>6} "
        f"{'rows':>10} {'MB':>8} {'shards':>6}"
    ]
    for s in streams:
        row = f"{s['dtype']}{s['item']}"
        lines.append(
            f"{s['stream']:24} {row:>14} {s['entries']:>8} {s['views']:>6} {s['rows']:>10} "
            f"{s['bytes'] / 1e6:>8.2f} {s['shards']:>6}"
        )
    lines += [f"failed: {stage}: {reason} {n}" for (stage, reason), n in sorted(reasons.items())]
    lines.append(f"root {store.root or '(a run is unfinished)'}")
    return document, lines


def clip(store: FeatureStore, clip_id: str) -> View:
    """Every entry of one clip: rows, time span, note, and what was drawn for its views.

    Raises:
        MissingError: no stream has such a clip.
    """
    entries, lines = [], []
    for key in store.specs():
        stream = store[key]
        if clip_id not in stream:
            continue
        for view in range(int(stream.views.max(initial=0)) + 1):
            number = int(stream.find([clip_id], view)[0])
            if number < 0:
                continue
            entry = _entry(stream, number)
            entries.append({"stream": key, "view": view, **entry})
            span, drawn = entry["span_s"], entry["augmentation"]
            when = f"{span[0]:.3f} s to {span[1]:.3f} s" if span else "no times"
            how = "".join(f"  {name} {value}" for name, value in drawn.items() if name != "key")
            name = f"{key} view {view}" if view else key
            lines.append(
                f"{name:32} {entry['rows']:>8} rows  {when}{how}  {entry['note']}".rstrip()
            )
    if not entries:
        raise MissingError(
            f"no stream of {store.path} has a clip {clip_id!r}; mmfeat inspect {store.path} "
            "--failures tells whether it failed"
        )
    document = {"schema_version": SCHEMA_VERSION, "clip_id": clip_id, "entries": entries}
    return document, lines


def _entry(stream: Stream, number: int) -> dict[str, Any]:
    times_s, row = stream.frame_times_s(number), stream.record(number)
    timed = len(times_s) > 0 and bool(np.isfinite(times_s).all())
    return {
        "rows": len(times_s),
        "span_s": [float(times_s[0]), float(times_s[-1])] if timed else None,
        "note": row["note"],
        "augmentation": json.loads(row["augmentation"] or "{}"),
    }


def failures(store: FeatureStore) -> View:
    """The failures table."""
    names = ("clip_id", "view", "stage", "reason", "detail", "stream")
    rows = store.failures().select(list(names)).to_pylist()
    document = {"schema_version": SCHEMA_VERSION, "failures": rows}
    lines = [f"{r['clip_id']}  {r['stream']}  {r['reason']}: {r['detail']}" for r in rows]
    return document, lines or ["no failures"]
