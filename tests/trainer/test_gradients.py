"""What is logged of gradients is what they are; several small batches are one large one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mmfuse.trainer import loop, state
from mmfuse.trainer.gradients import GradientNorms, imbalance, summary
from mmfuse.trainer.loop import fit, reproducible
from mmfuse.trainer.losses import loss_of, shares_of, terms_of
from mmfuse.trainer.objectives import BinaryCrossEntropy, CrossEntropy, SquaredError
from mmfuse.trainer.optim import build_optimizer, parameter_groups
from mmfuse.trainer.run import build_model, train
from mmfuse.trainer.summary import run_lines

ALL = ("text", "audio", "midi")
STILL = (
    *(f"model.{name}.dropout=0" for name in ("text_encoder", "audio_encoder", "midi_encoder")),
    "model.fusion.dropout=0", "model.text_encoder.token_dropout=0",
    "model.midi_encoder.transpose=0", "model.midi_encoder.token_dropout=0",
    "model.audio_encoder.mask_bands=0",
    "model.audio_encoder.mask_frames=0",
)  # fmt: skip


def test_norms_and_update_ratios_are_those_of_the_parameters(plant):
    planted = plant()
    config, data = planted.run_config("train.lr=0.25"), planted.data()
    with reproducible(0, 1):
        model = build_model(config, data)
        optimizer = build_optimizer(model, config.train)
        norms = GradientNorms(model, optimizer)
        expected = {name: [] for name in ALL}
        for clips in (np.arange(8), np.arange(8, 20)):
            batch = data.batch(clips)
            model.zero_grad()
            loss_of(model(batch), batch, batch.present_BM, config.train).backward()
            norms.note()
            for name in ALL:
                parameters = list(model.encoders[name].parameters())
                gradient = torch.cat([p.grad.flatten() for p in parameters]).norm().item()
                weights = torch.cat([p.detach().flatten() for p in parameters]).norm().item()
                expected[name].append((gradient, 0.25 * gradient / weights, len(parameters)))
    record = norms.record()
    for name in ALL:
        gradients, ratios, _ = zip(*expected[name], strict=True)
        assert record[f"grad_norm.{name}"] == pytest.approx(np.mean(gradients), rel=1e-5)
        assert record[f"update_ratio.{name}"] == pytest.approx(np.mean(ratios), rel=1e-5)
        size = sum(p.numel() for p in model.encoders[name].parameters())
        # after two steps the mean that follows is the mean
        assert record[f"pull.{name}"] == pytest.approx(np.mean(gradients) / size**0.5, rel=1e-5)
    assert norms.record()["grad_norm.text"] == 0  # each epoch begins anew


def test_norms_are_taken_before_clipping_and_logged_each_epoch(plant):
    planted = plant(epochs=2)
    outcomes = [
        train(planted.config, (f"train.grad_clip={clip}", *STILL), planted.folder / f"clip{clip}")
        for clip in (0, 1e-3)
    ]
    loose, tight = (
        [json.loads(line) for line in (Path(of["out"]) / "metrics.jsonl").read_text().splitlines()]
        for of in outcomes
    )
    for name in ALL:
        assert len(loose) == len(tight) == 2
        assert tight[0][f"grad_norm.{name}"] > 0.02, "clipping to 0.001 does not show"
        assert f"head.{name}" in loose[1]
        assert outcomes[0]["gradients"][name]["grad_norm"] == loose[1][f"grad_norm.{name}"]


def test_an_encoder_without_gradients_has_norm_0(plant):
    planted = plant()
    config, data = planted.run_config(), planted.data()
    model = build_model(config, data)
    norms = GradientNorms(model, build_optimizer(model, config.train))
    batch = data.batch(np.arange(8))
    model.encoders["midi"].requires_grad_(False)
    loss_of(model(batch), batch, batch.present_BM, config.train).backward()
    norms.note()
    record = norms.record()
    assert record["grad_norm.midi"] == 0 < record["grad_norm.text"]
    # and nothing is compared with it
    assert imbalance(record | {"head.text": 1.0, "head.audio": 0.0}, 1e9) is None


@pytest.mark.parametrize(
    ("pulls", "heads", "expected"),
    [
        ((1.0, 7.0), (0.2, 0.6), ("midi", "text")),
        ((7.0, 1.0), (0.2, 0.6), ("text", "midi")),
        ((1.0, 4.0), (0.2, 0.6), None),  # not far enough apart
        ((1.0, 7.0), (0.52, 0.6), None),  # and heads that know the same
        ((1.0, 7.0), (), None),  # no heads to ask
        ((0.0, 7.0), (0.2, 0.6), None),  # frozen
    ],
)
def test_a_warning_needs_uneven_gradients_and_uneven_heads(pulls, heads, expected):
    names = ("text", "midi")
    record = {f"pull.{n}": v for n, v in zip(names, pulls, strict=True)}
    record |= {f"head.{n}": v for n, v in zip(names, heads, strict=False)}
    found = imbalance(record, 5.0)
    assert (found and (found["strong"], found["weak"])) == expected
    if found:
        assert found["ratio"] == pytest.approx(7) and found["gap"] == pytest.approx(0.4)


def test_the_summary_shows_gradients_and_warns(plant):
    planted = plant(lambda bits: f"class-{bits['text']}", (80, 30, 20), epochs=3)
    result = train(planted.config, ("train.imbalance=1.0001",), planted.folder / "a")
    lines = run_lines(result)
    assert any(line.split()[:2] == ["last", "epoch"] for line in lines)
    assert set(summary(result["gradients"] and {f"grad_norm.{n}": 1.0 for n in ALL})) == set(ALL)
    assert result["imbalance"]["gap"] > 0.1
    assert any(line.startswith("warning: out of balance: per parameter") for line in lines)
    calm = train(planted.config, ("train.imbalance=1e6",), planted.folder / "b")
    assert calm["imbalance"] is None
    assert not any(line.startswith("warning") for line in run_lines(calm))


def weights_after(planted, monkeypatch, *overrides):
    """Trained weights, by plain gradient descent, which shows every difference as it is."""

    def descent(model, config):
        groups = parameter_groups(model, 0.0)
        for group in groups:
            group |= {"peak": config.lr, "schedule": "cosine", "begins": 0}
        return torch.optim.SGD(groups, lr=config.lr)

    monkeypatch.setattr(state, "build_optimizer", descent)
    everything = (*STILL, "train.lr=0.2", "train.patience=9", *overrides)
    config, data = planted.run_config(*everything), planted.data(*everything)
    with reproducible(0, 1):
        model = build_model(config, data)
        before = {name: p.clone() for name, p in model.state_dict().items()}
        fitted = fit(model, data, config.train)
    return before, model.state_dict(), fitted


@pytest.mark.parametrize(
    "options",
    [
        ("train.class_weights=true", "train.crop_s=0.5", "train.epochs=3"),
        ("train.modality_dropout=0.4", "train.epochs=1", "train.unimodal_weight=2.0"),
        ("train.ema=0.9", "train.grad_clip=0.1", "train.epochs=2"),
    ],
)
@pytest.mark.parametrize("fusion", ["late", pytest.param("cross_modal", marks=pytest.mark.slow)])
def test_accumulated_batches_equal_the_large_batch(plant, monkeypatch, options, fusion):
    clips = 30 if "train.epochs=1" in options else 46  # dropout draws once a window
    planted = plant(counts=(clips, 16, 20), missing=0.4, fusion=fusion)
    large = ("train.batch_size=32", "train.accumulate=1")
    small = ("train.batch_size=8", "train.accumulate=4")  # and 46 = 32 + 8 + 6
    before, one, first = weights_after(planted, monkeypatch, *options, *large)
    _, four, second = weights_after(planted, monkeypatch, *options, *small)
    assert first.steps == second.steps == len(first.records) * -(-clips // 32)
    moved = max((one[name] - before[name]).abs().max().item() for name in one)
    assert moved > 1e-3
    for name in one:
        torch.testing.assert_close(four[name], one[name], rtol=0, atol=1e-6, msg=name)
    for record, other in zip(first.records, second.records, strict=True):
        assert record["train_loss"] == pytest.approx(other["train_loss"], abs=2e-6)
        assert record["lr"] == other["lr"]


@pytest.mark.parametrize(
    "objective",
    [
        CrossEntropy(0.05, torch.tensor([0.2, 1.0, 3.0, 0.7])),
        BinaryCrossEntropy(0.05, torch.tensor([0.2, 1.0, 3.0, 0.7])),
        SquaredError(0.5),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_losses_of_parts_add_up_to_that_of_the_window(plant, objective):
    planted = plant(missing=0.5, counts=(40, 16, 20))
    config, data = planted.run_config(), planted.data()
    model = build_model(config, data).eval()
    if isinstance(objective, BinaryCrossEntropy):
        data.target = np.eye(4, dtype=np.float32)[data.label]
    elif isinstance(objective, SquaredError):
        data.target = data.label.astype(np.float32)
    plan = data.plan(np.arange(21))
    whole = data.gather(plan)
    expected = terms_of(model(whole), whole, plan.present_BM, objective)
    total = dict.fromkeys(expected, 0.0)
    for part in loop.slices(21, 8):
        batch = data.gather(plan[part])
        shares = shares_of(objective.weight(plan.label_B), plan.present_BM, part)
        terms = terms_of(model(batch), batch, batch.present_BM, objective, shares)
        for name, term in terms.items():
            total[name] += term.item()
    assert total == pytest.approx({name: term.item() for name, term in expected.items()}, rel=1e-5)
