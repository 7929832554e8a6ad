"""Whether probabilities mean what they say, and one number that makes them mean it more.

Conventions: `probabilities_NC` are rows that sum to one, `truth_N` class numbers. Temperatures are
fitted on clips that the result is not reported for.

Shapes: N clip, C class, K bin.
"""

import math

import numpy as np
from numpy.typing import NDArray

from mmfuse.trainer.metrics import Classes

Probabilities = NDArray[np.float64]
_LEAST = 1e-12  # a probability of 0 would make one clip outweigh all others
_COLDEST, _HOTTEST = 0.01, 100.0


def nll(truth_N: Classes, probabilities_NC: Probabilities) -> float:
    """Mean negative log probability of the truth, in nats."""
    chosen_N = probabilities_NC[np.arange(len(truth_N)), truth_N]
    return float(-np.log(np.maximum(chosen_N, _LEAST)).mean())


def ece(truth_N: Classes, probabilities_NC: Probabilities, bins: int = 15) -> float:
    """Expected calibration error: |accuracy - confidence| over bins of equal width, by their clips.

    Confidence is the largest probability; a bin is (low, high].

    Source: Guo et al., arXiv 1706.04599, section 2.
    """
    confidence_N = probabilities_NC.max(axis=1)
    right_N = probabilities_NC.argmax(axis=1) == truth_N
    bin_N = np.clip(np.ceil(confidence_N * bins).astype(np.int64) - 1, 0, bins - 1)
    off_K = np.bincount(bin_N, right_N - confidence_N, bins)  # clips times the gap
    return float(np.abs(off_K).sum() / len(truth_N))


def fit_temperature(truth_N: Classes, probabilities_NC: Probabilities) -> float:
    """The temperature T, of softmax(log p / T), with the least NLL; between 0.01 and 100.

    The NLL is convex in 1 / T, so its slope has one zero, which is halved in on. Above 1: the
    model was too sure.

    Source: temperature scaling, Guo et al., arXiv 1706.04599, section 4.2.
    """
    logits_NC = np.log(np.maximum(probabilities_NC, _LEAST))
    chosen_N = logits_NC[np.arange(len(truth_N)), truth_N]
    low, high = math.log(1 / _HOTTEST), math.log(1 / _COLDEST)  # of 1 / T
    for _ in range(60):
        middle = (low + high) / 2
        expected_N = (_softmax(logits_NC * math.exp(middle)) * logits_NC).sum(axis=1)
        if (expected_N - chosen_N).mean() < 0:  # the slope of the NLL in 1 / T
            low = middle
        else:
            high = middle
    return math.exp(-(low + high) / 2)


def at_temperature(probabilities_NC: Probabilities, temperature: float) -> Probabilities:
    """Probabilities as they are at another temperature; which class is largest stays."""
    return _softmax(np.log(np.maximum(probabilities_NC, _LEAST)) / temperature)


def _softmax(logits_NC: Probabilities) -> Probabilities:
    powers_NC = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    return np.asarray(powers_NC / powers_NC.sum(axis=1, keepdims=True), dtype=np.float64)
