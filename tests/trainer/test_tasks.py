"""Labels and numbers as tasks: scores and losses are those of scikit-learn, scipy and torch."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import expit, logit
from scipy.stats import pearsonr, spearmanr
from sklearn import metrics as oracle

from mmfuse.features.errors import ConfigError
from mmfuse.trainer import label_metrics, resampling, value_metrics
from mmfuse.trainer.objectives import BinaryCrossEntropy, SquaredError, class_weights, label_weights
from mmfuse.trainer.task import Named
from mmfuse.trainer.tasks import TASKS, MultiLabel, Regression, SingleLabel, task_of

pytestmark = pytest.mark.filterwarnings("error")


def labelled(seed, clips=60, labels=5, rare=True):
    """Labels, and probabilities that know something of them, with ties; the last label is rare."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((clips, labels)) < 0.4).astype(float)
    if rare:
        truth[:, -1] = 0
    p = expit(2 * truth - 1 + rng.normal(size=truth.shape)).round(2)
    return truth, p


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rare", [False, True])
def test_scores_of_labels_are_those_of_scikit_learn(seed, rare):
    truth, p = labelled(seed, rare=rare)
    task = MultiLabel([*"abcde"], [1] * 5, 60)
    found = task.plain(truth, p) | task.more(truth, p, 15)
    said = p >= 0.5
    here = truth.any(axis=0)
    f1 = oracle.f1_score(truth, said, average=None, zero_division=np.nan)
    assert found["macro_f1"] == pytest.approx(np.nanmean(f1))
    assert found["micro_f1"] == pytest.approx(oracle.f1_score(truth, said, average="micro"))
    precision = oracle.average_precision_score(truth[:, here], p[:, here], average="macro")
    assert found["map"] == pytest.approx(precision)
    assert found["auroc"] == pytest.approx(oracle.roc_auc_score(truth[:, here], p[:, here]))
    log_loss = oracle.log_loss(truth.ravel(), np.clip(p, 1e-12, 1 - 1e-12).ravel(), labels=[0, 1])
    assert found["nll"] == pytest.approx(log_loss)


def test_labels_that_nobody_has_nor_says_do_not_count_and_nothing_at_all_is_0():
    truth = np.zeros((4, 2))
    task = MultiLabel(["a", "b"], [0, 0], 4)
    assert task.scores(truth, truth) == {"macro_f1": 0, "micro_f1": 0, "map": 0}
    assert task.more(truth, truth, 15)["auroc"] is None
    assert all(map(math.isnan, task.scores(truth[:0], truth[:0]).values()))


@pytest.mark.parametrize("seed", range(5))
def test_scores_of_numbers_are_those_of_scikit_learn_and_scipy(seed):
    rng = np.random.default_rng(seed)
    truth = 1000 + rng.normal(size=80).round(1)  # far from 0, with ties
    said = truth + rng.normal(size=80).round(1)
    task = Regression(80, 0.0, 1.0, 0.0, 1.0)
    found = task.plain(truth, said[:, None]) | task.more(truth, said[:, None], 15)
    assert found["r2"] == pytest.approx(oracle.r2_score(truth, said))
    assert found["mae"] == pytest.approx(oracle.mean_absolute_error(truth, said))
    assert found["rmse"] == pytest.approx(oracle.root_mean_squared_error(truth, said))
    assert found["pearson"] == pytest.approx(pearsonr(truth, said).statistic)
    assert found["spearman"] == pytest.approx(spearmanr(truth, said).statistic)


def test_numbers_that_are_all_the_same_have_no_correlation_and_the_r2_of_scikit_learn():
    one, rising = np.full(5, 0.1), np.arange(5.0)
    for truth, said in ((one, rising), (rising, one), (one, one)):
        found = value_metrics.scores(truth, said, np.ones((1, 5)))
        assert found["pearson"] == 0
        assert found["r2"] == pytest.approx(oracle.r2_score(truth, said))
        assert value_metrics.spearman(truth, said) == 0


@pytest.mark.parametrize("grouped", [False, True])
def test_a_resample_scores_as_clips_that_are_repeated(grouped):
    truth, p = labelled(3)
    groups = np.arange(60) // 7 if grouped else None
    (weights,) = resampling.drawn(60, 20, seed=1, groups_N=groups)
    assert (weights.sum(axis=1) == 60).all() or grouped
    found = label_metrics.scores(truth, p, weights)
    values = value_metrics.scores(truth[:, 0] + p[:, 1], p[:, 0], weights)
    for r, times in enumerate(weights):
        rows = np.repeat(np.arange(60), times.astype(int))
        alone = label_metrics.scores(truth[rows], p[rows], np.ones((1, len(rows))))
        assert {k: v[r] for k, v in found.items()} == pytest.approx(
            {k: v[0] for k, v in alone.items()}
        )
        target = truth[rows, 0] + p[rows, 1]
        assert values["r2"][r] == pytest.approx(oracle.r2_score(target, p[rows, 0]))
        assert values["pearson"][r] == pytest.approx(pearsonr(target, p[rows, 0]).statistic)


def test_groups_are_drawn_whole_and_parts_make_no_difference(monkeypatch):
    groups = np.array([*"aabbbc"])
    whole = np.concatenate(list(resampling.drawn(6, 40, 2, groups)))
    assert (whole[:, 0] == whole[:, 1]).all() and (whole[:, 2] == whole[:, 4]).all()
    assert (whole[:, [0, 2, 5]].sum(axis=1) == 3).all()
    monkeypatch.setattr(resampling, "_CELLS", 18)
    assert np.array_equal(np.concatenate(list(resampling.drawn(6, 40, 2, groups))), whole)


