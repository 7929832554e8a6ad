"""Scores are scikit-learn's; intervals and tests are what the textbooks say."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, roc_auc_score

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


def probabilities(rng, truth, classes, sharpness=1.5, digits=2):
    """Probabilities that lean to the truth, with ties."""
    logits = rng.normal(size=(len(truth), classes))
    logits[np.arange(len(truth)), truth] += sharpness
    powers = np.exp(logits).round(digits) + 10.0**-digits
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_auroc_is_that_of_scikit_learn_one_class_against_the_rest(classes):
    rng = np.random.default_rng(classes)
    for digits in (0, 1, 8):
        truth = rng.permutation(np.arange(200) % classes)
        p = probabilities(rng, truth, classes, digits=digits)
        wanted = (
            roc_auc_score(truth, p, multi_class="ovr", average="macro") if classes > 2
            else np.mean([roc_auc_score(truth == c, p[:, c]) for c in (0, 1)])
        )  # fmt: skip
        assert metrics.auroc(truth, p) == pytest.approx(wanted, abs=1e-12)


def test_auroc_leaves_out_classes_without_clips():
    truth = np.array([0, 0, 1, 1])
    p = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.5, 0.4, 0.1], [0.2, 0.7, 0.1]])
    wanted = np.mean([roc_auc_score(truth == c, p[:, c]) for c in (0, 1)])
    assert metrics.auroc(truth, p) == pytest.approx(wanted)
    assert math.isnan(metrics.auroc(np.zeros(3, np.int64), np.ones((3, 1))))


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


def test_groups_of_one_clip_are_clips():
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 4, 120)
    predicted = answers(rng, truth, 0.6)
    alone = metrics.bootstrap(truth, predicted, 4, 4000, groups_N=np.arange(120))
    clips = metrics.bootstrap(truth, predicted, 4, 4000)
    for name, interval in alone.items():
        assert interval.value == clips[name].value
        assert (interval.low, interval.high) == pytest.approx(
            (clips[name].low, clips[name].high), abs=0.02
        )


def test_clips_that_are_copies_make_no_interval_narrower_when_groups_are_drawn(monkeypatch):
    rng = np.random.default_rng(6)
    truth = rng.integers(0, 4, 40)
    predicted, other = answers(rng, truth, 0.6), answers(rng, truth, 0.5)
    groups = np.array([f"song {i}" for i in range(40)])
    nine = [np.repeat(array, 9) for array in (truth, predicted, groups)]
    once = metrics.bootstrap(truth, predicted, 4, 2000, groups_N=groups)
    copied = metrics.bootstrap(*nine[:2], 4, 2000, groups_N=nine[2])
    for name, interval in once.items():
        assert copied[name].value == pytest.approx(interval.value)
        assert copied[name].low == pytest.approx(interval.low)
        assert copied[name].high == pytest.approx(interval.high)
    over_clips = metrics.bootstrap(*nine[:2], 4, 2000)["accuracy"]
    assert over_clips.high - over_clips.low < 0.5 * (once["accuracy"].high - once["accuracy"].low)
    paired = metrics.paired_bootstrap(truth, predicted, other, 4, 2000, groups_N=groups)
    again = metrics.paired_bootstrap(
        nine[0], nine[1], np.repeat(other, 9), 4, 2000, groups_N=nine[2]
    )
    assert again["accuracy"].p == paired["accuracy"].p
    monkeypatch.setattr(metrics, "_CELLS", 40 * 7)
    assert metrics.bootstrap(truth, predicted, 4, 2000, groups_N=groups) == once


def test_a_class_that_no_drawn_group_has_does_not_count_as_a_failure():
    rng = np.random.default_rng(7)
    groups = np.arange(160) // 20  # eight groups, two of each class
    truth = groups // 2
    predicted = answers(rng, truth, 0.7)
    interval = metrics.bootstrap(truth, predicted, 4, 2000, groups_N=groups)["macro_f1"]
    assert interval.low < interval.value < interval.high
    assert interval.high - interval.value > 0.2 * (interval.value - interval.low)
    drawn = metrics._resampled(truth, [predicted], 4, 500, 0, groups)[0]
    for confusion in drawn:
        kept = confusion.sum(axis=1) > 0
        t = np.repeat(np.repeat(np.arange(4), 4), confusion.ravel().astype(int))
        p = np.repeat(np.tile(np.arange(4), 4), confusion.ravel().astype(int))
        wanted = f1_score(t, p, labels=np.flatnonzero(kept), average="macro", zero_division=0)
        assert metrics._macro_f1_of_drawn(confusion) == pytest.approx(wanted)


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
