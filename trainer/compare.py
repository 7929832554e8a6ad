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
from mmfuse.trainer.task import Array, Task
from mmfuse.trainer.tasks import TASKS

if TYPE_CHECKING:
    import polars


def compare(
    runs: Sequence[Path], against: Path | None = None, resamples: int = 2000
) -> dict[str, Any]:
    """Scores of runs with 95 % intervals, and their paired differences from a reference.

    Args:
        runs: folders of finished runs on the same test clips.
        against: the reference; the single-modality run with the best test score, where it is
            left out: the strictest choice. Without such a run nothing is subtracted.
        resamples: behind each interval.

    Returns:
        `task`, `clips`, `groups` (how many are drawn whole; None, where clips are), `against` (a
        folder or None), `runs` (in the order given, the reference last if it was not among them)
        and `seeds` (means over runs that differ in the seed alone).

    Raises:
        ConfigError: a folder holds no finished run, one is named twice, or the runs do not cover
            the same clips with the same labels and task.
    """
    paths = [Path(run) for run in runs]
    if against is not None and not any(_same(against, path) for path in paths):
        paths.append(against)
    _distinct(paths)
    results = [folder.read_result(path) for path in paths]
    task, truth_N, decided, groups_N = _joined(paths, _task_of(paths, results))
    reference = _reference(paths, results, against, task.select)
    rows = []
    for path, result, decided_N in zip(paths, results, decided, strict=True):
        intervals = task.bootstrap(truth_N, decided_N, resamples, groups_N)
        row: dict[str, Any] = {"run": str(path)}
        row |= {key: result[key] for key in ("name", "seed", "modalities")}
        for name, interval in intervals.items():
            row |= {name: interval.value, f"{name}_95": [interval.low, interval.high]}
        if reference is not None and path is not paths[reference]:
            other_N = decided[reference]
            found = task.paired(truth_N, decided_N, other_N, resamples, groups_N)
            row["difference"] = {name: asdict(difference) for name, difference in found.items()}
            if task.right_or_wrong:
                row["mcnemar_p"] = metrics.mcnemar(truth_N, decided_N, other_N)
        rows.append(row)
    return {
        "task": task.name,
        "clips": len(truth_N),
        "groups": None if groups_N is None else len(np.unique(groups_N)),
        "against": None if reference is None else str(paths[reference]),
        "runs": rows,
        "seeds": _means(paths, rows, task.shown),
    }


def _same(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve()


def _distinct(paths: Sequence[Path]) -> None:
    for i, path in enumerate(paths):
        if any(_same(path, other) for other in paths[:i]):
            raise ConfigError(f"{path} is named twice; name each run once")
    if len(paths) < 2:
        raise ConfigError(f"one run only, {paths[0]}; name two or more: mmtrain compare RUN RUN")


def _reference(
    paths: Sequence[Path], results: Sequence[Any], against: Path | None, select: str
) -> int | None:
    """Number of the run that the others are compared with."""
    if against is not None:
        return next(i for i, path in enumerate(paths) if _same(path, against))
    single = [i for i, result in enumerate(results) if len(result["modalities"]) == 1]
    return max(single, key=lambda i: results[i]["test"][select], default=None)


def _task_of(paths: Sequence[Path], results: Sequence[Any]) -> type[Task]:
    """What all runs predict."""
    names = [result.get("task", "single") for result in results]
    for path, name in zip(paths, names, strict=True):
        if name != names[0]:
            raise ConfigError(
                f"{path} has train.task = {name!r} and {paths[0]} {names[0]!r}; compare runs of one"
            )
    return TASKS[names[0]]


def _joined(
    paths: Sequence[Path], kind: type[Task]
) -> tuple[Task, Array, list[Array], NDArray[np.str_] | None]:
    """The task, the truth and each run's answers of the common test clips, and their groups.

    The groups are those of the first run that has them; None, if none has.
    """
    import polars as pl

    tables = [_test_rows(path) for path in paths]
    first = tables[0]
    for path, rows in zip(paths[1:], tables[1:], strict=True):
        theirs = rows.select("id", theirs="label")
        both = first.join(theirs, on="id", how="inner", maintain_order="left")
        if not len(both) == len(first) == len(rows):
            raise ConfigError(
                f"{path} was tested on {len(rows)} clips, {paths[0]} on {len(first)}, and they "
                f"share {len(both)}; compare runs of one corpus and split"
            )
        other = both.filter(pl.col("label") != pl.col("theirs"))
        if len(other):
            clip, ours, its = other.select("id", "label", "theirs").row(0)
            raise ConfigError(
                f"clip {clip!r} is labelled {ours!r} in {paths[0]} and {its!r} in {path}; "
                "compare runs of one corpus"
            )
    # the same clips are drawn in whatever order the runs are named
    columns = [
        {name: column.to_numpy() for name, column in rows.sort("id").to_dict().items()}
        for rows in tables
    ]
    groups = [table["group"] for table in columns if "group" in table]
    try:
        return *kind.compared(columns), groups[0] if groups else None
    except KeyError as error:
        raise ConfigError(
            f"{folder.PREDICTIONS} of some of these runs has no {error}; compare runs of one corpus"
        ) from None


def _test_rows(path: Path) -> "polars.DataFrame":
    import polars as pl

    file = path / folder.PREDICTIONS
    try:
        rows = pl.read_parquet(file)
        rows = rows.select(
            "id", "split", "label", "predicted", *{"group"} & set(rows.columns), pl.col("^p:.*$")
        )
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(
            f"can't read {file} ({str(error).splitlines()[0]}); train it again"
        ) from None
    return rows.filter(pl.col("split") == "test").drop("split")


def _means(
    paths: Sequence[Path], rows: Sequence[dict[str, Any]], scores: Sequence[str]
) -> list[dict[str, Any]]:
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
            for name in scores:
                values = [row[name] for row in group]
                mean |= {name: float(np.mean(values)), f"{name}_sd": float(np.std(values, ddof=1))}
            means.append(mean)
    return means
