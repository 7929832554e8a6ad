"""Relative attention is the formula; bars, padding and distance do what they say."""

import numpy as np
import pytest
import torch

from mmfuse.features.compound import Compound
from mmfuse.features.midi_like import MidiLike
from mmfuse.features.midi_tokens import midi_tokens_spec, tokens_entry
from mmfuse.trainer.encoder_config import MusicTransformerConfig
from mmfuse.trainer.encoders import build_encoder
from mmfuse.trainer.music_transformer import BIN_S, bars_and_beats
from mmfuse.trainer.relative import RelativeAttention, skew

B, H, T, D = 2, 3, 11, 12


@pytest.fixture
def attention():
    torch.manual_seed(3)
    layer = RelativeAttention(D, H, reach=4, bar_reach=2).double()
    torch.nn.init.normal_(layer.distance_HRd)
    torch.nn.init.normal_(layer.bars_RH)
    return layer


def by_the_formula(layer, x_BTD, mask_BT, bar_BT):
    """Each logit by itself, the distance's embedding looked up; a softmax over valid keys."""
    B, T, D = x_BTD.shape
    width = D // layer.heads
    q, k, v = layer.qkv(x_BTD).view(B, T, 3, layer.heads, width).unbind(2)
    out = torch.zeros(B, T, layer.heads, width, dtype=x_BTD.dtype)
    for b in range(B):
        for h in range(layer.heads):
            for i in range(T):
                logits = torch.full((T,), -torch.inf, dtype=x_BTD.dtype)
                for j in range(T):
                    apart = min(max(j - i, -layer.reach), layer.reach)
                    bars = int(bar_BT[b, j] - bar_BT[b, i])
                    bars = min(max(bars, -layer.bar_reach), layer.bar_reach)
                    embedding = layer.distance_HRd[h, apart + layer.reach]
                    if mask_BT[b, j]:
                        logits[j] = q[b, i, h] @ (k[b, j, h] + embedding) / width**0.5
                        logits[j] += layer.bars_RH[bars + layer.bar_reach, h]
                out[b, i, h] = logits.softmax(0) @ v[b, :, h]
    return layer.out(out.reshape(B, T, D))


@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_skew_is_the_gather_of_each_distance(steps):
    by_distance = torch.randn(B, H, steps, 2 * steps - 1)
    i, j = torch.arange(steps)[:, None], torch.arange(steps)
    gathered = by_distance[:, :, i, j - i + steps - 1]
    assert torch.equal(skew(by_distance), gathered)


def test_attention_is_the_formula_written_out(attention):
    x_BTD = torch.randn(B, T, D, dtype=torch.float64)
    mask_BT = torch.arange(T) < torch.tensor([[T], [6]])
    bar_BT = torch.randint(0, 9, (B, T)).sort(dim=1).values
    wanted = by_the_formula(attention, x_BTD, mask_BT, bar_BT)
    torch.testing.assert_close(attention(x_BTD, mask_BT, bar_BT), wanted, rtol=1e-9, atol=1e-12)


def test_gradients_are_those_of_the_formula(attention):
    x_BTD = torch.randn(1, 5, D, dtype=torch.float64)
    mask_BT, bar_BT = torch.ones(1, 5, dtype=torch.bool), torch.tensor([[0, 0, 1, 3, 4]])

    def gradients(function):
        attention.zero_grad()
        function(x_BTD, mask_BT, bar_BT).square().sum().backward()
        return [p.grad.clone() for p in attention.parameters()]

    found = gradients(attention)
    wanted = gradients(lambda *inputs: by_the_formula(attention, *inputs))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_both_directions_are_told_apart(attention):
    x_BTD = torch.randn(1, T, D, dtype=torch.float64)
    mask_BT, bar_BT = torch.ones(1, T, dtype=torch.bool), torch.zeros(1, T, dtype=torch.int64)
    forward = attention(x_BTD, mask_BT, bar_BT)
    backward = attention(x_BTD.flip(1), mask_BT, bar_BT).flip(1)
    assert not torch.allclose(forward, backward, atol=1e-3)


def test_padding_changes_nothing_whatever_stands_there(attention):
    x_BTD = torch.randn(1, 6, D, dtype=torch.float64)
    bar_BT = torch.tensor([[0, 0, 1, 1, 2, 2]])
    alone = attention(x_BTD, torch.ones(1, 6, dtype=torch.bool), bar_BT)
    padded = torch.cat([x_BTD, 1e3 * torch.randn(1, 5, D, dtype=torch.float64)], dim=1)
    mask_BT = torch.arange(11)[None] < 6
    together = attention(padded, mask_BT, torch.cat([bar_BT, torch.tensor([[7, 0, -3, 9, 9]])], 1))
    torch.testing.assert_close(together[:, :6], alone, rtol=1e-10, atol=1e-12)


def test_bars_count_by_their_difference_alone(attention):
    x_BTD, mask_BT = torch.randn(B, T, D, dtype=torch.float64), torch.ones(B, T, dtype=torch.bool)
    bar_BT = torch.randint(0, 5, (B, T))
    here = attention(x_BTD, mask_BT, bar_BT)
    assert torch.equal(attention(x_BTD, mask_BT, bar_BT + 1000), here)
    assert not torch.allclose(attention(x_BTD, mask_BT, 2 * bar_BT), here, atol=1e-3)


