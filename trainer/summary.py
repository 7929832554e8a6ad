"""What a run and a comparison say to a person: plain tables, and what to type next."""

from collections.abc import Mapping, Sequence
from typing import Any


def run_lines(result: Mapping[str, Any]) -> list[str]:
    """Scores of validation and test, of every subset, where the files are, what to type next."""
    rows = [["", "clips", "accuracy", "95 %", "macro-F1", "95 %"]]
    rows += [
        [name, str(scores["clips"]), *_with_intervals(scores)]
        for name, scores in (("validation", result["val"]), ("test", result["test"]))
    ]
    lines = [
        f"{result['name']}, seed {result['seed']}: best of {result['epochs']} epochs is "
        f"{result['best_epoch']}; {result['parameters']} parameters, {result['seconds']:.1f} s",
        *table(rows),
    ]
    subsets = result.get("subsets", {})
    if len(subsets) > 1:
        rows = [["seen on test", "accuracy", "macro-F1"]]
        rows += [
            [name, f"{of['test']['accuracy']:.3f}", f"{of['test']['macro_f1']:.3f}"]
            for name, of in subsets.items()
        ]
        lines += ["", *table(rows)]
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
    return lines


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


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else "< 0.0001"


def _interval(low: float, high: float, style: str = ".3f") -> str:
    return f"{low:{style}} to {high:{style}}"
