"""What one would write without mmfuse, each as a whole process: `encoders.py` times them.

    python tests/benchmarks/encoder_peers.py JOB FILES OUT [--model DIR] [...]

FILES is a JSON list of paths. The last line on stdout is a JSON object.

- `forward`: the bare model on windows of `--window-s` at `--batch`; files are decoded before the
  clock starts. Windows of one length go together; those that have no company go alone.
- `map`: `datasets.map` in batches of 8 with the model's processor, which pads to the longest.
- `alone`: what a model says of one clip at a time; the truth that the others are held against.
- `lhotse`: `compute_and_store_features`, 80 mels every 20 ms at 16 kHz, `--jobs` processes.
- `librosa`: a loop of load, melspectrogram, power_to_db, save.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RATE_HZ, HOP_S, FRAME_S, MELS = 16_000, 0.02, 0.064, 80
THREADS = 2


def decoded(path: str) -> Any:
    """(N,) float32 mono at 16 kHz, by the libraries that mmfuse uses too."""
    import soundfile
    import soxr

    samples_NC, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    samples_N = samples_NC.mean(axis=1)
    return samples_N if rate_hz == RATE_HZ else soxr.resample(samples_N, rate_hz, RATE_HZ, "VHQ")


def loaded(folder: str) -> tuple[Any, Any]:
    """Model and processor."""
    import torch
    from transformers import AutoModel, Wav2Vec2FeatureExtractor

    torch.set_num_threads(THREADS)
    model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    return model, Wav2Vec2FeatureExtractor.from_pretrained(folder)


def forward(files: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds in the model alone."""
    import torch

    model, processor = loaded(options.model)
    size = round(options.window_s * RATE_HZ)
    windows = []
    for path in files:
        samples_N = decoded(path)
        parts = (samples_N[at : at + size] for at in range(0, len(samples_N), size))
        windows += [part for part in parts if len(part) >= 400]
    groups: dict[int, list[Any]] = defaultdict(list)
    for window_N in windows:
        ready = processor(window_N, sampling_rate=RATE_HZ, return_tensors="pt")
        groups[len(window_N)].append(ready["input_values"])
    with torch.inference_mode():
        model(groups[max(groups)][0])  # warm
        began, busy = time.perf_counter(), time.process_time()
        for group in groups.values():
            for first in range(0, len(group), options.batch):
                found = model(torch.cat(group[first : first + options.batch]))
                found.last_hidden_state.numpy()
        seconds, busy = time.perf_counter() - began, time.process_time() - busy
    return {
        "forward_s": seconds,
        "forward_cpu_s": busy,
        "windows": len(windows),
        "gemm_share": gemm_share(model, groups[max(groups)][0]),
    }


def gemm_share(model: Any, values: Any) -> float:
    """Arithmetic a second of a model's forward over that of one large product of matrices."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:  # not in inference mode
        model(values)
    square = torch.rand(2048, 2048)

    def fastest(job: Callable[[], Any]) -> float:
        took = []
        for _ in range(5):
            began = time.perf_counter()
            job()
            took.append(time.perf_counter() - began)
        return min(took)

    with torch.inference_mode():
        speed = counter.get_total_flops() / fastest(lambda: model(values))
        return round(speed / (2 * 2048**3 / fastest(lambda: square @ square)), 2)


def with_map(files: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Frames of `datasets.map`, padded by eight."""
    import datasets
    import torch

    datasets.disable_progress_bars()
    model, processor = loaded(options.model)
    frames_of = model._get_feat_extract_output_lengths

    def encode(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        samples = [decoded(path) for path in batch["path"]]
        ready = processor(samples, sampling_rate=RATE_HZ, padding=True, return_tensors="pt")
        with torch.inference_mode():
            found = model(**ready).last_hidden_state.numpy()
        counts = [int(frames_of(torch.tensor(len(samples_N)))) for samples_N in samples]
        kept = (rows[:n].astype(np.float16) for rows, n in zip(found, counts, strict=True))
        return {"frames": list(kept)}

    source = datasets.Dataset.from_dict({"path": list(files)})
    began = time.perf_counter()
    made = source.map(
        encode, batched=True, batch_size=8, cache_file_name=str(options.out / "map.arrow")
    )
    seconds = time.perf_counter() - began
    if options.keep:
        for number, frames in enumerate(made.with_format("numpy")["frames"]):
            np.save(options.out / f"{number}.npy", np.stack(list(frames)))
    return {"map_s": seconds}


def alone(files: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Frames of one clip at a time."""
    import torch

    model, processor = loaded(options.model)
    for number, path in enumerate(files):
        ready = processor(decoded(path), sampling_rate=RATE_HZ, return_tensors="pt")
        with torch.inference_mode():
            found = model(**ready).last_hidden_state[0].numpy()
        np.save(options.out / f"{number}.npy", found)
    return {}


def with_lhotse(files: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Its fastest storage: a file of NumPy an utterance."""
    from lhotse import CutSet, Fbank, FbankConfig, NumpyFilesWriter, Recording, RecordingSet

    began = time.perf_counter()
    found = [Recording.from_file(path, recording_id=str(n)) for n, path in enumerate(files)]
    recordings = RecordingSet.from_recordings(found).resample(RATE_HZ)
    settings = FbankConfig(frame_length=FRAME_S, frame_shift=HOP_S, num_filters=MELS)
    made = CutSet.from_manifests(recordings=recordings).compute_and_store_features(
        Fbank(settings),
        options.out / "features",
        num_jobs=options.jobs if len(files) > 1 else 1,
        storage_type=NumpyFilesWriter,
        progress_bar=False,
    )
    made.to_file(options.out / "cuts.jsonl.gz")
    return {"lhotse_s": time.perf_counter() - began, "clips": len(files)}


def with_librosa(files: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """The loop of many a tutorial."""
    import librosa

    began = time.perf_counter()
    for number, path in enumerate(files):
        samples_N, rate_hz = librosa.load(path, sr=RATE_HZ)
        power_MT = librosa.feature.melspectrogram(
            y=samples_N, sr=rate_hz, n_fft=1024, hop_length=320, n_mels=MELS
        )
        np.save(options.out / f"{number}.npy", librosa.power_to_db(power_MT))
    return {"librosa_s": time.perf_counter() - began}


JOBS: dict[str, Callable[[Sequence[str], argparse.Namespace], dict[str, Any]]] = {
    "forward": forward,
    "map": with_map,
    "alone": alone,
    "lhotse": with_lhotse,
    "librosa": with_librosa,
}


def main() -> None:
    """Do one job."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=list(JOBS))
    parser.add_argument("files", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="")
    parser.add_argument("--window-s", type=float, default=5.0)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="write the frames, too")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    print(json.dumps(JOBS[options.job](json.loads(options.files.read_text()), options)))


if __name__ == "__main__":
    main()
