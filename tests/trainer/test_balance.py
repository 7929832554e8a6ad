"""Balancing does what its papers say, once a step, to the encoders alone, and is off by default."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmfuse.features.errors import ConfigError
from mmfuse.trainer.balance import (
    Balance,
    OgmGe,
    blend,
    build_balance,
    modulation,
    pareto,
)
from mmfuse.trainer.checkpoint import Checkpoints
from mmfuse.trainer.loop import reproducible, slices
from mmfuse.trainer.losses import WHOLE, shares_of, terms_of, weighed
from mmfuse.trainer.objectives import CrossEntropy
from mmfuse.trainer.run import build_model, train

PLAIN = CrossEntropy(0.05)
ALL = ("text", "audio", "midi")
KINDS = ("ogm_ge", "mmpareto", "gradient_blending")


def ogm_of_two(out_a, out_v, label, alpha):
    """The coefficients of audio and video, as the paper's equations 8 to 10 are written."""
    score_v = sum(F.softmax(out_v, dim=1)[i][label[i]] for i in range(len(label)))
    score_a = sum(F.softmax(out_a, dim=1)[i][label[i]] for i in range(len(label)))
    rho_v, rho_a = score_v / score_a, score_a / score_v
    k_v = 1 - math.tanh(alpha * rho_v) if rho_v > 1 else 1.0
    k_a = 1 - math.tanh(alpha * rho_a) if rho_a > 1 else 1.0
    return k_a, k_v


@pytest.mark.parametrize("alpha", [0.1, 0.8])
@pytest.mark.parametrize("seed", range(4))
def test_modulation_of_two_is_the_formula_of_the_paper(alpha, seed):
    torch.manual_seed(seed)
    out_a, out_v, label = torch.randn(9, 5) * 3, torch.randn(9, 5), torch.randint(5, (9,))
    score_M = torch.stack(
        [out.softmax(dim=1)[torch.arange(9), label].mean() for out in (out_a, out_v)]
    )
    found = modulation(score_M, torch.ones(2).bool(), alpha).tolist()
    assert found == pytest.approx(ogm_of_two(out_a, out_v, label, alpha), abs=1e-6)


def test_modulation_of_three_takes_the_mean_ratio_for_each_of_them():
    # 0.6 / 0.3 = 2 and 0.6 / 0.2 = 3 -> 2.5; 0.3 / 0.6 and 0.3 / 0.2 -> 1.0; the last is behind
    found = modulation(torch.tensor([0.6, 0.3, 0.2]), torch.ones(3).bool(), 0.3).tolist()
    assert found == pytest.approx([1 - math.tanh(0.3 * 2.5), 1.0, 1.0])
    # every one of them is a mean of two, the first as well as the last
    turned = modulation(torch.tensor([0.2, 0.3, 0.6]), torch.ones(3).bool(), 0.3).tolist()
    assert turned == pytest.approx(found[::-1])


def test_a_modality_that_no_clip_has_is_not_compared():
    there = torch.tensor([True, False, True])
    found = modulation(torch.tensor([0.6, 0.0, 0.3]), there, 0.3).tolist()
    assert found == pytest.approx([1 - math.tanh(0.3 * 2), 1.0, 1.0])
    alone = torch.tensor([False, False, True])
    assert modulation(torch.tensor([0.0, 0.0, 0.3]), alone, 0.3).tolist() == [1, 1, 1]


def pareto_by_search(joint, own, gamma):
    """The same by trying every share of the joint gradient."""
    if F.cosine_similarity(joint, own, dim=0) > 0:
        share = 0.5
    else:
        low, high = 0.0, 1.0
        for _ in range(5):
            shares = torch.linspace(low, high, 2001, dtype=torch.float64)
            vectors = shares[:, None] * joint + (1 - shares)[:, None] * own
            share = float(shares[vectors.norm(dim=1).argmin()])
            low, high = max(0.0, share - 1e-3 * (high - low)), min(1.0, share + 1e-3 * (high - low))
    new = 2 * share * joint + 2 * (1 - share) * own
    return gamma * new * max(1.0, float((joint + own).norm() / new.norm()))


