"""The forms in which features leave a store: Parquet, tars, .npy, safetensors, lhotse.

What the other library is needed for is reading only. dtypes stay what they are; lhotse, too, gets
float16 as float16.
"""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmfuse.features.export import Form, Item, Part
from mmfuse.features.joined import Named
from mmfuse.features.spec import Array

_SHARD_BYTES = 256 << 20  # a file of many clips is closed when it has as much
_GROUP_BYTES = 32 << 20  # of arrays that are gathered before they are written
_SOME_S = 1e-3
_INDEX = "index.jsonl"


def arrays_of(item: Item) -> dict[str, Array]:
    """`name` and, where rows have times, `name.times_s`, of every stream of a clip."""
    found: dict[str, Array] = {}
    for name, part in item.parts.items():
        found[name] = part.values
        if part.times_s is not None:
            found[f"{name}.times_s"] = part.times_s
    return found


class HfParquet:
    """`data/clips-0000i-of-0000n.parquet` for `datasets.load_dataset(folder, split="clips")`.

    Columns id, view, and of each stream its values, `NAME_times_s`, and `NAME_told`, as JSON.
    """

    def __init__(self, folder: Path, out: Path, named: Sequence[Named]) -> None:
        self._data, self._named = folder / "data", named
        self._data.mkdir()
        self._columns: dict[str, list[Any]] = {}
        self._pending, self._written, self._files = 0, 0, 0
        self._file: pq.ParquetWriter | None = None
        self._schema = _schema(named)
        self._clear()

    def add(self, item: Item) -> None:
        """See `Form`."""
        row: dict[str, Any] = {"id": item.clip_id, "view": item.view}
        for name, part in item.parts.items():
            row |= {name: part.values, f"{name}_told": json.dumps(part.told)}
            row[f"{name}_times_s"] = part.times_s
            self._pending += part.values.nbytes
        for name, column in self._columns.items():
            column.append(row.get(name))
        if self._pending >= _GROUP_BYTES:
            self._flush()

    def finish(self) -> None:
        """See `Form`."""
        self._flush()
        self.close()
        for number, file in enumerate(sorted(self._data.iterdir())):
            file.rename(self._data / f"clips-{number:05d}-of-{self._files:05d}.parquet")

    def close(self) -> None:
        """See `Form`."""
        if self._file is not None:
            self._file.close()
        self._file, self._written = None, 0

    def _clear(self) -> None:
        self._columns, self._pending = {name: [] for name in self._schema.names}, 0

    def _flush(self) -> None:
        if not self._columns["id"] and self._files:
            return
        if self._file is None:
            path = self._data / f"{self._files:08d}"
            self._file = pq.ParquetWriter(
                path, self._schema, compression="zstd", use_dictionary=False
            )
            self._files += 1
        columns = [
            _column(values, self._schema.field(name).type) for name, values in self._columns.items()
        ]
        self._file.write_table(pa.table(columns, schema=self._schema))
        self._written += self._pending
        self._clear()
        if self._written >= _SHARD_BYTES:
            self.close()


class WebDataset:
    """`clips-000000.tar` and on: of each clip KEY.NAME.npy, KEY.NAME.times_s.npy and KEY.json."""

    def __init__(self, folder: Path, out: Path, named: Sequence[Named]) -> None:
        self._folder, self._files, self._size = folder, 0, 0
        self._tar: tarfile.TarFile | None = None

    def add(self, item: Item) -> None:
        """See `Form`."""
        if self._tar is None:
            path = self._folder / f"clips-{self._files:06d}.tar"
            self._tar = tarfile.TarFile(path, "w", format=tarfile.PAX_FORMAT)
            self._files += 1
        self._put(f"{item.key}.json", json.dumps(item.told()).encode())
        for name, values in arrays_of(item).items():
            buffer = io.BytesIO()
            np.save(buffer, values, allow_pickle=False)
            self._put(f"{item.key}.{name}.npy", buffer.getvalue())
        if self._size >= _SHARD_BYTES:
            self.close()

    def finish(self) -> None:
        """See `Form`."""

    def close(self) -> None:
        """See `Form`."""
        if self._tar is not None:
            self._tar.close()
        self._tar, self._size = None, 0

    def _put(self, name: str, data: bytes) -> None:
        assert self._tar is not None
        info = tarfile.TarInfo(name)  # no time and no owner: equal features, equal tars
        info.size, info.mode = len(data), 0o644
        self._tar.addfile(info, io.BytesIO(data))
        self._size += len(data)


