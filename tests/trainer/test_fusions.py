"""Each fusion is the formula of its paper, and what is absent has no say in it."""

import itertools
import math

import pytest
import torch

from mmfuse.features import plugins as plugins_module
from mmfuse.features.errors import ConfigError
from mmfuse.trainer.config import ModelConfig, load_run_config
from mmfuse.trainer.fusion import FUSIONS, build_fusion
from mmfuse.trainer.fusion_attention import CrossAttention, CrossLayer
from mmfuse.trainer.fusion_base import MultimodalFusion
from mmfuse.trainer.fusion_config import PluginFusionConfig
from mmfuse.trainer.fusion_pooled import GatedFusion
from mmfuse.trainer.layers import Encoded

DIMS = {"text": 6, "audio": 10, "midi": 8}
ATTENTION = {"layers": 2, "attention_heads": 2}
CASES = {
    "late": ("late", {}),
    "additive": ("late", {"interaction": False}),
    "early": ("early", ATTENTION),
    "cross_modal": ("cross_modal", ATTENTION),
    "audio asks": ("cross_modal", ATTENTION | {"query": "audio", "questions": 2}),
    "softmax": ("gated", {"gate": "softmax"}),
    "gmu": ("gated", {"gate": "gmu"}),
    "low_rank": ("low_rank", {"rank": 3}),
    "bottleneck": ("bottleneck", ATTENTION | {"bottlenecks": 3}),
}
MODALITIES = [("text", "audio", "midi"), ("audio", "midi"), ("midi",)]

every_fusion = pytest.mark.parametrize("case", CASES)
every_count = pytest.mark.parametrize("names", MODALITIES, ids="+".join)


def make(case, names=("text", "audio", "midi"), hidden_dim=8):
    kind, options = CASES[case]
    torch.manual_seed(3)
    dims = {name: DIMS[name] for name in names}
    return FUSIONS[kind](dims, hidden_dim=hidden_dim, dropout=0.0, **options)


def encoded(names, B=7, seed=0):
    """Random streams, and a presence that has every subset of up to two modalities missing."""
    g = torch.Generator().manual_seed(seed)
    streams = {}
    for name in names:
        T = {"text": 5, "audio": 9, "midi": 3}[name]
        lengths = torch.randint(1, T + 1, (B, 1), generator=g)
        streams[name] = Encoded(
            torch.randn(B, T, DIMS[name], generator=g), torch.arange(T) < lengths,
            torch.randn(B, DIMS[name], generator=g), torch.rand(B, T, generator=g) * 8,
        )  # fmt: skip
    rows = list(itertools.product([True, False], repeat=len(names)))
    return streams, torch.tensor([rows[b % len(rows)] for b in range(B)])


def with_absent(streams, present_BM, value):
    """The streams with `value` in all that clips lack, and in padding."""
    changed = {}
    for m, (name, stream) in enumerate(streams.items()):
        here_B1 = present_BM[:, m, None]
        valid_BT = stream.mask_BT & here_B1
        changed[name] = Encoded(
            torch.where(valid_BT[..., None], stream.sequence_BTD, value),
            stream.mask_BT,
            torch.where(here_B1, stream.pooled_BD, value),
            torch.where(valid_BT, stream.times_BT, value),
        )
    return changed


@every_fusion
@every_count
@pytest.mark.parametrize("value", [5.0, math.nan, math.inf])
def test_content_of_the_absent_changes_neither_output_nor_gradient(case, names, value):
    fusion = make(case, names)
    streams, present_BM = encoded(names, B=16)

    def outcome(streams):
        fusion.zero_grad()
        out = fusion(streams, present_BM)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        return out, [p.grad for p in fusion.parameters()]

    out, gradients = outcome(with_absent(streams, present_BM, 0.0))
    other, others = outcome(with_absent(streams, present_BM, value))
    assert out.shape == (16, fusion.out_dim)
    assert torch.isfinite(out).all()
    assert torch.equal(out, other)
    for gradient, again in zip(gradients, others, strict=True):
        assert torch.isfinite(gradient).all()
        assert torch.equal(gradient, again)


