"""Figures of the page about runs: what `result.json`, `metrics.jsonl` and predictions say, drawn.

Colours are classes of the style sheet: `c-text`, `c-audio`, `c-midi` and `c-any` of modalities, c0
to c7 of runs. Where a result lacks something (no gates, one modality), the figure is None. Of the
scores of a task, the one is drawn that chooses weights.

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
from mmfuse.trainer.task import Task
from mmfuse.trainer.tasks import TASKS, TITLES, names_of

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


def task_of(result: Mapping[str, Any]) -> type[Task]:
    """What a run predicts."""
    return TASKS[result.get("task", "single")]


def score_axis(task: type[Task], values: Sequence[float], title: str = "", count: int = 4) -> Axis:
    """From 0 to 1 for shares; for what may be any number from where it is, but not below -1."""
    if task.probable:
        return chart.linear([], title, low=0, high=1, count=count)
    low = -1.0 if min(values, default=0.0) < -1 else None
    return chart.linear([*values, 0.0, 1.0], title, low=low, count=count)


def colour_of(name: str) -> str:
    """Class of a modality, or of anything else."""
    return _COLOURS.get(name, "c-any")


def curves(task: type[Task], records: Sequence[Record], best: int) -> dict[str, Plot]:
    """Losses and scores by epoch, the best one marked; of encoders, gradients and updates."""
    chosen, found = f"val_{task.select}", {}
    losses = {"train_loss": ("training", "c-soft"), "val_loss": ("validation", "c-any")}
    found["loss"] = _by_epoch(records, losses, "loss", best, marked="val_loss")
    scores = {chosen: (TITLES[task.select], "c-any")}
    if task.probable:
        scores |= {f"val_{n}": (TITLES[n], "c-soft") for n in task.shown if n != task.select}
    heads = {f"head.{name}": (f"{name} alone", c) for name, c in _COLOURS.items()}
    every = [float(r[key]) for r in records for key in (*scores, *heads) if key in r]
    y = score_axis(task, every, "validation")
    found["score"] = _by_epoch(records, scores | heads, "validation", best, marked=chosen, y=y)
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
    y: Axis | None = None,
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
    if y is None:
        y = chart.logarithmic(every, title) if log else chart.linear(every, title, count=4)
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
    axis: Axis,
) -> dict[str, Any]:
    """Bars from zero with their 95 % intervals."""
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


def _ends(values: Mapping[str, float], intervals: Mapping[str, Any] | None) -> list[float]:
    """All numbers that an axis of bars must hold."""
    return [*values.values(), *(end for pair in (intervals or {}).values() for end in pair)]


def subsets(task: type[Task], result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The score on test of every subset of the modalities."""
    found, score = result.get("subsets", {}), task.select
    if len(found) < 2:
        return None
    drawn = result.get("intervals", {}).get("test", {}).get("subsets")
    intervals = drawn and {name: of[score] for name, of in drawn.items()}
    values = {name: of["test"][score] for name, of in found.items()}
    return bars(values, intervals, score_axis(task, _ends(values, intervals), count=2))