@pytest.mark.parametrize("turn", [1.0, -1.0])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_mmpareto_is_its_algorithm(turn, scale):
    torch.manual_seed(1)
    joint = torch.randn(40, dtype=torch.float64)
    own = scale * (turn * joint + 0.7 * torch.randn(40, dtype=torch.float64))
    found = pareto(joint, own, 1.5)
    torch.testing.assert_close(found, pareto_by_search(joint, own, 1.5), rtol=1e-4, atol=1e-6)
    assert found @ joint > -1e-9 and found @ own > -1e-9  # neither loss is made to rise
    if turn > 0:
        torch.testing.assert_close(found, 1.5 * (joint + own))
    assert found.norm() >= 1.5 * (joint + own).norm() * (1 - 1e-9)


def test_blending_weighs_by_what_was_won_over_overfitting_squared():
    before = ({"whole": 2.0, "a": 2.0, "b": 2.0}, {"whole": 2.0, "a": 2.1, "b": 2.0})
    now = ({"whole": 0.5, "a": 1.5, "b": 1.0}, {"whole": 1.2, "a": 1.8, "b": 2.3})
    # won .8, .3, none; overfitting grew by .7, .2
    rated = [0.8 / 0.7**2, 0.3 / 0.2**2, 0.0]
    expected = dict(zip(("whole", "a", "b"), (value / sum(rated) for value in rated), strict=True))
    assert blend(before, now) == pytest.approx(expected)
    worse = (now[0], {name: value + 1 for name, value in now[1].items()})
    assert blend(now, worse) is None  # nothing got better, nothing to go by


@pytest.fixture
def ready(plant):
    """`ready(*overrides)` -> configuration, data, model in evaluation mode."""
    planted = plant(missing=0.4)

    def make(*overrides):
        config, data = planted.run_config(*overrides), planted.data(*overrides)
        with reproducible(0, 1):
            return config, data, build_model(config, data).eval()

    return make


