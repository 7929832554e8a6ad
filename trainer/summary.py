"""What a run and a comparison say to a person: plain tables, and what to type next."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfuse.trainer.task import Task
from mmfuse.trainer.tasks import TASKS, TITLES

if TYPE_CHECKING:
    from mmfuse.trainer.predictions import Predictions


def run_lines(result: Mapping[str, Any]) -> list[str]:
    """Scores of validation and test, what modalities do, where the files are, what to type next."""
    lines = [
        f"{result['name']}, seed {result['seed']}: best of {result['epochs']} epochs is "
        f"{result['best_epoch']}; {result['parameters']} parameters, {result['seconds']:.1f} s",
        *_score_lines(result, {"validation": "val", "test": "test"}),
        *_modality_lines(result, "test"),
    ]
    if again := result.get("refit"):
        lines.append(
            f"Trained anew on train and validation, {again['train_clips']} clips, for "
            f"{again['epochs']} epochs: that model is saved and tested; validation is of the first."
        )
    if result["resumed_at"]:
        lines.append(f"Went on from step {result['resumed_at']} of {result['steps']}.")
    if cost := result.get("compiled"):
        warm_up, step = f"{cost['warm_up_s']:.1f} s of warm-up", f"{cost['step_s']:.3f} s"
        lines.append(f"Compiled: {warm_up}, the median step takes {step}.")
    lines += _gradient_lines(result)
    if result["interrupted"]:
        lines += ["", "interrupted: these are the best weights until then"]
    if result["store_root"] is None:
        lines += ["", f"{result['store']} is unfinished: run `mmfeat run` to its end, train again"]
    out = result["out"]
    return [
        *lines,
        "",
        f"In {out}: result.json, predictions.parquet, model.safetensors, metrics.jsonl",
        f"Next: mmtrain compare {out} OTHER_RUN",
    ]


def eval_lines(result: Mapping[str, Any]) -> list[str]:
    """Scores of one split, and what modalities do there."""
    split = result["split"]
    return [
        f"{result['run']} on {result['corpus']}, {result['store']}",
        *(["The model was trained on these clips."] if result["trained_on"] else []),
        *_score_lines(result, {split: split}),
        *_modality_lines(result, split),
    ]


def _score_lines(result: Mapping[str, Any], splits: Mapping[str, str]) -> list[str]:
    """A row a split, named as it is shown; the last one at the temperature, too."""
    task = _task(result)
    heads = (cell for name in task.shown for cell in (TITLES[name], "95 %"))
    rows = [["", "clips", *heads, *(TITLES[name] for name in task.also)]]
    rows += [
        [
            shown,
            str(result[name]["clips"]),
            *_with_intervals(result[name], task.shown),
            *_numbers(result[name], task.also),
        ]
        for shown, name in splits.items()
    ]
    shown, name = list(splits.items())[-1]
    if task.probable:
        scaled = result["calibration"]
        at = f"{shown} at T = {scaled['temperature']:.2f}"
        blank = [""] * (1 + 2 * len(task.shown))
        rows.append([at, *blank, *_numbers(scaled[name], task.also)])
    drawn = result[name]["drawn"]
    groups = f"Intervals draw whole groups: {drawn.get('groups')} on {shown}."
    return [*table(rows), *([groups] if "groups" in drawn else [])]


def _modality_lines(result: Mapping[str, Any], split: str) -> list[str]:
    """On a split: every subset, what each modality is worth and counts, and what its loss costs."""
    subsets = result.get("subsets", {})
    if len(subsets) < 2:
        return []
    task = _task(result)
    rows = [[f"seen on {split}", *(TITLES[name] for name in task.shown)]]
    rows += [[name, *_numbers(of[split], task.shown)] for name, of in subsets.items()]
    lines = ["", *table(rows)]
    missing, curves = result["robustness"]["missing"], result["robustness"][split]
    worth, gates = result["shapley"][split][task.select], result.get("gates")
    head = [f"{TITLES[task.select]} on {split}", "worth", *(["gate"] if gates else [])]
    rows = [[*head, *(f"{share:.0%} lost" for share in missing)]]
    for name, curve in curves.items():
        row = [name, f"{worth[name]:+.3f}" if name in worth else ""]
        if gates:
            weight = gates[split]["mean"].get(name)
            row.append("" if weight is None else f"{weight:.2f}")
        rows.append([*row, *(f"{value:.3f}" for value in curve[task.select])])
    return [*lines, "", *table(rows)]


def _gradient_lines(result: Mapping[str, Any]) -> list[str]:
    """In the last epoch: how each encoder moved, and what its own head knows; a warning."""
    if len(result["gradients"]) < 2:
        return []
    rows = [
        ["last epoch", "gradient", "update / weights", f"own head, {TITLES[_task(result).select]}"]
    ]
    rows += [
        [
            name,
            f"{of['grad_norm']:.3g}",
            f"{of['update_ratio']:.1e}",
            f"{of['head']:.3f}" if "head" in of else "",
        ]
        for name, of in result["gradients"].items()
    ]
    lines, uneven = ["", *table(rows)], result["imbalance"]
    if uneven:
        lines.append(
            f"warning: out of balance: per parameter, gradients of {uneven['strong']} are "
            f"{uneven['ratio']:.1f} times those of {uneven['weak']}, and own heads are "
            f"{uneven['gap']:.2f} apart"
        )
    return lines


def compare_lines(comparison: Mapping[str, Any]) -> list[str]:
    """One row a run, the differences from the reference beside it; means over seeds, what next."""
    against = comparison["against"]
    task = _task(comparison)
    title, mcnemar = TITLES[task.select], task.right_or_wrong
    head = ["run", "seed", "modalities"]
    head += [cell for name in task.shown for cell in (TITLES[name], "95 %")]
    if against is not None:
        head += [f"{title} more", "95 %", "p", *(["McNemar p"] if mcnemar else [])]
    rows = [head]
    for run in comparison["runs"]:
        row = [run["run"], str(run["seed"]), "+".join(run["modalities"])]
        row += _with_intervals(run, task.shown)
        difference = run.get("difference")
        if difference is not None:
            more = difference[task.select]
            row += [f"{more['value']:+.3f}", _interval(more["low"], more["high"], "+.3f")]
            row += [_p(more["p"]), *([_p(run["mcnemar_p"])] if mcnemar else [])]
        elif against is not None:
            row += ["reference", "", "", *([""] if mcnemar else [])]
        rows.append(row)
    lines = [f"{comparison['clips']} test clips, the same for every run", *table(rows)]
    if comparison["seeds"]:
        means = [key for name in task.shown for key in (name, f"{name}_sd")]
        rows = [["mean over seeds", "runs", *(TITLES.get(key, "sd") for key in means)]]
        rows += [
            [group["name"], str(group["runs"]), *_numbers(group, means)]
            for group in comparison["seeds"]
        ]
        lines += ["", *table(rows)]
    if against is None:
        lines += ["", "No run of a single modality among them; --against RUN names a reference."]
    else:
        lines += ["", f"Differences are paired, on the same clips, from {against}."]
    if comparison["groups"]:
        counts = "; McNemar counts clips" if mcnemar else ""
        lines.append(f"Intervals and p draw {comparison['groups']} groups of clips{counts}.")
    if not mcnemar:
        lines.append("McNemar's test is for answers that are right or wrong, not for this task.")
    runs = shlex.join(run["run"] for run in comparison["runs"])
    return [*lines, "", f"Next: mmtrain report {runs}"]


def prediction_lines(found: "Predictions", out: Path | None) -> list[str]:
    """A row a clip, or where they were written; and by what features were made, if they were."""
    lines = []
    if found.made is not None:
        lines = [f"Features made as for training, {found.made.seconds:.1f} s, by:"]
        lines += [f"  {command}" for command in found.made.commands]
    if out is None:
        names = ["predicted", "probability", "label", "saw", "reason"]
        names = [name for name in names if name in found.rows[0]]
        rows = [["id", *("p" if name == "probability" else name for name in names)]]
        rows += [[row["id"], *(_cell(row[name]) for name in names)] for row in found.rows]
        lines += table([row[:-1] if found.failed == 0 else row for row in rows])
    else:
        lines.append(f"{len(found.rows)} clips in {out}")
    if found.failed:
        lines += ["", f"{found.failed} of {len(found.rows)} clips could not be used whole"]
    return lines


def sweep_lines(found: Mapping[str, Any]) -> list[str]:
    """A row for each setting: mean and spread over seeds, and the test score of its best seed."""
    rows = [["setting", "runs", "validation", "sd", "test", "sd", "best by validation"]]
    for row in found["points"]:
        said = ", ".join(f"{key}={value}" for key, value in row["settings"].items()) or "as it is"
        cells = [
            "" if value is None else f"{value:.3f}"
            for split in ("val", "test")
            for value in (row[split]["mean"], row[split]["sd"])
        ]
        rows.append([said, str(row["runs"]), *cells, f"{row['best_test']:.3f}"])
    lines = [
        f"{TITLES[found['score']]} of {len(found['runs'])} runs, {found['seconds']:.1f} s",
        *table(rows),
    ]
    lines += [f"{n} runs one after the other: {why}" for why, n in found["queued"].items()]
    best = found["best"]["run"]
    return [*lines, "", f"Next: mmtrain compare {best} OTHER_RUN"]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _task(result: Mapping[str, Any]) -> type[Task]:
    return TASKS[result.get("task", "single")]


def _with_intervals(scores: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [
        cell for name in names for cell in (f"{scores[name]:.3f}", _interval(*scores[f"{name}_95"]))
    ]


def _numbers(scores: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Cells of scores; empty where there is none."""
    return ["" if scores.get(name) is None else f"{scores[name]:.3f}" for name in names]


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else value or ""


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else "< 0.0001"


def _interval(low: float, high: float, style: str = ".3f") -> str:
    return f"{low:{style}} to {high:{style}}"
