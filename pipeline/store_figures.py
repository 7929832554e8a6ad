"""Figures of the page about a store: what its manifest, index and record say, as bars and columns.

Widths and heights are percent of the longest.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmfuse.features import chart
from mmfuse.features.clip import Clip
from mmfuse.features.errors import ConfigError
from mmfuse.features.store import FeatureStore
from mmfuse.pipeline.align import CERTAIN, read_alignment
from mmfuse.pipeline.clip_picture import names_of
from mmfuse.pipeline.report import STAGES

MODALITIES = ("text", "audio", "midi")
_SHOWN = 50  # labels and problems that are listed
_BINS = 24
_FAR_MS = 50.0  # lags beyond are drawn in the outermost columns
_SPLITS = {"train": "c0", "validation": "c4", "test": "c1", None: "c7"}


def subsets(here: Mapping[str, int], labels: Sequence[Clip] | None) -> list[dict[str, Any]]:
    """How many clips have which modalities, the most first; those of the corpus with none last."""
    counts = Counter(here.values())
    if labels is not None:
        none = sum(clip.id not in here for clip in labels)
        counts += Counter({0: none})
    most = max(counts.values(), default=1)
    ordered = sorted(counts.items(), key=lambda item: (not item[0], -item[1]))
    return [
        {
            "names": [name for m, name in enumerate(MODALITIES) if mask >> m & 1],
            "count": count,
            "share": count / max(sum(counts.values()), 1),
            "width": 100 * count / most,
        }
        for mask, count in ordered
    ]


def classes(labels: Sequence[Clip] | None) -> dict[str, Any] | None:
    """Clips of each label in each split; None without labels."""
    if labels is None:
        return None
    counts = Counter((name, clip.split) for clip in labels for name in names_of(clip))
    names = sorted({name for name, _ in counts})
    if not names:
        return None
    splits = [name for name in _SPLITS if any(split == name for _, split in counts)]
    totals = {name: sum(counts[name, split] for split in splits) for name in names}
    most = max(totals.values())
    shown = sorted(names, key=lambda name: -totals[name])[:_SHOWN]
    rows = [
        {
            "label": name,
            "counts": [counts[name, split] for split in splits],
            "parts": [
                (100 * counts[name, split] / most, _SPLITS[split], f"{counts[name, split]} clips")
                for split in splits
            ],
        }
        for name in shown
    ]
    named = [(split or "no split", _SPLITS[split]) for split in splits]
    return {"splits": named, "rows": rows, "more": len(names) - len(shown)}


def lengths(store: FeatureStore) -> list[dict[str, Any]]:
    """Histograms of how long clips are: seconds of frames, notes, tokens; one a modality."""
    found = []
    for modality, title in (("audio", "seconds"), ("midi", "notes"), ("text", "tokens")):
        for key, spec in store.specs().items():
            stream = store[key]
            rows = stream.lengths[stream.views == 0].astype(np.float64)
            timed = modality == "audio" and spec.timing.kind == "frames"
            counted = spec.name in ("notes", "text_tokens")
            if spec.modality == modality and (timed or counted) and len(rows):
                values = rows * float(spec.timing.hop_s) if timed else rows
                found.append({"modality": modality, **_histogram(values, title)})
                break
    return found


def _histogram(values: NDArray[np.float64], title: str) -> dict[str, Any]:
    """Columns over the range of values, and a sentence that says what they show."""
    x = chart.linear(values.tolist(), count=6)
    counts, edges = np.histogram(values, bins=_BINS, range=(x.low, x.high))
    low, middle, high = np.percentile(values, [5, 50, 95]).tolist()
    label = f"{title} of a clip: median {middle:.3g}, 90 % between {low:.3g} and {high:.3g}"
    return {**_columns(counts, edges, x, label), "title": title, "sum": float(values.sum())}


def _columns(
    counts: NDArray[np.int64], edges: NDArray[np.float64], x: chart.Axis, label: str
) -> dict[str, Any]:
    """A plot, and a column (left, width, height, words) for each bin that has clips."""
    y = chart.linear([0, float(counts.max(initial=1))], "clips", low=0, count=4)
    bins = zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    bars = [
        (x.at(low), x.at(high) - x.at(low), y.at(n), f"{n} clips, {low:.3g} to {high:.3g}")
        for n, low, high in bins
        if n
    ]
    return {"plot": chart.Plot(x, y, label), "bars": bars}


def streams(document: Mapping[str, Any], files: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a stream: what `inspect` tells, and what it takes on the disk beside its values."""
    rows = []
    most = max((stream["bytes"] for stream in document["streams"]), default=0) or 1
    for stream in document["streams"]:
        sizes = (s.st_size for name, s in files.items() if stream["stream"] in name.split("/"))
        width, index = 100 * stream["bytes"] / most, sum(sizes) - stream["bytes"]
        rows.append({**stream, "width": width, "index": index})
    return rows


