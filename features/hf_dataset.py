"""A store as a dataset of Hugging Face: a table of ids, whose streams are read when asked for."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from mmfuse.features.errors import MissingError
from mmfuse.features.joined import Samples

_ROW = "row"


def hf_dataset(samples: Samples, labels: Mapping[str, Any] | None = None) -> Any:
    """A `datasets.Dataset` with columns row, id, view, and label; a transform adds the streams.

    Raises:
        MissingError: `datasets` is not installed.
    """
    try:
        from datasets import Dataset
    except ImportError as error:
        raise MissingError(
            f"datasets of Hugging Face can't be imported ({error}); type: pip install datasets"
        ) from None
    columns = {"row": pa.array(range(len(samples))), "id": samples.ids, "view": samples.views}
    if labels is not None:
        columns["label"] = pa.array([labels[clip_id] for clip_id in samples.ids.to_pylist()])
    return Dataset(pa.table(columns)).with_transform(_Read(samples))


class _Read:
    """Adds streams to a batch of rows; arrays are views of mapped files."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        read = [self._samples[row] for row in batch[_ROW]]
        own = ("id", "view")
        found = {name: [one[name] for one in read] for name in read[0] if name not in own}
        return {**batch, **found}
