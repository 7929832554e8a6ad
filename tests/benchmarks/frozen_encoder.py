"""What it saves to store a frozen encoder's features: the same fusion of text and wav2vec2, trained
from hidden states in the store and from a model that runs in every epoch.

Weights are random: they change no speed. Hidden states are compared as mmfeat stores them, float16,
and once more written as float32, where the two ways see the same numbers. Without modality dropout:
a model that runs leaves out clips whose audio is hidden, and dropout then draws for fewer frames.
Processor time, one thread.

.venv/bin/python tests/benchmarks/frozen_encoder.py [--clips 36] [--small] [--epochs 3] [--json]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, Wav2Vec2FeatureExtractor

from mmfuse.features.spec import Entry
from mmfuse.features.store import open_store
from mmfuse.features.writer import StoreWriter
from mmfuse.trainer.config import RunConfig, load_run_config
from mmfuse.trainer.dataset import Dataset
from mmfuse.trainer.load import load_dataset
from mmfuse.trainer.loop import fit, predict, reproducible
from mmfuse.trainer.run import build_model

MMFEAT = Path(sys.executable).with_name("mmfeat")
SMALL = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128,
    "conv_dim": [32] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
CONFIG = """
name = "frozen"
[data]
corpus = "{corpus}"
store = "{store}"
[preprocessing.text]
[preprocessing.audio]
encoder = "{stream}"
model = "{model}"
random_weights = 0
layers = "{layers}"
duration_s = 30.0
threads = 1
[model.text_encoder]
type = "text"
[model.audio_encoder]
type = "wav2vec2"
source = "{source}"
pretrained_model = "{model}"
layers = {layers_read}
{seed}
[model.fusion]
type = "late"
[train]
epochs = {epochs}
batch_size = 8
crop_s = 0
modality_dropout = 0
patience = 99
threads = 1
"""


def configured(folder: Path, source: str, options: argparse.Namespace, model: str) -> Path:
    """A run's TOML, and the streams it reads made by `mmfeat`."""
    picked = (0, 1, 2) if options.small else (0, 6, 12)
    text = CONFIG.format(
        corpus=folder / "corpus", store=folder / "s.zarr", model=model, epochs=options.epochs,
        stream="wav2vec2" if source == "stored" else "waveform", source=source,
        layers=",".join(map(str, picked)), layers_read=list(picked),
        seed="random_weights = 0" if source == "waveform" else "",
    )  # fmt: skip
    path = folder / f"{source}.toml"
    path.write_text(text)
    subprocess.run([MMFEAT, "run", path, "--quiet"], check=True)
    return path


def in_float32(folder: Path, stored: Dataset, running: Dataset, config: RunConfig) -> Dataset:
    """The dataset of stored layers, with what the running model says in float32."""
    encoder = build_model(config, running).encoders["audio"].eval()
    with StoreWriter(folder / "float32.zarr") as writer:
        streams = [
            writer.stream(replace(one.spec, dtype="float32")) for one in stored.layers["audio"]
        ]
        for n in np.flatnonzero(running.rows["audio"]).tolist():
            with torch.inference_mode():
                hidden_TLE = encoder._hidden(running.batch(np.array([n])).x["audio"])[0]
            for layer, stream in enumerate(streams):
                rows = hidden_TLE[:, layer].numpy().copy()
                entry = Entry(rows, windows=((Fraction(0), len(rows)),))
                stream.append(running.ids[n], n.to_bytes(32, "little"), entry)
    store = open_store(folder / "float32.zarr")
    layers = [store[replace(one.spec, dtype="float32").key] for one in stored.layers["audio"]]
    labels = [stored.task.classes[c] for c in stored.label]
    return Dataset(stored.ids, stored.split.tolist(), labels, stored.streams | {"audio": layers})


def trained(data: Dataset, config: RunConfig) -> dict[str, Any]:
    """Processor seconds of an epoch after the first, validation scores, and what the model says."""
    at: list[float] = []
    with reproducible(0, 1):
        model = build_model(config, data)
        result = fit(model, data, config.train, lambda record: at.append(time.process_time()))
        said = predict(model, data, data.clips_of("validation"))
    return {
        "seconds": float(np.median(np.diff(at))),
        "scores": [record["val_macro_f1"] for record in result.records],
        "losses": [record["val_loss"] for record in result.records],
        "said": said,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=36)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="not wav2vec2-base but a tiny one")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), "wav2vec2-base"
        subprocess.run(
            [MMFEAT, "sample", folder / "corpus", "--clips", str(options.clips)],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        if options.small:
            model = str(folder / "small")
            AutoConfig.for_model("wav2vec2", **SMALL).save_pretrained(model)
            Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(model)
        configs, datasets = {}, {}
        for source in ("stored", "waveform"):
            path = configured(folder, source, options, model)
            configs[source] = load_run_config(path)
            datasets[source] = load_dataset(configs[source], path)[0]
        exact = in_float32(folder, datasets["stored"], datasets["waveform"], configs["waveform"])
        found = {
            "every epoch": trained(datasets["waveform"], configs["waveform"]),
            "stored, float16": trained(datasets["stored"], configs["stored"]),
            "stored, float32": trained(exact, configs["stored"]),
        }
    truth = found["every epoch"]
    report = {
        way: {
            "cpu_s_per_epoch": round(of["seconds"], 3),
            "times_faster": round(truth["seconds"] / of["seconds"], 1),
            "macro_f1_each_epoch": [round(score, 4) for score in of["scores"]],
            "loss_off_by": float(np.abs(np.subtract(of["losses"], truth["losses"])).max()),
            "probabilities_off_by": float(np.abs(of["said"] - truth["said"]).max()),
        }
        for way, of in found.items()
    }
    encoder = "small wav2vec2" if options.small else "wav2vec2-base"
    print_it = {"encoder": f"{encoder}, random weights, frozen", "clips": options.clips} | report
    if options.json:
        print(json.dumps(print_it))
        return
    for key, value in print_it.items():
        sys.stdout.write(f"{key}: {value}\n")


if __name__ == "__main__":
    main()
