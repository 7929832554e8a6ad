"""What int8 costs: error of log-mel and wav2vec2 frames, and time to read them as float32.

    python tests/benchmarks/int8.py [CORPUS] [--clips 2] [--json]

Errors are |kept - made| / |made| over all frames, and of the worst channel, of the encoder's own
float32. wav2vec2 is wav2vec2-base with seeded random weights. CORPUS is lieder8 if it lies beside
the project, else `mmfeat sample`. Reading is a batch of 32 clips of 316 rows of 768, warm, medians
of pairs.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmfuse.features.audio import read_audio
from mmfuse.features.config import AudioPreprocessing
from mmfuse.features.corpus import open_corpus
from mmfuse.features.encoders import build_encoder, cut
from mmfuse.features.int8 import dequantise, quantise, scales_spec, values_spec
from mmfuse.features.spec import Entry, StreamSpec
from mmfuse.features.store import open_store
from mmfuse.features.writer import StoreWriter
from mmfuse.pipeline.sample import write_sample

LIEDER8 = Path(__file__).parents[3] / "shared" / "data" / "lieder8"
ENCODERS = {
    "log-mel": AudioPreprocessing(),
    "wav2vec2-base, last": AudioPreprocessing(encoder="wav2vec2", model="wav2vec2-base",
                                              random_weights=0),
    "wav2vec2-base, layer 6": AudioPreprocessing(encoder="wav2vec2", model="wav2vec2-base",
                                                 random_weights=0, layers="6"),
}  # fmt: skip


def frames_of(corpus: Path, config: AudioPreprocessing, clips: int) -> Iterator[Any]:
    """(T, F) float32 of each clip."""
    encoder, left = build_encoder(config), clips
    (spec,) = encoder.specs
    for clip in open_corpus(corpus).clips():
        if clip.audio is not None and left:
            left -= 1
            windows = cut(encoder, read_audio(clip.audio.read()))
            yield np.concatenate([encoder.encode(w.samples_N[None])[spec.name][0] for w in windows])


def errors(corpus: Path, clips: int) -> dict[str, Any]:
    """Relative errors of int8 and of float16 by encoder."""
    found = {}
    for name, config in ENCODERS.items():
        made = list(frames_of(corpus, config, clips))
        kept = []
        for values in made:
            stored, scales = quantise(values)
            kept.append(np.empty_like(values))
            dequantise(stored, scales, kept[-1])
        made_TF, kept_TF = np.concatenate(made).astype(np.float64), np.concatenate(kept)
        half_TF = np.concatenate(made).astype(np.float16)
        size_F = np.linalg.norm(made_TF, axis=0)
        found[name] = {
            "frames": len(made_TF),
            "int8": _relative(kept_TF, made_TF),
            "int8_worst_channel": float((np.linalg.norm(kept_TF - made_TF, axis=0) / size_F).max()),
            "float16": _relative(half_TF, made_TF),
        }
    return found


def _relative(kept: Any, made: Any) -> float:
    return float(np.linalg.norm(kept - made) / np.linalg.norm(made))


def reading(pairs: int = 50) -> dict[str, float]:
    """Milliseconds of a batch as float32: float16 and a cast by torch, int8 and its scales."""
    import torch

    spec, rng = StreamSpec("f", "audio", (768,), "float16"), np.random.default_rng(0)
    values = values_spec(spec)
    with tempfile.TemporaryDirectory() as folder:
        with StoreWriter(Path(folder) / "s.zarr") as writer:
            for number in range(128):
                rows, content = rng.standard_normal((316, 768), np.float32), bytes(32)
                stored, scales = quantise(rows)
                half = StreamSpec("half", "audio", (768,), "float16")
                writer.stream(half).append(f"{number}", content, Entry(rows.astype(np.float16)))
                writer.stream(values).append(f"{number}", content, Entry(stored))
                writer.stream(scales_spec(values)).append(f"{number}", content, Entry(scales))
        store = open_store(Path(folder) / "s.zarr")
        half_TF = np.empty((32 * 316, 768), np.float16)
        wide_TF = np.empty((32 * 316, 768), np.float32)
        wide = torch.from_numpy(wide_TF)

        def by_half(pick: Any) -> None:
            store["half"].gather(pick, half_TF)
            wide.copy_(torch.from_numpy(half_TF))

        jobs: dict[str, Callable[[Any], Any]] = {
            "float16": by_half,
            "int8": lambda pick: store["f"].gather(pick, wide_TF),
        }
        took: dict[str, list[float]] = {name: [] for name in jobs}
        for number in range(pairs + 3):
            pick = rng.integers(128, size=32)
            for name, job in jobs.items():
                began = time.perf_counter()
                job(pick)
                if number >= 3:
                    took[name].append(1e3 * (time.perf_counter() - began))
    return {name: round(statistics.median(seconds), 3) for name, seconds in took.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", nargs="?", type=Path, default=LIEDER8)
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus = options.corpus
        if not corpus.exists():
            corpus = Path(folder) / "sample"
            write_sample(corpus, clips=48, seed=0)
        found = {"errors": errors(corpus, options.clips), "milliseconds": reading()}
    if options.json:
        print(json.dumps(found))
        return
    for name, row in found["errors"].items():
        print(
            f"{name:<24}{row['frames']:>7} frames: int8 {row['int8']:.2%}, worst channel "
            f"{row['int8_worst_channel']:.2%}; float16 {row['float16']:.3%}"
        )
    print(f"32 clips as float32, ms: {found['milliseconds']}")


if __name__ == "__main__":
    main()
