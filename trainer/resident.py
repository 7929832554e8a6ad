"""A whole modality in memory, one row behind the other, from which batches are gathered by index.

Nothing is done clip by clip: the rows of a batch are one index, and padding is one more row.

Shapes: P place (a clip in one of its views), R row of all, B batch, T row of a clip, L layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmfuse.features.store import Stream

MOST_BYTES = 2**30  # of all modalities together; what is larger is read from the map
_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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
        # the last row is what stands in padding
        values = np.zeros((rows + 1, len(layers), *spec.item), layers[0].dtype)
        self.times_R = torch.full((rows + 1,), torch.nan)
        starts_P = np.concatenate([[0], np.cumsum(lengths_P)]).astype(np.int64)
        times = self.times_R.numpy()
        for p, (view, clip) in enumerate(zip(views, clips, strict=True)):
            span = slice(starts_P[p], starts_P[p + 1])
            for layer, stream in enumerate(layers):
                values[span, layer] = stream.at(int(entries_VLN[view, layer, clip]))
            if spec.timing.kind != "none":
                times[span] = times_of(int(used[p]))
        self.dtype = torch.from_numpy(values[:0]).dtype
        self.values = torch.from_numpy(values).view(_SAME_SIZE[values.dtype.itemsize])
        place_VN = np.where(first_VN >= 0, np.searchsorted(used, first_VN), len(used))
        self.start_VN = np.append(starts_P[:-1], rows)[place_VN]
        self.rows_VN = np.append(lengths_P, 0)[place_VN]

    def choose(
        self,
        clips: NDArray[np.int64],
        views: NDArray[np.int64],
        spans: Sequence[tuple[float, float]] | None,
    ) -> Chosen:
        """Rows of views of clips; those within spans of seconds, where there are any."""
        chosen = Chosen(self.start_VN[views, clips], self.rows_VN[views, clips])
        if spans is None:
            return chosen
        times_R = self.times_R.numpy()
        for b, (start, rows) in enumerate(
            zip(chosen.starts_B.tolist(), chosen.rows_B.tolist(), strict=True)
        ):
            first, last = np.searchsorted(times_R[start : start + rows], spans[b])
            chosen.starts_B[b], chosen.rows_B[b] = start + first, last - first
        return chosen

    def gather(
        self, starts_B: NDArray[np.int64], rows_B: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, L, *item) in the stream's dtype, seconds and mask (B, T)."""
        longest = max(1, int(rows_B.max()))
        step_T = torch.arange(longest)
        mask_BT = step_T < torch.from_numpy(rows_B)[:, None]
        index_BT = torch.from_numpy(starts_B)[:, None] + step_T
        index = torch.where(mask_BT, index_BT, len(self.times_R) - 1).view(-1)
        shape = (len(rows_B), longest)
        x = self.values.index_select(0, index).view(self.dtype)
        times_BT = self.times_R.index_select(0, index).view(shape)
        return x.view(*shape, *x.shape[1:]), times_BT, mask_BT
