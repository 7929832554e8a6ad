"""The page about runs: how each was trained, what it is worth and why, and how they compare."""

import importlib.metadata
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmfuse.features import page
from mmfuse.features.errors import ConfigError
from mmfuse.trainer import folder
from mmfuse.trainer import run_figures as figures
from mmfuse.trainer.compare import compare
from mmfuse.trainer.tasks import TASKS, TITLES

_TEMPLATES = Path(__file__).with_name("templates")
_BINS = 15  # of confidence, where the configuration does not say


@dataclass(slots=True)
class Page:
    """The page, and what could not be shown in it."""

    html: str
    runs: list[str]
    notes: list[str]

    def to_json(self, out: Path, written: int) -> dict[str, Any]:
        """One object, for `--json`."""
        return {"out": str(out), "bytes": written, "runs": self.runs, "notes": self.notes}


def run_page(paths: Sequence[Path], against: Path | None = None) -> Page:
    """Look at finished runs; with two or more, at what parts them too.

    Args:
        paths: folders of finished runs.
        against: the reference of the comparison, as `compare` takes it.

    Raises:
        ConfigError: a folder holds no finished run.
    """
    notes: list[str] = []
    runs = [_run(Path(path), number) for number, path in enumerate(paths)]
    compared = None
    if len(runs) > 1 or against is not None:
        try:
            compared = compare(paths, against)
            if compared["task"] != "single":
                notes.append(f"not drawn for {compared['task']} runs: see mmtrain compare")
                compared = None
        except ConfigError as error:
            notes.append(f"not compared: {error}")
    names = [run["path"] for run in runs]
    context = {
        "kind": "training report",
        "title": f"{', '.join(names)}: mmfuse training report",
        "heading": runs[0]["path"] if len(runs) == 1 else f"{len(runs)} runs",
        "version": importlib.metadata.version("mmfuse"),
        "runs": runs,
        "compared": compared,
        "forest": compared and figures.forest(TASKS[compared["task"]], compared["runs"]),
        "chosen": compared and TASKS[compared["task"]],
        "overlays": _overlays(runs) if len(runs) > 1 else [],
        "titles": TITLES,
        "differing": differing([run["config"] for run in runs]),
        "notes": notes,
        "again": _again(paths, against),
    }
    sections = [("comparison", "Comparison")] if compared or len(runs) > 1 else []
    sections += [(run["anchor"], Path(run["path"]).name) for run in runs[:8]]
    sections.append(("origin", "Origin"))
    html = page.render(_TEMPLATES, "runs.html", {**context, "sections": sections}, [])
    return Page(html, names, notes)


def _run(path: Path, number: int) -> dict[str, Any]:
    """All that the template shows of one run."""
    result, records = folder.read_result(path), figures.read_records(path)
    config, task = _config(path), figures.task_of(result)
    best = result.get("best_epoch", 0)
    bins = config.get("eval", {}).get("ece_bins", _BINS)
    again = ["mmtrain", "run", str(path / folder.RESOLVED), "--out", f"{path}-again"]
    return {
        "path": str(path),
        "anchor": f"run-{number}",
        "colour": f"c{number % 8}",
        "task": task,
        "result": result,
        "records": records,
        "config": config,
        "curves": figures.curves(task, records, best),
        "subsets": figures.subsets(task, result),
        "shapley": figures.shapley(task, result),
        "robustness": figures.robustness(task, result),
        "gates": figures.gates(result),
        "confusion": figures.confusion(result),
        "reliability": figures.reliability(path, result, bins),
        "again": shlex.join(again),
    }


def _config(path: Path) -> dict[str, Any]:
    file = path / folder.RESOLVED
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"can't read {file} ({error}); train again with --overwrite") from None


def differing(configs: Sequence[Mapping[str, Any]], above: str = "") -> list[tuple[str, list[str]]]:
    """Keys in which configurations differ, each with its value in every one; "" where it has none.

    A section that some lack, and the others have alike, is one row with its type. Names are left
    out: they differ without a difference.
    """
    rows = []
    for key in dict.fromkeys(key for config in configs for key in config):
        values, name = [config.get(key) for config in configs], f"{above}{key}"
        there = [value for value in values if value is not None]
        if all(value == values[0] for value in values) or name == "name":
            continue
        if not isinstance(there[0], dict):
            rows.append((name, ["" if value is None else str(value) for value in values]))
        elif all(value == there[0] for value in there):
            said = str(there[0].get("type", "there"))
            rows.append((name, ["" if value is None else said for value in values]))
        else:
            rows += differing([value or {} for value in values], f"{name}.")
    return rows


def _overlays(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """Validation by epoch, and scores as modalities go missing, a line a run; of one task only."""
    task = runs[0]["task"]
    if any(run["task"] is not task for run in runs):
        return []
    score, title = f"val_{task.select}", TITLES[task.select]
    learned = [
        (run["path"], [r["epoch"] for r in run["records"]], [r[score] for r in run["records"]])
        for run in runs
    ]
    found = [("Learning", figures.overlay(task, learned, "epoch", f"{title} on validation"))]
    lost = [
        (
            run["path"],
            [100 * share for share in run["result"]["robustness"]["missing"]],
            run["result"]["robustness"]["test"]["any"][task.select],
        )
        for run in runs
        if run["robustness"] is not None
    ]
    if lost:
        x_title = "% of clips that lose each modality by itself"
        found.append(("Going missing", figures.overlay(task, lost, x_title, f"{title} on test")))
    return found


def _again(paths: Sequence[Path], against: Path | None) -> str:
    words = ["mmtrain", "report", *map(str, paths)]
    return shlex.join(words + (["--against", str(against)] if against else []))
