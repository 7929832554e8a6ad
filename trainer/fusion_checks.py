"""Whether a fusion keeps its promise: for its author, and `mmtrain fusions --check NAME`.

Every check runs the fusion on seeded streams of three modalities, with every subset of them
missing; none looks inside.

Shapes: B clip, T step, D width, M modality.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmfuse.trainer.fusion_base import MultimodalFusion
from mmfuse.trainer.layers import Encoded

DIMS = {"text": 6, "audio": 10, "midi": 8}
_STEPS = {"text": 5, "audio": 9, "midi": 3}
Build = Callable[[Mapping[str, int]], MultimodalFusion]


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was looked at, whether it held, and details."""

    check: str
    ok: bool
    detail: str = ""


def check_fusion(build: Build) -> list[Finding]:
    """Run every check; `build` makes the fusion for modalities of these widths."""
    torch.manual_seed(3)
    fusion = build(DIMS)
    streams, present_BM = made_streams(DIMS)
    out = fusion(streams, present_BM)
    fits = out.shape == (len(present_BM), fusion.out_dim)
    shape = Finding("output is (B, out_dim)", fits, f"{tuple(out.shape)}, {fusion.out_dim}")
    if not fits:
        return [shape]
    return [
        shape,
        Finding("output is finite, whatever is missing", bool(torch.isfinite(out).all())),
        _absent(fusion, streams, present_BM),
        _says("every parameter learns", _still(fusion)),
        _says("every modality is heard", _unheard(fusion.eval())),
        _says("alone or in a batch, nearly the same", _apart(fusion.eval())),
        _says("one and two modalities are enough", _fewer(build)),
        _says("gate weights are (B, M), and 0 where absent", _gates(fusion, streams, present_BM)),
    ]


def made_streams(
    dims: Mapping[str, int], clips: int = 16, seed: int = 0
) -> tuple[dict[str, Encoded], Tensor]:
    """Random streams of clips, and who has what: every subset in turn."""
    g = torch.Generator().manual_seed(seed)
    streams = {}
    for name, width in dims.items():
        steps = _STEPS[name]
        lengths_B1 = torch.randint(1, steps + 1, (clips, 1), generator=g)
        streams[name] = Encoded(
            torch.randn(clips, steps, width, generator=g), torch.arange(steps) < lengths_B1,
            torch.randn(clips, width, generator=g), torch.rand(clips, steps, generator=g) * 8,
        )  # fmt: skip
    rows = list(itertools.product([True, False], repeat=len(dims)))
    return streams, torch.tensor([rows[b % len(rows)] for b in range(clips)])


def _absent(
    fusion: MultimodalFusion, streams: Mapping[str, Encoded], present_BM: Tensor
) -> Finding:
    def outcome(value: float) -> list[Tensor]:
        fusion.zero_grad()
        torch.manual_seed(5)  # of dropout
        out = fusion(_filled(streams, present_BM, value), present_BM)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        found = [torch.zeros(1) if p.grad is None else p.grad for p in fusion.parameters()]
        return [out.detach(), *(gradient.clone() for gradient in found)]

    wanted = outcome(0.0)
    check = "content of the absent changes neither output nor gradient"
    for value in (5.0, math.nan, math.inf):
        if not all(map(torch.equal, wanted, outcome(value))):
            return Finding(check, False, f"{value} in its place does")
    return Finding(check, True)


def _filled(streams: Mapping[str, Encoded], present_BM: Tensor, value: float) -> dict[str, Encoded]:
    """The streams with `value` in all that clips lack, and in padding."""
    changed = {}
    for m, (name, stream) in enumerate(streams.items()):
        here_B1 = present_BM[:, m, None]
        valid_BT = stream.mask_BT & here_B1
        changed[name] = Encoded(
            torch.where(valid_BT[..., None], stream.sequence_BTD, value), stream.mask_BT,
            torch.where(here_B1, stream.pooled_BD, value),
            torch.where(valid_BT, stream.times_BT, value),
        )  # fmt: skip
    return changed


def _still(fusion: MultimodalFusion) -> str:
    moved = dict.fromkeys(dict(fusion.named_parameters()), False)
    for seed in range(2):
        fusion.zero_grad()
        out = fusion(*made_streams(DIMS, 24, seed))
        (out * torch.randn_like(out)).sum().backward()
        for name, p in fusion.named_parameters():
            moved[name] |= p.grad is not None and bool(p.grad.abs().max() > 0)
    return ", ".join(name for name, did in moved.items() if not did)


def _unheard(fusion: MultimodalFusion) -> str:
    streams, _ = made_streams(DIMS, 1)
    everything = torch.ones(1, len(DIMS), dtype=torch.bool)
    out, deaf = fusion(streams, everything), []
    for name, s in streams.items():
        louder = Encoded(2 * s.sequence_BTD, s.mask_BT, 2 * s.pooled_BD, s.times_BT)
        if torch.allclose(fusion({**streams, name: louder}, everything), out, atol=1e-6):
            deaf.append(name)
    return ", ".join(deaf)


@torch.no_grad()
def _apart(fusion: MultimodalFusion) -> str:
    streams, present_BM = made_streams(DIMS)
    together = fusion(streams, present_BM)
    for b in range(len(present_BM)):
        alone = {}
        for name, s in streams.items():
            T = int(s.mask_BT[b].sum())
            alone[name] = Encoded(
                s.sequence_BTD[b : b + 1, :T], s.mask_BT[b : b + 1, :T],
                s.pooled_BD[b : b + 1], s.times_BT[b : b + 1, :T],
            )  # fmt: skip
        off = float((fusion(alone, present_BM[b : b + 1])[0] - together[b]).abs().max())
        if not off <= 1e-4 * max(1.0, float(together[b].abs().max())):
            return f"off by {off:.1e}"
    return ""


def _fewer(build: Build) -> str:
    for names in (("audio", "midi"), ("text",)):
        dims = {name: DIMS[name] for name in names}
        if not torch.isfinite(build(dims)(*made_streams(dims))).all():
            return f"{' and '.join(names)}: not finite"
    return ""


def _gates(fusion: MultimodalFusion, streams: Mapping[str, Encoded], present_BM: Tensor) -> str:
    weights_BM = fusion.gate_weights(streams, present_BM)
    if weights_BM is None:
        return ""
    if weights_BM.shape != present_BM.shape:
        return f"they are {tuple(weights_BM.shape)}"
    return "" if (weights_BM[~present_BM] == 0).all() else "the absent have some"


def _says(check: str, problem: str) -> Finding:
    return Finding(check, not problem, problem)
