"""Every benchmark, one after the other, each into a JSON file that docs/make_benchmarks.py reads.

    python tests/benchmarks/all.py [NAME ...] [--quick] [--out docs/bench]

A file says what was typed, what it found, and where: machine, the share of it that was at other
work, versions, commit, and whether files of the repository had changed since (`+`). `--quick`
measures less of all, minutes instead of hours.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "docs" / "bench"
RUNS: dict[str, tuple[list[str], list[str]]] = {  # options in full, and quick
    "midi_reader": ([], ["--pairs", "3"]),
    "midi_tokens": ([], ["--rounds", "3"]),
    "fusions": ([], ["--rounds", "7"]),
    "int8": ([], []),
    "training": ([], ["--rounds", "1"]),
    "frozen_encoder": (["--epochs", "4"], ["--small"]),
    "engine": ([], ["--clips", "2000", "--pairs", "1"]),
    "storage": ([], ["--megabytes", "60", "--pairs", "2"]),
    "scale": ([], ["--most", "1e5"]),
    "encoders": ([], ["--pairs", "1", "--light-clips", "60", "--only", "lhotse", "librosa"]),
    "encoders_cost": (
        ["--cost", "--pairs", "1", "--clips", "8"],
        ["--cost", "--pairs", "1", "--clips", "2", "--light-clips", "60"],
    ),
}
PEERS = {  # whose versions matter
    "midi_reader": ("pretty_midi", "symusic"),
    "midi_tokens": ("miditok", "symusic", "pretty_midi"),
    "storage": ("h5py", "pylance", "litdata", "webdataset", "datasets", "zarr", "tensorstore",
                "zarrs", "pyarrow", "safetensors"),
    "encoders": ("transformers", "datasets", "lhotse", "librosa", "onnxruntime"),
}  # fmt: skip
ALWAYS = ("mmfuse", "numpy", "torch", "numba")


def machine() -> dict[str, Any]:
    """What computes here."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else ():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions(name: str) -> dict[str, str]:
    """Of Python, of what mmfuse computes with, and of the peers."""
    found = {"python": platform.python_version()}
    for package in (*ALWAYS, *PEERS.get(name, ())):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "-"
    return found


def commit() -> str:
    """The commit, with a `+` where files have changed since; "-" outside of a repository."""
    said = []
    for line in (["rev-parse", "--short=10", "HEAD"], ["status", "--porcelain", "-uno"]):
        git = ["git", "-C", str(HERE), *line]
        done = subprocess.run(git, capture_output=True, text=True, check=False)
        said.append(done.stdout.strip())
    changed = [line for line in said[1].splitlines() if "docs/" not in line]
    return f"{said[0] or '-'}{'+' if changed else ''}"


def busy() -> float:
    """Seconds of work that all processors have done since the start; 0 where nothing tells."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return 0.0
    user, nice, system, _, _, irq, soft, steal, *_ = map(int, stat.read_text().split()[1:10])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def measured(name: str, options: list[str]) -> dict[str, Any]:
    """One benchmark, in a process of its own."""
    began, busy_s, own_s = time.monotonic(), busy(), sum(os.times()[2:4])
    script = f"{name.removesuffix('_cost')}.py"
    line = [sys.executable, str(HERE / script), *options, "--json"]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed with {done.returncode}")
    seconds = time.monotonic() - began
    others_s = busy() - busy_s - (sum(os.times()[2:4]) - own_s)
    return {
        "benchmark": name,
        "command": " ".join(["python", f"tests/benchmarks/{script}", *options]),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "seconds": round(seconds),
        "others": round(max(others_s, 0) / (seconds * (os.cpu_count() or 1)), 2),
        "machine": machine(),
        "versions": versions(name),
        "found": json.loads(done.stdout.strip().splitlines()[-1]),
    }


def main() -> None:
    """Measure what was named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*RUNS, []], metavar="NAME")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names or RUNS:
        full, quick = RUNS[name]
        found = measured(name, quick if options.quick else full)
        path = options.out / f"{name}.json"
        path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"{path}: {found['seconds']} s, {found['others']:.0%} of the machine at other work")


if __name__ == "__main__":
    main()
