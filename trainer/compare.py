"""Finished runs side by side on their common test clips: intervals, and who differs from whom."""

import tomllib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.errors import ConfigError
from mmfuse.trainer import folder, metrics

if TYPE_CHECKING:
    import polars

Classes = NDArray[np.int64]


def compare(
    runs: Sequence[Path], against: Path | None = None, resamples: int = 2000
) -> dict[str, Any]:
    """Scores of runs with 95 % intervals, and their paired differences from a reference.

    Args:
        runs: folders of finished runs on the same test clips.
        against: the reference; the single-modality run with the best test macro-F1, where it is
            left out: the strictest choice. Without such a run nothing is subtracted.
        resamples: behind each interval.

    Returns:
        `clips`, `groups` (how many are drawn whole; None, where clips are), `against` (a folder or
        None), `runs` (in the order given, the reference last if it was not among
        them) and `seeds` (means over runs that differ in the seed alone).

    Raises:
        ConfigError: a folder holds no finished run, one is named twice, or the runs do not cover
            the same clips with the same labels.
    """
    paths = [Path(run) for run in runs]
    if against is not None and not any(_same(against, path) for path in paths):
        paths.append(against)
    _distinct(paths)
    results = [folder.read_result(path) for path in paths]
    truth_N, predicted, classes, groups_N = _joined(paths)
    reference = _reference(paths, results, against)
    rows = []
    for path, result, predicted_N in zip(paths, results, predicted, strict=True):
        intervals = metrics.bootstrap(truth_N, predicted_N, classes, resamples, groups_N=groups_N)
        row: dict[str, Any] = {"run": str(path)}
        row |= {key: result[key] for key in ("name", "seed", "modalities")}
        for name, interval in intervals.items():
            row |= {name: interval.value, f"{name}_95": [interval.low, interval.high]}
        if reference is not None and path is not paths[reference]:
            other_N = predicted[reference]
            found = metrics.paired_bootstrap(
                truth_N, predicted_N, other_N, classes, resamples, groups_N=groups_N
            )
            row["difference"] = {name: asdict(difference) for name, difference in found.items()}
            row["mcnemar_p"] = metrics.mcnemar(truth_N, predicted_N, other_N)
        rows.append(row)
    return {
        "clips": len(truth_N),
        "groups": None if groups_N is None else len(np.unique(groups_N)),
        "against": None if reference is None else str(paths[reference]),
        "runs": rows,
        "seeds": _means(paths, rows),
    }


def _same(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve()


def _distinct(paths: Sequence[Path]) -> None:
    for i, path in enumerate(paths):
        if any(_same(path, other) for other in paths[:i]):
            raise ConfigError(f"{path} is named twice; name each run once")
    if len(paths) < 2:
        raise ConfigError(f"one run only, {paths[0]}; name two or more: mmtrain compare RUN RUN")


def _reference(paths: Sequence[Path], results: Sequence[Any], against: Path | None) -> int | None:
    """Number of the run that the others are compared with."""
    if against is not None:
        return next(i for i, path in enumerate(paths) if _same(path, against))
    single = [i for i, result in enumerate(results) if len(result["modalities"]) == 1]
    return max(single, key=lambda i: results[i]["test"]["macro_f1"], default=None)


def _joined(
    paths: Sequence[Path],
) -> tuple[Classes, list[Classes], int, NDArray[np.str_] | None]:
    """Truth and each run's prediction of the common test clips as numbers, class count, groups.

    The groups are those of the first run that has them; None, if none has.
    """
    import polars as pl

    first = _test_rows(paths[0])
    joined = first.rename({"predicted": "0"})
    for i, path in enumerate(paths[1:], start=1):
        rows = _test_rows(path)
        both = joined.join(
            rows.rename({"predicted": str(i), "label": "theirs"}), on="id", how="inner"
        )
        if not len(both) == len(first) == len(rows):
            raise ConfigError(
                f"{path} was tested on {len(rows)} clips, {paths[0]} on {len(first)}, and they "
                f"share {len(both)}; compare runs of one corpus and split"
            )
        other = both.filter(pl.col("label") != pl.col("theirs"))
        if len(other):
            clip, ours, theirs = other.select("id", "label", "theirs").row(0)
            raise ConfigError(
                f"clip {clip!r} is labelled {ours!r} in {paths[0]} and {theirs!r} in {path}; "
                "compare runs of one corpus"
            )
        joined = both.drop("theirs", "group_right", strict=False)
    joined = joined.sort("id")  # the same clips are drawn in whatever order the runs are named
    columns = [joined[name].to_numpy() for name in ("label", *map(str, range(len(paths))))]
    names, numbers = np.unique(np.concatenate(columns).astype(str), return_inverse=True)
    truth_N, *predicted = numbers.reshape(len(columns), -1).astype(np.int64)
    groups_N = joined["group"].to_numpy() if "group" in joined.columns else None
    return truth_N, predicted, len(names), groups_N


def _test_rows(path: Path) -> "polars.DataFrame":
    import polars as pl

    file = path / folder.PREDICTIONS
    try:
        rows = pl.read_parquet(file)
        rows = rows.select("id", "split", "label", "predicted", *{"group"} & set(rows.columns))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(
            f"can't read {file} ({str(error).splitlines()[0]}); train it again"
        ) from None
    return rows.filter(pl.col("split") == "test").drop("split")


def _means(paths: Sequence[Path], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over runs whose configurations differ in the seed alone."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path, row in zip(paths, rows, strict=True):
        config = tomllib.loads((path / folder.RESOLVED).read_text(encoding="utf-8"))
        config.get("train", {}).pop("seed", None)
        groups[repr(config)].append(row)
    means = []
    for group in groups.values():
        if len(group) > 1:
            mean: dict[str, Any] = {"name": group[0]["name"], "runs": len(group)}
            for name in metrics.SCORES:
                values = [row[name] for row in group]
                mean |= {name: float(np.mean(values)), f"{name}_sd": float(np.std(values, ddof=1))}
            means.append(mean)
    return means
