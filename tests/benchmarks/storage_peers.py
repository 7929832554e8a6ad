"""Ways to keep ragged arrays: how each writes them, and how it reads some of them into one buffer.

`PEERS` has them by name. `write(folder, clips)` puts (rows, dim) float16 arrays below a new folder,
`open(folder)` gives a `Read`: entries, copied one behind the other into a buffer. Those that read
our store write nothing. Each is used as its own documentation advises for arrays of this size.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmfuse.features import layout
from mmfuse.features.spec import Entry, StreamSpec
from mmfuse.features.store import open_store
from mmfuse.features.writer import StoreWriter

Clips = Sequence[Any]
Read = Callable[[Any, Any], None]
STREAM = "states"
FILE_BYTES = 256 * 2**20  # where a format has files of arrays


@dataclass(frozen=True)
class Peer:
    """A way to keep arrays. `random` is False where only one behind the other can be read."""

    open: Callable[[Path], Read]
    write: Callable[[Path, Clips], None] | None = None
    random: bool = True


def one_by_one(at: Callable[[int], Any]) -> Read:
    """A reader that asks for each entry."""

    def read(entries: Any, out: Any) -> None:
        row = 0
        for entry in entries.tolist():
            values = at(entry)
            out[row : row + len(values)] = values
            row += len(values)

    return read


# -- ours ------------------------------------------------------------------------------------------


def write_ours(folder: Path, clips: Clips) -> None:
    """Checks, hashes, journal, shards, manifest and root: as `mmfeat` writes."""
    spec = StreamSpec(STREAM, "audio", (clips[0].shape[1],), "float16")
    with StoreWriter(folder / "s.zarr") as writer:
        stream = writer.stream(spec)
        for number, values in enumerate(clips):
            stream.append(f"{number:06d}", number.to_bytes(32, "little"), Entry(values))


def open_ours(folder: Path, access: str = "map", *, hint: bool = False) -> Read:
    """`gather`, with `will_need` before it where that is asked for."""
    stream = open_store(folder / "s.zarr", access)[STREAM]

    def read(entries: Any, out: Any) -> None:
        if hint:
            stream.will_need(entries)
        stream.gather(entries, out)

    return read


def of_our_arrays(opened: Callable[[Path], Any]) -> Callable[[Path], Read]:
    """A reader of our store by way of `values`, `starts` and `lengths`."""

    def open_(folder: Path) -> Read:
        path = folder / "s.zarr" / open_store(folder / "s.zarr")[STREAM].key
        values, starts, lengths = (opened(path / name) for name in ("values", "starts", "lengths"))
        first, rows = np.asarray(starts[:]).tolist(), np.asarray(lengths[:]).tolist()
        return one_by_one(lambda i: np.asarray(values[first[i] : first[i] + rows[i]]))

    return open_


def zarr_python(path: Path, pipeline: str = "zarr.core.codec_pipeline.BatchedCodecPipeline") -> Any:
    """An array of our store."""
    import zarr

    with zarr.config.set({"codec_pipeline.path": pipeline}):
        return zarr.open_array(path, mode="r")


def open_tensorstore(folder: Path) -> Read:
    """All reads of a batch are in flight at once, on as many threads as there are cores."""
    import tensorstore as ts

    def opened(path: Path) -> Any:
        kept = {"driver": "file", "path": str(path)}
        return ts.open({"driver": "zarr3", "kvstore": kept}, read=True).result()

    path = folder / "s.zarr" / open_store(folder / "s.zarr")[STREAM].key
    values = opened(path / "values")
    first, rows = (np.asarray(opened(path / name)[:]).tolist() for name in ("starts", "lengths"))

    def read(entries: Any, out: Any) -> None:
        parts = [values[first[i] : first[i] + rows[i]].read() for i in entries.tolist()]
        row = 0
        for part in parts:
            found = part.result()
            out[row : row + len(found)] = found
            row += len(found)

    return read


# -- others ----------------------------------------------------------------------------------------


def bounds_of(clips: Clips) -> Any:
    """First row of each clip, and the row behind the last."""
    return np.cumsum([0, *map(len, clips)])


def write_flat(folder: Path, clips: Clips) -> None:
    """One .npy of all rows, and one of the bounds."""
    bounds = bounds_of(clips)
    head = {"descr": "<f2", "fortran_order": False, "shape": (int(bounds[-1]), clips[0].shape[1])}
    with (folder / "values.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, head)
        for clip in clips:
            clip.tofile(file)
    np.save(folder / "bounds.npy", bounds)


def open_flat(folder: Path, kind: Callable[[Any], Any] = lambda array: array) -> Read:
    """np.memmap; `kind` np.asarray takes its subclass off, which is what copying can reach."""
    values = kind(np.load(folder / "values.npy", mmap_mode="r"))
    bounds = np.load(folder / "bounds.npy").tolist()
    return one_by_one(lambda i: values[bounds[i] : bounds[i + 1]])


def write_npy(folder: Path, clips: Clips) -> None:
    """A file a clip."""
    for number, clip in enumerate(clips):
        np.save(folder / f"{number}.npy", clip)


def open_npy(folder: Path) -> Read:
    """np.load of each."""
    return one_by_one(lambda i: np.load(folder / f"{i}.npy"))


def write_h5py(folder: Path, clips: Clips) -> None:
    """One contiguous dataset of all rows."""
    import h5py

    bounds = bounds_of(clips)
    with h5py.File(folder / "clips.h5", "w") as file:
        shape = (int(bounds[-1]), clips[0].shape[1])
        values = file.create_dataset("values", shape, np.float16)
        for start, clip in zip(bounds, clips, strict=False):
            values[start : start + len(clip)] = clip
        file["bounds"] = bounds


def open_h5py(folder: Path) -> Read:
    """`read_direct` into the buffer."""
    import h5py

    file = h5py.File(folder / "clips.h5", "r")
    values, bounds = file["values"], file["bounds"][:].tolist()

    def read(entries: Any, out: Any) -> None:
        row = 0
        for entry in entries.tolist():
            first, last = bounds[entry], bounds[entry + 1]
            values.read_direct(out, np.s_[first:last], np.s_[row : row + last - first])
            row += last - first

    return read


def write_arrow(folder: Path, clips: Clips) -> None:
    """An IPC file, a record batch for 32 clips."""
    import pyarrow as pa

    schema = pa.schema([("x", pa.large_binary())])
    with pa.OSFile(str(folder / "clips.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as to:
        for first in range(0, len(clips), 32):
            parts = [clip.tobytes() for clip in clips[first : first + 32]]
            to.write_batch(pa.record_batch([pa.array(parts, pa.large_binary())], schema))
    np.save(folder / "dim.npy", clips[0].shape[1])


def open_arrow(folder: Path) -> Read:
    """Mapped; values are views."""
    import pyarrow as pa

    column = pa.ipc.open_file(pa.memory_map(str(folder / "clips.arrow"))).read_all()["x"]
    dim = int(np.load(folder / "dim.npy"))
    return one_by_one(lambda i: np.frombuffer(column[i].as_buffer(), "<f2").reshape(-1, dim))


def write_datasets(folder: Path, clips: Clips) -> None:
    """Its own Arrow cache format, a binary column."""
    from datasets import Features, Value
    from datasets.arrow_writer import ArrowWriter

    features = Features({"x": Value("large_binary")})
    with ArrowWriter(features=features, path=str(folder / "clips.arrow")) as writer:
        for clip in clips:
            writer.write({"x": clip.tobytes()})
        writer.finalize()
    np.save(folder / "dim.npy", clips[0].shape[1])


def open_datasets(folder: Path) -> Read:
    """Mapped, without an indices map."""
    import datasets

    rows = datasets.Dataset.from_file(str(folder / "clips.arrow"))
    dim = int(np.load(folder / "dim.npy"))
    return one_by_one(lambda i: np.frombuffer(rows[i]["x"], "<f2").reshape(-1, dim))


def write_safetensors(folder: Path, clips: Clips) -> None:
    """Files of 256 MiB, a tensor a clip."""
    from safetensors.numpy import save_file

    most = max(FILE_BYTES // max(clip.nbytes for clip in clips), 1)
    for first in range(0, len(clips), most):
        part = {str(first + i): clip for i, clip in enumerate(clips[first : first + most])}
        save_file(part, folder / f"{first}.safetensors")


def open_safetensors(folder: Path) -> Read:
    """`safe_open`, which maps."""
    from safetensors import safe_open

    files = [safe_open(path, framework="np") for path in folder.glob("*.safetensors")]
    where = {int(name): file for file in files for name in file.keys()}  # noqa: SIM118
    return one_by_one(lambda i: where[i].get_tensor(str(i)))


def write_lance(folder: Path, clips: Clips) -> None:
    """A binary column."""
    import lance
    import pyarrow as pa

    schema = pa.schema([("x", pa.large_binary())])

    def batches() -> Iterator[Any]:
        for first in range(0, len(clips), 32):
            parts = [clip.tobytes() for clip in clips[first : first + 32]]
            yield pa.record_batch([pa.array(parts, pa.large_binary())], schema)

    lance.write_dataset(batches(), folder / "clips.lance", schema=schema)
    np.save(folder / "dim.npy", clips[0].shape[1])


def open_lance(folder: Path) -> Read:
    """`take` of a whole batch."""
    import lance

    rows = lance.dataset(folder / "clips.lance")
    dim = int(np.load(folder / "dim.npy"))

    def read(entries: Any, out: Any) -> None:
        taken = rows.take(entries.tolist(), columns=["x"])["x"]
        row = 0
        for value in taken:
            values = np.frombuffer(value.as_buffer(), "<f2").reshape(-1, dim)
            out[row : row + len(values)] = values
            row += len(values)

    return read


def write_litdata(folder: Path, clips: Clips) -> None:
    """Chunks of 64 MB, by the writer that `optimize` uses."""
    from litdata.streaming import Cache

    cache = Cache(str(folder), chunk_bytes="64MB")
    for number, clip in enumerate(clips):
        cache[number] = {"x": clip}
    cache.done()
    cache.merge()


def open_litdata(folder: Path) -> Read:
    """`dataset[i]`."""
    from litdata import StreamingDataset

    rows = StreamingDataset(str(folder))
    return one_by_one(lambda i: rows[i]["x"])


def write_webdataset(folder: Path, clips: Clips) -> None:
    """A tar of .npy files."""
    from webdataset import TarWriter

    with TarWriter(str(folder / "clips.tar")) as writer:
        for number, clip in enumerate(clips):
            writer.write({"__key__": f"{number:06d}", "npy": clip})


def open_webdataset(folder: Path) -> Read:
    """One behind the other; whatever is asked for, the next ones come."""
    from webdataset import WebDataset

    url = str(folder / "clips.tar")
    samples = iter(WebDataset(url, shardshuffle=False, empty_check=False))
    return one_by_one(lambda _: np.load(io.BytesIO(next(samples)["npy"])))


def write_zarr(folder: Path, clips: Clips) -> None:
    """One array of all rows as zarr-python makes it when asked for chunks of 512 rows: by zstd."""
    import zarr

    bounds, rows = bounds_of(clips), layout.INNER_ROWS
    shape = (int(bounds[-1]), clips[0].shape[1])
    chunks = (rows, shape[1])
    values = zarr.create_array(folder / "z.zarr", shape=shape, chunks=chunks, dtype="float16")
    every = np.concatenate(clips)
    for first in range(0, shape[0], rows):
        values[first : first + rows] = every[first : first + rows]
    np.save(folder / "bounds.npy", bounds)


def open_zarr(folder: Path) -> Read:
    """By zarr-python."""
    import zarr

    values = zarr.open_array(folder / "z.zarr", mode="r")
    bounds = np.load(folder / "bounds.npy").tolist()
    return one_by_one(lambda i: values[bounds[i] : bounds[i + 1]])


OURS, MEMMAP, HINTED = "mmfuse", "np.memmap", "mmfuse, will_need"
PEERS: dict[str, Peer] = {
    OURS: Peer(open_ours, write_ours),
    HINTED: Peer(lambda folder: open_ours(folder, hint=True)),
    "mmfuse, preadv": Peer(lambda folder: open_ours(folder, "read")),
    "our store by tensorstore": Peer(open_tensorstore),
    "our store by zarrs": Peer(
        of_our_arrays(lambda path: zarr_python(path, "zarrs.ZarrsCodecPipeline"))
    ),
    "our store by zarr-python": Peer(of_our_arrays(zarr_python)),
    MEMMAP: Peer(open_flat, write_flat),
    "plain array": Peer(lambda folder: open_flat(folder, np.asarray)),
    ".npy a clip": Peer(open_npy, write_npy),
    "safetensors": Peer(open_safetensors, write_safetensors),
    "Arrow IPC, mapped": Peer(open_arrow, write_arrow),
    "datasets": Peer(open_datasets, write_datasets),
    "h5py": Peer(open_h5py, write_h5py),
    "lance": Peer(open_lance, write_lance),
    "zarr-python, zstd": Peer(open_zarr, write_zarr),
    "litdata": Peer(open_litdata, write_litdata),
    "webdataset": Peer(open_webdataset, write_webdataset, random=False),
}
