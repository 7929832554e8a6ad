"""A missing modality has no influence, padding neither, and every parameter learns."""

import numpy as np
import pytest
import torch

from mmfuse.features.midi_like import NOTE_OFF, NOTE_ON, MidiLike
from mmfuse.features.midi_tokens import midi_tokens_spec
from mmfuse.trainer.batch import Batch
from mmfuse.trainer.loop import reproducible
from mmfuse.trainer.losses import loss_of
from mmfuse.trainer.midi_embedding import TokenEmbedding
from mmfuse.trainer.model import drop_modalities
from mmfuse.trainer.optim import parameter_groups
from mmfuse.trainer.run import build_model

ALL = ("text", "audio", "midi")
MODELS = [
    (ALL, "late"),
    *((ALL, fusion) for fusion in ("early", "cross_modal", "gated", "low_rank", "bottleneck")),
    *((((name,), "late")) for name in ALL),
    *((("text",), fusion) for fusion in ("early", "cross_modal", "gated", "bottleneck")),
]


@pytest.fixture
def build(plant):
    """`build(modalities, fusion, missing)` -> configuration, data, model."""

    def make(modalities=ALL, fusion="late", missing=0.3):
        planted = plant(modalities=modalities, fusion=fusion, missing=missing)
        config, data = planted.run_config(), planted.data()
        with reproducible(0, 1):
            return config, data, build_model(config, data)

    return make


def with_content(batch, present_BM, value):
    """The batch with `value` wherever nothing is present: padding, and modalities of clips."""
    x, times_s = {}, {}
    for m, name in enumerate(batch.x):
        here_BT = batch.mask[name] & present_BM[:, m, None]
        rows = batch.x[name].clone()
        rows[~here_BT] = value if rows.is_floating_point() else 299
        x[name] = rows
        times_s[name] = batch.times_s[name].clone()
        times_s[name][~here_BT] = value
    return Batch(batch.clips, x, batch.mask, times_s, batch.present_BM, batch.label_B)


@pytest.mark.parametrize(("modalities", "fusion"), MODELS)
@pytest.mark.parametrize("value", [7.0, float("nan"), float("inf")])
def test_content_of_a_missing_modality_changes_no_output_and_no_gradient(
    build, modalities, fusion, value
):
    config, data, model = build(modalities, fusion)
    batch = data.batch(np.arange(12))
    present_BM = batch.present_BM & (torch.rand(12, len(modalities)) > 0.3)

    def outcome(batch):
        model.train()
        model.zero_grad()
        with reproducible(5, 1):
            output = model(batch, present_BM)
            loss_of(output, batch, present_BM, config.train).backward()
        return output.logits_BC, [p.grad.clone() for p in model.parameters()]

    logits, gradients = outcome(with_content(batch, present_BM, 0.0))
    others, other_gradients = outcome(with_content(batch, present_BM, value))
    assert torch.isfinite(logits).all()
    assert torch.equal(logits, others)
    for gradient, other in zip(gradients, other_gradients, strict=True):
        assert torch.isfinite(gradient).all()
        assert torch.equal(gradient, other)


@pytest.mark.parametrize(("modalities", "fusion"), MODELS)
def test_padding_changes_nothing(build, modalities, fusion):
    _, data, model = build(modalities, fusion)
    model.eval()
    with torch.inference_mode():
        together = model(data.batch(np.arange(24)))
        for clip in range(24):
            alone = model(data.batch(np.array([clip])))
            torch.testing.assert_close(
                alone.logits_BC[0], together.logits_BC[clip], rtol=0, atol=1e-5
            )
            for name in alone.unimodal:
                torch.testing.assert_close(
                    alone.unimodal[name][0], together.unimodal[name][clip], rtol=0, atol=1e-5
                )


@pytest.mark.parametrize(("modalities", "fusion"), MODELS)
def test_every_parameter_is_in_one_group_and_learns(build, modalities, fusion):
    config, data, model = build(modalities, fusion)
    groups = parameter_groups(model, 0.1)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert len({group["name"] for group in groups}) == len(groups)
    batch = data.batch(np.arange(40))
    output = model(batch)
    loss_of(output, batch, batch.present_BM, config.train).backward()
    for name, parameter in model.named_parameters():
        # a text is never missing here, so nothing stands in for it
        if "missing.text" not in name:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_norms_and_biases_do_not_decay(build):
    _, _, model = build()
    for group in parameter_groups(model, 0.1):
        decays = group["name"].endswith("/decay")
        assert group["weight_decay"] == (0.1 if decays else 0.0)
        assert all((p.ndim > 1) == decays for p in group["params"])
    parts = {group["name"].partition("/")[0] for group in parameter_groups(model, 0.1)}
    assert parts == {"text", "audio", "midi", "fusion", "head"}


