"""How fast `mmfeat extract` is: beside the bare model, onnxruntime, datasets, lhotse and librosa.

    python tests/benchmarks/encoders.py [--pairs 3] [--clips 40] [--only map onnxruntime] [--json]
    python tests/benchmarks/encoders.py --cost [--json]

Every job is a whole process, started anew, ours and theirs in turn (`encoder_peers.py` has theirs).
Each is run with all clips and with one; "whole" is the ratio of the first, start-up included, and
"steady" that of the differences, where start-up has gone. Reported are medians over pairs, of wall
time, and of processor time in brackets, which says the same on a machine that others use as well.

The clips are those of lieder8 if it lies beside the project, else of `mmfeat sample`. The model is
wav2vec2-base at full size with seeded random weights. `--cost` prints what an hour of audio takes
with each encoder, in seconds and in bytes.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmfuse.features.corpus import open_corpus
from mmfuse.features.store import open_store

LIEDER8 = Path(__file__).parents[3] / "shared" / "data" / "lieder8"
PEERS = Path(__file__).with_name("encoder_peers.py")
MMFEAT = [sys.executable, "-c", "from mmfuse.pipeline.cli import main; main()"]
WINDOW_S = 5  # so that the bare model finds windows of one length to put together
TARGETS = {"forward": 1.10, "map": 1.2, "onnxruntime": 1.2, "lhotse": 1.25, "librosa": 3.0}


@dataclass(frozen=True)
class Took:
    """One process: seconds on the wall and of processors, and what it said last."""

    wall_s: float
    cpu_s: float
    said: dict[str, Any] = field(default_factory=dict)


Job = Callable[[int], Took]


class Bench:
    """Clips and a model in a temporary folder, and jobs on the first so many of them."""

    def __init__(self, root: Path, clips: int) -> None:
        self.root, self.model = root, root / "wav2vec2-base"
        self.files = _copied(root / "clips", clips)
        self._runs = 0
        save_model(self.model)

    def mmfeat(self, *options: str) -> Job:
        """`mmfeat extract` into a new store."""
        return lambda clips: self.stored(clips, *options)[0]

    def stored(self, clips: int, *options: str) -> tuple[Took, Path]:
        """`mmfeat extract`, and the store."""
        store = self._out() / "s.zarr"
        common = ["--corpus", self.files[0].parent, "--store", store, "--limit", clips, "--json"]
        return _run([*MMFEAT, "extract", *map(str, common), "--device", "cpu", *options]), store

    def wav2vec2(self, *options: str) -> tuple[str, ...]:
        """Options of an extraction with the model."""
        return ("--encoder", "wav2vec2", "--model", str(self.model), *options)

    def peer(self, job: str, *options: str) -> Job:
        """A job of `encoder_peers.py`."""
        return lambda clips: self.peer_at(clips, job, *options)[0]

    def peer_at(self, clips: int, job: str, *options: str) -> tuple[Took, Path]:
        """A job of `encoder_peers.py`, and what it wrote."""
        out = self._out()
        names = out / "files.json"
        names.write_text(json.dumps([str(path) for path in self.files[:clips]]))
        fixed = [job, str(names), str(out), "--model", str(self.model)]
        return _run([sys.executable, "-W", "ignore", str(PEERS), *fixed, *options]), out

    def _out(self) -> Path:
        shutil.rmtree(self.root / f"run{self._runs}", ignore_errors=True)
        self._runs += 1
        out = self.root / f"run{self._runs}"
        out.mkdir()
        return out


def _run(command: list[str]) -> Took:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall_s = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Took(wall_s, cpu_s, json.loads(done.stdout.splitlines()[-1]))


def _copied(folder: Path, clips: int) -> list[Path]:
    """Audio of the first clips that have any, with a manifest of their own."""
    source = LIEDER8
    if not source.is_dir():
        from mmfuse.pipeline.sample import write_sample

        source = folder.with_name("sample")
        write_sample(source, clips=-(-clips // 24) * 48, seed=0)
    folder.mkdir(parents=True)
    rows = []
    for clip in open_corpus(source).clips():
        if clip.audio is not None and clip.audio.path is not None and len(rows) < clips:
            name = Path(clip.audio.path).name
            (folder / name).write_bytes(clip.audio.read())
            rows.append({"id": clip.id, "audio_path": name})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [folder / row["audio_path"] for row in rows]


def save_model(folder: Path) -> None:
    """wav2vec2-base with seeded weights."""
    import torch
    from transformers import AutoConfig, AutoModel, Wav2Vec2FeatureExtractor

    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model("wav2vec2")).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)


# -- ratios ----------------------------------------------------------------------------------------


def ratios(over: Job, under: Job, clips: int, pairs: int, key: str = "") -> dict[str, Any]:
    """Medians of over / under. `key` names the seconds that count of what `under` says."""
    rows: dict[str, list[float]] = {}
    for _ in range(pairs):
        found = {
            (name, n): job(n)
            for n in (clips, 1)
            for name, job in (("over", over), ("under", under))
        }
        for unit in ("wall", "cpu"):
            a, a1 = (getattr(found["over", n], f"{unit}_s") for n in (clips, 1))
            said = key.replace("_s", "_cpu_s") if unit == "cpu" else key
            b, b1 = (
                found["under", n].said[said] if key else getattr(found["under", n], f"{unit}_s")
                for n in (clips, 1)
            )
            for name, value in (("whole", a / b), ("steady", (a - a1) / (b - b1))):
                rows.setdefault(f"{name}_{unit}", []).append(value)
            rows.setdefault(f"over_{unit}_s", []).append(a)
            rows.setdefault(f"under_{unit}_s", []).append(b)
    found_rows: dict[str, Any] = {k: round(statistics.median(v), 3) for k, v in rows.items()}
    whole = rows["whole_wall"]
    return found_rows | {"lowest_and_highest": [round(min(whole), 3), round(max(whole), 3)]}


def against_forward(bench: Bench, clips: int, pairs: int) -> dict[str, Any]:
    """Our whole process over the bare model at its best batch; smaller is better."""
    options = ("--window-s", str(WINDOW_S))
    tried = {
        size: bench.peer("forward", *options, "--batch", str(size))(min(clips, 12)).said
        for size in (1, 2, 4)
    }
    best = min(tried, key=lambda size: tried[size]["forward_s"])
    ours = bench.mmfeat(*bench.wav2vec2("--set", f"preprocessing.audio.duration_s={WINDOW_S}"))
    theirs = bench.peer("forward", *options, "--batch", str(best))
    found = ratios(ours, theirs, clips, pairs, "forward_s")
    return found | {
        "forward_s_at_batch": {k: round(said["forward_s"], 2) for k, said in tried.items()},
        "gemm_share": tried[best]["gemm_share"],
    }


def against_map(bench: Bench, clips: int, pairs: int) -> dict[str, Any]:
    """`datasets.map` over ours, and how far both are from one clip at a time."""
    found = ratios(bench.peer("map"), bench.mmfeat(*bench.wav2vec2()), clips, pairs)
    _, alone = bench.peer_at(clips, "alone")
    truth = [np.load(alone / f"{n}.npy") for n in range(clips)]
    _, padded = bench.peer_at(clips, "map", "--keep")
    mapped = [np.load(padded / f"{n}.npy") for n in range(clips)]
    errors = {"datasets.map": _errors(mapped, truth)}
    for backend in ("torch", "onnxruntime"):
        _, store = bench.stored(clips, *bench.wav2vec2("--backend", backend))
        stream = open_store(store)["wav2vec2"]
        ids = [clip.id for clip in open_corpus(bench.files[0].parent).clips()][:clips]
        errors[f"mmfuse, {backend}"] = _errors([stream[clip] for clip in ids], truth)
    return found | {"relative_error": errors}


def _errors(found: list[Any], truth: list[Any]) -> dict[str, float]:
    """|found - truth| / |truth| of each clip: median and worst."""
    off = [
        float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b))
        for a, b in zip(found, truth, strict=True)
    ]
    return {"median": float(f"{statistics.median(off):.2g}"), "worst": float(f"{max(off):.2g}")}


def against_torch(bench: Bench, clips: int, pairs: int) -> dict[str, Any]:
    """Our process with torch over our process with onnxruntime; its graph is in the cache."""
    by_onnx = bench.mmfeat(*bench.wav2vec2("--backend", "onnxruntime"))
    first = by_onnx(1).wall_s
    again = by_onnx(1).wall_s
    found = ratios(bench.mmfeat(*bench.wav2vec2()), by_onnx, clips, pairs)
    return found | {"export_s": round(max(first - again, 0), 1)}


def against_lhotse(bench: Bench, clips: int, pairs: int) -> dict[str, Any]:
    """`compute_and_store_features` in as many processes as there are processors, over ours."""
    jobs = str(os.cpu_count() or 1)
    return ratios(bench.peer("lhotse", "--jobs", jobs), bench.mmfeat(), clips, pairs)


def against_librosa(bench: Bench, clips: int, pairs: int) -> dict[str, Any]:
    """The loop over ours."""
    return ratios(bench.peer("librosa"), bench.mmfeat(), clips, pairs)


CASES = {
    "forward": (against_forward, "mmfeat extract / bare model at its best batch"),
    "map": (against_map, "datasets.map, padded by 8 / mmfeat extract"),
    "onnxruntime": (against_torch, "--backend torch / --backend onnxruntime"),
    "lhotse": (against_lhotse, "lhotse / mmfeat extract, log-mel"),
    "librosa": (against_librosa, "librosa loop / mmfeat extract, log-mel"),
}
LIGHT = ("lhotse", "librosa")


# -- costs -----------------------------------------------------------------------------------------


def costs(bench: Bench, clips: int, pairs: int) -> dict[str, Any]:
    """Seconds and bytes of an hour of audio, start-up apart."""
    rows = {"logmel": ("--encoder", "logmel"), "waveform": ("--encoder", "waveform")}
    for backend in ("torch", "onnxruntime"):
        for layers in ("last", "all"):
            options = bench.wav2vec2("--backend", backend, "--layers", layers)
            rows[f"wav2vec2-base, {backend}, {layers}"] = options
    found = {}
    for name, options in rows.items():
        light = not name.startswith("wav2vec2")
        many = len(bench.files) if light else clips
        seconds = []
        for _ in range(pairs):
            one, _ = bench.stored(1, *options)
            took, store = bench.stored(many, *options)
            hours = took.said["audio_hours"] - one.said["audio_hours"]
            seconds.append((took.wall_s - one.wall_s) / hours)
        opened = open_store(store)
        size = sum(int(opened[k].lengths.sum()) * s.row_bytes for k, s in opened.specs().items())
        found[name] = {
            "seconds_an_hour": round(statistics.median(seconds), 1),
            "megabytes_an_hour": round(size / 1e6 / took.said["audio_hours"], 1),
        }
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--clips", type=int, default=40, help="of the model")
    parser.add_argument("--light-clips", type=int, default=400, help="of log-mel")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), max(options.clips, options.light_clips))
        found: dict[str, Any] = {"clips": options.clips, "light_clips": len(bench.files)}
        found["machine"] = (
            f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.python_version()}"
        )
        if options.cost:
            found["costs"] = costs(bench, options.clips, options.pairs)
        else:
            for name in options.only:
                case, _ = CASES[name]
                clips = len(bench.files) if name in LIGHT else options.clips
                found[name] = case(bench, clips, options.pairs) | {"target": TARGETS[name]}
                if not options.json:
                    print(_line(name, found[name]), flush=True)
    if options.json:
        print(json.dumps(found))
    elif options.cost:
        for name, cost in found["costs"].items():
            print(f"{name:<34}{cost['seconds_an_hour']:>9} s{cost['megabytes_an_hour']:>9} MB")


def _line(name: str, found: dict[str, Any]) -> str:
    text = (
        f"{CASES[name][1]:<48} whole {found['whole_wall']:.2f} ({found['whole_cpu']:.2f}), "
        f"steady {found['steady_wall']:.2f} ({found['steady_cpu']:.2f}); "
        f"target {'<=' if name == 'forward' else '>='} {found['target']}"
    )
    if "gemm_share" in found:
        text += f"\n  the bare model runs at {found['gemm_share']:.0%} of a large product's speed"
    for kind, error in found.get("relative_error", {}).items():
        text += (
            f"\n  {kind}: off by {error['median']:.2g} in the median, {error['worst']:.2g} at worst"
        )
    return text


if __name__ == "__main__":
    main()