@pytest.mark.parametrize(
    ("task", "make"),
    [
        (MultiLabel([*"abcde"], [1] * 5, 60), labelled),
        (Regression(60, 0, 1, 0, 1), lambda seed: [x[:, 0] for x in labelled(seed)]),
    ],
)
def test_intervals_hold_the_score_and_a_better_model_is_told_from_a_worse_one(task, make):
    truth, p = make(4)
    noise = np.random.default_rng(0).permutation(p)
    for groups in (None, np.arange(60) // 3):
        for name, interval in task.bootstrap(truth, p, 300, groups).items():
            assert interval.low <= interval.value <= interval.high, name
            assert interval.low < interval.high
        found = task.paired(truth, p, noise, 300, groups)
        more = found[task.select]
        assert more.value == pytest.approx(
            task.scores(truth, p)[task.select] - task.scores(truth, noise)[task.select]
        )
        assert more.low > 0 and more.p < 0.05
        same = task.paired(truth, p, p, 300, groups)[task.select]
        assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_a_temperature_of_labels_is_one_of_their_logits():
    truth, p = labelled(6)
    task = MultiLabel([*"abcde"], [1] * 5, 60)
    hot = expit(logit(np.clip(p, 0.02, 0.98)) * 4)
    np.testing.assert_allclose(task.at_temperature(hot, 4.0), np.clip(p, 0.02, 0.98))
    temperature = task.temperature(truth, hot)
    nlls = [task.nll(truth, task.at_temperature(hot, temperature * f)) for f in (0.9, 1.0, 1.1)]
    assert nlls[1] < min(nlls[0], nlls[2])
    assert task.ece(truth, task.at_temperature(hot, temperature), 15) < task.ece(truth, hot, 15)


def test_losses_are_those_of_torch():
    logits, labels = torch.randn(6, 3), (torch.rand(6, 3) < 0.5).float()
    weights = torch.tensor([0.5, 1.0, 4.0])
    expected = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights)
    torch.testing.assert_close(BinaryCrossEntropy(0.0, weights).mean(logits, labels), expected)
    smooth = F.binary_cross_entropy_with_logits(logits, labels * 0.8 + 0.1)
    torch.testing.assert_close(BinaryCrossEntropy(0.2).mean(logits, labels), smooth)
    one, target = logits[:, :1], 3 * torch.randn(6)
    expected = F.mse_loss(one[:, 0], target)
    torch.testing.assert_close(SquaredError().mean(one, target), expected)
    torch.testing.assert_close(SquaredError(100.0).mean(one, target), expected)
    expected = 2 * F.huber_loss(one[:, 0], target, delta=0.3)
    torch.testing.assert_close(SquaredError(0.3).mean(one, target), expected)


def test_weights_make_both_sides_of_a_label_weigh_the_same():
    label = np.array([[1.0, 0], [0, 0], [0, 1], [0, 1]])
    assert label_weights(label).tolist() == [3.0, 1.0]
    assert class_weights(np.array([0, 0, 0, 1]), 2).tolist() == pytest.approx([2 / 3, 2.0])


def test_labels_are_read_from_lists_and_from_strings():
    labels = [("b", "a"), "a | c", "|", (), None]
    task = MultiLabel.learned(labels, np.array([True, True, True, False, False]))
    assert (task.classes, task.counts, task.clips) == (["a", "b", "c"], [2, 1, 1], 3)
    truth = task.truth([*labels, "a|d"])
    np.testing.assert_array_equal(truth[:4], [[1, 1, 0], [1, 0, 1], [0, 0, 0], [0, 0, 0]])
    assert np.isnan(truth[4:]).all()
    assert [task.label(row) for row in truth] == ["a|b", "a|c", "|", "|", None, None]
    assert task.guess() == pytest.approx([2 / 3, 1 / 3, 1 / 3])
    assert task.unknown(["a|d"]) == "d"
    assert task.verdict(np.array([0.2, 0.5, 0.9])) == {"predicted": "b|c"}


def test_numbers_are_read_and_taken_in_deviations_of_the_train_split():
    task = Regression.learned(["1", "3", "100"], np.array([True, True, False]))
    assert (task.mean, task.deviation, task.low, task.high) == (2, 1, 1, 3)
    truth = task.truth(["1", "2.5", "x", None, "inf", ("1",)])
    assert truth[:2].tolist() == [1, 2.5] and np.isnan(truth[2:]).all()
    assert task.targets(truth[:2]).tolist() == [-1, 0.5]
    assert task.answer(torch.tensor([[-1.0], [0.5]])).tolist() == [[1], [2.5]]


@pytest.mark.parametrize(
    ("task", "label", "message"),
    [
        (
            "single",
            ("a", "b"),
            r"corpus c: label of clip 'x' is a list, \['a', 'b'\]; set train.task",
        ),
        (
            "multilabel",
            ("a|b",),
            r"label 'a\|b' of clip 'x' holds '\|', which stands between labels",
        ),
        (
            "regression",
            "tango",
            r"label 'tango' of clip 'x' is no number; train.task = \"regression\"",
        ),
        ("regression", "nan", r"'nan' of clip 'x' is no number"),
    ],
)
def test_a_label_that_is_none_for_the_task_is_named(task, label, message):
    with pytest.raises(ConfigError, match=message):
        TASKS[task].refuse([Named("x", label)], "corpus c")


@pytest.mark.parametrize(
    "task",
    [SingleLabel(["a"], [3]), MultiLabel(["a"], [3], 5), Regression(5, 1.0, 2.0, 0.0, 4.0)],
)
def test_a_task_survives_json(task):
    assert task_of(json.loads(json.dumps(task.to_json()))) == task