@pytest.mark.parametrize("p", [0.1, 0.5, 0.95])
def test_modality_dropout_never_drops_all(p):
    present_BM = torch.rand(20_000, 3) < 0.7
    with reproducible(0, 1):
        kept_BM = drop_modalities(present_BM, p)
    assert not (kept_BM & ~present_BM).any()
    assert torch.equal(kept_BM.any(dim=1), present_BM.any(dim=1))
    # what is dropped beside a modality that stays is dropped with probability p
    full_BM = present_BM.all(dim=1)
    share = kept_BM[full_BM].float().mean()
    assert share == pytest.approx((1 - p) + p**3 / 3, abs=0.02)
    rescued_M = kept_BM[full_BM & (kept_BM.sum(dim=1) == 1)].float().mean(dim=0)
    assert torch.allclose(rescued_M, torch.full((3,), 1 / 3), atol=0.1)


def test_no_modality_dropout_leaves_presence_as_it_is():
    present_BM = torch.rand(50, 3) < 0.5
    assert torch.equal(drop_modalities(present_BM, 0.0), present_BM)


def test_evaluation_is_deterministic_and_training_is_not(build):
    _, data, model = build(missing=0.0)
    batch = data.batch(np.arange(8))
    model.eval()
    assert torch.equal(model(batch).logits_BC, model(batch).logits_BC)
    model.train()
    assert not torch.equal(model(batch).logits_BC, model(batch).logits_BC)


def test_the_order_of_events_and_words_counts(build):
    _, data, model = build(missing=0.0)
    model.eval()
    batch = data.batch(np.array([3]))
    logits = model(batch).logits_BC
    for name in ("text", "midi"):
        turned = dict(batch.x)
        turned[name] = batch.x[name].flip(1)
        other = Batch(
            batch.clips, turned, batch.mask, batch.times_s, batch.present_BM, batch.label_B
        )
        assert not torch.allclose(model(other).logits_BC, logits, atol=1e-5), name


@pytest.fixture
def events():
    vocabulary = midi_tokens_spec(MidiLike()).params["vocabulary"]
    return TokenEmbedding(vocabulary, 8, transpose=5)


def test_transposition_moves_all_notes_of_a_clip_and_nothing_else(events):
    tokens = torch.tensor([[NOTE_ON + 60, 300, NOTE_OFF + 60, 370, NOTE_ON + 67, 0]] * 200)
    with reproducible(0, 1):
        moved = events.transposed(tokens)
    by = moved[:, 0] - tokens[:, 0]
    assert set(by.tolist()) == set(range(-5, 6))
    notes = [0, 2, 4]
    assert torch.equal((moved - tokens)[:, notes], by[:, None].expand(-1, 3))
    assert torch.equal(moved[:, [1, 3, 5]], tokens[:, [1, 3, 5]])


def test_transposition_never_leaves_the_pitches(events):
    tokens = torch.tensor([[NOTE_ON + 0, NOTE_ON + 127, NOTE_OFF + 0, NOTE_OFF + 127]] * 200)
    moved = events.transposed(tokens)
    assert ((moved[:, :2] >= NOTE_ON) & (moved[:, :2] < NOTE_OFF)).all()
    assert ((moved[:, 2:] >= NOTE_OFF) & (moved[:, 2:] < NOTE_OFF + 128)).all()


def test_the_bag_counts_the_events_that_are_there(events):
    tokens = torch.tensor([[NOTE_ON + 60, NOTE_OFF + 60, NOTE_ON + 67, 300]])
    mask = torch.tensor([[True, True, True, False]])
    bag = events.bag(tokens, mask, None)[0]
    size = len(events.class_V)
    assert bag[NOTE_ON + 60] == bag[NOTE_OFF + 60] == pytest.approx((size / 3) ** 0.5)
    assert bag[300] == 0
    assert bag.square().sum() == pytest.approx(len(bag), rel=1e-5)
    assert torch.equal(events.bag(tokens.flip(0), mask, None), events.bag(tokens, mask, None))


def test_intervals_are_those_from_note_to_note(events):
    tokens = [NOTE_ON + 60, NOTE_OFF + 60, NOTE_ON + 67, NOTE_ON + 20, NOTE_ON + 110, NOTE_ON + 109]
    mask = torch.tensor([[True, True, True, False, True, True]])
    # unknown at the first note; a fifth; hidden; more than an octave; a semitone down
    assert events.intervals(torch.tensor([tokens]), mask).tolist() == [[0, 0, 20, 0, 25, 12]]


def test_an_octave_is_the_same_pitch_class(events):
    classes, octaves, pitches = events.class_V, events.octave_V, events.pitch_V
    assert classes[NOTE_ON + 60] == classes[NOTE_ON + 72] != classes[NOTE_ON + 61]
    assert octaves[NOTE_ON + 60] == octaves[NOTE_ON + 71] != octaves[NOTE_ON + 72]
    assert classes[NOTE_ON + 60] != classes[NOTE_OFF + 60]
    assert pitches[NOTE_OFF + 127] == 127
    assert (pitches >= 0).sum() == 256 == (classes > 0).sum() == (octaves > 0).sum()
