"""How fast warm random clips are read: our reader, np.memmap, tensorstore, zarrs, zarr-python.

    python tests/benchmarks/reader.py [STORE] [--stream logmel] [--json]

All read the same clips of the same store into the same buffer, in one process, batch by batch in
changing order; what is reported is the median over batches of the ratio of times. "plain array" is
np.memmap without its subclass, the limit of what copying reaches. Without STORE, one of 2000 clips
(about 160 MB) is written to a temporary folder first.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from mmfuse.features import layout
from mmfuse.features.spec import Entry, StreamSpec, Timing
from mmfuse.features.store import Stream, open_store
from mmfuse.features.writer import StoreWriter

Read = Callable[[Any, Any], None]
SLOW = {"zarr-python", "zarrs"}  # one batch in ten is enough to time them


def readers(root: Path, stream: Stream) -> dict[str, Read]:
    """By name, a function that copies entries one behind the other into a buffer."""
    import tensorstore as ts

    starts = zarr.open_array(root / stream.key / "starts", mode="r")[:]
    first = stream.table["start"].to_numpy()
    shard_of = stream.table["shard"].to_numpy()
    maps = {
        shard: np.memmap(
            layout.shard_path(root, stream.key, shard, stream.spec.item),
            dtype=stream.spec.dtype,
            mode="r",
            shape=(int((first + stream.lengths)[shard_of == shard].max()), *stream.spec.item),
        )
        for shard in np.unique(shard_of).tolist()
    }
    values = root / stream.key / "values"
    plain = zarr.open_array(values, mode="r")
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        rust = zarr.open_array(values, mode="r")
    source = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(values)}}
    tensor = ts.open(source, read=True).result()

    def sliced(array: Any, at: Callable[[Any], Any] = np.asarray) -> Read:
        def read(entries: Any, out: Any) -> None:
            row = 0
            for entry in entries:
                start, rows = int(starts[entry]), int(stream.lengths[entry])
                out[row : row + rows] = at(array[start : start + rows])
                row += rows

        return read

    def mapped(arrays: Any) -> Read:
        def read(entries: Any, out: Any) -> None:
            row = 0
            for entry in entries:
                start, rows = first[entry], stream.lengths[entry]
                out[row : row + rows] = arrays[shard_of[entry]][start : start + rows]
                row += rows

        return read

    return {
        "mmfuse": lambda entries, out: void(stream.gather(entries, out)),
        "np.memmap": mapped(maps),
        "plain array": mapped({k: np.asarray(array) for k, array in maps.items()}),
        "tensorstore": sliced(tensor, lambda part: part.read().result()),
        "zarrs": sliced(rust),
        "zarr-python": sliced(plain),
    }


def void(_: object) -> None:
    """Forget a result."""


def measure(root: Path, name: str, batch: int, batches: int) -> dict[str, Any]:
    """Median MB/s of each reader, and median over batches of the ratios of ours to theirs."""
    stream = open_store(root)[name]
    reads = readers(root, stream)
    rng = np.random.default_rng(0)
    picks = [rng.integers(len(stream), size=batch) for _ in range(batches)]
    most = max(int(stream.lengths[pick].sum()) for pick in picks)
    buffer = np.empty((most, *stream.spec.item), stream.spec.dtype)
    for entry in range(len(stream)):  # warm
        stream.at(entry).max(initial=0)
    expected = buffer.copy()
    stream.gather(picks[0], expected)
    size = int(stream.lengths[picks[0]].sum())
    for peer, read in reads.items():
        buffer[:] = 0
        read(picks[0], buffer)
        assert buffer[:size].tobytes() == expected[:size].tobytes(), peer
    seconds: dict[str, dict[int, float]] = {peer: {} for peer in reads}
    for number, pick in enumerate(picks):
        for peer in rng.permutation(list(reads)).tolist():
            if peer in SLOW and number % 10:
                continue
            began = time.perf_counter()
            reads[peer](pick, buffer)
            seconds[peer][number] = time.perf_counter() - began
    sizes = [int(stream.lengths[pick].sum()) * stream.spec.row_bytes for pick in picks]
    return {
        "stream": stream.key,
        "clips": len(stream),
        "batch": batch,
        "batches": batches,
        "megabytes_a_batch": round(statistics.median(sizes) / 1e6, 2),
        "megabytes_a_second": {
            peer: round(statistics.median(sizes[n] / 1e6 / s for n, s in taken.items()), 1)
            for peer, taken in seconds.items()
        },
        "speed_against": {
            peer: round(statistics.median(s / seconds["mmfuse"][n] for n, s in taken.items()), 3)
            for peer, taken in seconds.items()
        },
    }


def write_store(root: Path, clips: int = 2000) -> None:
    """Log-mel of clips of 8 to 12 s, 80 bands at 50 frames a second."""
    spec = StreamSpec(
        "logmel", "audio", (80,), "float16", {}, Timing("frames", Fraction(4, 125), Fraction(1, 50))
    )
    rng = np.random.default_rng(0)
    noise = rng.normal(-40, 15, (600, 80)).astype(np.float16)
    with StoreWriter(root) as writer:
        for number in range(clips):
            values = np.roll(noise, number, axis=0)[: rng.integers(400, 600)]
            writer.stream(spec).append(f"{number}", number.to_bytes(32, "little"), Entry(values))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", nargs="?", type=Path)
    parser.add_argument("--stream", default="logmel")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = options.store
        if root is None:
            root = Path(folder) / "bench.zarr"
            write_store(root)
        found = measure(root, options.stream, options.batch, options.batches)
    found["machine"] = f"{platform.machine()}, Python {platform.python_version()}"
    if options.json:
        print(json.dumps(found))
        return
    print(
        f"{found['stream']}: {found['batches']} batches of {found['batch']} warm random clips, "
        f"{found['megabytes_a_batch']} MB each"
    )
    print(f"{'reader':<14}{'MB/s':>10}{'mmfuse is':>16}")
    for peer, ratio in found["speed_against"].items():
        print(f"{peer:<14}{found['megabytes_a_second'][peer]:>10}{ratio:>12.2f} x it")


if __name__ == "__main__":
    main()