def shapley(task: type[Task], result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Worth of each modality on test."""
    found = result.get("shapley", {}).get("test", {}).get(task.select)
    if not found:
        return None
    intervals = result.get("intervals", {}).get("test", {}).get("shapley", {}).get(task.select)
    axis = chart.linear([*_ends(found, intervals), 0.0], count=2)
    return bars(found, intervals, axis)


def robustness(task: type[Task], result: Mapping[str, Any]) -> Plot | None:
    """The score on test as a share of the clips loses a modality."""
    found, title = result.get("robustness"), TITLES[task.select]
    if not found:
        return None
    curves = {name: of[task.select] for name, of in found["test"].items()}
    lost = [100 * share for share in found["missing"]]
    x = chart.linear([], "% of clips that lose it", low=min(lost), high=max(lost), count=4)
    y = score_axis(task, [value for curve in curves.values() for value in curve], title)
    series = tuple(
        Series(
            "each by itself" if name == "any" else name,
            colour_of(name),
            chart.paths(x, y, lost, curve),
            tuple(
                (x.at(at), y.at(value), 3.0, f"{at:.0f} % lost: {value:.3f}")
                for at, value in zip(lost, curve, strict=True)
            ),
            dashed=name == "any",
        )
        for name, curve in curves.items()
    )
    ends = ", ".join(f"{name} to {curve[-1]:.3f}" for name, curve in curves.items())
    return Plot(x, y, f"{title} as modalities go missing: {ends}", series)


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
    answers = _answers(path, result)
    if answers is None:
        return None
    right_N, said_NC = answers
    temperature = result["calibration"]["temperature"]
    scaled_NC = calibration.at_temperature(said_NC, temperature)
    x = chart.linear([], "confidence", low=0, high=1, count=4)
    y = chart.linear([], "right", low=0, high=1, count=4)
    series = [Series("as sure as right", "c-soft", ("0,1000 1000,0",), dashed=True)]
    for name, colour, values_NC in (
        ("as it is", "c-any", said_NC),
        (f"at T = {temperature:.2f}", "c-audio", scaled_NC),
    ):
        at_K, share_K, count_K = _binned(values_NC.max(axis=1), right_N, bins)
        marks = tuple(
            (x.at(a), y.at(s), round(2.5 + 9 * math.sqrt(n / len(right_N)), 1),
             f"{n} answers: {a:.2f} sure, {s:.2f} right")
            for a, s, n in zip(at_K, share_K, count_K, strict=True)
        )  # fmt: skip
        series.append(Series(name, colour, chart.paths(x, y, at_K, share_K), marks, faint=True))
    before, after = result["test"]["ece"], result["calibration"]["test"]["ece"]
    label = f"expected calibration error {before:.3f}, at the temperature {after:.3f}"
    return {"plot": Plot(x, y, label, tuple(series)), "bins": bins}


def _answers(
    path: Path, result: Mapping[str, Any]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]] | None:
    """Whether each answer on test is right, (N,), and the probabilities behind it, (N, C).

    Of labels, each of each clip is an answer of its own: (N * C,), and (N * C, 2) of no and yes.
    """
    import polars as pl

    if "calibration" not in result:
        return None
    classes = result["classes"]
    try:
        rows = pl.read_parquet(path / folder.PREDICTIONS).filter(pl.col("split") == "test")
        said_NC = rows.select([f"p:{name}" for name in classes]).to_numpy().astype(np.float64)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(
            f"can't read {path / folder.PREDICTIONS} ({str(error).splitlines()[0]}); train it again"
        ) from None
    if result.get("task", "single") == "single":
        return (rows["label"] == rows["predicted"]).to_numpy(), said_NC
    labels = [names_of(label) or () for label in rows["label"]]
    truth_NC = np.array([[name in label for name in classes] for label in labels])
    yes_N = said_NC.ravel()
    return ((said_NC >= 0.5) == truth_NC).ravel(), np.stack([1 - yes_N, yes_N], axis=1)


def _binned(
    confidence_N: NDArray[np.float64], right_N: NDArray[np.bool_], bins: int
) -> tuple[list[float], list[float], list[int]]:
    """Mean confidence, share of right answers, and count of each bin that has any; as `ece`."""
    bin_N = np.clip(np.ceil(confidence_N * bins).astype(np.int64) - 1, 0, bins - 1)
    clips_K = np.bincount(bin_N, minlength=bins)
    used = clips_K > 0
    at_K = np.bincount(bin_N, confidence_N, bins)[used] / clips_K[used]
    share_K = np.bincount(bin_N, right_N, bins)[used] / clips_K[used]
    return at_K.tolist(), share_K.tolist(), clips_K[used].tolist()


def overlay(
    task: type[Task],
    lines: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    x_title: str,
    y_title: str,
) -> Plot:
    """One line a run: (name, xs, ys)."""
    every = [x for _, xs, _ in lines for x in xs]
    x = chart.linear(every, x_title, low=min(every, default=0), high=max(every, default=1))
    y = score_axis(task, [value for _, _, ys in lines for value in ys], y_title)
    series = tuple(
        Series(name, f"c{i % 8}", chart.paths(x, y, xs, ys))
        for i, (name, xs, ys) in enumerate(lines)
    )
    ends = ", ".join(f"{name} ends at {ys[-1]:.3f}" for name, _, ys in lines if len(ys))
    return Plot(x, y, f"{y_title}: {ends}", series)


def forest(task: type[Task], rows: Sequence[Mapping[str, Any]]) -> dict[str, Axis]:
    """The axis of scores with intervals of compared runs, and that of differences around zero."""
    score = task.select
    ends = [end for row in rows for end in row[f"{score}_95"]]
    apart = [row["difference"][score] for row in rows if "difference" in row]
    edges = [value for one in apart for value in (one["low"], one["high"])]
    return {
        "scores": score_axis(task, ends),
        "apart": chart.linear([*edges, 0.0], count=4),
    }