class _Indexed:
    """Forms with an `index.jsonl`: a line a clip, with its id, key, origins and file."""

    def __init__(self, folder: Path, name: str = _INDEX) -> None:
        self._index = (folder / name).open("w", encoding="utf-8")

    def _note(self, line: dict[str, Any]) -> None:
        self._index.write(json.dumps(line) + "\n")

    def finish(self) -> None:
        """See `Form`."""

    def close(self) -> None:
        """See `Form`."""
        self._index.close()


class Npy(_Indexed):
    """`NAME/KEY.npy` and `NAME.times_s/KEY.npy`, and `index.jsonl`."""

    def __init__(self, folder: Path, out: Path, named: Sequence[Named]) -> None:
        super().__init__(folder)
        self._folder = folder

    def add(self, item: Item) -> None:
        """See `Form`."""
        for name, values in arrays_of(item).items():
            (self._folder / name).mkdir(exist_ok=True)
            _save(self._folder / name / f"{item.key}.npy", values)
        self._note(item.told())


class Safetensors(_Indexed):
    """`clips-00000.safetensors` and on with tensors NAME/KEY, NAME.times_s/KEY; `index.jsonl`."""

    def __init__(self, folder: Path, out: Path, named: Sequence[Named]) -> None:
        super().__init__(folder)
        self._folder, self._files = folder, 0
        self._tensors: dict[str, Array] = {}

    def add(self, item: Item) -> None:
        """See `Form`."""
        for name, values in arrays_of(item).items():
            self._tensors[f"{name}/{item.key}"] = np.ascontiguousarray(values)
        self._note({**item.told(), "file": self._name})
        if sum(tensor.nbytes for tensor in self._tensors.values()) >= _GROUP_BYTES:
            self._flush()

    def finish(self) -> None:
        """See `Form`."""
        if self._tensors or not self._files:
            self._flush()

    @property
    def _name(self) -> str:
        return f"clips-{self._files:05d}.safetensors"

    def _flush(self) -> None:
        from safetensors.numpy import save_file

        save_file(self._tensors, self._folder / self._name)
        self._files, self._tensors = self._files + 1, {}


