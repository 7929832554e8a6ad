"""Scores of numbers that are predicted: how far off, and how alike in their course.

Conventions: `truth_N` and `said_N` are numbers in the label's unit. Weights say how often each clip
counts, in R ways at once. Where the truth is one number for all clips, R2 is 1 for a perfect answer
and else 0, as scikit-learn's; a correlation with something constant is 0.

Shapes: N clip, R resample.
"""

import numpy as np
from numpy.typing import NDArray

from mmfuse.trainer.metrics import ranks

Values = NDArray[np.float64]
_NOTHING = 1e-12  # of the mean square: less is rounding


def scores(truth_N: Values, said_N: Values, weights_RN: Values) -> dict[str, Values]:
    """`r2`, `mae`, `rmse` and `pearson`, (R,) each."""
    off_N, middle = said_N - truth_N, truth_N.mean()
    total_R = weights_RN.sum(axis=1)
    square_R = weights_RN @ off_N**2 / total_R
    truth_R, said_R, both_R = _moments(truth_N - middle, said_N - middle, weights_RN)
    varies_R = np.where(truth_R > 0, truth_R, 1.0)
    r2_R = np.where(truth_R > 0, 1 - square_R / varies_R, np.where(square_R > 0, 0.0, 1.0))
    spread_R = np.sqrt(truth_R * said_R)
    return {
        "r2": r2_R,
        "mae": weights_RN @ np.abs(off_N) / total_R,
        "rmse": np.sqrt(square_R),
        "pearson": np.where(spread_R > 0, both_R / np.where(spread_R > 0, spread_R, 1.0), 0.0),
    }


def spearman(truth_N: Values, said_N: Values) -> float:
    """Pearson's correlation of ranks, ties at their mean rank; 0 where either is constant."""
    one_N = np.ones((1, len(truth_N)))
    return float(scores(ranks(truth_N), ranks(said_N), one_N)["pearson"][0])


def _moments(x_N: Values, y_N: Values, weights_RN: Values) -> tuple[Values, Values, Values]:
    """Variances of both and their covariance, (R,) each; 0 where something is constant."""
    total_R = weights_RN.sum(axis=1)
    mean_x_R, mean_y_R = weights_RN @ x_N / total_R, weights_RN @ y_N / total_R
    xx_R, yy_R, xy_R = (weights_RN @ z_N / total_R for z_N in (x_N**2, y_N**2, x_N * y_N))
    x_R, y_R = xx_R - mean_x_R**2, yy_R - mean_y_R**2
    return (
        np.where(x_R > _NOTHING * xx_R, x_R, 0.0),
        np.where(y_R > _NOTHING * yy_R, y_R, 0.0),
        xy_R - mean_x_R * mean_y_R,
    )