def settled(config, data, model, size, clips=21):
    """Gradients by name after a window of `clips` clips in batches of `size`, and the balance."""
    balance = build_balance(model, config.train)
    plan = data.plan(np.arange(clips))
    model.zero_grad()
    for part in slices(clips, size):
        batch = data.gather(plan[part])
        output = model(batch)
        shares = shares_of(torch.ones(len(plan.label_B)), plan.present_BM, part)
        terms = terms_of(output, batch, batch.present_BM, PLAIN, shares)
        balance.look(terms, output, batch, batch.present_BM)
        weighed(terms, balance.weights).backward()
    balance.settle(3, 1)
    return {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_of_batches_is_balanced_as_one(ready, kind):
    config, data, model = ready(f"train.balance={kind}")
    one = settled(config, data, model, 21)
    many = settled(config, data, model, 5)
    assert set(one) == set(many)
    for name in one:
        torch.testing.assert_close(many[name], one[name], rtol=1e-4, atol=2e-6, msg=name)


def test_ogm_scales_encoders_by_detached_heads_and_leaves_the_rest(ready):
    config, data, model = ready('train.balance={type="ogm_ge", noise=false, alpha=0.5}')
    plain = {k: v.clone() for k, v in settled(*ready()[:2], model, 21).items()}
    batch = data.batch(np.arange(21))
    output = model(batch)
    scores = []
    for m, logits in enumerate(output.unimodal.values()):
        here = batch.present_BM[:, m]
        scores.append(logits.softmax(dim=1)[torch.arange(21), batch.label_B][here].mean().item())
    factors = modulation(torch.tensor(scores), torch.ones(3).bool(), 0.5).tolist()
    assert min(factors) < 0.9
    for name, gradient in settled(config, data, model, 21).items():
        part, _, rest = name.partition(".")
        factor = factors[ALL.index(rest.partition(".")[0])] if part == "encoders" else 1.0
        torch.testing.assert_close(gradient, factor * plain[name], rtol=1e-4, atol=1e-7)


def test_noise_is_as_wide_as_the_gradient_and_the_same_in_every_run(ready):
    config, data, model = ready('train.balance={type="ogm_ge", alpha=0.0}')
    plain = {k: v.clone() for k, v in settled(*ready()[:2], model, 21).items()}
    first = {k: v.clone() for k, v in settled(config, data, model, 21).items()}
    torch.rand(3)
    again = settled(config, data, model, 21)
    name = "encoders.midi.pool.weight"
    assert torch.equal(first[name], again[name])
    noise = first[name] - plain[name]
    assert noise.std().item() == pytest.approx(plain[name].std().item(), rel=0.1)
    assert noise.mean().abs() < 0.1 * noise.std()


def test_ogm_acts_only_between_its_epochs(ready):
    options = 'train.balance={type="ogm_ge", first_epoch=3, last_epoch=4}'
    config, _, model = ready(options)
    balance = build_balance(model, config.train)
    assert isinstance(balance, OgmGe)
    for epoch, acts in ((2, False), (3, True), (4, True), (5, False)):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        balance.sums_2M.copy_(torch.tensor([[5.0, 1.0, 1.0], [9.0, 9.0, 9.0]]))
        balance.settle(0, epoch)
        touched = {
            name.partition(".")[0]
            for name, p in model.named_parameters()
            if not torch.equal(p.grad, torch.ones_like(p))
        }
        assert touched == ({"encoders"} if acts else set()), epoch


def test_heads_without_a_weight_look_on_and_teach_encoders_nothing(ready):
    _, data, model = ready("train.balance=ogm_ge", "train.unimodal_weight=0")
    assert set(model.unimodal) == set(ALL) and model.detached
    batch = data.batch(np.arange(21))
    output = model(batch)
    terms = terms_of(output, batch, batch.present_BM, PLAIN)
    sum(terms[name] for name in ALL).backward()
    moved = {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert moved == {"unimodal"}


def test_mmpareto_joins_each_encoders_two_gradients(ready):
    config, data, model = ready("train.balance=mmpareto", "train.unimodal_weight=0.7")
    batch = data.batch(np.arange(21))
    terms = terms_of(model(batch), batch, batch.present_BM, PLAIN)
    expected = {}
    for name in ALL:
        parameters = list(model.encoders[name].parameters())
        joint, own = (
            torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).flatten()
                    for p, g in zip(
                        parameters,
                        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True),
                        strict=True,
                    )
                ]
            )
            for loss in (terms[WHOLE], 0.7 * terms[name])
        )
        expected[name] = pareto(joint, own, 1.5)
    found = settled(config, data, model, 21)
    for name in ALL:
        encoder = [v.flatten() for k, v in found.items() if k.startswith(f"encoders.{name}.")]
        torch.testing.assert_close(torch.cat(encoder), expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "kind", ["gradient_blending", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS[:2])]
)
def test_balanced_training_learns_goes_on_after_a_stop_and_is_not_the_default(
    plant, monkeypatch, kind
):
    planted = plant(lambda bits: f"class-{bits['text']}", (120, 40, 40), unimodal_weight=1.0)
    options = (f"train.balance={kind}", "train.epochs=7", "train.patience=7", "eval.bootstrap=100")
    whole = train(planted.config, options, planted.folder / "whole")
    plain = train(planted.config, options[1:], planted.folder / "plain")
    assert whole["val"]["macro_f1"] > 0.9
    save, out = Checkpoints.save, planted.folder / "again"

    def dying(self, step, *rest):
        save(self, step, *rest)
        if step == 45:  # of 56, in an epoch's middle, after weights were estimated
            raise MemoryError

    stepwise = (*options, "train.checkpoint_s=0")
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Checkpoints, "save", dying)
        train(planted.config, stepwise, out)
    assert train(planted.config, stepwise, out)["resumed_at"] == 45
    files = [planted.folder / run / "model.safetensors" for run in ("whole", "again", "plain")]
    one, same, other = (file.read_bytes() for file in files)
    assert one == same != other
    assert plain["steps"] == whole["steps"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("train.balance=mmpareto", "train.unimodal_weight=0"), "needs train.unimodal_weight"),
        (("train.balance=gradient_blending", "train.unimodal_weight=0"), "needs train.unimodal"),
        (("train.balance=ogm",), "ogm"),
        (('train.balance={type="ogm_ge", beta=1}',), "beta"),
    ],
)
def test_what_cannot_be_balanced_is_an_error(ready, overrides, message):
    with pytest.raises(ConfigError, match=message):
        ready(*overrides)


def test_one_encoder_has_nothing_to_be_balanced_with(plant):
    with pytest.raises(ConfigError, match="needs two encoders or more"):
        plant(modalities=("text",)).run_config("train.balance=ogm_ge")


def test_none_is_the_default_and_has_no_hands(ready):
    config, _, model = ready()
    assert type(build_balance(model, config.train)) is Balance
