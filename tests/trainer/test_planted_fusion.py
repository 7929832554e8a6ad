"""What is planted in streams is found by each fusion, and by none that can't: XOR, noise, copies.

The streams are made here, so that only the fusion and a linear head learn. A modality tells its bit
by the sign of one direction, hidden in noise of its own, in every step of a clip.
"""

import pytest
import torch

from mmfuse.trainer.fusion import FUSIONS
from mmfuse.trainer.layers import Encoded

WIDTH, STEPS = 12, 4
KINDS = {
    "additive": ("late", {"interaction": False}),
    "late": ("late", {}),
    "early": ("early", {"layers": 1, "attention_heads": 2}),
    "cross_modal": ("cross_modal", {"layers": 1, "attention_heads": 2}),
    "softmax": ("gated", {"gate": "softmax"}),
    "gmu": ("gated", {"gate": "gmu"}),
    "low_rank": ("low_rank", {"rank": 4}),
    "bottleneck": ("bottleneck", {"layers": 2, "attention_heads": 2}),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
slowly = {"bottleneck", "cross_modal", "early"}  # they read sequences; XOR tries them every time
most_kinds = pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow) if k in slowly else k for k in KINDS]
)


def clips(count, seed, said, noise=0.8):
    """Streams in which modality m says bit `said[m]` of two, or nothing where that is None."""
    g = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2, (count, 2), generator=g)
    streams = {}
    for m, which in enumerate(said):
        x = noise * torch.randn(count, STEPS, WIDTH, generator=g)
        if which is not None:
            x[:, :, 2 + m] += (2.0 * bits[:, which] - 1)[:, None]
        times = torch.arange(STEPS).expand(count, -1).float()
        mask = torch.ones(count, STEPS, dtype=torch.bool)
        streams[f"m{m}"] = Encoded(x, mask, x.mean(dim=1), times)
    return streams, bits


def rows(streams, index):
    """The clips of these numbers."""
    fields = ("sequence_BTD", "mask_BT", "pooled_BD", "times_BT")
    return {
        name: Encoded(*(getattr(stream, field)[index] for field in fields))
        for name, stream in streams.items()
    }


class Fitted:
    """A fusion and a linear head, trained on 600 clips; `accuracy` is that of 600 others."""

    def __init__(self, kind, said, label_of, epochs=16, drop=0.0):
        torch.manual_seed(0)
        name, options = KINDS[kind]
        dims = {f"m{m}": WIDTH for m in range(len(said))}
        self.fusion = FUSIONS[name](dims, hidden_dim=16, dropout=0.0, **options)
        self.head = torch.nn.Linear(self.fusion.out_dim, 2)
        streams, bits = clips(600, 1, said)
        label = label_of(bits)
        parameters = [*self.fusion.parameters(), *self.head.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=1e-2)
        for _ in range(epochs):
            for index in torch.randperm(600).split(100):
                present = torch.rand(len(index), len(said)) >= drop
                present |= ~present.any(dim=1, keepdim=True)
                logits = self.head(self.fusion(rows(streams, index), present))
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(logits, label[index]).backward()
                optimizer.step()
        self.streams, bits = clips(600, 2, said)
        self.label = label_of(bits)
        self.present = torch.ones(600, len(said), dtype=torch.bool)

    def accuracy(self, keep=None):
        present = self.present if keep is None else self.present & torch.tensor(keep)
        with torch.inference_mode():
            guess = self.head(self.fusion(self.streams, present)).argmax(dim=1)
        return (guess == self.label).float().mean().item()


def first_bit(bits):
    return bits[:, 0]


def xor(bits):
    return bits[:, 0] ^ bits[:, 1]


@every_kind
def test_xor_is_found_by_fusions_that_see_modalities_together_and_not_by_a_sum(kind):
    accuracy = Fitted(kind, (0, 1), xor, epochs=15).accuracy()
    if kind == "additive":
        assert 0.4 < accuracy < 0.6
    elif kind == "softmax":  # one number a modality can turn a sum only so far
        assert accuracy > 0.6
    else:
        assert accuracy > 0.95


@most_kinds
def test_what_only_one_modality_says_is_found(kind):
    m = list(KINDS).index(kind) % 3
    said = tuple(0 if i == m else None for i in range(3))
    assert Fitted(kind, said, first_bit, epochs=6).accuracy() > 0.95


@most_kinds
def test_of_copies_one_is_enough_and_fusion_is_no_worse(kind):
    fitted = Fitted(kind, (0, 0), first_bit, epochs=10, drop=0.3)
    alone = [fitted.accuracy(keep) for keep in ((True, False), (False, True))]
    assert min(alone) > 0.9
    assert fitted.accuracy() >= max(alone) - 0.01


@most_kinds
def test_a_modality_of_noise_harms_little(kind):
    with_noise = Fitted(kind, (0, None, None), first_bit, epochs=10, drop=0.3)
    assert with_noise.accuracy() > 0.95
    assert 0.4 < with_noise.accuracy((False, True, True)) < 0.6


@pytest.mark.parametrize("kind", ["softmax", "gmu"])
@pytest.mark.parametrize("m", [0, 1, 2])
def test_noise_has_the_smaller_gate(kind, m):
    said = tuple(0 if i == m else None for i in range(3))
    fitted = Fitted(kind, said, first_bit, epochs=10, drop=0.3)
    with torch.inference_mode():
        weights_M = fitted.fusion.gate_weights(fitted.streams, fitted.present).mean(dim=0)
    noise = max(w for i, w in enumerate(weights_M.tolist()) if i != m)
    assert weights_M[m] > 1.2 * noise