class Lhotse(_Indexed):
    """`cuts.jsonl`, for `CutSet.from_file`, and its arrays in `values/NAME/KEY.npy`.

    The first stream of frames that are vectors is the cut's `features`, every other stream an array
    in its `custom`, with `custom["mmfuse"]` for the rest. Paths are as `--out` was given.
    """

    def __init__(self, folder: Path, out: Path, named: Sequence[Named]) -> None:
        super().__init__(folder, "cuts.jsonl")
        self._values, self._place = folder / "values", out / "values"
        self._named = {one.name: one for one in named}
        frames = [n for n, one in self._named.items() if _hop_s(one) and len(one.spec.item) == 1]
        self._features = frames[0] if frames else None

    def add(self, item: Item) -> None:
        """See `Form`."""
        for name, values in arrays_of(item).items():
            (self._values / name).mkdir(parents=True, exist_ok=True)
            _save(self._values / name / f"{item.key}.npy", values)
        ends_s = [self._ends_s(name, part) for name, part in item.parts.items()]
        cut_id = item.key if item.view else item.clip_id
        cut: dict[str, Any] = {
            "id": cut_id, "start": 0, "duration": max(ends_s), "channel": 0, "supervisions": [],
            "type": "MonoCut",
        }  # fmt: skip
        custom: dict[str, Any] = {"mmfuse": item.told()}
        for name, values in arrays_of(item).items():
            if name == self._features and len(values):
                cut["features"] = self._features_of(name, item, values)
                cut["duration"] = cut["features"]["duration"]
            elif len(values):  # lhotse takes an array without rows for a file that is not there
                custom[name.replace(".", "_")] = self._array_of(name, item, values)
        self._note({**cut, "custom": custom})

    def _ends_s(self, name: str, part: Part) -> float:
        """Where a stream of a clip ends; lhotse wants some duration of what has no time, too."""
        ends_s = len(part.values) * _hop_s(self._named[name])
        if not ends_s and part.times_s is not None:
            ends_s = float(part.times_s.max(initial=0))
        return max(ends_s, _SOME_S)

    def _features_of(self, name: str, item: Item, values: Array) -> dict[str, Any]:
        hop_s, rate_hz = _hop_s(self._named[name]), self._named[name].spec.params.get("rate_hz")
        duration = round(len(values) * hop_s, 8)
        return {"type": name, "num_frames": len(values), "num_features": values.shape[1],
                "frame_shift": hop_s, "sampling_rate": int(rate_hz or 16000), "start": 0,
                "duration": duration, **self._storage(name, item), "recording_id": item.clip_id,
                "channels": 0}  # fmt: skip

    def _array_of(self, name: str, item: Item, values: Array) -> dict[str, Any]:
        array = {**self._storage(name, item), "shape": list(values.shape)}
        hop_s = _hop_s(self._named[name]) if name in self._named else 0.0
        if not hop_s:
            return array
        return {"array": array, "temporal_dim": 0, "frame_shift": hop_s, "start": 0}

    def _storage(self, name: str, item: Item) -> dict[str, str]:
        return {"storage_type": "numpy_files", "storage_path": str(self._place / name),
                "storage_key": f"{item.key}.npy"}  # fmt: skip


FORMS: dict[str, Callable[[Path, Path, Sequence[Named]], Form]] = {
    "hf-parquet": HfParquet,
    "webdataset": WebDataset,
    "npy": Npy,
    "safetensors": Safetensors,
    "lhotse": Lhotse,
}


def _save(path: Path, values: Array) -> None:
    with path.open("xb") as file:  # two keys may be one name to a file system that folds case
        np.save(file, values, allow_pickle=False)


def _hop_s(one: Named) -> float:
    """Seconds from one row to the next, 0 where they are not even."""
    return float(one.spec.timing.hop_s) if one.spec.timing.kind == "frames" else 0.0


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Arrays of (T, *item) as lists of lists; other values as they are."""
    if not pa.types.is_list(kind):
        return pa.array(values, kind)
    arrays = [value for value in values if value is not None]
    if not arrays:
        return pa.nulls(len(values), kind)
    column = pa.array(np.concatenate([np.ravel(array) for array in arrays]), _leaf(kind))
    for size in reversed(arrays[0].shape[1:]):
        bounds = np.arange(0, len(column) + 1, size, dtype=np.int32)
        column = pa.ListArray.from_arrays(pa.array(bounds), column)
    lengths = [0 if value is None else len(value) for value in values]
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    nulls = pa.array([value is None for value in values])
    return pa.ListArray.from_arrays(pa.array(bounds), column, mask=nulls).cast(kind)


def _leaf(kind: pa.DataType) -> pa.DataType:
    return _leaf(kind.value_type) if pa.types.is_list(kind) else kind


def _schema(named: Sequence[Named]) -> pa.Schema:
    fields = [pa.field("id", pa.string()), pa.field("view", pa.int32())]
    for one in named:
        kind: pa.DataType = pa.from_numpy_dtype(one.stream.dtype)
        for _ in range(len(one.spec.item) + 1):
            kind = pa.list_(kind)
        fields.append(pa.field(one.name, kind))
        if one.is_timed:
            fields.append(pa.field(f"{one.name}_times_s", pa.list_(pa.float64())))
        fields.append(pa.field(f"{one.name}_told", pa.string()))
    return pa.schema(fields)
