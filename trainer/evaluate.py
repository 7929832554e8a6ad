"""What a trained model is worth: scores, calibration, subsets of the modalities, gates.

Shapes: N clip, M modality, C class.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmfuse.trainer import calibration, metrics
from mmfuse.trainer.attribution import Subset, robustness, shapley, subsets
from mmfuse.trainer.config import EvalConfig, RunConfig
from mmfuse.trainer.dataset import Dataset
from mmfuse.trainer.loop import predict
from mmfuse.trainer.model import FusionModel

SCORED = {"val": "validation", "test": "test"}  # name in the result -> split
Clips = NDArray[np.int64]
Probabilities = NDArray[np.float64]


def evaluate(
    model: FusionModel,
    data: Dataset,
    config: RunConfig,
    splits: Mapping[str, str] = SCORED,
    *,
    temperature: float | None = None,
    commonest: int | None = None,
) -> tuple[dict[str, Any], Probabilities]:
    """Scores of validation and test, of every subset of the modalities too.

    Args:
        model: left in evaluation mode.
        data: where the clips are.
        config: what to score, and how.
        splits: name in the result -> split.
        temperature: that of the calibration; fitted on `val`, where it is left out.
        commonest: the commonest class in training; counted in `data`, where it is left out.

    Returns:
        Scores under the names of `splits`, `calibration`, and where they are asked for or there
        `subsets`, `shapley`, `intervals` of both, `robustness` and `gates` of the result;
        probabilities (N, C) of the clips of the splits, one behind the other.
    """
    names, options = model.modalities, config.eval
    clips = {name: data.clips_of(split) for name, split in splits.items()}
    guess = _commonest(data) if commonest is None else commonest
    asked = subsets(names) if options.subsets else [names]
    found: dict[Subset, dict[str, Probabilities]] = {
        kept: {
            name: predict(model, data, rows, tuple(m in kept for m in names), options.batch_size)
            for name, rows in clips.items()
        }
        for kept in asked
    }
    whole = found[names]
    result: dict[str, Any] = {
        name: scored(data, rows, whole[name], options) for name, rows in clips.items()
    }
    if temperature is None:
        temperature = calibration.fit_temperature(data.label[clips["val"]], whole["val"])
    result["calibration"] = calibrated(data, clips, whole, options, temperature)
    if options.subsets:
        result["subsets"] = {
            "+".join(kept): {
                name: plain_scores(data, rows, of[name]) for name, rows in clips.items()
            }
            for kept, of in found.items()
        }
    if options.subsets and len(names) > 1:
        result["shapley"] = {
            name: _shapley(data, rows, {kept: of[name] for kept, of in found.items()}, names, guess)
            for name, rows in clips.items()
        }
        result["intervals"] = {
            name: _intervals(
                data, rows, {kept: of[name] for kept, of in found.items()}, names, guess, options
            )
            for name, rows in clips.items()
        }
        result["robustness"] = {"missing": list(options.missing_shares)} | {
            name: robustness(
                names,
                {kept: of[name].argmax(axis=1) for kept, of in found.items()},
                data.label[rows],
                len(data.classes),
                options.missing_shares,
            )
            for name, rows in clips.items()
        }
    gates = {name: gate_means(model, data, rows, options) for name, rows in clips.items()}
    if all(gates.values()):
        result["gates"] = gates
    return result, np.concatenate(list(whole.values()))


def plain_scores(data: Dataset, clips: Clips, probabilities_NC: Probabilities) -> dict[str, float]:
    """NLL, accuracy and macro-F1."""
    truth_N = data.label[clips]
    found = metrics.scores(truth_N, probabilities_NC.argmax(axis=1), len(data.classes))
    return {"nll": calibration.nll(truth_N, probabilities_NC), **found}


def scored(
    data: Dataset, clips: Clips, probabilities_NC: Probabilities, options: EvalConfig
) -> dict[str, Any]:
    """All scores of a split, 95 % intervals of two, and the confusion (rows are the truth).

    `drawn` says what the intervals draw, and how many of them there are.
    """
    truth_N, predicted_N = data.label[clips], probabilities_NC.argmax(axis=1)
    groups_N = data.groups_of(clips) if options.resample == "group" else None
    intervals = metrics.bootstrap(
        truth_N, predicted_N, len(data.classes), options.bootstrap, groups_N=groups_N
    )
    area = metrics.auroc(truth_N, probabilities_NC)
    groups = {} if groups_N is None else {"groups": len(np.unique(groups_N))}
    return {
        "clips": len(clips),
        **plain_scores(data, clips, probabilities_NC),
        "auroc": None if math.isnan(area) else area,
        "ece": calibration.ece(truth_N, probabilities_NC, options.ece_bins),
        **{f"{name}_95": [interval.low, interval.high] for name, interval in intervals.items()},
        "drawn": groups or {"clips": len(clips)},
        "confusion": metrics.confusion(truth_N, predicted_N, len(data.classes)).tolist(),
    }


def calibrated(
    data: Dataset,
    clips: dict[str, Clips],
    found: dict[str, Probabilities],
    options: EvalConfig,
    temperature: float,
) -> dict[str, Any]:
    """A temperature, and NLL and ECE of each split at it."""
    result: dict[str, Any] = {"temperature": temperature}
    for name, rows in clips.items():
        scaled_NC = calibration.at_temperature(found[name], temperature)
        result[name] = {
            "nll": calibration.nll(data.label[rows], scaled_NC),
            "ece": calibration.ece(data.label[rows], scaled_NC, options.ece_bins),
        }
    return result


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
            weights_NM[batch.clips] = weights_BM.double().cpu().numpy()

    def means(rows: Clips) -> dict[str, float]:
        here_NM = data.present_NM[rows]
        return {
            name: float(weights_NM[rows, m][here_NM[:, m]].mean())
            for m, name in enumerate(model.modalities)
            if here_NM[:, m].any()
        }

    classes = {name: clips[data.label[clips] == c] for c, name in enumerate(data.classes)}
    return {
        "mean": means(clips),
        "by_class": {name: means(rows) for name, rows in classes.items() if len(rows)},
    }


def _intervals(
    data: Dataset,
    clips: Clips,
    found: dict[Subset, Probabilities],
    names: Subset,
    commonest: int,
    options: EvalConfig,
) -> dict[str, Any]:
    """95 % of each score of each subset, and of each Shapley value: all on the same drawn clips."""
    kept = [(), *found]
    said = [np.full(len(clips), commonest), *(of.argmax(axis=1) for of in found.values())]
    groups_N = data.groups_of(clips) if options.resample == "group" else None
    drawn = metrics.resampled_scores(
        data.label[clips], said, len(data.classes), options.bootstrap, groups_N=groups_N
    )
    of_subsets: dict[str, dict[str, list[float]]] = {"+".join(one): {} for one in found}
    of_shapley = {}
    for score, values_SR in drawn.items():
        for one, values_R in zip(kept[1:], values_SR[1:], strict=True):
            of_subsets["+".join(one)][score] = list(metrics.percentiles(values_R))
        worth = shapley(names, dict(zip(kept, values_SR, strict=True)))
        of_shapley[score] = {m: list(metrics.percentiles(worth[m])) for m in names}
    return {"subsets": of_subsets, "shapley": of_shapley}


def _commonest(data: Dataset) -> int:
    return int(np.bincount(data.label[data.clips_of("train")]).argmax())


def _shapley(
    data: Dataset,
    clips: Clips,
    found: dict[Subset, Probabilities],
    names: Subset,
    commonest: int,
) -> dict[str, dict[str, float]]:
    """Shapley values of each score; a model that sees nothing says the commonest train class."""
    guess_NC = np.zeros((len(clips), len(data.classes)))
    guess_NC[:, commonest] = 1.0
    values = {kept: plain_scores(data, clips, of) for kept, of in ({(): guess_NC} | found).items()}
    return {
        score: shapley(names, {kept: of[score] for kept, of in values.items()})
        for score in metrics.SCORES
    }