@every_fusion
@every_count
def test_every_parameter_of_a_fusion_moves(case, names):
    fusion = make(case, names)
    before = {name: p.detach().clone() for name, p in fusion.named_parameters()}
    optimizer = torch.optim.SGD(fusion.parameters(), lr=1.0)
    for seed in range(2):
        streams, present_BM = encoded(names, B=24, seed=seed)
        out = fusion(streams, present_BM)
        (out * torch.randn_like(out)).sum().backward()
    optimizer.step()
    for name, parameter in fusion.named_parameters():
        assert not torch.equal(parameter, before[name]), name


@every_fusion
def test_every_modality_that_is_there_is_heard(case):
    fusion = make(case).eval()
    streams, _ = encoded(DIMS, B=1)
    everything = torch.ones(1, 3, dtype=torch.bool)
    out = fusion(streams, everything)
    for name, stream in streams.items():
        louder = streams | {
            name: Encoded(
                2 * stream.sequence_BTD, stream.mask_BT, 2 * stream.pooled_BD, stream.times_BT
            )
        }
        assert not torch.allclose(fusion(louder, everything), out, atol=1e-4), name


@every_fusion
def test_a_clip_is_fused_alike_alone_and_among_others(case):
    fusion = make(case).eval()
    streams, present_BM = encoded(DIMS, B=8)
    together = fusion(streams, present_BM)
    for b in range(8):
        cut = {}
        for name, stream in streams.items():
            T = int(stream.mask_BT[b].sum())
            cut[name] = Encoded(
                stream.sequence_BTD[b : b + 1, :T], stream.mask_BT[b : b + 1, :T],
                stream.pooled_BD[b : b + 1], stream.times_BT[b : b + 1, :T],
            )  # fmt: skip
        alone = fusion(cut, present_BM[b : b + 1])
        torch.testing.assert_close(alone[0], together[b], rtol=1e-5, atol=1e-5)


# parity with the papers


def softmax_of(scores):
    peak = max(scores)
    weights = [math.exp(s - peak) for s in scores]
    return [w / sum(weights) for w in weights]


