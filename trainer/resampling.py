"""The bootstrap for scores that are computed from weights: how often each clip was drawn.

`metrics.py` does the same for scores of a confusion, in which drawing is a matter of counts.

Shapes: N clip, R resample, G group.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmfuse.trainer.metrics import Difference, Interval, difference, percentiles

Weights = NDArray[np.float64]
Weighed = Callable[
    [Any, Weights], Mapping[str, NDArray[np.float64]]
]  # answers, (R, N) -> (R,) each

_CELLS = 2**21  # weights at once: 16 MiB


def drawn(
    clips: int, resamples: int, seed: int = 0, groups_N: NDArray[Any] | None = None
) -> Iterator[Weights]:
    """How often each clip is drawn, (R, N) in parts that fit into memory.

    Clips are drawn with replacement; with groups, as many whole groups as there are.
    """
    rng = np.random.default_rng(seed)
    group_N = np.arange(clips)
    if groups_N is not None:
        _, group_N = np.unique(groups_N, return_inverse=True)
    G, step = int(group_N.max()) + 1, max(1, _CELLS // clips)
    for first in range(0, resamples, step):
        count = min(step, resamples - first)
        drawn_RG = rng.integers(G, size=(count, G)) + np.arange(count)[:, None] * G
        times_RG = np.bincount(drawn_RG.ravel(), minlength=count * G).reshape(count, G)
        yield times_RG[:, group_N].astype(np.float64)


def bootstrap(
    weighed: Weighed,
    said: Any,
    whole: Mapping[str, float],
    draws: Iterator[Weights],
) -> dict[str, Interval]:
    """Every score of `whole` with its 95 % percentile interval.

    Args:
        weighed: scores of answers by weights of clips.
        said: the answers.
        whole: scores of the clips as they are.
        draws: as `drawn` gives them.
    """
    found = scores(weighed, [said], draws)[0]
    return {name: Interval(whole[name], *percentiles(found[name])) for name in whole}


def paired_bootstrap(
    weighed: Weighed,
    said: Any,
    against: Any,
    whole: Sequence[Mapping[str, float]],
    draws: Iterator[Weights],
) -> dict[str, Difference]:
    """Every score of `said` minus that of `against`, on the same draws; `whole` has both's own."""
    ours, theirs = scores(weighed, [said, against], draws)
    return {
        name: difference(whole[0][name] - whole[1][name], ours[name] - theirs[name])
        for name in whole[0]
    }


def scores(
    weighed: Weighed, answers: Sequence[Any], draws: Iterator[Weights]
) -> list[dict[str, NDArray[np.float64]]]:
    """Every score of every answer on the same draws, (R,) each."""
    parts: list[list[Mapping[str, NDArray[np.float64]]]] = [[] for _ in answers]
    for weights_RN in draws:
        for part, said in zip(parts, answers, strict=True):
            part.append(weighed(said, weights_RN))
    return [
        {name: np.concatenate([scores[name] for scores in part]) for name in part[0]}
        for part in parts
    ]
