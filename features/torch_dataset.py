"""A store as a PyTorch dataset, for people with a trainer of their own."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from mmfuse.features.joined import Samples

# torch can do little with these
_WIDER = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}


class TorchDataset(Dataset[dict[str, Any]]):
    """Dicts of `id`, `view`, tensors of streams, and `label` where labels are given.

    Streams are (rows, *item) in their dtype, unsigned integers beyond 8 bits in the next wider
    signed one; what a clip lacks has no rows. Workers of a DataLoader, forked or spawned, map the
    store themselves.
    """

    def __init__(self, samples: Samples, labels: Mapping[str, Any] | None = None) -> None:
        self.samples, self.labels = samples, labels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> dict[str, Any]:
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        sample = self.samples[number % len(self)]
        for name, values in sample.items():
            if isinstance(values, np.ndarray):
                kind = _WIDER.get(str(values.dtype), values.dtype)
                sample[name] = torch.from_numpy(np.array(values, kind))
        if self.labels is not None:
            sample["label"] = self.labels[sample["id"]]
        return sample


def pad(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Samples as a batch: the `collate_fn` of a DataLoader.

    Returns:
        Of each stream `NAME`, (B, T, *item), zeros behind the rows of a clip, and `NAME_rows`,
        (B,) int64, how many it has; numbers as (B,); all else as lists.
    """
    batch: dict[str, Any] = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if isinstance(values[0], Tensor) and values[0].ndim:
            batch[name] = pad_sequence(values, batch_first=True)
            batch[f"{name}_rows"] = torch.tensor([len(value) for value in values])
        elif isinstance(values[0], int | float):
            batch[name] = torch.tensor(values)
        else:
            batch[name] = values
    return batch
