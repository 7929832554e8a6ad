"""What a store holds, as a document for `--json` and as lines for a person."""

from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np

from mmfuse.features.config import FeatureConfig
from mmfuse.features.encoders import Compute, build_encoder, offers
from mmfuse.features.errors import MissingError
from mmfuse.features.store import FeatureStore
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
    lines = [f"{'stream':24} {'row':>14} {'entries':>8} {'rows':>10} {'MB':>8} {'shards':>6}"]
    for s in streams:
        row = f"{s['dtype']}{s['item']}"
        lines.append(
            f"{s['stream']:24} {row:>14} {s['entries']:>8} {s['rows']:>10} "
            f"{s['bytes'] / 1e6:>8.2f} {s['shards']:>6}"
        )
    lines += [f"failed: {stage}: {reason} {n}" for (stage, reason), n in sorted(reasons.items())]
    lines.append(f"root {store.root or '(a run is unfinished)'}")
    return document, lines


def clip(store: FeatureStore, clip_id: str) -> View:
    """Every entry of one clip: rows, time span, note.

    Raises:
        MissingError: no stream has such a clip.
    """
    entries, lines = [], []
    for key in store.specs():
        stream = store[key]
        if clip_id not in stream:
            continue
        number = int(stream.find([clip_id])[0])
        times_s = stream.frame_times_s(number)
        timed = len(times_s) > 0 and bool(np.isfinite(times_s).all())
        span = [float(times_s[0]), float(times_s[-1])] if timed else None
        note = stream.table["note"][number].as_py()
        entries.append({"stream": key, "rows": len(times_s), "span_s": span, "note": note})
        when = f"{span[0]:.3f} s to {span[1]:.3f} s" if span else "no times"
        lines.append(f"{key:24} {len(times_s):>8} rows  {when}  {note}")
    if not entries:
        raise MissingError(
            f"no stream of {store.path} has a clip {clip_id!r}; mmfeat inspect {store.path} "
            "--failures tells whether it failed"
        )
    document = {"schema_version": SCHEMA_VERSION, "clip_id": clip_id, "entries": entries}
    return document, lines


def failures(store: FeatureStore) -> View:
    """The failures table."""
    names = ("clip_id", "stage", "reason", "detail", "stream")
    rows = store.failures().select(list(names)).to_pylist()
    document = {"schema_version": SCHEMA_VERSION, "failures": rows}
    lines = [f"{r['clip_id']}  {r['stream']}  {r['reason']}: {r['detail']}" for r in rows]
    return document, lines or ["no failures"]


def encoder_list() -> View:
    """Every audio encoder that `--encoder` takes."""
    found = offers()
    width = max(len(offer.name) for offer in found)
    lines = [f"{offer.name:<{width}}  {offer.about} ({offer.package})" for offer in found]
    return {"encoders": [asdict(offer) for offer in found]}, lines


def checked_encoder(settings: FeatureConfig, device: Compute) -> View:
    """What the conformance kit finds about the encoder of a configuration."""
    from mmfuse.features.conformance import check_encoder

    audio = settings.preprocessing.audio
    assert audio is not None
    other = None if device.device == "cpu" else device.device
    findings = check_encoder(lambda compute: build_encoder(audio, compute), device=other)
    marks = {True: "ok  ", False: "FAIL", None: "skip"}
    lines = [f"{marks[f.ok]} {f.check}" + (f" ({f.detail})" if f.detail else "") for f in findings]
    failed = sum(f.ok is False for f in findings)
    lines.append(f"{audio.encoder}: {'kept' if not failed else f'{failed} broken'}")
    return {"ok": not failed, "findings": [asdict(f) for f in findings]}, lines
