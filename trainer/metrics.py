"""Scores of a classifier, how sure they are, and whether two classifiers differ.

Conventions: classes are numbers 0..C-1; `truth_N` and `predicted_N` are (N,) int64. Macro-F1 is
the mean over the classes that occur in truth or prediction, as scikit-learn's. Resampling draws
clips with replacement from a generator seeded by the caller; with `groups_N`, whole groups of clips
(songs of one album, takes of one singer), which are more alike than clips are.

Shapes: N clip, C class, R resample, G group.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

Classes = NDArray[np.int64]
Score = Callable[[NDArray[np.float64]], NDArray[np.float64]]

_CELLS = 2**24  # confusion cells counted at once: 128 MiB


@dataclass(frozen=True, slots=True)
class Interval:
    """A score with the 2.5 % and 97.5 % points of its bootstrap distribution."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Score of a run minus that of another on the same clips; `p` is two-sided."""

    value: float
    low: float
    high: float
    p: float


def confusion(truth_N: Classes, predicted_N: Classes, classes: int) -> NDArray[np.int64]:
    """Counts, (C, C): rows are the truth, columns the prediction."""
    cells = np.bincount(truth_N * classes + predicted_N, minlength=classes**2)
    return cells.reshape(classes, classes).astype(np.int64)


def accuracy(confusion_RCC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of right answers: confusion (..., C, C) -> (...)."""
    right = np.trace(confusion_RCC, axis1=-2, axis2=-1)
    return np.asarray(right / confusion_RCC.sum(axis=(-2, -1)), dtype=np.float64)


def macro_f1(confusion_RCC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean F1 over classes that occur: confusion (..., C, C) -> (...)."""
    right = np.diagonal(confusion_RCC, axis1=-2, axis2=-1)
    either = confusion_RCC.sum(axis=-1) + confusion_RCC.sum(axis=-2)
    f1 = 2 * right / np.maximum(either, 1)
    return np.asarray(f1.sum(axis=-1) / np.count_nonzero(either, axis=-1), dtype=np.float64)


def _macro_f1_of_drawn(confusion_RCC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean F1 over classes that were drawn: whole classes fall out where groups are few.

    A class that fell out is still predicted, and would count as a failure in `macro_f1`.
    """
    truth = confusion_RCC.sum(axis=-1)
    right = np.diagonal(confusion_RCC, axis1=-2, axis2=-1)
    f1 = np.where(truth > 0, 2 * right / np.maximum(truth + confusion_RCC.sum(axis=-2), 1), 0)
    return np.asarray(f1.sum(axis=-1) / np.count_nonzero(truth, axis=-1), dtype=np.float64)


SCORES: dict[str, Score] = {"accuracy": accuracy, "macro_f1": macro_f1}
_OF_GROUPS: dict[str, Score] = {"accuracy": accuracy, "macro_f1": _macro_f1_of_drawn}


def scores(truth_N: Classes, predicted_N: Classes, classes: int) -> dict[str, float]:
    """Accuracy and macro-F1; NaN for no clips."""
    if len(truth_N) == 0:
        return dict.fromkeys(SCORES, float("nan"))
    counts = confusion(truth_N, predicted_N, classes).astype(np.float64)
    return {name: float(score(counts)) for name, score in SCORES.items()}


def auroc(truth_N: Classes, probabilities_NC: NDArray[np.float64]) -> float:
    """Area under the ROC curve of each class against the rest, mean over classes; chance is .5.

    A class that has no clip, or all of them, has no such area and is left out; NaN if none is left.

    Source: the rank form, Hanley & McNeil, Radiology 143 (1982), with ties at half.
    """
    areas = [area(truth_N == c, probabilities_NC[:, c]) for c in range(probabilities_NC.shape[1])]
    known = [one for one in areas if one is not None]
    return float(np.mean(known)) if known else float("nan")


def area(here_N: NDArray[np.bool_], score_N: NDArray[np.float64]) -> float | None:
    """Area under the ROC curve of a score that tells who is here; None if all are, or nobody is."""
    n = int(here_N.sum())
    if not 0 < n < len(here_N):
        return None
    return float((ranks(score_N)[here_N].sum() - n * (n + 1) / 2) / (n * (len(here_N) - n)))


def ranks(values_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Place of each value, from 1; equal ones share the mean of theirs."""
    values, place_N = np.unique(values_N, return_inverse=True)
    ties = np.bincount(place_N, minlength=len(values))
    return np.asarray((np.cumsum(ties) - (ties - 1) / 2)[place_N], dtype=np.float64)


def bootstrap(
    truth_N: Classes,
    predicted_N: Classes,
    classes: int,
    resamples: int = 2000,
    seed: int = 0,
    groups_N: NDArray[Any] | None = None,
) -> dict[str, Interval]:
    """Every score with its 95 % percentile interval, over clips, or over groups of them.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap, chapter 13; of whole groups:
    Davison & Hinkley, Bootstrap Methods and their Application, section 3.8.
    """
    drawn = _resampled(truth_N, [predicted_N], classes, resamples, seed, groups_N)[0]
    whole = scores(truth_N, predicted_N, classes)
    resampled = SCORES if groups_N is None else _OF_GROUPS
    return {
        name: Interval(whole[name], *percentiles(score(drawn))) for name, score in resampled.items()
    }


def paired_bootstrap(
    truth_N: Classes,
    predicted_N: Classes,
    against_N: Classes,
    classes: int,
    resamples: int = 2000,
    seed: int = 0,
    groups_N: NDArray[Any] | None = None,
) -> dict[str, Difference]:
    """Every score of `predicted` minus that of `against`, both on the same resampled clips.

    `p` is twice the share of resamples on the other side of zero, at least 1 / (resamples + 1).
    """
    drawn = _resampled(truth_N, [predicted_N, against_N], classes, resamples, seed, groups_N)
    ours, theirs = scores(truth_N, predicted_N, classes), scores(truth_N, against_N, classes)
    found = {}
    for name, score in (SCORES if groups_N is None else _OF_GROUPS).items():
        found[name] = difference(ours[name] - theirs[name], score(drawn[0]) - score(drawn[1]))
    return found


def difference(value: float, differences_R: NDArray[np.float64]) -> Difference:
    """A difference with the interval and the p of its resamples."""
    below, above = (differences_R <= 0).sum() + 1, (differences_R >= 0).sum() + 1
    p = min(1.0, 2 * float(min(below, above)) / (len(differences_R) + 1))
    return Difference(value, *percentiles(differences_R), p)


def resampled_scores(
    truth_N: Classes,
    predictions: list[Classes],
    classes: int,
    resamples: int = 2000,
    seed: int = 0,
    groups_N: NDArray[Any] | None = None,
) -> dict[str, list[NDArray[np.float64]]]:
    """Every score of each prediction on the same resampled clips: (R,) for each of them."""
    scoring = SCORES if groups_N is None else _OF_GROUPS
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in scoring}
    for predicted_N in predictions:  # one at a time: confusions of many classes are large
        drawn = _resampled(truth_N, [predicted_N], classes, resamples, seed, groups_N)[0]
        for name, score in scoring.items():
            found[name].append(score(drawn))
    return found


def mcnemar(truth_N: Classes, predicted_N: Classes, against_N: Classes) -> float:
    """Two-sided p that two classifiers err equally often on the same clips, exact.

    Clips count as independent; where they come in groups, trust the paired bootstrap over groups.

    Source: McNemar, Psychometrika 12 (1947); the exact binomial form.
    """
    right, other = predicted_N == truth_N, against_N == truth_N
    only, others = int((right & ~other).sum()), int((~right & other).sum())
    n, k = only + others, min(only, others)
    tail: int = sum(comb(n, i) for i in range(k + 1))
    return min(1.0, float(Fraction(2 * tail, 2**n)))


def _resampled(
    truth_N: Classes,
    predictions: list[Classes],
    classes: int,
    resamples: int,
    seed: int,
    groups_N: NDArray[Any] | None,
) -> list[NDArray[np.float64]]:
    """Confusions (R, C, C) of each prediction, the same clips drawn for all of them."""
    if groups_N is not None:
        return _resampled_groups(truth_N, predictions, classes, resamples, seed, groups_N)
    rng = np.random.default_rng(seed)
    cells = [truth_N * classes + predicted_N for predicted_N in predictions]
    parts: list[list[NDArray[np.int64]]] = [[] for _ in predictions]
    step = max(1, _CELLS // max(classes**2, len(truth_N)))
    for first in range(0, resamples, step):
        count = min(step, resamples - first)
        drawn_RN = rng.integers(len(truth_N), size=(count, len(truth_N)))
        offset_R1 = np.arange(count)[:, None] * classes**2
        for part, cell_N in zip(parts, cells, strict=True):
            part.append(
                np.bincount(
                    (cell_N[drawn_RN] + offset_R1).ravel(), minlength=count * classes**2
                ).reshape(count, classes, classes)
            )
    return [np.concatenate(part).astype(np.float64) for part in parts]


def _resampled_groups(
    truth_N: Classes,
    predictions: list[Classes],
    classes: int,
    resamples: int,
    seed: int,
    groups_N: NDArray[Any],
) -> list[NDArray[np.float64]]:
    """As `_resampled`: as many groups are drawn as there are, each with all of its clips."""
    rng = np.random.default_rng(seed)
    names, group_N = np.unique(groups_N, return_inverse=True)
    G, size = len(names), classes**2
    held = []  # cells of each group, (G, C * C)
    for predicted_N in predictions:
        cell_N = truth_N * classes + predicted_N
        counts = np.bincount(group_N * size + cell_N, minlength=G * size)
        held.append(counts.reshape(G, size).astype(np.float64))
    parts: list[list[NDArray[np.float64]]] = [[] for _ in predictions]
    step = max(1, _CELLS // max(G, size))
    for first in range(0, resamples, step):
        count = min(step, resamples - first)
        drawn_RG = rng.integers(G, size=(count, G)) + np.arange(count)[:, None] * G
        times_RG = np.bincount(drawn_RG.ravel(), minlength=count * G).reshape(count, G)
        for part, cells_GC in zip(parts, held, strict=True):
            part.append((times_RG.astype(np.float64) @ cells_GC).reshape(count, classes, classes))
    return [np.concatenate(part) for part in parts]


def percentiles(values_R: NDArray[np.float64]) -> tuple[float, float]:
    """The 2.5 % and 97.5 % points of a bootstrap distribution, (R,)."""
    low, high = np.percentile(values_R, [2.5, 97.5])
    return float(low), float(high)
