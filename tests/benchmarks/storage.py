"""How fast a store is read and written: beside np.memmap, `cp`, and other ways to keep arrays.

    python tests/benchmarks/storage.py [--megabytes 600] [--only h5py lance] [--json]

All keep the same ragged float16 clips (lognormal, 316 rows of 768 in the mean, synthetic: 64 AR(1)
latents, mixed). Everything happens in one process:

- warm: random batches from the page cache into one buffer, each batch by all readers in turn;
- cold: random batches of a tenth of the clips, each reader anew after its files were evicted
  (fsync, then DONTNEED);
- sequential: all clips in their order, warm, each batch by all readers in turn;
- write: all clips, until everything is synced, each beside `cp` of as many bytes and its sync.

A figure is the median of ratios of times that were taken one behind the other. `storage_peers.py`
has the peers.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from storage_peers import HINTED, MEMMAP, OURS, PEERS, Clips, Read

DIM, BATCH = 768, 32
SLOW_BATCHES = 10  # one batch in so many for readers that are ten times slower than np.memmap
WIDTHS = (11, 11, 12, 8)
TARGETS = (
    ("warm random, x np.memmap", "warm", OURS, 0.9),
    ("cold random with will_need, x page faults", "cold", HINTED, 5.0),
    ("sequential, x np.memmap", "sequential", OURS, 0.9),
    ("write, x cp and fsync", "write", OURS, 0.6),
)


def make_clips(megabytes: int, seed: int = 0) -> Clips:
    """Views of one array: AR(1) latents (0.9), mixed, with noise and two outlier channels."""
    rng = np.random.default_rng(seed)
    lengths: list[int] = []
    while sum(lengths) * DIM * 2 < megabytes * 1e6:
        lengths.append(int(np.clip(rng.lognormal(5.6, 0.55), 20, 3000)))
    mix = rng.standard_normal((64, DIM), np.float32) / 8
    values, latent = np.empty((sum(lengths), DIM), np.float16), np.zeros(64, np.float32)
    for first in range(0, len(values), 4096):
        drawn = rng.standard_normal((min(4096, len(values) - first), 64), np.float32)
        for row in drawn:
            latent = 0.9 * latent + row
            row[:] = latent
        mixed = drawn @ mix + 0.3 * rng.standard_normal((len(drawn), DIM), np.float32)
        mixed[:, :2] *= 30
        values[first : first + len(drawn)] = mixed
    return np.split(values, np.cumsum(lengths)[:-1])


class Bench:
    """Clips on disk in every way, below one folder."""

    def __init__(self, root: Path, clips: Clips, names: Sequence[str], seed: int = 0) -> None:
        self.root, self.clips, self.names = root, clips, names
        self.rows = np.array([len(clip) for clip in clips])
        self.rng = np.random.default_rng(seed)
        self.buffer = np.empty((int(np.sort(self.rows)[-BATCH:].sum()), DIM), np.float16)
        self.left_out: dict[str, str] = {}
        (root / "source").write_bytes(np.concatenate(clips).tobytes())

    def folder(self, name: str) -> Path:
        """Where a peer's files are; ours are read by several."""
        owner = name if PEERS[name].write else OURS
        if name == "plain array":
            owner = MEMMAP
        return self.root / owner.replace(" ", "_")

    # -- writing

    def copy(self) -> float:
        """Seconds of `cp` and its sync."""
        target = self.root / "copy"
        target.unlink(missing_ok=True)
        began = time.perf_counter()
        subprocess.run(["cp", "--reflink=never", self.root / "source", target], check=True)
        synced(target)
        return time.perf_counter() - began

    def written(self, name: str) -> float:
        """Seconds of a peer, until all its files are synced."""
        write, folder = PEERS[name].write, self.folder(name)
        assert write is not None
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        began = time.perf_counter()
        write(folder, self.clips)
        for path in files_below(folder) if name != OURS else ():  # ours are synced
            synced(path)
        return time.perf_counter() - began

    def write(self, pairs: int) -> dict[str, Any]:
        """`cp` over each, ours `pairs` times, others once; what is not installed is left out."""
        ratios: dict[str, list[float]] = {}
        megabytes = sum(clip.nbytes for clip in self.clips) / 1e6
        speeds: dict[str, list[float]] = {}
        for name in [n for n in self.names if PEERS[n].write]:
            try:
                for _ in range(pairs if name == OURS else 1):
                    copy_s, peer_s = self.copy(), self.written(name)
                    ratios.setdefault(name, []).append(copy_s / peer_s)
                    speeds.setdefault(name, []).append(megabytes / peer_s)
                    speeds.setdefault("cp", []).append(megabytes / copy_s)
            except ImportError as error:
                self.left_out[name] = str(error)
        self.names = [n for n in self.names if n not in self.left_out]
        return {"ratio": medians(ratios), "megabytes_a_second": medians(speeds)}

    # -- reading

    def opened(self, name: str) -> Read:
        """A fresh reader."""
        return PEERS[name].open(self.folder(name))

    def check(self, name: str, read: Read, pick: Any) -> None:
        """See that it reads what was written."""
        self.buffer[:] = 0
        read(pick, self.buffer)
        expected = np.concatenate([self.clips[i] for i in pick])
        assert self.buffer[: len(expected)].tobytes() == expected.tobytes(), name

    def took(self, read: Read, pick: Any) -> float:
        """Seconds of one batch."""
        began = time.perf_counter()
        read(pick, self.buffer)
        return time.perf_counter() - began

    def interleaved(self, readers: dict[str, Read], picks: Sequence[Any], every: int) -> Any:
        """np.memmap's seconds over each reader's, batch by batch; slow ones in few batches."""
        ratios: dict[str, list[float]] = {name: [] for name in readers}
        speeds: dict[str, list[float]] = {name: [] for name in readers}
        slow: set[str] = set()
        for number, pick in enumerate(picks):
            seconds: dict[str, float] = {}
            for name in self.rng.permutation(list(readers)).tolist():
                if name not in slow or number % every == 0:
                    seconds[name] = self.took(readers[name], pick)
            for name, taken in seconds.items():
                ratios[name].append(seconds[MEMMAP] / taken)
                speeds[name].append(self.rows[pick].sum() * DIM * 2e-6 / taken)
                if number == 0 and ratios[name][0] < 0.1:
                    slow.add(name)
        return {"ratio": medians(ratios), "megabytes_a_second": medians(speeds)}

    def warm(self, batches: int) -> dict[str, Any]:
        """Random batches from the page cache, every page touched before."""
        readers = {name: self.opened(name) for name in self.names if PEERS[name].random}
        for name, read in readers.items():
            for pick in np.array_split(np.arange(len(self.rows)), -(-len(self.rows) // BATCH)):
                self.check(name, read, pick)
        picks = [self.rng.integers(len(self.rows), size=BATCH) for _ in range(batches)]
        return self.interleaved(readers, picks, SLOW_BATCHES)

    def sequential(self, passes: int) -> dict[str, Any]:
        """All clips in order, from the page cache."""
        parts = []
        picks = [
            np.arange(first, min(first + BATCH, len(self.rows)))
            for first in range(0, len(self.rows), BATCH)
        ]
        for _ in range(passes):
            readers = {name: self.opened(name) for name in self.names if name != HINTED}
            parts.append(self.interleaved(readers, picks, every=1))
        return {
            key: medians({name: [part[key][name] for part in parts] for name in parts[0][key]})
            for key in parts[0]
        }

    def cold(self, rounds: int) -> dict[str, Any]:
        """A tenth of the clips at random after eviction; page faults are np.memmap's.

        More than a tenth, and what faults read around a clip would be the next clip's.
        """
        ratios: dict[str, list[float]] = {}
        speeds: dict[str, list[float]] = {}
        resident: list[float] = []
        for _ in range(rounds):
            order = self.rng.permutation(len(self.rows))[: max(len(self.rows) // 10, 1)]
            picks = np.array_split(order, -(-len(order) // BATCH))
            seconds: dict[str, float] = {}
            for name in self.rng.permutation([n for n in self.names if PEERS[n].random]).tolist():
                resident.append(evict(self.folder(name)))
                read = self.opened(name)
                seconds[name] = sum(self.took(read, pick) for pick in picks)
                del read
            for name, taken in seconds.items():
                ratios.setdefault(name, []).append(seconds[MEMMAP] / taken)
                megabytes = self.rows[order].sum() * DIM * 2e-6
                speeds.setdefault(name, []).append(megabytes / taken)
        found = {"ratio": medians(ratios), "megabytes_a_second": medians(speeds)}
        return {**found, "still_in_memory": round(max(resident), 3)}


def medians(found: dict[str, list[float]]) -> dict[str, float]:
    """Median of each, three digits."""
    return {name: float(f"{statistics.median(values):.3g}") for name, values in found.items()}


def files_below(folder: Path) -> Iterator[Path]:
    """All files."""
    return (path for path in folder.rglob("*") if path.is_file())


def synced(path: Path) -> None:
    """fsync of a file."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def evict(folder: Path) -> float:
    """Drop a folder's files from the page cache; the share of probed pages that is still there."""
    probes = []
    for path in files_below(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        if (size := path.stat().st_size) > 2**20:
            probes += [_is_cached(descriptor, offset) for offset in range(0, size, 2**24)]
        os.close(descriptor)
    return sum(probes) / len(probes) if probes else 0.0


def _is_cached(descriptor: int, offset: int) -> bool:
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False


# -- report ----------------------------------------------------------------------------------------


def measure(names: Sequence[str], megabytes: int, pairs: int) -> dict[str, Any]:
    """All four, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), make_clips(megabytes), names)
        steps: dict[str, Callable[[], dict[str, Any]]] = {
            "write": lambda: bench.write(pairs),
            "warm": lambda: bench.warm(20 * pairs),
            "sequential": lambda: bench.sequential(pairs),
            "cold": lambda: bench.cold(2 * pairs),
        }
        found: dict[str, Any] = {name: step() for name, step in steps.items()}
        found["targets"] = [
            {"claim": claim, "ratio": (got := found[kind]["ratio"][name]), "target": least,
             "met": got >= least}
            for claim, kind, name, least in TARGETS
        ]  # fmt: skip
        found["clips"], found["megabytes"] = len(bench.rows), megabytes
        found["left_out"] = bench.left_out
    return found


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The table, and the targets."""
    yield f"{found['clips']} clips, {found['megabytes']} MB, {BATCH} a batch"
    yield f"{'ratio to':<26}{'np.memmap':>11}{'np.memmap':>11}{'np.memmap':>12}{'cp':>8}"
    yield f"{'':<26}{'warm':>11}{'cold':>11}{'sequential':>12}{'write':>8}"
    for name in PEERS:
        row = [found[kind]["ratio"].get(name) for kind in ("warm", "cold", "sequential", "write")]
        if any(row):
            cells = ("-" if value is None else f"{value:.3g}" for value in row)
            yield f"{name:<26}" + "".join(f"{c:>{w}}" for c, w in zip(cells, WIDTHS, strict=True))
    for name, why in found["left_out"].items():
        yield f"{name}: left out, {why}"
    memmap = {kind: found[kind]["megabytes_a_second"][MEMMAP] for kind in ("warm", "cold")}
    yield (
        f"np.memmap: {memmap['warm']:.0f} MB/s warm, {memmap['cold']:.0f} cold, "
        f"{found['sequential']['megabytes_a_second'][MEMMAP]:.0f} sequential; "
        f"cp {found['write']['megabytes_a_second']['cp']:.0f}"
    )
    for target in found["targets"]:
        verdict = "met" if target["met"] else "MISSED"
        yield f"{target['claim']:<44}{target['ratio']:>6.2f}  >= {target['target']}: {verdict}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=600)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[], help="of the peers; ours always")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    always = {OURS, HINTED, MEMMAP}
    names = [n for n in PEERS if not options.only or n in always or n in options.only]
    found = measure(names, options.megabytes, options.pairs)
    known = ("h5py", "pylance", "litdata", "webdataset", "datasets", "zarr", "tensorstore", "zarrs",
             "pyarrow", "safetensors", "numpy")  # fmt: skip
    found["versions"] = {name: version(name) for name in known}
    found["machine"] = f"{os.cpu_count()} x {platform.machine()}, {platform.python_version()}"
    print(json.dumps(found) if options.json else "\n".join(lines(found)))


if __name__ == "__main__":
    main()
