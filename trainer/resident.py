"""A whole modality in memory, one row behind the other, from which batches are gathered.

Shapes: P place (a clip in one of its views), V view, N clip, R row of all, B batch, T row of a
clip, L layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmfuse.features.compiled import COMPILED
from mmfuse.features.store import Stream
from mmfuse.trainer.gather import crop, spread, spread_halves

MOST_BYTES = 2**30  # of all modalities together; what is larger is read from the map


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which rows of all a batch will hold: the first of each clip, and how many."""

    starts_B: NDArray[np.int64]
    rows_B: NDArray[np.int64]

    def __getitem__(self, part: slice) -> "Chosen":
        """Those of some of the clips."""
        return Chosen(self.starts_B[part], self.rows_B[part])


class Resident:
    """Rows of all entries in use, with their times.

    Args:
        layers: the modality's streams.
        entries_VLN: entry of each view, stream and clip; -1 for none.
        times_of: seconds of the rows of an entry of the first stream.
    """

    def __init__(
        self,
        layers: Sequence[Stream],
        entries_VLN: NDArray[np.int64],
        times_of: Callable[[int], NDArray[np.float32]],
    ) -> None:
        first_VN = entries_VLN[:, 0]
        used, at = np.unique(first_VN[first_VN >= 0], return_index=True)
        views, clips = (index[at] for index in np.nonzero(first_VN >= 0))
        lengths_P = layers[0].lengths[used]
        spec, rows = layers[0].spec, int(lengths_P.sum())
        values = np.zeros((rows, len(layers), *spec.item), layers[0].dtype)
        self.timed = spec.timing.kind != "none"
        self.times_R = np.full(rows, np.nan, np.float32)
        starts_P = np.concatenate([[0], np.cumsum(lengths_P)]).astype(np.int64)
        for p, (view, clip) in enumerate(zip(views, clips, strict=True)):
            span = slice(starts_P[p], starts_P[p + 1])
            for layer, stream in enumerate(layers):
                values[span, layer] = stream.at(int(entries_VLN[view, layer, clip]))
            if self.timed:
                self.times_R[span] = times_of(int(used[p]))
        self.item = (len(layers), *spec.item) if len(layers) > 1 else spec.item
        self.width = int(np.prod(self.item, dtype=np.int64))
        self.values = values.reshape(-1)
        self.dtype = input_dtype(layers[0])
        place_VN = np.where(first_VN >= 0, np.searchsorted(used, first_VN), len(used))
        self.start_VN = np.append(starts_P[:-1], rows)[place_VN]
        self.rows_VN = np.append(lengths_P, 0)[place_VN]
        self._buffers = [torch.empty(0, device="cpu")] * 3
        self._kept: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}
        self._there: tuple[Tensor, Tensor] | None = None

    def move(self, device: torch.device) -> None:
        """Keep rows and times on a device, from which batches are then gathered by index.

        One row more stands there for padding.
        """
        values = self.values.reshape(-1, *self.item)
        if values.dtype.kind == "u" and values.dtype.itemsize > 1:
            values = values.astype(np.int64)  # cards know few of the others
        padding = np.zeros((1, *self.item), values.dtype)
        times_R = torch.from_numpy(np.append(self.times_R, np.float32(np.nan)))
        rows = torch.from_numpy(np.concatenate([values, padding]))
        self._there = rows.to(device), times_R.to(device)
        self.values = self.values[:0]

    def bounds(
        self, clips: NDArray[np.int64], views: NDArray[np.int64] | int
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32], NDArray[np.float32]]:
        """Of views of clips: whether they have rows, and seconds of the first and the last one."""
        starts_B, rows_B = self.start_VN[views, clips], self.rows_VN[views, clips]
        here_B = rows_B > 0
        starts_B = np.where(here_B, starts_B, 0)
        return here_B, self.times_R[starts_B], self.times_R[starts_B + np.maximum(rows_B - 1, 0)]

    def choose(
        self,
        clips: NDArray[np.int64],
        views: NDArray[np.int64] | int,
        spans_2B: NDArray[np.float32] | None,
    ) -> Chosen:
        """Rows of views of clips; those between two times, where there are any given."""
        chosen = Chosen(self.start_VN[views, clips], self.rows_VN[views, clips])
        if spans_2B is not None and self.timed:
            crop(self.times_R, chosen.starts_B, chosen.rows_B, spans_2B)
        return chosen

    def gather(
        self, starts_B: NDArray[np.int64], rows_B: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (B, T, ...) as models take them, seconds and mask (B, T).

        They lie in buffers that the next call overwrites.
        """
        if self._there is not None:
            return self._selected(*self._there, starts_B, rows_B)
        shape = (len(rows_B), max(1, int(rows_B.max())))
        x, times_BT, mask_BT = found = self._kept.get(shape) or self._room(shape)
        flat = x.view(-1).numpy()
        clock = self.times_R, times_BT.numpy(), mask_BT.numpy()
        if COMPILED and self.values.dtype == np.float16:
            bits = self.values.view(np.uint16)
            whole = flat.view(np.uint32)
            spread_halves(bits, self.width, starts_B, rows_B, flat, whole, *clock)
        else:
            spread(self.values, self.width, starts_B, rows_B, flat, *clock)
        return found

    def _selected(
        self,
        rows: Tensor,
        times_R: Tensor,
        starts_B: NDArray[np.int64],
        rows_B: NDArray[np.int64],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same on the device; padding is the last row."""
        step_T = torch.arange(max(1, int(rows_B.max())), device=rows.device)
        count_B1, start_B1 = (
            torch.from_numpy(given).to(rows.device)[:, None] for given in (rows_B, starts_B)
        )
        mask_BT = step_T < count_B1
        index_BT = torch.where(mask_BT, start_B1 + step_T, len(times_R) - 1)
        x = rows.index_select(0, index_BT.view(-1)).view(*index_BT.shape, *self.item)
        return x.to(self.dtype), times_R[index_BT], mask_BT

    def _room(self, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Places for `gather`, at the beginning of buffers that grow."""
        size = shape[0] * shape[1]
        if size > len(self._buffers[1]):
            size += size // 4
            dtypes = (self.dtype, torch.float32, torch.bool)
            sizes = (size * self.width, size, size)
            self._buffers = [
                torch.empty(n, dtype=dtype, device="cpu")
                for n, dtype in zip(sizes, dtypes, strict=True)
            ]
            self._kept = {}
        x, times, mask = self._buffers
        size = shape[0] * shape[1]
        x = x[: size * self.width].view(*shape, *self.item)
        self._kept[shape] = x, times[:size].view(shape), mask[:size].view(shape)
        return self._kept[shape]


def input_dtype(stream: Stream) -> torch.dtype:
    """What models take rows of a stream as: int64 for ids, which have no time, else float32."""
    ids = stream.spec.timing.kind == "none" and stream.dtype.kind in "uib"
    return torch.int64 if ids else torch.float32