@pytest.fixture(params=["midi_like", "compound"])
def music(request, in_bars):
    """An encoder, and the rows of two bars of music."""
    chosen = MidiLike() if request.param == "midi_like" else Compound(programs=True)
    spec = midi_tokens_spec(chosen)
    torch.manual_seed(1)
    encoder = build_encoder(MusicTransformerConfig(hidden_dim=16, stride=2), spec).eval()
    torch.nn.init.normal_(encoder.layers[0].attention.bars_RH)
    notes = in_bars((0, 1, 60), (1, 1, 64), (2, 2, 67), (4, 1, 62), (5.5, 1, 66), (7, 1, 60))
    rows = torch.from_numpy(tokens_entry(notes, chosen).values).float()[None]
    return encoder, rows, spec.fields.index("bar"), spec.fields.index("onset_s")


def run(encoder, rows, onset):
    return encoder(rows, torch.ones(rows.shape[:2], dtype=torch.bool), rows[..., onset])


def test_a_clip_means_the_same_in_whatever_bar_it_begins(music):
    encoder, rows, bar, onset = music
    later = rows.clone()
    later[..., bar] += 17
    here, there = run(encoder, rows, onset), run(encoder, later, onset)
    torch.testing.assert_close(here.pooled_BD, there.pooled_BD)
    stretched = rows.clone()
    stretched[..., bar] *= 3
    assert not torch.allclose(run(encoder, stretched, onset).pooled_BD, here.pooled_BD, atol=1e-3)


def test_rows_without_bars_get_bins_of_time(music):
    encoder, rows, bar, onset = music
    without, binned = rows.clone(), rows.clone()
    without[..., bar] = torch.nan
    seconds = rows[..., onset]
    binned[..., bar] = (seconds / BIN_S).floor()
    binned[..., bar + 1] = (seconds % BIN_S) * 2
    found = run(encoder, without, onset).pooled_BD
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, run(encoder, binned, onset).pooled_BD)


def test_bins_of_time_are_two_seconds_before_the_clip_too():
    bar, beat = bars_and_beats(torch.tensor([[-0.5, 0.0, 1.75, 2.0]]))
    assert bar.tolist() == [[-1, 0, 0, 1]]
    assert beat.tolist() == [[3.0, 0.0, 3.5, 0.0]]


def test_places_beyond_the_tables_count_as_the_last(music):
    encoder, rows, bar, onset = music
    far = rows.clone()
    far[0, -1, bar], far[0, -1, bar + 1] = 10_000, 90.0
    assert torch.isfinite(run(encoder, far, onset).pooled_BD).all()


def test_transposition_moves_notes_together_and_bars_not_at_all(in_bars):
    spec = midi_tokens_spec(Compound())
    encoder = build_encoder(MusicTransformerConfig(hidden_dim=8, transpose=5), spec)
    notes = in_bars((0, 1, 60), (1, 1, 64), (4, 1, 0), (5, 1, 127))
    values = torch.from_numpy(tokens_entry(notes, Compound()).values).float()
    rows = encoder.events.rows(values.expand(200, -1, -1), torch.ones(200, len(values)).bool())
    moved = encoder.events.transposed(rows)
    pitch = list(spec.fields).index("pitch")
    by = (moved - rows)[..., pitch]
    first = np.flatnonzero(rows[0, :, pitch])[:2]
    assert set(by[:, first[0]].tolist()) == set(range(-5, 6))
    assert torch.equal(by[:, first[0]], by[:, first[1]])
    assert not by[rows[..., pitch] == 0].any()
    assert moved[..., pitch].min() == 0
    assert moved[..., pitch].max() == 128
    rest = [k for k in range(rows.shape[2]) if k != pitch]
    assert torch.equal(moved[..., rest], rows[..., rest])


def test_the_bag_tells_a_voice_from_its_accompaniment(in_bars):
    chosen = Compound(programs=True)
    spec = midi_tokens_spec(chosen)
    events = build_encoder(MusicTransformerConfig(hidden_dim=8), spec).events
    song = in_bars((0, 1, 72), (1, 1, 74), program=52), in_bars((0, 1, 40), (1, 1, 52), program=0)
    swapped = (
        in_bars((0, 1, 72), (1, 1, 74), program=0),
        in_bars((0, 1, 40), (1, 1, 52), program=52),
    )

    def bag(parts):
        notes = np.concatenate(parts)
        rows = torch.from_numpy(tokens_entry(notes, chosen).values).float()[None]
        mask = torch.ones(rows.shape[:2], dtype=torch.bool)
        return events.bag(events.rows(rows, mask), mask, rows[..., spec.fields.index("onset_s")])[0]

    one, other = bag(song), bag(swapped)
    assert len(one) == events.bag_size
    assert not torch.allclose(one, other)
    # a step up in the voice and an octave in the piano are intervals within each, never across
    first = len(one) - (17 * (25 + 17) + 2)
    leaps = one[first : first + 17 * 25 + 1].nonzero().flatten().tolist()
    assert leaps == [0, 12 + 12 + 1, 6 * 25 + 2 + 12 + 1]
