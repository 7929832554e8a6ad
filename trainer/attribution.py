"""What each modality is worth to a model, and what it costs when one goes missing.

Both are arithmetic on what the model says with each subset of the modalities, which is computed
once. `predicted` holds, by subset, the answers for the same clips: class numbers (N,), or (N, C).

Shapes: N clip, M modality, S subset.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from math import factorial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Score = Callable[[NDArray[Any], NDArray[Any]], Mapping[str, float]]  # of truth and answers
Subset = tuple[str, ...]
Value = TypeVar("Value", float, NDArray[np.float64])
_DRAWS = 100  # of which clips lose a modality, behind each point of a curve


def subsets(modalities: Sequence[str]) -> list[Subset]:
    """Every non-empty subset, the small ones first."""
    return [kept for n in range(1, len(modalities) + 1) for kept in combinations(modalities, n)]


def shapley(modalities: Sequence[str], value: Mapping[Subset, Value]) -> dict[str, Value]:
    """Shapley value of each modality, exact: its mean gain over all orders of coming in.

    They sum to the value of all modalities minus that of none.

    Args:
        modalities: all of them.
        value: of every subset, the empty one too, each in the order of `modalities`; a number, or
            an array, of which each place is taken by itself.

    Source: Shapley 1953; of modalities: Hu et al., arXiv 2205.00302 (SHAPE).
    """
    M = len(modalities)
    worth: dict[str, Value] = {}
    for name in modalities:
        others: list[str] = [other for other in modalities if other != name]
        gains: list[Value] = []
        for kept in [(), *subsets(others)]:
            joined = tuple(m for m in modalities if m in kept or m == name)
            share = factorial(len(kept)) * factorial(M - len(kept) - 1) / factorial(M)
            gains.append(share * (value[joined] - value[kept]))
        worth[name] = sum(gains[1:], start=gains[0])
    return worth


def robustness(
    modalities: Sequence[str],
    predicted: Mapping[Subset, NDArray[Any]],
    truth_N: NDArray[Any],
    score: Score,
    shares: Sequence[float],
    seed: int = 0,
) -> dict[str, dict[str, list[float]]]:
    """Scores as modalities go missing from a share of the clips: a value for each of `shares`.

    Each is the mean over 100 draws of the clips that lose something.

    Under a modality's name that one alone goes missing; under `any` each goes missing by itself
    from that share, and a clip that would lose all keeps one, each equally likely.

    Within a draw, who lost a modality at a smaller share has lost it at a larger one too.
    """
    rng = np.random.default_rng(seed)
    M, N = len(modalities), len(truth_N)
    one = next(iter(predicted.values()))
    stacked_SN = np.zeros((2**M, *one.shape), one.dtype)  # by bits: which modalities are kept
    for kept, predicted_N in predicted.items():
        stacked_SN[sum(1 << m for m, name in enumerate(modalities) if name in kept)] = predicted_N
    curves: dict[str, dict[str, NDArray[np.float64]]] = {
        name: {key: np.zeros(len(shares)) for key in score(truth_N, one)}
        for name in (*modalities, "any")
    }
    for _ in range(_DRAWS):
        order_MN = rng.random((M, N)).argsort(axis=1).argsort(axis=1)
        rescue_N = 1 << rng.integers(M, size=N)
        for name, curve in curves.items():
            lose_M1 = np.array([[name in (m, "any")] for m in modalities])
            for i, share in enumerate(shares):
                kept_MN = (order_MN >= round(share * N)) | ~lose_M1
                kept_N = ((1 << np.arange(M))[:, None] * kept_MN).sum(axis=0)
                kept_N = np.where(kept_N == 0, rescue_N, kept_N)
                said_N = stacked_SN[kept_N, np.arange(N)]
                for key, value in score(truth_N, said_N).items():
                    curve[key][i] += value / _DRAWS
    return {
        name: {key: values.tolist() for key, values in curve.items()}
        for name, curve in curves.items()
    }
