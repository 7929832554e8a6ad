"""Figures of the page about runs: what `result.json`, `metrics.jsonl` and predictions say, drawn.

Colours are classes of the style sheet: `c-text`, `c-audio`, `c-midi` and `c-any` of modalities, c0
to c7 of runs. Where a result lacks something (no gates, one modality), the figure is None.

Shapes: N clip, C class, K bin.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmfuse.features import chart
from mmfuse.features.chart import Axis, Plot, Series
from mmfuse.features.errors import ConfigError
from mmfuse.trainer import calibration, folder

Record = Mapping[str, float]
_MATRIX = 24  # classes beyond which a confusion is told by its pairs alone
_PAIRS = 8
_COLOURS = {"text": "c-text", "audio": "c-audio", "midi": "c-midi"}


def read_records(path: Path) -> list[Record]:
    """Lines of metrics.jsonl, one an epoch.

    Raises:
        ConfigError: it is missing or damaged.
    """
    file = path / folder.METRICS
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"can't read {file} ({error}); train again with --overwrite") from None


def colour_of(name: str) -> str:
    """Class of a modality, or of anything else."""
    return _COLOURS.get(name, "c-any")


def curves(records: Sequence[Record], best: int) -> dict[str, Plot]:
    """Losses and scores by epoch, the best one marked; of encoders, gradients and updates."""
    found = {}
    losses = {"train_loss": ("training", "c-soft"), "val_loss": ("validation", "c-any")}
    found["loss"] = _by_epoch(records, losses, "loss", best, marked="val_loss")
    scores = {"val_macro_f1": ("macro-F1", "c-any"), "val_accuracy": ("accuracy", "c-soft")}
    heads = {f"head.{name}": (f"{name} alone", c) for name, c in _COLOURS.items()}
    found["score"] = _by_epoch(
        records, scores | heads, "validation", best, marked="val_macro_f1", low=0.0, high=1.0
    )
    for key, title in (("grad_norm", "norm of the gradient"), ("update_ratio", "update / weights")):
        names = {f"{key}.{name}": (name, c) for name, c in _COLOURS.items()}
        found[key] = _by_epoch(records, names, title, best, log=True)
    return {name: plot for name, plot in found.items() if plot.series}


def _by_epoch(
    records: Sequence[Record],
    lines: Mapping[str, tuple[str, str]],
    title: str,
    best: int,
    *,
    marked: str = "",
    low: float | None = None,
    high: float | None = None,
    log: bool = False,
) -> Plot:
    there = {key: value for key, value in lines.items() if any(key in r for r in records)}
    nan = float("nan")
    values = {key: [float(record.get(key, nan)) for record in records] for key in there}
    if log:
        values = {key: [v if v > 0 else nan for v in line] for key, line in values.items()}
    epochs = [float(record["epoch"]) for record in records]
    x = chart.linear(epochs, "epoch", low=min(epochs, default=0), high=max(epochs, default=1))
    every = [value for line in values.values() for value in line]
    y = (
        chart.logarithmic(every, title)
        if log
        else chart.linear(every, title, low=low, high=high, count=4)
    )
    series = []
    for key, (name, colour) in there.items():
        marks = tuple(
            (x.at(epoch), y.at(value), 4.0, f"best epoch {best}: {name} {value:.3f}")
            for epoch, value in zip(epochs, values[key], strict=True)
            if key == marked and epoch == best and math.isfinite(value)
        )
        line = chart.paths(x, y, epochs, values[key])
        series.append(Series(name, colour, line, marks, dashed=colour == "c-soft"))
    ends = (f"{s.name} ends at {values[k][-1]:.3g}" for k, s in zip(there, series, strict=True))
    return Plot(x, y, f"{title} over {len(records)} epochs: {', '.join(ends)}", tuple(series))


def bars(
    values: Mapping[str, float],
    intervals: Mapping[str, Sequence[float]] | None,
    *,
    zero: bool = False,
) -> dict[str, Any]:
    """Bars from zero with their 95 % intervals, on one axis from 0, or around 0 where `zero`."""
    ends = [*values.values(), *(end for pair in (intervals or {}).values() for end in pair)]
    axis = chart.linear([*ends, 0.0], count=2) if zero else chart.linear([], low=0, high=1, count=2)
    rows = []
    for name, value in values.items():
        low, high = (intervals or {}).get(name, (None, None))
        rows.append(
            {
                "name": name,
                "parts": name.split("+"),
                "colour": colour_of(name),
                "value": value,
                "interval": None if low is None else (low, high),
                "start": axis.at(0.0),
                "stop": axis.at(value),
                "low": None if low is None else axis.at(low),
                "high": None if high is None else axis.at(high),
            }
        )
    return {"rows": rows, "axis": axis, "zero": axis.at(0.0)}


def subsets(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Macro-F1 on test of every subset of the modalities."""
    found = result.get("subsets", {})
    if len(found) < 2 or not all("macro_f1" in of["test"] for of in found.values()):
        return None
    drawn = result.get("intervals", {}).get("test", {}).get("subsets")
    intervals = drawn and {name: of["macro_f1"] for name, of in drawn.items()}
    return bars({name: of["test"]["macro_f1"] for name, of in found.items()}, intervals)


