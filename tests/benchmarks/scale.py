"""What keeping books costs a clip, from ten thousand clips to ten million.

    python tests/benchmarks/scale.py [--most 10000000] [--plot docs/scale.svg] [--json]

Manifests and stores are simulated (tests/simulated.py): real indexes over sparse shards. Each size
is measured in a process of its own. Microseconds a clip:

    plan      `mmfeat plan`: count the manifest's columns, ids, durations
    check     what `mmfeat run` reads of every row before it begins
    known     open the sidecars of a store of that size and index its ids
    look up   ask it for the clips of a task, 1024 at a time
    commit    stage and commit tasks of 1024 small entries beside those that are there, as often as
              the writer does by itself
    index     the first clip of a stream: read all sidecars, find the id

and, once a store: seconds to open it, milliseconds to write its manifest, megabytes of memory of
the whole process that are no mapped file.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from simulated import PER_SHARD, SPEC, clip_id, simulate_manifest, simulate_store

from mmfuse.features.config import FeatureConfig, validate
from mmfuse.features.corpus import open_corpus
from mmfuse.features.known import Known
from mmfuse.features.manifest import read_manifest, write_manifest
from mmfuse.features.spec import Entry
from mmfuse.features.store import open_store
from mmfuse.features.writer import StoreWriter
from mmfuse.pipeline.plan import make_plan

SIZES = (10**4, 10**5, 10**6, 10**7)
A_CLIP = ("plan", "check", "known", "look up", "commit", "index")
TASKS = 8  # that are committed and looked up


def anonymous_mb() -> float:
    """Memory of this process that is no mapped file."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def measure(folder: Path, clips: int) -> dict[str, Any]:
    """All costs at one size; microseconds a clip but where the name has a unit."""
    manifest, store = folder / "m.parquet", folder / "s.zarr"
    simulate_manifest(manifest, clips)
    (folder / "audio" / "0").mkdir(parents=True)
    (folder / "audio" / "0" / "0.flac").touch()  # a corpus without a single file is refused
    found: dict[str, Any] = {"clips": clips}
    corpus = open_corpus(manifest)
    settings = validate(FeatureConfig, {"preprocessing": {"audio": {}}}, "benchmark")
    with timed(found, "plan", clips):
        make_plan(corpus, folder / "none.zarr", settings)
    with timed(found, "check", clips):
        corpus.check()
    simulate_store(store, clips)
    with timed(found, "open_s", 1e6):
        stream = open_store(store)["simulated"]
    with timed(found, "index", clips):
        _ = stream[clip_id(clips // 2)]
    found["anonymous_mb"] = round(anonymous_mb(), 1)
    document = read_manifest(store)
    with timed(found, "known", clips):
        known = Known(store, SPEC.key, document["streams"][SPEC.key]["shards"])
    tasks = [list(map(clip_id, range(first, first + PER_SHARD))) for first in starts(clips)]
    with timed(found, "look up", TASKS * PER_SHARD):
        assert all(len(known.of(task)) == PER_SHARD for task in tasks)
    with timed(found, "manifest_ms", 1e3):
        write_manifest(store, document)
    commit(store, found)
    return found


def starts(clips: int) -> list[int]:
    """First clips of some tasks, from all over a corpus."""
    return [int(n) for n in np.linspace(0, clips - PER_SHARD, TASKS)]


def commit(store: Path, found: dict[str, Any]) -> None:
    """Tasks of new clips into the store."""
    entry = Entry(np.zeros((1, *SPEC.item), SPEC.dtype))
    writer = StoreWriter(store)
    with timed(found, "commit", TASKS * PER_SHARD):
        writer.open(SPEC, "new")
        for task in range(TASKS):
            staged = writer.stage(SPEC, f"new-{task}")
            for number in range(PER_SHARD):
                staged.append(f"new-{task}-{number}", bytes(32), entry)
            writer.take(SPEC, staged.finish())
        writer.flush()
    writer.close(finish=False)


class timed:
    """Notes how long a block took, divided by `count`, in microseconds."""

    def __init__(self, found: dict[str, Any], name: str, count: float) -> None:
        self._found, self._name, self._count = found, name, count

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self._began
        self._found[self._name] = round(seconds * 1e6 / self._count, 4)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Cost of a clip over the number of clips, both axes logarithmic."""
    width, height, left, top = 640, 400, 70, 20
    right, bottom = width - 110, height - 50
    tens = range(-1, 4)  # 0.1 to 1000 microseconds

    def x(clips: float) -> float:
        return left + (np.log10(clips) - 4) / 3 * (right - left)

    def y(cost: float) -> float:
        share = (np.log10(max(cost, 0.1)) - tens[0]) / (tens[-1] - tens[0])
        return float(bottom - share * (bottom - top))

    colours = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for ten in tens:
        at = y(10.0**ten)
        parts.append(f'<path d="M{left} {at:.1f}H{right}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{10.0**ten:g}</text>'
        )
    parts += [
        f'<text x="{x(size):.1f}" y="{bottom + 20}" text-anchor="middle">{size:,}</text>'
        for size in SIZES
    ]
    parts.append(f'<text x="{left}" y="{height - 8}">clips in corpus and store</text>')
    parts.append(f'<text x="{left}" y="{top - 6}">microseconds a clip</text>')
    labels = sorted(A_CLIP, key=lambda name: -rows[-1][name])
    below = -np.inf
    for name in labels:
        colour = colours[A_CLIP.index(name)]
        points = " ".join(f"{x(row['clips']):.1f},{y(row[name]):.1f}" for row in rows)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        below = max(y(rows[-1][name]) + 4, below + 14)
        end = x(rows[-1]["clips"]) + 8
        parts.append(f'<text x="{end:.1f}" y="{below:.1f}" fill="{colour}">{name}</text>')
    path.write_text("\n".join([*parts, "</svg>\n"]), encoding="utf-8")


def main() -> None:
    """Measure every size in a process of its own, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--most", type=lambda text: int(float(text)), default=SIZES[-1])
    parser.add_argument("--plot", type=Path, help="SVG file to write")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.one:
        with tempfile.TemporaryDirectory() as name:
            print(json.dumps(measure(Path(name), options.one)))
        return
    rows = []
    for size in (size for size in SIZES if size <= options.most):
        command = [sys.executable, __file__, "--one", str(size)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    if options.plot:
        plot(rows, options.plot)
    if options.json:
        print(json.dumps({"scale": rows}))
        return
    print("microseconds a clip: " + " ".join(f"{name:>9}" for name in A_CLIP), end="")
    print("   open s  manifest ms  memory MB")
    for row in rows:
        costs = " ".join(f"{row[name]:>9.1f}" for name in A_CLIP)
        once = f"{row['open_s']:>8.2f} {row['manifest_ms']:>12.1f} {row['anonymous_mb']:>10.0f}"
        print(f"{row['clips']:>20,} {costs} {once}")


if __name__ == "__main__":
    main()
