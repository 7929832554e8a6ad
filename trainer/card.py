"""The model card: what an exported model is, what it was trained on, what it is worth."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmfuse.features.spec import StreamSpec
from mmfuse.trainer import folder
from mmfuse.trainer.saved import Saved
from mmfuse.trainer.tasks import TASKS, TITLES


def write_card(out: Path, saved: Saved, run: Path) -> None:
    """Write README.md beside a model."""
    result = folder.read_result(run) if (run / folder.RESULT).is_file() else None
    (out / "README.md").write_text(card(saved, result), encoding="utf-8")


def card(saved: Saved, result: Mapping[str, Any] | None) -> str:
    """The card; without a result, without scores."""
    config = saved.config
    does, learned = saved.task.told()
    parts = [
        f"# {config.name}",
        f"A fusion model ({config.model.fusion.type}) of {', '.join(saved.specs)} that {does}.",
        "## Data",
        f"Trained on {learned.format(corpus=f'`{config.data.corpus}`')}.",
        "## Streams",
        "Input has to be made exactly so; `mmtrain predict` on raw clips does that.",
        _table([["modality", "stream", "a row", "settings"], *map(_stream, saved.specs.items())]),
        "## Scores",
        "No result was beside the model." if result is None else _scores(result),
        "## Limits",
        _limits(saved, result),
        "## Use",
        "```sh\nmmtrain predict FOLDER --corpus CORPUS\nmmtrain eval FOLDER --split test\n```",
        "Where there is a program, `inputs.json` has its inputs; `present` says which modalities "
        "to look at, and what it hides has no influence.",
        "## Reproduce",
        f"```sh\nmmtrain run {shlex.quote(folder.RESOLVED)} --out again\n```",
    ]
    if result is not None:
        versions = ", ".join(f"{name} {value}" for name, value in result["versions"].items())
        parts.append(f"Seed {result['seed']}, features root `{result['store_root']}`, {versions}.")
    return "\n\n".join(parts) + "\n"


def _stream(item: tuple[str, StreamSpec]) -> list[str]:
    name, spec = item
    plain = {k: v for k, v in spec.params.items() if isinstance(v, bool | int | float | str)}
    said = ", ".join(f"{key} {value}" for key, value in plain.items() if "blake3" not in key)
    return [name, f"`{spec.key}`", f"{spec.dtype} {tuple(spec.item)}", said]


def _scores(result: Mapping[str, Any]) -> str:
    task = TASKS[result.get("task", "single")]
    also = [name for name in task.also if name != "auroc"]
    heads = (cell for name in task.shown for cell in (TITLES[name], "95 %"))
    rows = [["split", "clips", *heads, *(TITLES[name] for name in also)]]
    for shown, split in (("validation", "val"), ("test", "test")):
        of = result[split]
        cells = [shown, str(of["clips"])]
        for key in task.shown:
            low, high = of[f"{key}_95"]
            cells += [f"{of[key]:.3f}", f"{low:.3f} to {high:.3f}"]
        rows.append([*cells, *(f"{of[name]:.3f}" for name in also)])
    parts = [_table(rows)]
    if again := result.get("refit"):
        parts.append(
            f"This model was trained anew on train and validation, {again['train_clips']} clips, "
            f"for {again['epochs']} epochs. Scores of validation are of the model that was trained "
            "before, without those clips, by which epochs were chosen."
        )
    if len(result.get("subsets", {})) > 1:
        subsets = [["seen on test", *(TITLES[name] for name in task.shown)]]
        for name, of in result["subsets"].items():
            subsets.append([name, *(f"{of['test'][k]:.3f}" for k in task.shown)])
        parts.append(_table(subsets))
    return "\n\n".join(parts)


def _limits(saved: Saved, result: Mapping[str, Any] | None) -> str:
    lines = [
        f"- {saved.task.limit}",
        "- Scores are those of clips like the ones it was trained on; intervals say how far chance "
        "alone moves them, and nothing of other corpora.",
    ]
    if result is not None and result["test"].get("ece", 0) > 0.05:
        lines.append(
            f"- Its probabilities are off by {result['test']['ece']:.0%} on average (ECE); divide "
            f"logits by T = {result['calibration']['temperature']:.2f}."
        )
    if any("random_weights" in spec.params for spec in saved.specs.values()):
        lines.append("- A stream comes from a model with random weights: for trying out only.")
    return "\n".join(lines)


def _table(rows: list[list[str]]) -> str:
    head, *rest = rows
    lines = [head, ["---"] * len(head), *rest]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in r) + " |" for r in lines)
