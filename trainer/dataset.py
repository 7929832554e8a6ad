"""Labelled clips joined with the streams of a store, and batches of them.

There are no loader processes: entries are gathered by index from the mapped store into buffers
that every batch reuses. A batch is therefore good until the next one is made. The order is a pure
function of (seed, epoch).

Shapes: B batch, T row, M modality.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmfuse.features.errors import StoreError
from mmfuse.features.spec import StreamSpec
from mmfuse.features.store import Stream
from mmfuse.trainer.batch import Batch, Buffers, Part, Plan
from mmfuse.trainer.device import CPU, room
from mmfuse.trainer.resident import MOST_BYTES, Chosen, Resident, input_dtype
from mmfuse.trainer.task import Label, Task
from mmfuse.trainer.tasks import SingleLabel

SPLITS = ("train", "validation", "test")
_BUCKET_BATCHES = 16  # batches whose clips are sorted by length together
Place = np.random.Generator | float  # where spans lie: drawn, or a share of the room they have
_KEPT_ROWS = 1 << 14  # times of longer entries are computed anew rather than kept


class Dataset:
    """Clips of a corpus, with the streams of the store for each modality in use.

    `task` reads the labels; left out, they are classes. `label` is the truth, `target` what a loss
    compares with; -1 or NaN where a clip has no label, or one that the task does not know.

    A modality has one stream, or several with the same rows of the same clips: the layers of a
    model. `streams` holds the first of them, `layers` all. Up to `views` augmented views of a clip
    take its place where `batch` is told so.

    Raises:
        StoreError: streams of one modality do not have the same clips and lengths.
    """

    def __init__(
        self,
        ids: Sequence[str],
        splits: Sequence[str],
        labels: Sequence[Label],
        streams: Mapping[str, Stream | Sequence[Stream]],
        groups: Sequence[str | None] | None = None,
        views: int = 0,
        task: Task | None = None,
    ) -> None:
        self.groups = groups
        self.ids = list(ids)
        self.split = np.array(splits)
        self._labels = labels
        self._learn(task or SingleLabel.learned(labels, self.split == "train"))
        self.layers = {
            name: (given,) if isinstance(given, Stream) else tuple(given)
            for name, given in streams.items()
        }
        self.streams = {name: layers[0] for name, layers in self.layers.items()}
        self.views = views
        self._entries = _entries(self.ids, self.layers, views)
        self.entry = {name: entries_VLN[0, 0] for name, entries_VLN in self._entries.items()}
        self.rows = {name: self._equal_rows(name) for name in self.layers}
        self.present_NM = np.stack([rows > 0 for rows in self.rows.values()], axis=1)
        self._buffers = Buffers()
        self.device = CPU
        self._resident: dict[str, Resident] = {}
        self._times: dict[tuple[str, int], NDArray[np.float32]] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def _learn(self, task: Task) -> None:
        self.task = task
        self.label = task.truth(self._labels)
        self.target = task.targets(self.label)

    def joined(self) -> "Dataset":
        """The same clips and arrays, with the clips of validation in the train split."""
        other = copy.copy(self)
        other.split = np.where(self.split == "validation", "train", self.split)
        other._learn(type(self.task).learned(self._labels, other.split == "train"))
        return other

    def place(self, device: torch.device) -> None:
        """Give batches there, from now on; whole streams lie there if there is room.

        Else they are in memory or mapped, and batches are sent.
        """
        self.device = device
        self._resident.clear()
        for kept in ("_fits", "_lies_there"):
            vars(self).pop(kept, None)

    @property
    def classes(self) -> list[str]:
        """Names of classes or labels; none where numbers are predicted."""
        return list(self.task.classes)

    @property
    def specs(self) -> dict[str, StreamSpec]:
        """Spec of each modality's stream."""
        return {name: stream.spec for name, stream in self.streams.items()}

    @property
    def keys(self) -> dict[str, str | list[str]]:
        """Key of each modality's stream, a list where there are several."""
        return {
            name: layers[0].key if len(layers) == 1 else [stream.key for stream in layers]
            for name, layers in self.layers.items()
        }

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
        arrays = {}
        for name in (name for name, here in present.items() if here):
            found = self._arrays(name, clip)
            arrays[name] = found[0] if len(found) == 1 else np.stack(found, axis=1)
        label = self.task.label(self.label[clip])
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

    def draw_views(
        self, clips: NDArray[np.int64], seed: int, epoch: int
    ) -> NDArray[np.int64] | None:
        """A view of each clip, 0 to `views`, equally likely; None where there are none.

        A pure function of seed, epoch and clip.
        """
        if not self.views:
            return None
        rng = np.random.default_rng([seed, epoch, 2])
        return rng.integers(0, self.views, len(self), endpoint=True)[clips]

    def batch(
        self,
        clips: NDArray[np.int64],
        crop_s: float = 0.0,
        place: Place | None = None,
        views: NDArray[np.int64] | None = None,
    ) -> Batch:
        """`plan`, and `gather` at once."""
        return self.gather(self.plan(clips, crop_s, place, views))

    def plan(
        self,
        clips: NDArray[np.int64],
        crop_s: float = 0.0,
        place: Place | None = None,
        views: NDArray[np.int64] | None = None,
    ) -> Plan:
        """Choose rows. With `crop_s`, the same span of time is cut from all streams.

        Where it lies is drawn for each clip, or told: from 0, at the beginning, to 1, at the end; a
        clip that is not longer is then shown whole.

        With `views`, one number a clip, that view of it in all its modalities; the clip as it is
        where the store does not hold that view whole.
        """
        shown = 0 if views is None else views
        cut = bool(crop_s) and place is not None
        label_B = torch.from_numpy(self.target[clips])
        if self._fits:
            spans_2B = self.spans(clips, shown, crop_s, place) if cut else None
            chosen = {
                name: self.resident(name).choose(clips, shown, spans_2B) for name in self.layers
            }
            present_BM = np.stack([one.rows_B > 0 for one in chosen.values()], axis=1)
            return Plan(clips, chosen, torch.from_numpy(present_BM), label_B)
        shown = np.broadcast_to(shown, clips.shape)
        pairs = list(zip(clips.tolist(), shown.tolist(), strict=True))
        spans = [self._span(*pair, crop_s, place) for pair in pairs] if cut else None
        parts = {}
        for name, layers in self.layers.items():
            for stream, chosen in zip(layers, self._entries[name][shown, :, clips].T, strict=True):
                stream.will_need(chosen[chosen >= 0])
            parts[name] = [
                self._rows_of(name, *pair, spans[b] if spans else None)
                for b, pair in enumerate(pairs)
            ]
        present = [[len(times) > 0 for _, times in several] for several in parts.values()]
        return Plan(clips, parts, torch.tensor(present, device="cpu").T.contiguous(), label_B)

    def gather(self, plan: Plan) -> Batch:
        """Copy the rows of a plan side by side; good until the next call."""
        x, mask, times_s = {}, {}, {}
        for name, parts in plan.parts.items():
            if isinstance(parts, Chosen):
                found = self.resident(name).gather(parts.starts_B, parts.rows_B)
            else:
                stream, layers = self.streams[name], len(self.layers[name])
                shape = (layers, *stream.spec.item)
                raw, seconds, here = self._buffers.padded(name, parts, shape, stream.dtype.name)
                rows = raw.to(input_dtype(stream))
                found = rows if layers > 1 else rows.squeeze(2), seconds, here
            x[name], times_s[name], mask[name] = found
        batch = Batch(plan.clips, x, mask, times_s, plan.present_BM, plan.label_B)
        return batch.to(self.device)

    def batches(
        self, clips: NDArray[np.int64], batch_size: int, crop_s: float = 0.0, place: float = 0.0
    ) -> Iterator[Batch]:
        """Whole clips, or a span of each, the shorter clips first."""
        length = np.stack(list(self.rows.values())).sum(axis=0)
        ordered = clips[np.argsort(length[clips], kind="stable")]
        for first in range(0, len(ordered), batch_size):
            yield self.batch(ordered[first : first + batch_size], crop_s, place)

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
        if key in self._times:
            return self._times[key]
        times = self.streams[name].frame_times_s(entry).astype(np.float32)
        if len(times) <= _KEPT_ROWS:
            self._times[key] = times
        return times

    def _equal_rows(self, name: str) -> NDArray[np.int64]:
        """Rows of each clip, 0 where it has none; the same in all streams of a modality."""
        found_VN = [
            np.where(entries_VN >= 0, stream.lengths[entries_VN] if len(stream) else 0, 0)
            for stream, entries_VN in zip(
                self.layers[name], self._entries[name].swapaxes(0, 1), strict=True
            )
        ]
        for stream, rows_VN in zip(self.layers[name], found_VN, strict=True):
            wrong = np.argwhere(rows_VN != found_VN[0])
            if len(wrong):
                view, clip = wrong[0]
                raise StoreError(
                    f"clip {self.ids[clip]!r} has {found_VN[0][view, clip]} rows in stream "
                    f"{self.layers[name][0].key} and {rows_VN[view, clip]} in {stream.key}; give "
                    "the command that makes them again, it goes on where it was"
                )
        return np.asarray(found_VN[0][0])

    def _arrays(self, name: str, clip: int, view: int = 0) -> list[NDArray[Any]]:
        """The clip's rows in each stream of a modality that it has."""
        entries_L = self._entries[name][view, :, clip]
        return [
            stream.at(int(entry))
            for stream, entry in zip(self.layers[name], entries_L, strict=True)
        ]

    def _span(
        self, clip: int, view: int, crop_s: float, place: Place | None
    ) -> tuple[float, float]:
        """Start and end, in seconds, of a span of the clip's first timed modality."""
        luck = float(_lucks(place, 1)[0])
        for name, stream in self.streams.items():
            entry = int(self._entries[name][view, 0, clip])
            if entry >= 0 and stream.lengths[entry] and stream.spec.timing.kind != "none":
                times = self._times_of(name, entry)
                room = times[-1] - times[0] - crop_s
                if room <= 0 and isinstance(place, float):
                    break
                start = times[0] + luck * max(room, 0.0)
                return start, start + crop_s
        return -np.inf, np.inf

    def spans(
        self,
        clips: NDArray[np.int64],
        views: NDArray[np.int64] | int,
        crop_s: float,
        place: Place | None,
    ) -> NDArray[np.float32]:
        """Start and end of a random span of each clip, (2, B), from memory."""
        luck_B = _lucks(place, len(clips)).astype(np.float32)
        spans_2B = np.array([[-np.inf], [np.inf]], np.float32).repeat(len(clips), axis=1)
        for resident in reversed([self.resident(name) for name in self.layers]):
            if resident.timed:
                here_B, first_B, last_B = resident.bounds(clips, views)
                room_B = np.maximum(last_B - first_B - np.float32(crop_s), 0)
                start_B = first_B + luck_B * room_B
                span_2B = np.stack([start_B, start_B + np.float32(crop_s)])
                if isinstance(place, float):
                    span_2B[:, room_B <= 0] = [[-np.inf], [np.inf]]
                spans_2B = np.where(here_B, span_2B, spans_2B)
        return spans_2B

    def _rows_of(self, name: str, clip: int, view: int, span: tuple[float, float] | None) -> Part:
        """The clip's rows in each stream of a modality, and their times; those of a span."""
        entry = int(self._entries[name][view, 0, clip])
        if entry < 0:
            return [], np.empty(0, np.float32)
        arrays, times = self._arrays(name, clip, view), self._times_of(name, entry)
        if span is None or self.streams[name].spec.timing.kind == "none":
            return arrays, times
        first, last = np.searchsorted(times, span)
        return [values[first:last] for values in arrays], times[first:last]

    @cached_property
    def _fits(self) -> bool:
        """Whether all entries in use may lie in memory, or on the device."""
        return self._lies_there or sum(map(self._bytes, self.layers)) <= MOST_BYTES

    @cached_property
    def _lies_there(self) -> bool:
        """Whether they may lie on the device."""
        return 0 < sum(map(self._bytes, self.layers)) <= room(self.device)

    def _bytes(self, name: str) -> int:
        entries_VL = self._entries[name][:, 0]
        used = np.unique(entries_VL[entries_VL >= 0])
        stream = self.streams[name]
        rows = int(stream.lengths[used].sum())
        row_bytes = int(stream.dtype.itemsize * np.prod(stream.spec.item, dtype=np.int64))
        return rows * row_bytes * len(self.layers[name])

    def resident(self, name: str) -> Resident:
        """A whole modality in memory or on the device, read at the first call."""
        if name not in self._resident:
            times_of = partial(self._times_of, name)
            found = Resident(self.layers[name], self._entries[name], times_of)
            if self._lies_there:
                found.move(self.device)
            self._resident[name] = found
        return self._resident[name]


def _lucks(place: Place | None, count: int) -> NDArray[np.float64]:
    """Where spans lie in the room they have, 0 to 1."""
    if isinstance(place, np.random.Generator):
        return place.random(count)
    return np.full(count, place, np.float64)


def _entries(
    ids: Sequence[str], layers: Mapping[str, Sequence[Stream]], views: int
) -> dict[str, NDArray[np.int64]]:
    """Entries by modality, (1 + views, streams, clips): view, stream, clip; -1 for none.

    Modalities stay together: a view that one of a clip's augmented streams lacks is view 0 in all.
    A modality without any views, such as text, shows view 0 beside those of the others.
    """
    found = {
        name: np.array([[one.find(ids, view) for one in streams] for view in range(views + 1)])
        for name, streams in layers.items()
    }
    whole_VN = np.ones((views + 1, len(ids)), np.bool_)
    for entries_VLN in found.values():
        if (entries_VLN[1:] >= 0).any():
            whole_VN &= ((entries_VLN >= 0) | (entries_VLN[0] < 0)).all(axis=1)
    return {
        name: np.where(whole_VN[:, None] & (entries_VLN >= 0), entries_VLN, entries_VLN[0])
        for name, entries_VLN in found.items()
    }
