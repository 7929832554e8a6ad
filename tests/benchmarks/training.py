"""How fast training is beside what else one would do; ratios of one process, interleaved.

batches   clips a second into a model: `Dataset.batch`, and a DataLoader over the same store with 0
          and with 2 workers; wall time
step      a step of `fit` with everything on as by default (gathering, modality dropout, gradient
          norms, clipping, average of weights) against a bare PyTorch step of the same batch, held
          ready in memory: fused AdamW that decays matrices, clipping; the two take turns step by
          step; processor time
sweep     16 heads over pooled embeddings side by side against one after the other, one thread;
          processor time
run       `mmtrain run configs/late.toml` from the shell, the store being there; wall time; needs
          --corpus

.venv/bin/python tests/benchmarks/training.py [--only batches step] [--corpus C] [--rounds 3]
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from mmfuse.features.spec import Entry, StreamSpec, Timing
from mmfuse.features.store import open_store
from mmfuse.features.writer import StoreWriter
from mmfuse.trainer.config import ModelConfig, TrainConfig, load_run_config
from mmfuse.trainer.dataset import Dataset
from mmfuse.trainer.load import load_dataset
from mmfuse.trainer.loop import fit, reproducible
from mmfuse.trainer.losses import loss_of
from mmfuse.trainer.model import FusionModel
from mmfuse.trainer.run import build_model
from mmfuse.trainer.stacked import Trainer

ROOT = Path(__file__).resolve().parents[2]
CLIPS, MODELS, BATCH = 2048, 16, 64
HEADS = {"64 wide, 32 clips": (64, 32), "32 wide, 16 clips": (32, 16)}  # width, batch
FRAMES = Timing("frames", Fraction(0), Fraction(1, 50))
POOLED = {
    "text": StreamSpec("text_embedding", "text", (384,), "float32", {}, Timing("none")),
    "audio": StreamSpec("clap", "audio", (512,), "float32", {}, Timing("none")),
}
LONG = {
    "text": StreamSpec("text_embedding", "text", (64,), "float16", {}, Timing("none")),
    "audio": StreamSpec("wav2vec2", "audio", (64,), "float16", {}, FRAMES),
}
TRAIN = TrainConfig(epochs=3, batch_size=32, crop_s=0, threads=1, patience=99)


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
        self.label = data.label.tolist()
        self.streams = data.streams
        self.entry = {name: entries.tolist() for name, entries in data.entry.items()}

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, clip: int) -> dict[str, object]:
        item: dict[str, object] = {"label": self.label[clip]}
        for name, stream in self.streams.items():
            item[name] = torch.from_numpy(stream.at(self.entry[name][clip]).copy()).float()
        return item


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

    def loader(workers: int):
        def run() -> None:
            for _ in DataLoader(
                Items(data), BATCH, shuffle=True, num_workers=workers, collate_fn=collate
            ):
                pass

        return run

    ways = {"mmtrain": ours, "loader 0": loader(0), "loader 2": loader(2)}
    return {name: len(data) / timed(run) for name, run in ways.items()}


def head(data: Dataset, width: int = 64, fusion: str = "late") -> FusionModel:
    """A small fusion over pooled embeddings."""
    config = {
        "text_encoder": {"type": "text_embedding", "hidden_dim": width},
        "audio_encoder": {"type": "clap", "hidden_dim": width},
        "fusion": {"type": fusion, "hidden_dim": width},
    }
    return FusionModel(ModelConfig.model_validate(config), data.specs, 4)


def side_by_side(data: Dataset, width: int, batch: int, fusion: str) -> dict[str, float]:
    """Seconds of 16 seeds one after the other, and as one array."""
    configs = [
        TRAIN.model_copy(update={"seed": seed, "batch_size": batch}) for seed in range(MODELS)
    ]

    def loop() -> None:
        for config in configs:
            with reproducible(config.seed, 1):
                fit(head(data, width, fusion), data, config)

    def stacked() -> None:
        with reproducible(0, 1):
            models, states = [], []
            for config in configs:
                torch.manual_seed(config.seed)
                models.append(head(data, width, fusion))
                states.append(torch.get_rng_state())
            Trainer(models, states, data, configs).fit()

    return {"loop": timed(loop, time.process_time), "stacked": timed(stacked, time.process_time)}


class Between(list):
    """Batches of an epoch; whoever goes through them runs a bare step before each."""

    def __init__(self, rows: list[np.ndarray], bare: Callable[[np.ndarray], None]) -> None:
        super().__init__(rows)
        self.bare, self.pairs = bare, []

    def __getitem__(self, part: slice) -> Iterator[np.ndarray]:
        def each() -> Iterator[np.ndarray]:
            for rows in list.__getitem__(self, part):
                theirs = timed(partial(self.bare, rows), time.process_time)
                began = time.process_time()
                yield rows
                self.pairs.append((time.process_time() - began, theirs))

        return each()


def steps(data: Dataset, build: Callable[[], FusionModel], config: TrainConfig) -> dict[str, float]:
    """Milliseconds of a step of `fit` and of a bare one, medians, and of their ratios."""
    clips, order, passed = data.clips_of("train"), data.order, []
    with reproducible(0, 1):
        model = build().train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in parameters if p.ndim > 1]
        others = {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}
        optimizer = torch.optim.AdamW(
            [{"params": matrices}, others], config.lr, weight_decay=config.weight_decay, fused=True
        )
        ready, rng = {}, np.random.default_rng(0)
        for epoch in range(1, config.epochs + 1):
            for rows in order(clips, config.batch_size, config.seed, epoch):
                batch = copy.deepcopy(data.batch(rows, config.crop_s, rng))
                ready[rows.tobytes()] = batch

        def bare(rows: np.ndarray) -> None:
            batch = ready[rows.tobytes()]
            loss = loss_of(model(batch), batch, batch.present_BM, config)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip)
            optimizer.step()

        def between(*arguments: object) -> Between:
            passed.append(Between(order(*arguments), bare))
            return passed[-1]

        data.order = between
        try:
            fit(build(), data, config)
        finally:
            del data.order
    pairs = [pair for one in passed for pair in one.pairs[1:]]
    return {
        "mmtrain_ms": 1e3 * statistics.median(ours for ours, _ in pairs),
        "bare_ms": 1e3 * statistics.median(theirs for _, theirs in pairs),
        "ratio": statistics.median(ours / theirs for ours, theirs in pairs),
    }


def from_shell(corpus: Path, store: Path, folder: Path) -> dict[str, float]:
    """Wall seconds of a whole run over a corpus, whose store is made before if it is not there."""
    config = ROOT / "configs" / "late.toml"
    tool = Path(sys.executable).with_name
    subprocess.run(
        [tool("mmfeat"), "run", config, "--corpus", corpus, "--store", store, "--quiet"],
        check=True,
    )
    words = [f"data.corpus={corpus}", f"data.store={store}"]
    began = time.perf_counter()
    subprocess.run(
        [tool("mmtrain"), "run", config, "--out", folder / "late", "--quiet"]
        + [word for each in words for word in ("--set", each)],
        check=True,
    )
    result = json.loads((folder / "late" / "result.json").read_text())
    return {
        "wall_s": time.perf_counter() - began,
        "epochs": result["epochs"],
        "test_macro_f1": result["test"]["macro_f1"],
    }


def timed(run: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call."""
    began = clock()
    run()
    return clock() - began


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=["batches", "step", "sweep", "run"])
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--store", type=Path, help="its store, kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, object] = {"torch": torch.__version__, "clips": CLIPS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pooled = write(folder / "pooled.zarr", POOLED, 1)
        if "batches" in options.only:
            long = write(folder / "long.zarr", LONG, 64)
            said = medians([batches(long) for _ in range(options.rounds)])
            found["clips_per_s"] = {way: round(each) for way, each in said.items()}
            for workers in (0, 2):
                found[f"times_loader_{workers}"] = said["mmtrain"] / said[f"loader {workers}"]
        if "step" in options.only:
            for what, (width, size) in HEADS.items():
                config = TRAIN.model_copy(update={"batch_size": size})
                build = partial(head, pooled, width)
                rounds = [steps(pooled, build, config) for _ in range(options.rounds)]
                found[f"step, head {what}"] = medians(rounds)
        if "sweep" in options.only:
            for what, (width, size) in HEADS.items():
                for fusion in ("late", "gated"):
                    rounds = [
                        side_by_side(pooled, width, size, fusion) for _ in range(options.rounds)
                    ]
                    found[f"sweep, {fusion} {what}"] = many = medians(rounds)
                    many["ratio"] = many["loop"] / many["stacked"]
        if options.corpus and {"run", "step"} & set(options.only):
            store = options.store or folder / "corpus.zarr"
            found["run"] = from_shell(options.corpus, store, folder)
            if "step" in options.only:
                path, words = ROOT / "configs" / "late.toml", ("train.epochs=1", "train.threads=1")
                words += (f"data.corpus={options.corpus}", f"data.store={store}")
                config = load_run_config(path, words)
                data = load_dataset(config, path, words)[0]
                found["step, configs/late.toml"] = steps(
                    data, partial(build_model, config, data), config.train
                )
    if options.json:
        print(json.dumps(found))
        return
    for key, value in found.items():
        figures = value.items() if isinstance(value, dict) else [("", value)]
        shown = (f"{n} {v:.4g}" if isinstance(v, float) else f"{n} {v}" for n, v in figures)
        sys.stdout.write(f"{key}: {', '.join(shown)}\n")


if __name__ == "__main__":
    main()
