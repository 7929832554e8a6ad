"""Shapley values obey their axioms; curves begin at the whole model and end without a modality."""

from itertools import permutations

import numpy as np
import pytest

from mmfuse.trainer.attribution import robustness, shapley, subsets
from mmfuse.trainer.metrics import scores

NAMES = ("text", "audio", "midi")


def test_every_subset_is_there_once_the_small_ones_first():
    found = subsets(NAMES)
    assert len(found) == len(set(found)) == 7
    assert found[0] == ("text",)
    assert found[-1] == NAMES


def values(seed, names=NAMES):
    rng = np.random.default_rng(seed)
    return {kept: rng.random() for kept in [(), *subsets(names)]}


@pytest.mark.parametrize("names", [NAMES, ("text", "midi"), ("a", "b", "c", "d")])
def test_shapley_is_the_mean_gain_over_all_orders(names):
    value = values(len(names), names)
    gains = {name: [] for name in names}
    for order in permutations(names):
        kept = ()
        for name in order:
            joined = tuple(m for m in names if m in kept or m == name)
            gains[name].append(value[joined] - value[kept])
            kept = joined
    worth = shapley(names, value)
    assert worth == pytest.approx({name: np.mean(gain) for name, gain in gains.items()})
    assert sum(worth.values()) == pytest.approx(value[names] - value[()])


def test_shapley_gives_equals_the_same_and_idlers_nothing():
    value = {kept: float("text" in kept or "midi" in kept) for kept in values(0)}
    worth = shapley(NAMES, value)
    assert worth["text"] == pytest.approx(worth["midi"]) == pytest.approx(0.5)
    assert worth["audio"] == pytest.approx(0)


def four(truth, said):
    return scores(truth, said, 4)


def predicted(truth, seed=0):
    """Text is right of 0.8, audio of 0.3, MIDI of 0.5 of the clips; together, of more."""
    rng = np.random.default_rng(seed)
    share = {"text": 0.4, "audio": 0.1, "midi": 0.2}
    return {
        kept: np.where(rng.random(len(truth)) < 0.2 + sum(share[n] for n in kept), truth,
                       (truth + 1) % 4)
        for kept in subsets(NAMES)
    }  # fmt: skip


def test_a_curve_goes_from_the_whole_model_to_the_model_without_the_modality():
    truth = np.random.default_rng(1).integers(0, 4, 400)
    said = predicted(truth)
    curves = robustness(NAMES, said, truth, four, (0.0, 0.5, 1.0))
    assert list(curves) == [*NAMES, "any"]
    whole = scores(truth, said[NAMES], 4)
    for name in NAMES:
        without = scores(truth, said[tuple(n for n in NAMES if n != name)], 4)
        for score, curve in curves[name].items():
            assert curve[0] == pytest.approx(whole[score])
            assert curve[2] == pytest.approx(without[score])
        ends = curves[name]["accuracy"]
        # half of the clips lost it: the mean of both ends, for a score that is a mean
        assert ends[1] == pytest.approx((ends[0] + ends[2]) / 2, abs=0.005)
    alone = np.mean([scores(truth, said[(name,)], 4)["accuracy"] for name in NAMES])
    assert curves["any"]["accuracy"][2] == pytest.approx(alone, abs=0.005)
    assert curves["any"]["accuracy"][1] < curves["text"]["accuracy"][1]


def test_a_curve_is_a_function_of_its_seed():
    truth = np.random.default_rng(2).integers(0, 4, 60)
    said = predicted(truth)
    one, two, other = (robustness(NAMES, said, truth, four, (0.3,), seed) for seed in (0, 0, 1))
    assert one == two != other