def test_cross_attention_is_the_formula_of_mult_one_number_at_a_time():
    torch.manual_seed(0)
    D, H, T, S = 8, 2, 3, 5
    attention = CrossAttention(D, H).double()
    x, source = torch.randn(1, T, D).double(), torch.randn(1, S, D).double()
    mask = torch.tensor([[True, True, False, True, False]])
    with torch.no_grad():
        found = attention(x, source, mask)
        q = x[0] @ attention.query.weight.T + attention.query.bias
        k = source[0] @ attention.key_value.weight[:D].T + attention.key_value.bias[:D]
        v = source[0] @ attention.key_value.weight[D:].T + attention.key_value.bias[D:]
        heads = torch.zeros(T, D).double()
        for h in range(H):
            own = slice(h * D // H, (h + 1) * D // H)
            for t in range(T):
                valid = [s for s in range(S) if mask[0, s]]
                scores = [float(q[t, own] @ k[s, own]) / math.sqrt(D / H) for s in valid]
                for weight, s in zip(softmax_of(scores), valid, strict=True):
                    heads[t, own] += weight * v[s, own]
        wanted = heads @ attention.out.weight.T + attention.out.bias
    torch.testing.assert_close(found[0], wanted)


def test_a_cross_layer_is_that_of_torch_nn_with_the_same_weights():
    torch.manual_seed(0)
    D, H = 8, 2
    layer = CrossLayer(D, H, 0.0).double()
    theirs = torch.nn.MultiheadAttention(D, H, batch_first=True, dtype=torch.float64)
    attention = layer.attention
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([attention.query.weight, attention.key_value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([attention.query.bias, attention.key_value.bias]))
        theirs.out_proj.load_state_dict(attention.out.state_dict())
        x, source = torch.randn(4, 3, D).double(), torch.randn(4, 6, D).double()
        mask = torch.rand(4, 6) < 0.6
        mask[:, 0] = True
        key = layer.norm_source(source)
        heard, _ = theirs(layer.norm_target(x), key, key, key_padding_mask=~mask)
        wanted = x + heard
        wanted = wanted + layer.mlp(layer.norm_mlp(wanted))
        torch.testing.assert_close(layer(x, source, mask), wanted)


def test_sources_are_asked_as_they_came_at_every_layer():
    fusion = make("cross_modal").eval()
    streams, present_BM = encoded(DIMS, B=8)
    with torch.no_grad():
        segments = {
            name: fusion.segment(name, streams[name], present_BM[:, m])
            for m, name in enumerate(DIMS)
        }
        own, own_mask = segments["text"]
        asked = torch.cat([fusion.questions.expand(8, 4, 8), own], dim=1)
        heard = []
        for s, name in enumerate(("audio", "midi")):
            x = asked
            for i in range(2):
                x = fusion.layers[s][i](x, *segments[name])
            heard.append(x)
        mask = torch.cat([torch.ones(8, 4, dtype=torch.bool), own_mask], dim=1)
        y = fusion.norm(fusion.together(torch.cat(heard, dim=2), mask))
        text = torch.stack([y[b, 4:][own_mask[b]].mean(0) for b in range(8)])
        wanted = torch.cat([y[:, :4].mean(1), text], dim=1)
        torch.testing.assert_close(fusion(streams, present_BM), wanted)


def test_without_the_target_the_other_modalities_are_still_heard():
    fusion = make("cross_modal").eval()
    streams, _ = encoded(DIMS, B=1)
    no_text = torch.tensor([[False, True, True]])
    out = fusion(streams, no_text)
    for name in ("audio", "midi"):
        stream = streams[name]
        other = streams | {
            name: Encoded(-stream.sequence_BTD, stream.mask_BT, stream.pooled_BD, stream.times_BT)
        }
        assert not torch.allclose(fusion(other, no_text), out, atol=1e-4), name
    assert make("cross_modal", ("audio", "midi")).target == "audio"
    assert make("audio asks").sources == ("text", "midi")


def gates_of(case, names, present):
    fusion = make(case, names).double()
    streams, _ = encoded(names, B=1)
    streams = {
        name: Encoded(s.sequence_BTD.double(), s.mask_BT, s.pooled_BD.double(), s.times_BT)
        for name, s in streams.items()
    }
    return fusion, streams, torch.tensor([present])


def test_gmu_of_two_is_equations_1_to_4():
    fusion, streams, present = gates_of("gmu", ("audio", "midi"), [True, True])
    with torch.no_grad():
        x_v, x_t = (x[0] for x in fusion.vectors(streams, present))
        h_v = torch.tanh(fusion.value["audio"].weight @ x_v)
        h_t = torch.tanh(fusion.value["midi"].weight @ x_t)
        z = 1 / (1 + torch.exp(-(fusion.gate.weight @ torch.cat([x_v, x_t]))))
        torch.testing.assert_close(fusion(streams, present)[0], z * h_v + (1 - z) * h_t)
        weights = fusion.gate_weights(streams, present)[0]
        torch.testing.assert_close(weights, torch.stack([z.mean(), 1 - z.mean()]))


def test_gmu_of_three_has_a_gate_for_each():
    fusion, streams, present = gates_of("gmu", tuple(DIMS), [True, False, True])
    with torch.no_grad():
        x = [v[0] for v in fusion.vectors(streams, present)]
        wanted = torch.zeros(8).double()
        for m, name in enumerate(DIMS):
            if name != "audio":
                z = torch.sigmoid(fusion.gate.weight[8 * m : 8 * (m + 1)] @ torch.cat(x))
                wanted += z * torch.tanh(fusion.value[name].weight @ x[m])
        torch.testing.assert_close(fusion(streams, present)[0], wanted)


def test_softmax_weights_are_those_of_the_formula_over_the_present():
    fusion, streams, present = gates_of("softmax", tuple(DIMS), [True, False, True])
    with torch.no_grad():
        x = [v[0] for v in fusion.vectors(streams, present)]
        logits = fusion.gate.weight @ torch.cat(x) + fusion.gate.bias
        text, midi = softmax_of([float(logits[0]), float(logits[2])])
        wanted = text * torch.tanh(fusion.value["text"].weight @ x[0])
        wanted += midi * torch.tanh(fusion.value["midi"].weight @ x[2])
        torch.testing.assert_close(fusion(streams, present)[0], wanted)
        weights = fusion.gate_weights(streams, present)[0]
        assert weights.tolist() == pytest.approx([text, 0.0, midi])


@pytest.mark.parametrize("names", MODALITIES, ids="+".join)
def test_softmax_weights_sum_to_one_and_the_absent_have_none(names):
    fusion = make("softmax", names)
    streams, present_BM = encoded(names, B=16)
    weights_BM = fusion.gate_weights(streams, present_BM)
    assert (weights_BM[~present_BM] == 0).all()
    some_B = present_BM.any(dim=1)
    torch.testing.assert_close(weights_BM.sum(dim=1), some_B.float())
    alone_B = present_BM.sum(dim=1) == 1
    assert (weights_BM[alone_B].max(dim=1).values == 1).all()


def test_of_two_gmu_weights_the_one_that_is_alone_counts_one():
    fusion = make("gmu", ("audio", "midi"))
    streams, present_BM = encoded(("audio", "midi"), B=8)
    weights_BM = fusion.gate_weights(streams, present_BM)
    assert (weights_BM[~present_BM] == 0).all()
    torch.testing.assert_close(weights_BM.sum(dim=1), present_BM.any(dim=1).float())


@pytest.mark.parametrize("case", ["softmax", "gmu", "low_rank"])
def test_the_order_of_modalities_is_nothing_to_permuted_weights(case):
    order = ("midi", "text", "audio")
    ours, theirs = make(case), make(case, order)
    state = ours.state_dict()
    if case != "low_rank":
        rows = {"softmax": 1, "gmu": 8}[case]
        place = [list(DIMS).index(name) for name in order]
        weight = state["gate.weight"].view(3, rows, 3, 8)[place][:, :, place]
        state["gate.weight"] = weight.reshape(3 * rows, 24)
        if case == "softmax":
            state["gate.bias"] = state["gate.bias"][place]
    theirs.load_state_dict(state)
    streams, present_BM = encoded(DIMS, B=8)
    turned = present_BM[:, [list(DIMS).index(name) for name in order]]
    again = theirs({name: streams[name] for name in order}, turned)
    torch.testing.assert_close(again, ours(streams, present_BM))


def test_low_rank_is_the_full_tensor_on_the_outer_product():
    fusion, streams, present = gates_of("low_rank", tuple(DIMS), [True, False, True])
    with torch.no_grad():
        x = [v[0] for v in fusion.vectors(streams, present)]
        one = torch.ones(1).double()
        a, b, c = (torch.cat([one, vector]) for vector in x)
        outer = a[:, None, None] * b[None, :, None] * c[None, None, :]
        W = torch.zeros(9, 9, 9, 8).double()
        for r in range(3):
            f, g, h = (fusion.factor[name][r] for name in DIMS)
            W += f[:, None, None] * g[None, :, None] * h[None, None, :]
        wanted = torch.tensordot(outer, W, dims=3) + fusion.bias
        torch.testing.assert_close(fusion.product([v[None] for v in x])[0], wanted)
        torch.testing.assert_close(fusion(streams, present)[0], fusion.norm_out(wanted))


def test_factors_of_low_rank_are_parameters_that_are_saved():
    state = make("low_rank").state_dict()
    assert {f"factor.{name}" for name in DIMS} <= set(state)
    assert state["factor.audio"].shape == (3, 9, 8)


def test_bottleneck_layers_are_the_formula_of_mbt_over_the_present():
    fusion = make("bottleneck").eval()
    streams, present_BM = encoded(DIMS, B=8)
    with torch.no_grad():
        found = fusion(streams, present_BM)
        for b in range(8):
            z, shared = {}, fusion.bottleneck
            for m, name in enumerate(DIMS):
                x, mask = fusion.segment(name, streams[name], present_BM[:, m])
                z[name] = x[b, mask[b]]
            here = [n for m, n in enumerate(DIMS) if present_BM[b, m]] or list(DIMS)
            for layer in range(2):
                said = {}
                for m, name in enumerate(DIMS):
                    both = torch.cat([z[name], shared])[None]
                    y = fusion.layers[layer][m](both, torch.ones(both.shape[:2]).bool())[0]
                    z[name], said[name] = y[: len(z[name])], y[len(z[name]) :]
                shared = sum(said[name] for name in here) / len(here)
            wanted = fusion.norm(torch.stack([*(z[n][0] for n in DIMS), shared.mean(0)]))
            torch.testing.assert_close(found[b], wanted.flatten(), rtol=1e-5, atol=1e-5)


def test_modalities_meet_in_the_bottleneck_only():
    """After one layer the steps of a modality know nothing of the others; after two they do."""
    streams, _ = encoded(DIMS, B=1)
    everything = torch.ones(1, 3, dtype=torch.bool)
    stream = streams["midi"]
    other = streams | {
        "midi": Encoded(-stream.sequence_BTD, stream.mask_BT, -stream.pooled_BD, stream.times_BT)
    }
    for layers, known in ((1, False), (2, True)):
        torch.manual_seed(0)
        fusion = FUSIONS["bottleneck"](
            DIMS, hidden_dim=8, dropout=0.0, layers=layers, attention_heads=2
        ).eval()
        text, again = (fusion(s, everything)[0, :8] for s in (streams, other))
        assert torch.allclose(text, again) != known


# what a configuration can say


def test_every_fusion_has_a_section_and_is_built_from_it():
    for kind in FUSIONS:
        section = ModelConfig(text_encoder={"type": "text"}, fusion={"type": kind}).fusion
        assert section.type == kind
        fusion = build_fusion(section, DIMS)
        streams, present_BM = encoded(DIMS)
        assert fusion(streams, present_BM).shape == (7, fusion.out_dim)


class Doubled(MultimodalFusion):
    """A plug-in: the first modality's vector, twice."""

    def __init__(self, dims, hidden_dim, times=2):
        super().__init__(dims, hidden_dim)
        self.times, self.out_dim = times, times * hidden_dim

    def forward(self, streams, present_BM):
        first = self.modalities[0]
        return self.project[first](streams[first].pooled_BD).repeat(1, self.times)


class Installed:
    """An entry point."""

    def __init__(self, name, thing):
        self.name, self.thing = name, thing

    def load(self):
        return self.thing


@pytest.fixture
def plugins(monkeypatch):
    points = [Installed("doubled", Doubled), Installed("odd", lambda dims, hidden_dim: 3)]
    monkeypatch.setattr(plugins_module, "entry_points", lambda group: points)


def test_an_installed_fusion_is_found_by_its_name(plugins):
    section = ModelConfig(
        text_encoder={"type": "text"},
        fusion={"type": "doubled", "hidden_dim": 8, "options": {"times": 3}},
    ).fusion
    assert isinstance(section, PluginFusionConfig)
    assert build_fusion(section, DIMS).out_dim == 24


def test_a_plugin_that_does_not_fit_is_one_line(plugins):
    wrong = PluginFusionConfig(type="doubled", options={"often": 3})
    with pytest.raises(ConfigError, match=r"'doubled' does not take .*'often'"):
        build_fusion(wrong, DIMS)
    with pytest.raises(ConfigError, match="'odd' gives int, no MultimodalFusion"):
        build_fusion(PluginFusionConfig(type="odd"), DIMS)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('{type = "gate"}', r"fusion.type = 'gate': no fusion named 'gate'; .*'gated'\?"),
        ('{type = "tensor"}', "no fusion named 'tensor'; choose from: bottleneck, cross_modal"),
        ("{layers = 2}", r"\[model.fusion\]: type is missing; choose from"),
        ("3", "model.fusion = 3: expected a section"),
        ('{type = "gated", gat = "gmu"}', r"model.fusion.gat = 'gmu': no such key; .*'gate'\?"),
        ('{type = "gated", gate = "sum"}', "model.fusion.gate = 'sum': .*: softmax, gmu"),
        ('{type = "low_rank", rank = 0}', "model.fusion.rank = 0: expected 1 or more"),
        ('{type = "bottleneck", attention_heads = 7}', "hidden_dim = 64: .*, such as 70"),
        ('{type = "cross_modal", query = "word"}', "model.fusion.query = 'word'"),
    ],
)  # fmt: skip
def test_a_wrong_fusion_section_names_the_key_as_it_was_written(plant, value, message):
    config = plant(counts=(2, 1, 1)).config
    with pytest.raises(ConfigError, match=message):
        load_run_config(config, (f"model.fusion={value}",))


def test_gates_have_names_and_other_fusions_none():
    streams, present_BM = encoded(DIMS)
    for case in CASES:
        fusion = make(case)
        found = fusion.gate_weights(streams, present_BM)
        assert (found is not None) == isinstance(fusion, GatedFusion)
