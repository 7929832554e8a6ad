"""What a trained model is worth: scores, calibration, subsets of the modalities, gates.

Shapes: N clip, M modality, K output of the task.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmfuse.trainer.attribution import Subset, robustness, shapley, subsets
from mmfuse.trainer.config import EvalConfig, RunConfig
from mmfuse.trainer.dataset import Dataset
from mmfuse.trainer.loop import predict
from mmfuse.trainer.metrics import percentiles
from mmfuse.trainer.model import FusionModel
from mmfuse.trainer.windows import windows_of

SCORED = {"val": "validation", "test": "test"}  # name in the result -> split
Clips = NDArray[np.int64]
Said = NDArray[np.float64]


def evaluate(
    model: FusionModel,
    data: Dataset,
    config: RunConfig,
    splits: Mapping[str, str] = SCORED,
    *,
    temperature: float | None = None,
) -> tuple[dict[str, Any], Said]:
    """Scores of validation and test, of every subset of the modalities too.

    Args:
        model: left in evaluation mode.
        data: where the clips are.
        config: what to score, and how.
        splits: name in the result -> split.
        temperature: that of the calibration; fitted on `val`, where it is left out.

    Returns:
        Scores under the names of `splits`, `calibration` where answers are probabilities, and where
        they are asked for or there `subsets`, `shapley`, `intervals` of both, `robustness` and
        `gates` of the result; answers (N, K) for the clips of the splits, one behind the other.
    """
    names, options, task = model.modalities, config.eval, data.task
    windows = windows_of(config)
    clips = {name: data.clips_of(split) for name, split in splits.items()}
    asked = subsets(names) if options.subsets else [names]
    found: dict[Subset, dict[str, Said]] = {
        kept: {
            name: predict(
                model, data, rows, tuple(m in kept for m in names), options.batch_size, windows
            )
            for name, rows in clips.items()
        }
        for kept in asked
    }
    whole = found[names]
    result: dict[str, Any] = {
        name: scored(data, rows, whole[name], options) for name, rows in clips.items()
    }
    if task.probable:
        if temperature is None:
            temperature = task.temperature(data.label[clips["val"]], whole["val"])
        result["calibration"] = calibrated(data, clips, whole, options, temperature)
    if options.subsets:
        result["subsets"] = {
            "+".join(kept): {
                name: task.plain(data.label[rows], of[name]) for name, rows in clips.items()
            }
            for kept, of in found.items()
        }
    if options.subsets and len(names) > 1:
        result["shapley"] = {
            name: _shapley(data, rows, {kept: of[name] for kept, of in found.items()}, names)
            for name, rows in clips.items()
        }
        result["intervals"] = {
            name: _intervals(
                data, rows, {kept: of[name] for kept, of in found.items()}, names, options
            )
            for name, rows in clips.items()
        }
        result["robustness"] = {"missing": list(options.missing_shares)} | {
            name: robustness(
                names,
                {kept: task.decide(of[name]) for kept, of in found.items()},
                data.label[rows],
                task.scores,
                options.missing_shares,
            )
            for name, rows in clips.items()
        }
    gates = {name: gate_means(model, data, rows, options) for name, rows in clips.items()}
    if all(gates.values()):
        result["gates"] = gates
    return result, np.concatenate(list(whole.values()))


def scored(data: Dataset, clips: Clips, said_NK: Said, options: EvalConfig) -> dict[str, Any]:
    """All scores of a split, 95 % intervals of some; of classes the confusion (rows are the truth).

    `drawn` says what the intervals draw, and how many of them there are.
    """
    task, truth_N = data.task, data.label[clips]
    groups_N = data.groups_of(clips) if options.resample == "group" else None
    intervals = task.bootstrap(truth_N, task.decide(said_NK), options.bootstrap, groups_N)
    groups = {} if groups_N is None else {"groups": len(np.unique(groups_N))}
    return {
        "clips": len(clips),
        **task.plain(truth_N, said_NK),
        **{f"{name}_95": [interval.low, interval.high] for name, interval in intervals.items()},
        "drawn": groups or {"clips": len(clips)},
        **task.more(truth_N, said_NK, options.ece_bins),
    }


def calibrated(
    data: Dataset,
    clips: dict[str, Clips],
    found: dict[str, Said],
    options: EvalConfig,
    temperature: float,
) -> dict[str, Any]:
    """A temperature, and NLL and ECE of each split at it."""
    task, result = data.task, {"temperature": temperature}
    scores = {}
    for name, rows in clips.items():
        truth_N, scaled_NK = data.label[rows], task.at_temperature(found[name], temperature)
        scores[name] = {
            "nll": task.nll(truth_N, scaled_NK),
            "ece": task.ece(truth_N, scaled_NK, options.ece_bins),
        }
    return result | scores


def gate_means(
    model: FusionModel, data: Dataset, clips: Clips, options: EvalConfig
) -> dict[str, Any] | None:
    """Mean weight of each modality over the clips that have it, and over those of each class.

    None, if the fusion has no gates. A modality that no clip has is left out.
    """
    model.eval()
    weights_NM = np.zeros((len(data), len(model.modalities)))
    with torch.inference_mode():
        for batch in data.batches(clips, options.batch_size):
            weights_BM = model.gate_weights(batch)
            if weights_BM is None:
                return None
            weights_NM[batch.clips] = weights_BM.cpu().double().numpy()

    def means(rows: Clips) -> dict[str, float]:
        here_NM = data.present_NM[rows]
        return {
            name: float(weights_NM[rows, m][here_NM[:, m]].mean())
            for m, name in enumerate(model.modalities)
            if here_NM[:, m].any()
        }

    classes = {name: clips[has_N] for name, has_N in data.task.members(data.label[clips]).items()}
    return {
        "mean": means(clips),
        "by_class": {name: means(rows) for name, rows in classes.items() if len(rows)},
    }


def _intervals(
    data: Dataset, clips: Clips, found: dict[Subset, Said], names: Subset, options: EvalConfig
) -> dict[str, Any]:
    """95 % of each score of each subset, and of each Shapley value: all on the same drawn clips."""
    task, kept = data.task, [(), *found]
    answers = [_nothing(data, clips), *found.values()]
    groups_N = data.groups_of(clips) if options.resample == "group" else None
    decided = [task.decide(said_NK) for said_NK in answers]
    drawn = task.resampled(data.label[clips], decided, options.bootstrap, groups_N)
    of_subsets: dict[str, dict[str, list[float]]] = {"+".join(one): {} for one in found}
    of_shapley = {}
    for score, values_SR in drawn.items():
        for one, values_R in zip(kept[1:], values_SR[1:], strict=True):
            of_subsets["+".join(one)][score] = list(percentiles(values_R))
        worth = shapley(names, dict(zip(kept, values_SR, strict=True)))
        of_shapley[score] = {m: list(percentiles(worth[m])) for m in names}
    return {"subsets": of_subsets, "shapley": of_shapley}


def _nothing(data: Dataset, clips: Clips) -> Said:
    """What a model that sees nothing says: the commonest class, how frequent labels are, a mean."""
    return np.tile(data.task.guess(), (len(clips), 1))


def _shapley(
    data: Dataset, clips: Clips, found: dict[Subset, Said], names: Subset
) -> dict[str, dict[str, float]]:
    """Shapley values of each score."""
    task, truth_N = data.task, data.label[clips]
    values = {
        kept: task.scores(truth_N, task.decide(of))
        for kept, of in ({(): _nothing(data, clips)} | found).items()
    }
    return {
        score: shapley(names, {kept: of[score] for kept, of in values.items()})
        for score in task.shown
    }
