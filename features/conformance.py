"""Whether an encoder keeps its promise: for its author, before anybody fills a store with it.

    from mmfuse.features.conformance import check_encoder
    findings = check_encoder(lambda compute: MyEncoder(config, compute))

or `mmfeat encoders --check NAME`. Every check runs the encoder on seeded noise; none looks inside.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmfuse.features.audio import Samples
from mmfuse.features.encoders import CPU, Compute, Outputs, WindowEncoder

_SECONDS = 2.0  # of the longest window tried, where the encoder's own is longer
_ACROSS_DEVICES = 1e-3  # relative to the largest value; cards add in another order


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was looked at, whether it held (None: it could not be tried), and details."""

    check: str
    ok: bool | None
    detail: str = ""


def check_encoder(
    build: Callable[[Compute], WindowEncoder], *, device: str | None = None
) -> list[Finding]:
    """Run every check.

    Args:
        build: makes the encoder anew; called twice, and once more for another device.
        device: a second device whose values are held against the processor's.
    """
    encoder, again = build(CPU), build(CPU)
    windows = _windows(encoder)
    whole_BN = windows[-1]
    first = [encoder.encode(window_BN) for window_BN in windows]
    alone = [encoder.encode(whole_BN[b : b + 1]) for b in range(len(whole_BN))]
    findings = [
        Finding("specs are the same whenever the encoder is built", encoder.specs == again.specs),
        _says("one stream has one name", _doubles([spec.name for spec in encoder.specs])),
        _says("rows follow the frame formula", _frames(encoder, windows, first)),
        _says("values are finite and of the stream's shape", _values(encoder, first)),
        _says("samples are left as they were", _left_alone(encoder, whole_BN)),
        _same("twice the same", first[-1], encoder.encode(whole_BN)),
        _same("built anew, the same", first[-1], again.encode(whole_BN)),
        _same("alone or in a batch, the same", first[-1], _stack(alone)),
        _same("in another order, the same", first[-1], _flipped(encoder.encode(whole_BN[::-1]))),
        _same("whatever went before, the same", first[0], encoder.encode(windows[0])),
        _says("chance and threads of the program do not show", _chance(encoder, whole_BN)),
        _says("modules are in eval mode", _training(encoder)),
    ]
    if device is None:
        return [*findings, Finding("another device, nearly the same", None, "there is none here")]
    moved = build(Compute(device, len(whole_BN))).encode(whole_BN)
    off = max(_distance(first[-1][name], moved[name]) for name in first[-1])
    text = f"{device}: off by {off:.1e} of the largest value"
    return [*findings, Finding("another device, nearly the same", off <= _ACROSS_DEVICES, text)]


def _windows(encoder: WindowEncoder) -> list[Samples]:
    """Batches of noise: shortest, one more, odd, and three of the longest; (B, N) each."""
    longest = max(int(_SECONDS * encoder.rate_hz), encoder.shortest + 2)
    if encoder.windows is not None:
        longest = min(longest, int(encoder.windows.duration_s * encoder.rate_hz))
    odd = (encoder.shortest + longest) // 2 | 1
    sizes = [(1, encoder.shortest), (1, encoder.shortest + 1), (1, min(odd, longest)), (3, longest)]
    rng = np.random.default_rng(0)
    loud = np.array([[0.02], [0.3], [0.1]])
    return [(loud[:b] * rng.standard_normal((b, n))).astype(np.float32) for b, n in sizes]


def _frames(encoder: WindowEncoder, windows: list[Samples], found: list[Outputs]) -> str:
    if encoder.frames(encoder.shortest) < 1 or encoder.frames(encoder.shortest - 1) > 0:
        return f"`shortest` is {encoder.shortest}, but frames() has its first row elsewhere"
    for window_BN, outputs in zip(windows, found, strict=True):
        for name, values in outputs.items():
            said, made = encoder.frames(window_BN.shape[1]), values.shape[1]
            if said != made:
                return (
                    f"{name}: {window_BN.shape[1]} samples gave {made} rows, frames() says {said}"
                )
    return ""


def _values(encoder: WindowEncoder, found: list[Outputs]) -> str:
    for outputs in found:
        if set(outputs) != {spec.name for spec in encoder.specs}:
            return f"encode() gave {sorted(outputs)}, specs name {[s.name for s in encoder.specs]}"
        for spec in encoder.specs:
            values = outputs[spec.name]
            if not isinstance(values, np.ndarray) or values.shape[2:] != spec.item:
                return f"{spec.name}: no array of (B, T, *{spec.item})"
            if not np.isfinite(values).all():
                return f"{spec.name}: NaN or infinity"
    return ""


def _left_alone(encoder: WindowEncoder, window_BN: Samples) -> str:
    before = window_BN.copy()
    encoder.encode(window_BN)
    return "" if np.array_equal(before, window_BN) else "encode() wrote into what it was given"


def _chance(encoder: WindowEncoder, window_BN: Samples) -> str:
    import torch

    found = []
    threads = torch.get_num_threads()
    for seed, count in ((1, 1), (2, 2)):
        torch.set_num_threads(count)
        with _seeded(seed):
            found.append(encoder.encode(window_BN))
    torch.set_num_threads(threads)
    return _same("", *found).detail


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Give every global source of chance a seed, and put them back afterwards."""
    import random

    import torch

    kept = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])  # noqa: NPY002


def _training(encoder: WindowEncoder) -> str:
    import torch

    held = vars(encoder).items() if hasattr(encoder, "__dict__") else ()
    modules = {name: value for name, value in held if isinstance(value, torch.nn.Module)}
    loose = [name for name, module in modules.items() if any(m.training for m in module.modules())]
    return f"still in train mode: {', '.join(loose)}; call .eval()" if loose else ""


def _same(check: str, one: Outputs, other: Outputs) -> Finding:
    """Bits, not nearness: what differs here differs from run to run."""
    for name in one:
        if not np.array_equal(one[name], other[name], equal_nan=True):
            off = _distance(one[name], other[name])
            return Finding(check, False, f"{name} is off by {off:.1e} of its largest value")
    return Finding(check, True)


def _distance(one: Any, other: Any) -> float:
    if one.shape != other.shape:
        return float("inf")
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return float(np.abs(one - other).max() / max(np.abs(one).max(), 1e-30))


def _stack(parts: list[Outputs]) -> Outputs:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _flipped(outputs: Outputs) -> Outputs:
    return {name: values[::-1] for name, values in outputs.items()}


def _doubles(names: list[str]) -> str:
    twice = sorted({name for name in names if names.count(name) > 1})
    return f"twice: {', '.join(twice)}" if twice else ""


def _says(check: str, problem: str) -> Finding:
    return Finding(check, not problem, problem)