def runs(record: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The commands that made streams, the newest first: how long, by stage, how fast."""
    runs: dict[str, dict[str, Any]] = {}
    for key, how in record.items():
        run = runs.setdefault(how["finished"], {"keys": [], "how": how})
        run["keys"].append(key)
    for run in runs.values():
        how = run["how"]
        total = sum(how["stage_s"].get(name, 0.0) for name in STAGES) or 1.0
        run["stages"] = [
            (100 * how["stage_s"].get(name, 0.0) / total, f"s-{name}",
             f"{name} {how['stage_s'].get(name, 0.0):.2f} s")
            for name in STAGES
        ]  # fmt: skip
        speeds = [record[key].get("speed") for key in run["keys"]]
        run["workers"] = max((speed["workers"] for speed in speeds if speed), default=1)
        run["speed"] = how["audio_s"] / how["seconds"] if how["seconds"] else 0.0
    return [runs[when] for when in sorted(runs, reverse=True)]


def shares(failures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Reasons of failures, the commonest first."""
    most = max((one["entries"] for one in failures), default=1)
    ordered = sorted(failures, key=lambda one: -one["entries"])
    return [{**one, "width": 100 * one["entries"] / most} for one in ordered]


def alignment(
    path: Path | None, labels: Sequence[Clip] | None, notes: list[str]
) -> dict[str, Any] | None:
    """Lags of a corpus as columns, and its worst clips; None without a table."""
    named = path is not None
    path = path or Path("alignment.parquet")
    if not named and not path.is_file():
        return None
    rows = read_alignment(path)
    if labels is not None:
        known = {clip.id for clip in labels}
        strangers = [row["clip_id"] for row in rows if row["clip_id"] not in known]
        if strangers and named:
            raise ConfigError(
                f"{path} tells of a clip {strangers[0]!r} that the corpus lacks; make one for this "
                "corpus with: mmfeat align --corpus PATH"
            )
        if strangers:
            notes.append(f"{path} is of another corpus, and left out")
            return None
    sure = [row for row in rows if row["lag_s"] is not None and (row["confidence"] or 0) >= CERTAIN]
    lags_ms = np.array([1000 * row["lag_s"] for row in sure])
    within = float((np.abs(lags_ms) <= 20).mean()) if len(lags_ms) else 0.0
    edges = np.arange(-_FAR_MS, _FAR_MS + 1, 2.0)
    counts, _ = np.histogram(np.clip(lags_ms, edges[0], edges[-1]), edges)
    x = chart.linear([], "sound minus MIDI, ms", low=-_FAR_MS, high=_FAR_MS, count=10)
    label = f"{len(sure)} clips, {within:.1%} of them within 20 ms"
    return {
        "path": str(path),
        "pairs": len(rows),
        "sure": len(sure),
        "within": within,
        "percentiles": np.percentile(lags_ms, [5, 50, 95]).tolist() if len(lags_ms) else [],
        "assumed": sum(bool(row["assumed"]) for row in rows),
        "flagged": sum(row["flagged"] for row in rows),
        **_columns(counts, edges, x, label),
        "worst": sorted(sure, key=lambda row: -abs(row["lag_s"]))[:10],
        "problems": [row for row in rows if row["problem"]][:_SHOWN],
    }
