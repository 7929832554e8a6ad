"""Batches, plans of them, and the buffers in which rows of the mapped store are put side by side.

Shapes: B batch, T row, L layer, M modality.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmfuse.trainer.device import sent
from mmfuse.trainer.resident import Chosen

Part = tuple[list[NDArray[Any]], NDArray[np.float32]]  # rows in each stream, and their times


@dataclass(frozen=True, slots=True)
class Batch:
    """Clips side by side. By modality: rows padded with zeros, where they are, and their times.

    Rows are (B, T, *item), or (B, T, L, *item) where a modality has several streams: int64 for ids,
    which have no time, else float32. `clips` are row numbers in the dataset. `times_s` are seconds
    on each clip's timeline, NaN for streams without time. `present_BM` has a column for each
    modality, in the dataset's order.
    """

    clips: NDArray[np.int64]
    x: dict[str, Tensor]
    mask: dict[str, Tensor]
    times_s: dict[str, Tensor]
    present_BM: Tensor
    label_B: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same where a model is; itself, if it is there."""
        if self.label_B.device == device:
            return self
        x, mask, times_s = (
            {name: sent(part, device) for name, part in parts.items()}
            for parts in (self.x, self.mask, self.times_s)
        )
        present_BM, label_B = sent(self.present_BM, device), sent(self.label_B, device)
        return Batch(self.clips, x, mask, times_s, present_BM, label_B)


@dataclass(frozen=True, slots=True)
class Plan:
    """Which rows of which clips a batch will hold: nothing is copied yet, but presence is known."""

    clips: NDArray[np.int64]
    parts: Mapping[str, list[Part] | Chosen]
    present_BM: Tensor
    label_B: Tensor

    def __getitem__(self, part: slice) -> "Plan":
        """Some of the clips."""
        parts = {name: several[part] for name, several in self.parts.items()}
        return Plan(self.clips[part], parts, self.present_BM[part], self.label_B[part])


class Buffers:
    """Memory that every batch uses again."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def padded(
        self, name: str, parts: Sequence[Part], shape: tuple[int, ...], dtype: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, *shape) in the stream's dtype, times and mask (B, T); good until the next call.

        float16 is copied as it is and cast by torch, which is ten times as fast as numpy.
        """
        longest = max(1, *(len(times) for _, times in parts))
        raw = self._buffer(name, (len(parts), longest, *shape), dtype)
        times = self._buffer(f"{name} times", (len(parts), longest), "float32")
        lengths = torch.tensor([len(clock) for _, clock in parts], device="cpu")
        array, seconds = raw.numpy(), times.numpy()
        for b, (values, clock) in enumerate(parts):
            for layer, rows in enumerate(values):
                array[b, : len(clock), layer] = rows
            array[b, len(clock) :] = 0
            seconds[b, : len(clock)], seconds[b, len(clock) :] = clock, np.nan
        mask = torch.arange(longest, device="cpu") < lengths[:, None]
        return raw, times, mask

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: str) -> Tensor:
        size = int(np.prod(shape))
        kept = self._kept.get(name)
        if kept is None or kept.numel() < size:
            kept = torch.from_numpy(np.empty(size + size // 4, dtype=dtype))
            self._kept[name] = kept
        return kept[:size].view(shape)
