"""Scores of any number of labels a clip.

Conventions: `truth_NC` is 0 or 1, `p_NC` probabilities, a label is said from .5 on. Weights say how
often each clip counts, in R ways at once. A label that no clip has and that is never said has no
F1, one that no clip has has no average precision; means are over the others, 0 if there are none.

Shapes: N clip, C label, R resample, K threshold.
"""

import numpy as np
from numpy.typing import NDArray

from mmfuse.trainer.metrics import area

Labels = NDArray[np.float64]
HALF = 0.5


def scores(
    truth_NC: Labels, p_NC: Labels, weights_RN: Labels, *, drawn: bool = False
) -> dict[str, NDArray[np.float64]]:
    """`macro_f1`, `micro_f1` and `map` (mean average precision), (R,) each.

    With `drawn`, macro-F1 leaves out labels that only clips that do not count have: whole labels
    fall out where groups of clips are drawn, and would count as failures where they are said.
    """
    said_NC = (p_NC >= HALF).astype(np.float64)
    right_RC = weights_RN @ (truth_NC * said_NC)
    truth_RC = weights_RN @ truth_NC
    either_RC = truth_RC + weights_RN @ said_NC
    f1_RC = 2 * right_RC / np.maximum(either_RC, 1)
    counts_RC = either_RC > 0
    if drawn:
        counts_RC &= (truth_RC > 0) | (truth_NC.sum(axis=0) == 0)
    micro_R = 2 * right_RC.sum(axis=1) / np.maximum(either_RC.sum(axis=1), 1)
    precision_RC = np.stack(
        [
            average_precision(truth_NC[:, c], p_NC[:, c], weights_RN)
            for c in range(truth_NC.shape[1])
        ],
        axis=1,
    )
    return {
        "macro_f1": _mean(f1_RC, counts_RC),
        "micro_f1": micro_R,
        "map": _mean(precision_RC, truth_RC > 0),
    }


def average_precision(truth_N: Labels, p_N: Labels, weights_RN: Labels) -> NDArray[np.float64]:
    """Sum of precision at each threshold times what recall gains there, (R,); 0 without a clip.

    Source: as scikit-learn's `average_precision_score`; clips with equal p come in together.
    """
    order_N = np.argsort(-p_N, kind="stable")
    sorted_N = p_N[order_N]
    ends_K = np.append(np.flatnonzero(np.diff(sorted_N)), len(sorted_N) - 1)
    weights_RN = weights_RN[:, order_N]
    said_RK = weights_RN.cumsum(axis=1)[:, ends_K]
    right_RK = (weights_RN * truth_N[order_N]).cumsum(axis=1)[:, ends_K]
    gained_RK = np.diff(right_RK, axis=1, prepend=0)
    precision_RK = right_RK / np.maximum(said_RK, 1)
    return np.asarray(
        (precision_RK * gained_RK).sum(axis=1) / np.maximum(right_RK[:, -1], 1), dtype=np.float64
    )


def auroc(truth_NC: Labels, p_NC: Labels) -> float:
    """Area under the ROC curve, mean over labels that some clips have and some have not; or NaN."""
    areas = [area(truth_NC[:, c] > 0, p_NC[:, c]) for c in range(truth_NC.shape[1])]
    known = [one for one in areas if one is not None]
    return float(np.mean(known)) if known else float("nan")


def _mean(score_RC: Labels, counts_RC: NDArray[np.bool_]) -> NDArray[np.float64]:
    sums_R = np.where(counts_RC, score_RC, 0).sum(axis=1)
    return np.asarray(sums_R / np.maximum(counts_RC.sum(axis=1), 1), dtype=np.float64)
