"""Dropouts as torch's generators draw them on a processor, several at once and four times as fast.

Importing this imports numba. The words of a state are torch's: seed; what is left of the block, and
a flag; the next place in it; the block of 624.

Source: Matsumoto and Nishimura, Mersenne Twister, 1998; ATen/core/MT19937RNGEngine.h.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmfuse.features.compiled import COMPILED, compiled, inner

_BITS = 53  # of which torch makes a number


def dropouts(
    rooms: Sequence[Tensor],
    kept: Sequence[Sequence[float]],
    generators: Sequence[torch.Generator],
) -> list[Tensor]:
    """Fill plain tensors, one after the other, with what dropouts multiply by; the same tensors.

    Row k of each is drawn from generator k: 1 / p with its probability p in `kept`, else 0. Numbers
    and states afterwards are those of torch's dropouts, which draw nothing where all is kept.
    """
    if _same():
        return _drawn(rooms, kept, generators)
    for room, of in zip(rooms, kept, strict=True):
        for row, p, generator in zip(room, of, generators, strict=True):
            if p < 1:
                row.bernoulli_(p, generator=generator).div_(p)
            else:
                row.fill_(1)
    return list(rooms)


def _drawn(
    rooms: Sequence[Tensor],
    kept: Sequence[Sequence[float]],
    generators: Sequence[torch.Generator],
) -> list[Tensor]:
    states = torch.stack([generator.get_state() for generator in generators])
    words_KW = states.numpy().view(np.uint64)
    for room, of in zip(rooms, kept, strict=True):
        out_KN, kept_K = room.view(len(of), -1).numpy(), np.array(of)
        limit_K = np.ceil(kept_K * 2.0**_BITS).astype(np.uint64)
        fill(words_KW, limit_K, 1 / kept_K.astype(out_KN.dtype), out_KN)
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state.clone())  # torch 2.14 crashes on a part of a tensor
    return list(rooms)


@cache
def _same() -> bool:
    """Whether torch draws like this here: it has other ways on some machines."""
    if not COMPILED:
        return False
    ours, theirs = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    rooms = [torch.empty(1, 1001) for _ in range(4)]
    for first, second in (rooms[:2], rooms[2:]):
        _drawn([first], [[0.3]], [ours])
        second.bernoulli_(0.3, generator=theirs).div_(0.3)
        torch.rand(1, generator=ours), torch.rand(1, generator=theirs)
        if not torch.equal(first, second):
            return False
    return torch.equal(ours.get_state(), theirs.get_state())


@compiled
def fill(words_KW: Any, limit_K: Any, value_K: Any, out_KN: Any) -> None:
    """Rows with a value where 53 bits of two words are below a limit, else zero; words move on."""
    for k in range(len(out_KN)):
        if limit_K[k] >> np.uint64(_BITS):
            out_KN[k] = 1
        else:
            fill_row(words_KW[k], limit_K[k], value_K[k], out_KN[k])


@inner
def fill_row(words: Any, limit: Any, value: Any, out: Any) -> None:
    """The same of one row."""
    count: Any
    block = words[3:627]
    left: Any = np.int64(words[1] & np.uint64(0xFFFFFFFF)) - 1
    place: Any = np.int64(words[2])
    i: Any = 0
    while i < len(out):
        if left == 0:
            turn(block)
            place, left = 0, 624
        count = min(left // 2, len(out) - i)
        pairs, part = block[place : place + 2 * count], out[i : i + count]
        for j in range(count):
            part[j] = value * (joined(pairs[2 * j], pairs[2 * j + 1]) < limit)
        i, place, left = i + count, place + 2 * count, left - 2 * count
        if left == 1 and i < len(out):
            high = block[place]
            turn(block)
            out[i] = value * (joined(high, block[0]) < limit)
            i, place, left = i + 1, 1, 623
    words[1] = (words[1] & np.uint64(0xFFFFFFFF00000000)) | np.uint64(left + 1)
    words[2] = np.uint64(place)


@inner
def joined(high: Any, low: Any) -> Any:
    """53 bits of two words."""
    return ((tempered(high) & np.uint64(0x1FFFFF)) << np.uint64(32)) | tempered(low)


@inner
def tempered(word: Any) -> Any:
    """What the generator says for a word of its block."""
    word ^= word >> np.uint64(11)
    word ^= (word << np.uint64(7)) & np.uint64(0x9D2C5680)
    word ^= (word << np.uint64(15)) & np.uint64(0xEFC60000)
    return word ^ (word >> np.uint64(18))


@inner
def turn(block: Any) -> None:
    """The next block, in place."""
    for j in range(227):
        block[j] = block[j + 397] ^ twist(block[j], block[j + 1])
    for j in range(227, 623):
        block[j] = block[j - 227] ^ twist(block[j], block[j + 1])
    block[623] = block[396] ^ twist(block[623], block[0])


@inner
def twist(word: Any, following: Any) -> Any:
    """The step from two neighbours."""
    mixed = (word & np.uint64(0x80000000)) | (following & np.uint64(0x7FFFFFFF))
    odd = following & np.uint64(1)
    return (mixed >> np.uint64(1)) ^ (odd * np.uint64(0x9908B0DF))
