"""What the engine costs: many short clips by one and by several workers, as a ratio.

    python tests/benchmarks/engine.py [--clips 10000] [--workers 2] [--pairs 3] [--json]

Writes one-second WAV files and runs `mmfeat extract --encoder logmel` over them, once with one
worker (in the process itself) and once with several (processes). Prints clips per second of the
whole command, start and all, their ratio, processor seconds, and two shares of the time: in which
a process waited for something to encode, and in which an encoder was at work. One-second clips are
the hard case: nearly all of the time goes to what is paid once a clip. On a machine with other work
the ratio says little; the processor seconds say what several workers would reach without it.
Beside the ratio stands what the machine allows: as many jobs of one process, `--shard i/n`, begun
at once, that share nothing but the machine's memory and disk. All stores must have the same root.
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
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from mmfuse.features.combine import merge
from mmfuse.features.store import open_store

TARGET, IDLE = 1.7, 0.10  # times as fast with two workers; share of the encoder's idle time
RATE_HZ = 16000
PROGRAM = "import sys; from mmfuse.pipeline.cli import main; sys.exit(main())"


def write_corpus(folder: Path, clips: int) -> None:
    """One second of noise a clip, all different."""
    rng = np.random.default_rng(0)
    (folder / "audio").mkdir(parents=True)
    noise = rng.normal(0, 0.1, 4 * RATE_HZ).astype(np.float32)
    with (folder / "manifest.jsonl").open("w") as manifest:
        for number in range(clips):
            start, scale = rng.integers(0, 3 * RATE_HZ), rng.uniform(0.1, 1)
            path = f"audio/{number:06d}.wav"
            soundfile.write(folder / path, scale * noise[start : start + RATE_HZ], RATE_HZ)
            manifest.write(json.dumps({"id": f"{number:06d}", "audio_path": path}) + "\n")


def command(folder: Path, store: Path, *options: str) -> list[str | Path]:
    """Log-mel of the corpus in a folder, into a store."""
    where = ("--corpus", folder / "corpus", "--store", store, "--json")
    return [sys.executable, "-c", PROGRAM, "extract", "--encoder", "logmel", *where, *options]


def run(folder: Path, workers: int) -> tuple[float, float, dict[str, Any]]:
    """Seconds of the command, processor seconds of it and its workers, and what it reports."""
    store = folder / f"{workers}.zarr"
    extract = command(folder, store, "--workers", str(workers))
    before, began = os.times(), time.perf_counter()
    done = subprocess.run(extract, capture_output=True, check=True)
    seconds, after = time.perf_counter() - began, os.times()
    cpu_s = sum(after[2:4]) - sum(before[2:4])
    shutil.rmtree(store)
    return seconds, cpu_s, json.loads(done.stdout)


def run_apart(folder: Path, jobs: int) -> tuple[float, str | None]:
    """Seconds until jobs that share nothing are done, and the root of their stores together."""
    whole = folder / "apart.zarr"
    began = time.perf_counter()
    running = [
        subprocess.Popen(command(folder, whole, "--shard", f"{i}/{jobs}"), stdout=subprocess.PIPE)
        for i in range(jobs)
    ]
    for job in running:
        job.communicate()
        assert job.returncode == 0
    seconds = time.perf_counter() - began
    merge(whole, sorted(folder.glob(f"{whole.name}.*")))
    root = open_store(whole).root
    for store in folder.glob(f"{whole.name}*"):
        shutil.rmtree(store)
    return seconds, root


def measure(clips: int, workers: int, pairs: int) -> dict[str, Any]:
    """Medians of runs of all kinds in turn, after a small one that fills the system's caches."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "small" / "corpus", 64)
        run(folder / "small", 1)
        write_corpus(folder / "corpus", clips)
        found = []
        for _ in range(pairs):
            one_s, one_cpu_s, one = run(folder, 1)
            many_s, many_cpu_s, many = run(folder, workers)
            apart_s, root = run_apart(folder, workers)
            assert one["root"] == many["root"] == root
            found.append((one_s, many_s, apart_s, one_s / many_s, one_s / apart_s))
        one_s, many_s, apart_s, ratio, limit = map(statistics.median, zip(*found, strict=True))
        return {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "clips": clips,
            "workers": workers,
            "pairs": pairs,
            "one_clips_per_s": round(clips / one_s, 1),
            "many_clips_per_s": round(clips / many_s, 1),
            "apart_clips_per_s": round(clips / apart_s, 1),
            "ratio": round(ratio, 2),
            "ratio_apart": round(limit, 2),
            "one_cpu_s": round(one_cpu_s, 2),
            "many_cpu_s": round(many_cpu_s, 2),
            "encode_share_one": round(one["stage_s"]["encode"] / one["seconds"], 3),
            "wait_share_one": round(one["stage_s"]["wait"] / one["seconds"], 3),
            "wait_share_many": round(many["stage_s"]["wait"] / many["seconds"] / workers, 3),
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--clips", type=int, default=10000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.clips, options.workers, options.pairs)
    if options.json:
        print(json.dumps(found))
        return
    print(f"{found['clips']} clips of one second, log-mel, stores with one root")
    print(f"  1 worker   {found['one_clips_per_s']:8.1f} clips/s")
    print(f"  {found['workers']} workers  {found['many_clips_per_s']:8.1f} clips/s")
    print(f"  {found['workers']} apart    {found['apart_clips_per_s']:8.1f} clips/s")
    print(f"  ratio {found['ratio']:.2f} (target {TARGET} for 2 workers)")
    print(f"  jobs that share nothing: {found['ratio_apart']:.2f}")
    print(f"  processor seconds {found['one_cpu_s']:.1f} and {found['many_cpu_s']:.1f}")
    print(f"  one worker's encoder is at work {found['encode_share_one']:.0%} of the time")
    print(
        f"  a process waits {found['wait_share_one']:.0%} of the time with 1 worker, "
        f"{found['wait_share_many']:.0%} with {found['workers']} (target below {IDLE:.0%})"
    )


if __name__ == "__main__":
    main()
