"""Calibration is measured as in the paper, and the temperature found is the best there is."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from mmfuse.trainer.calibration import at_temperature, ece, fit_temperature, nll


def draw(seed, count=500, classes=4, heat=1.0):
    """Truth drawn from probabilities, and the probabilities at another temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=1.5, size=(count, classes))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = (p.cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
    return truth, at_temperature(p, heat)


def test_nll_is_the_log_loss_of_scikit_learn():
    truth, p = draw(0)
    assert nll(truth, p) == pytest.approx(log_loss(truth, p, labels=range(4)))


def test_a_truth_that_was_called_impossible_costs_much_and_not_everything():
    assert nll(np.array([0]), np.array([[0.0, 1.0]])) == pytest.approx(12 * np.log(10))


@pytest.mark.parametrize("bins", [1, 5, 15, 40])
@pytest.mark.parametrize("heat", [0.3, 1.0, 3.0])
def test_ece_is_the_mean_gap_of_the_bins_of_scikit_learn(bins, heat):
    truth, p = draw(1, heat=heat)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == truth
    accuracy, mean = calibration_curve(right, confidence, n_bins=bins, strategy="uniform")
    counts = np.histogram(confidence, bins=bins, range=(0, 1))[0]
    gap = np.abs(accuracy - mean) @ counts[counts > 0] / 500
    assert ece(truth, p, bins) == pytest.approx(gap, abs=1e-12)


def test_ece_of_honest_probabilities_is_small_and_of_hot_ones_large():
    truth, p = draw(2, count=20_000)
    assert ece(truth, p) < 0.02
    assert ece(truth, at_temperature(p, 0.3)) > 0.1
    assert ece(np.array([0, 1]), np.array([[0.0, 1.0], [1.0, 0.0]])) == 1.0


@pytest.mark.parametrize("heat", [0.2, 0.7, 1.0, 4.0])
def test_the_temperature_is_the_minimum_of_the_nll_and_undoes_what_was_done(heat):
    truth, p = draw(3, count=5000, heat=heat)
    found = fit_temperature(truth, p)
    best = minimize_scalar(
        lambda log_t: nll(truth, at_temperature(p, np.exp(log_t))), bounds=(-4, 4),
        method="bounded", options={"xatol": 1e-9},
    )  # fmt: skip
    assert found == pytest.approx(np.exp(best.x), rel=1e-4)
    assert found == pytest.approx(1 / heat, rel=0.1)
    scaled = at_temperature(p, found)
    assert ece(truth, scaled) <= ece(truth, p) + 0.005
    assert (scaled.argmax(axis=1) == p.argmax(axis=1)).all()
    np.testing.assert_allclose(scaled.sum(axis=1), 1)


def test_a_model_that_is_never_wrong_gets_the_coldest_temperature():
    truth = np.array([0, 1, 1])
    p = np.array([[0.6, 0.4], [0.3, 0.7], [0.1, 0.9]])
    assert fit_temperature(truth, p) < 0.02
    assert fit_temperature(1 - truth, p) > 99
