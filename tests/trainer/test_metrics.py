"""Scores are scikit-learn's; intervals and tests are what the textbooks say."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from mmfuse.trainer import metrics


@pytest.mark.parametrize("classes", [2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 30, 500])
def test_scores_are_those_of_scikit_learn(classes, count):
    rng = np.random.default_rng([classes, count])
    for _ in range(20):
        truth, predicted = rng.integers(0, classes, (2, count))
        found = metrics.scores(truth, predicted, classes)
        assert found["accuracy"] == pytest.approx(accuracy_score(truth, predicted), abs=1e-12)
        # classes that occur neither in truth nor in prediction do not count, there as here
        f1 = f1_score(truth, predicted, average="macro", zero_division=0)
        assert found["macro_f1"] == pytest.approx(f1, abs=1e-12)
        np.testing.assert_array_equal(
            metrics.confusion(truth, predicted, classes),
            confusion_matrix(truth, predicted, labels=range(classes)),
        )


def test_no_clips_have_no_score():
    nothing = np.empty(0, np.int64)
    assert all(math.isnan(value) for value in metrics.scores(nothing, nothing, 3).values())


def answers(rng, truth, share):
    """Predictions that are right for about a share of the clips."""
    return np.where(rng.random(len(truth)) < share, truth, (truth + 1) % 4)


def test_an_interval_of_the_accuracy_is_the_binomial_one():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 400)
    interval = metrics.bootstrap(truth, answers(rng, truth, 0.7), 4, 4000)["accuracy"]
    assert interval.low < interval.value < interval.high
    half = 1.96 * math.sqrt(interval.value * (1 - interval.value) / 400)
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.08)


def test_intervals_cover_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        truth = rng.integers(0, 4, 150)
        interval = metrics.bootstrap(truth, answers(rng, truth, 0.6), 4, 400)["accuracy"]
        covered += interval.low <= 0.6 <= interval.high
    assert 0.90 <= covered / 300 <= 0.98


def test_a_seed_fixes_the_interval_and_resamples_come_in_pieces(monkeypatch):
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 4, 60)
    predicted = answers(rng, truth, 0.5)
    first = metrics.bootstrap(truth, predicted, 4, 1000, seed=3)
    assert metrics.bootstrap(truth, predicted, 4, 1000, seed=3) == first
    assert metrics.bootstrap(truth, predicted, 4, 1000, seed=4) != first
    monkeypatch.setattr(metrics, "_CELLS", 60 * 7)
    assert metrics.bootstrap(truth, predicted, 4, 1000, seed=3) == first


def test_nothing_differs_from_itself():
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 4, 50)
    predicted = answers(rng, truth, 0.5)
    for difference in metrics.paired_bootstrap(truth, predicted, predicted, 4, 500).values():
        assert (difference.value, difference.low, difference.high, difference.p) == (0, 0, 0, 1)
    assert metrics.mcnemar(truth, predicted, predicted) == 1


def test_a_paired_difference_is_narrower_than_two_intervals():
    rng = np.random.default_rng(4)
    truth = rng.integers(0, 4, 200)
    worse = answers(rng, truth, 0.6)
    better = np.where(rng.random(200) < 0.15, truth, worse)  # mends some, spoils none
    found = metrics.paired_bootstrap(truth, better, worse, 4, 2000)["accuracy"]
    assert found.value == pytest.approx((better == truth).mean() - (worse == truth).mean())
    assert 0 < found.low < found.value < found.high
    assert found.p < 0.01
    alone = metrics.bootstrap(truth, worse, 4, 2000)["accuracy"]
    assert found.high - found.low < alone.high - alone.low
    back = metrics.paired_bootstrap(truth, worse, better, 4, 2000)["accuracy"]
    assert (back.low, back.high, back.p) == pytest.approx((-found.high, -found.low, found.p))


@pytest.mark.parametrize(
    ("only", "others"), [(0, 0), (1, 0), (5, 5), (3, 12), (40, 21), (900, 700)]
)
def test_mcnemar_is_the_exact_binomial_test(only, others):
    truth = np.zeros(only + others + 10, np.int64)
    ours, theirs = truth.copy(), truth.copy()
    theirs[:only] = 1
    ours[only : only + others] = 1
    ours[-5:] = theirs[-5:] = 1  # both wrong: says nothing
    wanted = binomtest(only, only + others).pvalue if only + others else 1.0
    assert metrics.mcnemar(truth, ours, theirs) == pytest.approx(wanted)
    assert metrics.mcnemar(truth, theirs, ours) == pytest.approx(wanted)
