"""How fast training is beside what else one would do; ratios of one process, interleaved.

batches   clips a second into a model: the dataset in memory, the dataset in the map, and a
          DataLoader over the same store with 0 and with 2 workers
sweep     16 light models side by side against one after the other, one thread
step      a whole step of `fit` against a bare PyTorch step on tensors in memory

.venv/bin/python tests/benchmarks/training.py [--json] [--rounds 5]
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from mmfuse.features.spec import Entry, StreamSpec, Timing
from mmfuse.features.store import open_store
from mmfuse.features.writer import StoreWriter
from mmfuse.trainer.config import ModelConfig, TrainConfig
from mmfuse.trainer.dataset import Dataset
from mmfuse.trainer.loop import fit, reproducible
from mmfuse.trainer.losses import loss_of
from mmfuse.trainer.model import FusionModel, drop_modalities
from mmfuse.trainer.optim import build_optimizer
from mmfuse.trainer.stacked import Trainer

CLIPS, MODELS, BATCH = 2048, 16, 64
FRAMES = Timing("frames", Fraction(0), Fraction(1, 50))
POOLED = {
    "text": StreamSpec("text_embedding", "text", (384,), "float32", {}, Timing("none")),
    "audio": StreamSpec("clap", "audio", (512,), "float32", {}, Timing("none")),
}
LONG = {
    "text": StreamSpec("text_embedding", "text", (64,), "float16", {}, Timing("none")),
    "audio": StreamSpec("wav2vec2", "audio", (64,), "float16", {}, FRAMES),
}
TRAIN = TrainConfig(epochs=3, batch_size=BATCH, crop_s=0, threads=1, patience=99)


def write(folder: Path, specs: dict[str, StreamSpec], rows: int, clips: int = CLIPS) -> Dataset:
    """Clips of `rows` / 2 to `rows` rows (one, if that is 1), with four classes."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, clips)
    with StoreWriter(folder) as writer:
        for spec in specs.values():
            stream = writer.stream(spec)
            for n in range(clips):
                count = int(rng.integers(max(1, rows // 2), rows + 1))
                values = rng.normal(size=(count, *spec.item)) + label[n] / 4
                entry = Entry(values.astype(spec.dtype), windows=((Fraction(0), count),))
                stream.append(f"c{n}", n.to_bytes(32, "little"), entry)
    store = open_store(folder)
    held = clips // 8
    splits = ["train"] * (clips - 2 * held) + ["validation"] * held + ["test"] * held
    streams = {name: store[spec.key] for name, spec in specs.items()}
    ids, names = [f"c{n}" for n in range(clips)], label.astype(str).tolist()
    data = Dataset(ids, splits, names, streams)
    data.batch(np.arange(1))  # reads it into memory, once for all epochs
    return data


class Items(torch.utils.data.Dataset):
    """The same clips, one by one, as a DataLoader wants them."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, clip: int) -> dict[str, object]:
        found = self.data[clip]
        arrays = {name: torch.from_numpy(found[name].copy()).float() for name in self.data.streams}
        return {"label": int(self.data.label[clip]), **arrays}


def collate(items: list[dict[str, object]]) -> dict[str, torch.Tensor]:
    """Padded to the longest, with masks."""
    batch = {"label": torch.tensor([item["label"] for item in items])}
    for name in items[0].keys() - {"label"}:
        arrays = [item[name] for item in items]
        batch[name] = torch.nn.utils.rnn.pad_sequence(arrays, batch_first=True)
        lengths = torch.tensor([len(x) for x in arrays])
        batch[f"{name}_mask"] = torch.arange(batch[name].shape[1]) < lengths[:, None]
    return batch


def batches(data: Dataset) -> dict[str, float]:
    """Clips a second of one epoch, by the way they come."""
    everything = np.arange(len(data))

    def ours() -> None:
        for rows in data.order(everything, BATCH, 0, 1):
            data.batch(rows)

    resident = {name: data.resident(name) for name in data.layers}

    def in_memory() -> None:
        for rows in data.order(everything, BATCH, 0, 1):
            for name, kept in resident.items():
                data.gathered(name, kept, kept.start_VN[0, rows], kept.rows_VN[0, rows])

    def loader(workers: int):
        def run() -> None:
            for _ in DataLoader(
                Items(data), BATCH, shuffle=True, num_workers=workers, collate_fn=collate
            ):
                pass

        return run

    ways = {"memory": in_memory, "batch": ours, "loader 0": loader(0), "loader 2": loader(2)}
    return {name: len(data) / timed(run) for name, run in ways.items()}


def light(data: Dataset, fusion: str = "late") -> FusionModel:
    """A small fusion over pooled embeddings."""
    config = {
        "text_encoder": {"type": "text_embedding", "hidden_dim": 64},
        "audio_encoder": {"type": "clap", "hidden_dim": 64},
        "fusion": {"type": fusion, "hidden_dim": 64},
    }
    return FusionModel(ModelConfig.model_validate(config), data.specs, 4)


def side_by_side(data: Dataset, fusion: str) -> dict[str, float]:
    """Seconds of 16 seeds one after the other, and as one array."""
    configs = [TRAIN.model_copy(update={"seed": seed}) for seed in range(MODELS)]

    def loop() -> None:
        for config in configs:
            with reproducible(config.seed, 1):
                fit(light(data, fusion), data, config)

    def stacked() -> None:
        with reproducible(0, 1):
            models, states = [], []
            for config in configs:
                torch.manual_seed(config.seed)
                models.append(light(data, fusion))
                states.append(torch.get_rng_state())
            Trainer(models, states, data, configs).fit()

    return {"loop": timed(loop), "stacked": timed(stacked)}


def steps(data: Dataset) -> dict[str, float]:
    """Seconds of one epoch's steps: of `fit`, and bare, of the same batches held ready."""
    clips = data.clips_of("train")
    short = TRAIN.model_copy(update={"epochs": 1, "ema": 0.0})
    import copy

    ready = [copy.deepcopy(data.batch(rows)) for rows in data.order(clips, BATCH, 0, 1)]
    validation = data.clips_of("validation")

    def whole() -> None:
        with reproducible(0, 1):
            fit(light(data), data, short)

    def bare() -> None:
        with reproducible(0, 1):
            model = light(data)
            optimizer = build_optimizer(model, short)
            for batch in ready:
                shown_BM = drop_modalities(batch.present_BM, short.modality_dropout)
                loss = loss_of(model(batch, shown_BM), batch, shown_BM, short)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), short.grad_clip)
                optimizer.step()
            model.eval()
            with torch.inference_mode():
                for batch in data.batches(validation, BATCH):
                    model(batch)

    return {"fit": timed(whole), "bare": timed(bare)}


def timed(run) -> float:
    """Seconds of CPU and wall alike: the wall's, of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        long = write(Path(folder) / "long.zarr", LONG, 64)
        pooled = write(Path(folder) / "pooled.zarr", POOLED, 1)
        found: dict[str, object] = {"torch": torch.__version__, "clips": CLIPS}
        said = medians([batches(long) for _ in range(options.rounds)])
        found["clips_per_s"] = said
        found["times_loader_0"] = said["memory"] / said["loader 0"]
        found["times_loader_2"] = said["memory"] / said["loader 2"]
        found["batch_times_loader_0"] = said["batch"] / said["loader 0"]
        found["batch_times_loader_2"] = said["batch"] / said["loader 2"]
        step = medians([steps(pooled) for _ in range(options.rounds)])
        found["fit_over_bare"] = step["fit"] / step["bare"]
        for fusion in ("late", "gated"):
            many = medians([side_by_side(pooled, fusion) for _ in range(options.rounds)])
            found[f"sweep_{fusion}"] = many["loop"] / many["stacked"]
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        shown = value if not isinstance(value, float) else f"{value:.2f}"
        sys.stdout.write(f"{name}: {shown}\n")


if __name__ == "__main__":
    main()
