"""Labelled clips joined with the streams of a store, and batches of them.

There are no loader processes: entries are gathered by index from the mapped store into buffers
that every batch reuses. A batch is therefore good until the next one is made. The order is a pure
function of (seed, epoch).

Shapes: B batch, T row, M modality.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmfuse.features.spec import StreamSpec
from mmfuse.features.store import Stream

SPLITS = ("train", "validation", "test")
_BUCKET_BATCHES = 16  # batches whose clips are sorted by length together
_TYPES = {"f": torch.float32, "u": torch.int64, "i": torch.int64, "b": torch.int64}


@dataclass(frozen=True, slots=True)
class Batch:
    """Clips side by side. By modality: rows padded with zeros, where they are, and their times.

    `clips` are row numbers in the dataset. `times_s` are seconds on each clip's timeline, NaN for
    streams without time. `present_BM` has a column for each modality, in the dataset's order.
    """

    clips: NDArray[np.int64]
    x: dict[str, Tensor]
    mask: dict[str, Tensor]
    times_s: dict[str, Tensor]
    present_BM: Tensor
    label_B: Tensor


class Dataset:
    """All labelled clips of a corpus, with one stream of the store for each modality in use."""

    def __init__(
        self,
        ids: Sequence[str],
        splits: Sequence[str],
        labels: Sequence[str],
        streams: Mapping[str, Stream],
        groups: Sequence[str | None] | None = None,
    ) -> None:
        self.groups = groups
        self.ids = list(ids)
        self.split = np.array(splits)
        self.classes = sorted(set(labels))
        self.label = np.searchsorted(self.classes, labels)
        self.streams = dict(streams)
        self.entry = {name: stream.find(self.ids) for name, stream in streams.items()}
        self.rows = {
            name: np.where(entry >= 0, streams[name].lengths[entry] if len(streams[name]) else 0, 0)
            for name, entry in self.entry.items()
        }
        self.present_NM = np.stack([rows > 0 for rows in self.rows.values()], axis=1)
        self._buffers: dict[str, Tensor] = {}
        self._times: dict[tuple[str, int], NDArray[np.float32]] = {}

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def specs(self) -> dict[str, StreamSpec]:
        """Spec of each modality's stream."""
        return {name: stream.spec for name, stream in self.streams.items()}

    def clips_of(self, split: str) -> NDArray[np.int64]:
        """Row numbers of a split, in the corpus' order."""
        return np.flatnonzero(self.split == split)

    def groups_of(self, clips: NDArray[np.int64]) -> NDArray[Any] | None:
        """Group of each clip, (N,) of text, its id where it has none; None if no clip has one."""
        if self.groups is None or not any(self.groups):
            return None
        return np.array([self.groups[clip] or f"clip {self.ids[clip]}" for clip in clips])

    def __getitem__(self, clip: int) -> dict[str, Any]:
        """One clip as a dict: id, label, presence, and the array of each modality it has."""
        present = {name: bool(self.present_NM[clip, m]) for m, name in enumerate(self.streams)}
        arrays = {
            name: self.streams[name].at(int(self.entry[name][clip]))
            for name, here in present.items()
            if here
        }
        label = self.classes[self.label[clip]]
        return {"id": self.ids[clip], "label": label, "present": present, **arrays}

    def order(
        self, clips: NDArray[np.int64], batch_size: int, seed: int, epoch: int
    ) -> list[NDArray[np.int64]]:
        """Batches of an epoch: shuffled, then clips of like length together, batches shuffled.

        A pure function of its arguments.
        """
        rng = np.random.default_rng([seed, epoch])
        shuffled = rng.permutation(clips)
        length = np.stack([r / max(r.max(initial=0), 1) for r in self.rows.values()]).sum(axis=0)
        batches = []
        for first in range(0, len(shuffled), batch_size * _BUCKET_BATCHES):
            bucket = shuffled[first : first + batch_size * _BUCKET_BATCHES]
            bucket = bucket[np.argsort(length[bucket], kind="stable")]
            batches += [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def batch(
        self, clips: NDArray[np.int64], crop_s: float = 0.0, rng: np.random.Generator | None = None
    ) -> Batch:
        """Gather clips. With `crop_s`, the same random span of time is cut from all streams."""
        spans = [self._span(int(clip), crop_s, rng) for clip in clips] if crop_s and rng else None
        x, mask, times_s, present = {}, {}, {}, []
        for name, stream in self.streams.items():
            entries = self.entry[name][clips]
            stream.will_need(entries[entries >= 0])
            parts = [
                self._rows_of(name, int(entry), spans[b] if spans else None)
                for b, entry in enumerate(entries)
            ]
            x[name], times_s[name], mask[name] = self._padded(name, parts)
            present.append(mask[name].any(dim=1))
        return Batch(
            clips,
            x,
            mask,
            times_s,
            torch.stack(present, dim=1),
            torch.from_numpy(self.label[clips]),
        )

    def batches(self, clips: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
        """Whole clips, the shorter ones first."""
        length = np.stack(list(self.rows.values())).sum(axis=0)
        ordered = clips[np.argsort(length[clips], kind="stable")]
        for first in range(0, len(ordered), batch_size):
            yield self.batch(ordered[first : first + batch_size])

    def moments(self, name: str, clips: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each column of a stream over clips, (F,) float32 each."""
        total, squares, rows = torch.zeros(()), torch.zeros(()), 0
        for entry in self.entry[name][clips]:
            if entry >= 0 and self.streams[name].lengths[entry]:
                x_TF = torch.from_numpy(self.streams[name].at(int(entry)).copy()).double()
                total, squares = total + x_TF.sum(0), squares + (x_TF**2).sum(0)
                rows += len(x_TF)
        if not rows:
            size = self.streams[name].spec.item[0]
            return torch.zeros(size), torch.ones(size)
        mean = total / rows
        return mean.float(), (squares / rows - mean**2).clamp(min=0).sqrt().float()

    def _times_of(self, name: str, entry: int) -> NDArray[np.float32]:
        key = (name, entry)
        if key not in self._times:
            self._times[key] = self.streams[name].frame_times_s(entry).astype(np.float32)
        return self._times[key]

    def _span(self, clip: int, crop_s: float, rng: np.random.Generator) -> tuple[float, float]:
        """Start and end, in seconds, of a random span of the clip's first timed modality."""
        luck = rng.random()
        for name in self.streams:
            entry = int(self.entry[name][clip])
            if self.rows[name][clip] and self.streams[name].spec.timing.kind != "none":
                times = self._times_of(name, entry)
                start = times[0] + luck * max(times[-1] - times[0] - crop_s, 0.0)
                return start, start + crop_s
        return -np.inf, np.inf

    def _rows_of(
        self, name: str, entry: int, span: tuple[float, float] | None
    ) -> tuple[NDArray[Any], NDArray[np.float32]]:
        stream = self.streams[name]
        if entry < 0:
            return np.empty((0, *stream.spec.item), stream.spec.dtype), np.empty(0, np.float32)
        values, times = stream.at(entry), self._times_of(name, entry)
        if span is None or stream.spec.timing.kind == "none":
            return values, times
        first, last = np.searchsorted(times, span)
        return values[first:last], times[first:last]

    def _padded(
        self, name: str, parts: list[tuple[NDArray[Any], NDArray[np.float32]]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, *item), times (B, T) and mask (B, T), in buffers that the next call overwrites.

        float16 is copied as it is and cast by torch, which is ten times as fast as numpy.
        """
        item = self.streams[name].spec.item
        dtype = self.streams[name].spec.dtype
        longest = max(1, *(len(values) for values, _ in parts))
        raw = self._buffer(name, (len(parts), longest, *item), dtype)
        times = self._buffer(f"{name} times", (len(parts), longest), "float32")
        lengths = torch.tensor([len(values) for values, _ in parts])
        array, seconds = raw.numpy(), times.numpy()
        for b, (values, clock) in enumerate(parts):
            array[b, : len(values)], array[b, len(values) :] = values, 0
            seconds[b, : len(values)], seconds[b, len(values) :] = clock, np.nan
        mask = torch.arange(longest) < lengths[:, None]
        return raw.to(_TYPES[np.dtype(dtype).kind]), times, mask

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: str) -> Tensor:
        size = int(np.prod(shape))
        kept = self._buffers.get(name)
        if kept is None or kept.numel() < size:
            kept = torch.from_numpy(np.empty(size + size // 4, dtype=dtype))
            self._buffers[name] = kept
        return kept[:size].view(shape)
