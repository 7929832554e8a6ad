"""What a run and a comparison say to a person: plain tables, and what to type next."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    if result["resumed_at"]:
        lines.append(f"Went on from step {result['resumed_at']} of {result['steps']}.")
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
        *_score_lines(result, {split: split}),
        *_modality_lines(result, split),
    ]


def _score_lines(result: Mapping[str, Any], splits: Mapping[str, str]) -> list[str]:
    """A row a split, named as it is shown; the last one at the temperature, too."""
    rows = [["", "clips", "accuracy", "95 %", "macro-F1", "95 %", "AUROC", "NLL", "ECE"]]
    rows += [
        [
            shown,
            str(result[name]["clips"]),
            *_with_intervals(result[name]),
            *_probabilistic(result[name]),
        ]
        for shown, name in splits.items()
    ]
    shown, name = list(splits.items())[-1]
    scaled = result["calibration"]
    at = f"{shown} at T = {scaled['temperature']:.2f}"
    rows.append([at, *[""] * 6, *_probabilistic(scaled[name])[1:]])
    drawn = result[name]["drawn"]
    groups = f"Intervals draw whole groups: {drawn.get('groups')} on {shown}."
    return [*table(rows), *([groups] if "groups" in drawn else [])]


def _modality_lines(result: Mapping[str, Any], split: str) -> list[str]:
    """On a split: every subset, what each modality is worth and counts, and what its loss costs."""
    subsets = result.get("subsets", {})
    if len(subsets) < 2:
        return []
    rows = [[f"seen on {split}", "accuracy", "macro-F1"]]
    rows += [
        [name, f"{of[split]['accuracy']:.3f}", f"{of[split]['macro_f1']:.3f}"]
        for name, of in subsets.items()
    ]
    lines = ["", *table(rows)]
    missing, curves = result["robustness"]["missing"], result["robustness"][split]
    worth, gates = result["shapley"][split]["macro_f1"], result.get("gates")
    head = [f"macro-F1 on {split}", "worth", *(["gate"] if gates else [])]
    rows = [[*head, *(f"{share:.0%} lost" for share in missing)]]
    for name, curve in curves.items():
        row = [name, f"{worth[name]:+.3f}" if name in worth else ""]
        if gates:
            weight = gates[split]["mean"].get(name)
            row.append("" if weight is None else f"{weight:.2f}")
        rows.append([*row, *(f"{value:.3f}" for value in curve["macro_f1"])])
    return [*lines, "", *table(rows)]


def _gradient_lines(result: Mapping[str, Any]) -> list[str]:
    """In the last epoch: how each encoder moved, and what its own head knows; a warning."""
    if len(result["gradients"]) < 2:
        return []
    rows = [["last epoch", "gradient", "update / weights", "own head, macro-F1"]]
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
    """One row a run, the differences from the reference beside it; means over seeds below."""
    against = comparison["against"]
    head = ["run", "seed", "modalities", "accuracy", "95 %", "macro-F1", "95 %"]
    if against is not None:
        head += ["macro-F1 more", "95 %", "p", "McNemar p"]
    rows = [head]
    for run in comparison["runs"]:
        row = [run["run"], str(run["seed"]), "+".join(run["modalities"]), *_with_intervals(run)]
        difference = run.get("difference")
        if difference is not None:
            f1 = difference["macro_f1"]
            row += [f"{f1['value']:+.3f}", _interval(f1["low"], f1["high"], "+.3f")]
            row += [_p(f1["p"]), _p(run["mcnemar_p"])]
        elif against is not None:
            row += ["reference", "", "", ""]
        rows.append(row)
    lines = [f"{comparison['clips']} test clips, the same for every run", *table(rows)]
    if comparison["seeds"]:
        rows = [["mean over seeds", "runs", "accuracy", "sd", "macro-F1", "sd"]]
        rows += [
            [
                group["name"],
                str(group["runs"]),
                *(f"{group[key]:.3f}" for key in _MEANS),
            ]
            for group in comparison["seeds"]
        ]
        lines += ["", *table(rows)]
    if against is None:
        lines += ["", "No run of a single modality among them; --against RUN names a reference."]
    else:
        lines += ["", f"Differences are paired, on the same clips, from {against}."]
    if comparison["groups"]:
        lines.append(
            f"Intervals and p draw {comparison['groups']} groups of clips; McNemar counts clips."
        )
    return lines


def prediction_lines(found: "Predictions", out: Path | None) -> list[str]:
    """A row a clip, or where they were written; and by what features were made, if they were."""
    lines = []
    if found.made is not None:
        lines = [f"Features made as for training, {found.made.seconds:.1f} s, by:"]
        lines += [f"  {command}" for command in found.made.commands]
    if out is None:
        rows = [["id", "predicted", "p", "label", "saw", "reason"]]
        for row in found.rows:
            p = "" if row["probability"] is None else f"{row['probability']:.3f}"
            cells = (row[name] or "" for name in ("label", "saw", "reason"))
            rows.append([row["id"], row["predicted"] or "", p, *cells])
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
    lines = [f"macro-F1 of {len(found['runs'])} runs, {found['seconds']:.1f} s", *table(rows)]
    lines += [f"{n} runs one after the other: {why}" for why, n in found["queued"].items()]
    best = found["best"]["run"]
    return [*lines, "", f"Next: mmtrain compare {best} OTHER_RUN"]


_MEANS = ("accuracy", "accuracy_sd", "macro_f1", "macro_f1_sd")


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


def _with_intervals(scores: Mapping[str, Any]) -> list[str]:
    return [
        cell
        for name in ("accuracy", "macro_f1")
        for cell in (f"{scores[name]:.3f}", _interval(*scores[f"{name}_95"]))
    ]


def _probabilistic(scores: Mapping[str, Any]) -> list[str]:
    area = scores.get("auroc")
    return [
        "" if area is None else f"{area:.3f}",
        f"{scores['nll']:.3f}",
        f"{scores['ece']:.3f}",
    ]


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else "< 0.0001"


def _interval(low: float, high: float, style: str = ".3f") -> str:
    return f"{low:{style}} to {high:{style}}"