def shapley(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Worth of each modality in macro-F1 on test."""
    found = result.get("shapley", {}).get("test", {}).get("macro_f1")
    if not found:
        return None
    intervals = result.get("intervals", {}).get("test", {}).get("shapley", {}).get("macro_f1")
    return bars(found, intervals, zero=True)


def robustness(result: Mapping[str, Any]) -> Plot | None:
    """Macro-F1 on test as a share of the clips loses a modality."""
    found = result.get("robustness")
    if not found or not all("macro_f1" in of for of in found["test"].values()):
        return None
    lost = [100 * share for share in found["missing"]]
    x = chart.linear([], "% of clips that lose it", low=min(lost), high=max(lost), count=4)
    y = chart.linear([], "macro-F1", low=0, high=1, count=4)
    series = tuple(
        Series(
            "each by itself" if name == "any" else name,
            colour_of(name),
            chart.paths(x, y, lost, curve["macro_f1"]),
            tuple(
                (x.at(at), y.at(value), 3.0, f"{at:.0f} % lost: {value:.3f}")
                for at, value in zip(lost, curve["macro_f1"], strict=True)
            ),
            dashed=name == "any",
        )
        for name, curve in found["test"].items()
    )
    ends = ", ".join(f"{name} to {c['macro_f1'][-1]:.3f}" for name, c in found["test"].items())
    return Plot(x, y, f"macro-F1 falls as modalities go missing: {ends}", series)


def gates(result: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Mean weight of each modality: over all test clips, and over those of each class."""
    found = result.get("gates", {}).get("test")
    if not found:
        return None
    rows = []
    for name, means in [("", found["mean"]), *found["by_class"].items()]:
        total = sum(means.values()) or 1.0
        parts = [(100 * w / total, colour_of(m), f"{m} {w:.3f}") for m, w in means.items()]
        rows.append({"class": name, "parts": parts, "weights": means})
    return rows


def confusion(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Counts of test clips with their shade, a step of 0 to 10 by share of the row; the worst."""
    counts, names = result["test"].get("confusion"), result.get("classes")
    if not counts or not names:
        return None
    rows = [
        {
            "name": name,
            "total": sum(row),
            "cells": [(n, round(10 * n / sum(row)) if sum(row) else 0) for n in row],
        }
        for name, row in zip(names, counts, strict=True)
    ]
    wrong = [
        (n, names[truth], names[said])
        for truth, row in enumerate(counts)
        for said, n in enumerate(row)
        if n and truth != said
    ]
    worst = sorted(wrong, key=lambda one: -one[0])[:_PAIRS]
    return {"names": names, "rows": rows if len(names) <= _MATRIX else [], "worst": worst}


def reliability(path: Path, result: Mapping[str, Any], bins: int) -> dict[str, Any] | None:
    """Share of right answers against confidence on test, as it is and at the temperature."""
    import polars as pl

    classes, temperature = result.get("classes"), result.get("calibration", {}).get("temperature")
    columns = [f"p:{name}" for name in classes or ()]
    try:
        rows = pl.read_parquet(path / folder.PREDICTIONS)
    except (OSError, pl.exceptions.PolarsError):
        return None
    needed = {"split", "label", "predicted", *columns}
    if not columns or temperature is None or not needed <= set(rows.columns):
        return None
    rows = rows.filter(pl.col("split") == "test")
    right_N = (rows["label"] == rows["predicted"]).to_numpy()
    said_NC = rows.select(columns).to_numpy()
    scaled_NC = calibration.at_temperature(said_NC, temperature)
    x = chart.linear([], "confidence", low=0, high=1, count=4)
    y = chart.linear([], "right", low=0, high=1, count=4)
    series = [Series("as sure as right", "c-soft", ("0,1000 1000,0",), dashed=True)]
    for name, colour, values_NC in (
        ("as it is", "c-any", said_NC),
        (f"at T = {temperature:.2f}", "c-audio", scaled_NC),
    ):
        at_K, share_K, clips_K = _binned(values_NC.max(axis=1), right_N, bins)
        marks = tuple(
            (x.at(a), y.at(s), round(2.5 + 9 * math.sqrt(n / max(len(right_N), 1)), 1),
             f"{n} clips: {a:.2f} sure, {s:.2f} right")
            for a, s, n in zip(at_K, share_K, clips_K, strict=True)
        )  # fmt: skip
        series.append(Series(name, colour, chart.paths(x, y, at_K, share_K), marks, faint=True))
    before, after = result["test"]["ece"], result["calibration"]["test"]["ece"]
    label = f"expected calibration error {before:.3f}, at the temperature {after:.3f}"
    return {"plot": Plot(x, y, label, tuple(series)), "bins": bins}


def _binned(
    confidence_N: NDArray[np.float64], right_N: NDArray[np.bool_], bins: int
) -> tuple[list[float], list[float], list[int]]:
    """Mean confidence, share of right answers and clips of each bin that has any, as `ece`."""
    bin_N = np.clip(np.ceil(confidence_N * bins).astype(np.int64) - 1, 0, bins - 1)
    clips_K = np.bincount(bin_N, minlength=bins)
    used = clips_K > 0
    at_K = np.bincount(bin_N, confidence_N, bins)[used] / clips_K[used]
    share_K = np.bincount(bin_N, right_N, bins)[used] / clips_K[used]
    return at_K.tolist(), share_K.tolist(), clips_K[used].tolist()


def overlay(
    lines: Sequence[tuple[str, Sequence[float], Sequence[float]]], x_title: str, y_title: str
) -> Plot:
    """One line a run: (name, xs, ys), on a y axis from 0 to 1."""
    every = [x for _, xs, _ in lines for x in xs]
    x = chart.linear(every, x_title, low=min(every, default=0), high=max(every, default=1))
    y = chart.linear([], y_title, low=0, high=1, count=4)
    series = tuple(
        Series(name, f"c{i % 8}", chart.paths(x, y, xs, ys))
        for i, (name, xs, ys) in enumerate(lines)
    )
    ends = ", ".join(f"{name} ends at {ys[-1]:.3f}" for name, _, ys in lines if len(ys))
    return Plot(x, y, f"{y_title}: {ends}", series)


def forest(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Scores of compared runs as dots with intervals, differences on an axis around zero."""
    ends = [end for row in rows for key in ("accuracy_95", "macro_f1_95") for end in row[key]]
    axis = chart.linear(ends, count=4, low=max(0.0, math.floor(10 * min(ends)) / 10), high=1.0)
    apart = [row["difference"]["macro_f1"] for row in rows if "difference" in row]
    edges = [value for one in apart for value in (one["low"], one["high"])]
    around = chart.linear([*edges, 0.0], count=4)
    return {"axis": axis, "around": around, "place": _placer(axis), "apart": _placer(around)}


def _placer(axis: Axis) -> Any:
    return axis.at
