"""One run: configuration -> dataset -> model -> fit -> scores, in a folder of its own.

Shapes: N clip, C class.
"""

import json
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mmfuse.features.spec import StreamSpec
from mmfuse.trainer import folder, metrics
from mmfuse.trainer.audio_encoders import MelCNNEncoder
from mmfuse.trainer.config import ModelConfig, RunConfig, load_run_config
from mmfuse.trainer.dataset import Dataset
from mmfuse.trainer.folder import RunFolder, check_free
from mmfuse.trainer.load import load_dataset
from mmfuse.trainer.loop import Record, fit, predict, reproducible, validated
from mmfuse.trainer.model import FusionModel

_PACKAGES = ("mmfuse", "numpy", "torch")
_SCORED = {"val": "validation", "test": "test"}  # name in the result -> split


def train(
    config_path: Path,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    *,
    overwrite: bool = False,
    report: Callable[[RunConfig, Record], None] = lambda config, record: None,
) -> dict[str, Any]:
    """Train and test what a configuration describes.

    Args:
        config_path: run configuration (TOML).
        overrides: `section.key=value` texts.
        out: folder of the run; runs/<name> where it is left out.
        overwrite: replace a finished run.
        report: called with the configuration and one record after each epoch.

    Returns:
        What result.json holds.

    Raises:
        ConfigError: the configuration, the corpus or the folder can't be used, or the loss ran off.
        MissingError: the store lacks a stream; the message ends with the command that makes it.
        LockedError: another process trains into the same folder.
    """
    began = time.monotonic()
    config = load_run_config(config_path, overrides)
    path = out or Path("runs") / config.name
    check_free(path, overwrite=overwrite)
    data, store = load_dataset(config, config_path, overrides)
    with (
        reproducible(config.train.seed, config.train.threads),
        RunFolder(path, overwrite=overwrite) as run,
    ):
        (path / folder.RESOLVED).write_text(to_toml(config), encoding="utf-8")
        model = build_model(config, data)

        def note(record: Record) -> None:
            run.record(record)
            report(config, record)

        fitted = fit(model, data, config.train, note)
        save_model(path / folder.MODEL, model, config, data)
        scores, probabilities_NC = evaluate(model, data, config)
        write_predictions(path / folder.PREDICTIONS, data, probabilities_NC)
        result = {
            **scores,
            "name": config.name,
            "seed": config.train.seed,
            "modalities": list(model.modalities),
            "classes": data.classes,
            "best_epoch": fitted.best_epoch,
            "epochs": len(fitted.records),
            "steps": fitted.steps,
            "interrupted": fitted.interrupted,
            "seconds": round(time.monotonic() - began, 3),
            "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "train_clips": len(data.clips_of("train")),
            "out": str(path),
            "corpus": str(config.data.corpus),
            "store": str(config.data.store),
            "store_root": store.root,
            "streams": {name: stream.key for name, stream in data.streams.items()},
            "versions": {"python": platform.python_version()} | {p: version(p) for p in _PACKAGES},
        }
        run.finish(result)
    return result


def to_toml(config: RunConfig) -> str:
    """The whole configuration, defaults included; reading it gives an equal `RunConfig`."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def build_model(config: RunConfig, data: Dataset) -> FusionModel:
    """The model of a configuration, its inputs standardised by the train split."""
    heads = config.train.unimodal_weight > 0
    model = FusionModel(config.model, data.specs, len(data.classes), unimodal_heads=heads)
    for name, encoder in model.encoders.items():
        if isinstance(encoder, MelCNNEncoder):
            encoder.standardise(*data.moments(name, data.clips_of("train")))
    return model


def save_model(path: Path, model: FusionModel, config: RunConfig, data: Dataset) -> None:
    """Weights as safetensors; its header says what `load_model` needs to build the model."""
    header = {
        "model": config.model.model_dump(mode="json", exclude_none=True),
        "specs": {name: spec.to_json() for name, spec in data.specs.items()},
        "classes": data.classes,
        "unimodal_heads": bool(model.unimodal),
    }
    # one key: safetensors writes several in an order that differs from file to file
    save_file(model.state_dict(), path, metadata={"mmfuse": json.dumps(header)})


def load_model(path: Path) -> tuple[FusionModel, list[str]]:
    """The model that a run left in `path`/model.safetensors, and the names of its classes."""
    file = path / folder.MODEL
    with safe_open(file, framework="pt") as opened:
        header = json.loads(opened.metadata()["mmfuse"])
    specs = {name: StreamSpec.from_json(spec) for name, spec in header["specs"].items()}
    classes = header["classes"]
    model = FusionModel(
        ModelConfig.model_validate(header["model"]),
        specs,
        len(classes),
        unimodal_heads=header["unimodal_heads"],
    )
    model.load_state_dict(load_file(file))
    return model.eval(), classes


def evaluate(
    model: FusionModel, data: Dataset, config: RunConfig
) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """Scores of validation and test, of every subset of the modalities too.

    Returns:
        `val`, `test` and `subsets` of the result; probabilities (N, C) of the validation clips,
        then of the test clips.
    """
    batch_size, resamples = config.eval.batch_size, config.eval.bootstrap
    clips = {name: data.clips_of(split) for name, split in _SCORED.items()}
    found = {name: predict(model, data, rows, None, batch_size) for name, rows in clips.items()}
    scores: dict[str, Any] = {
        name: scored(data, rows, found[name], resamples) for name, rows in clips.items()
    }
    if config.eval.subsets:
        scores["subsets"] = {
            "+".join(kept): {
                name: validated(data, rows, predict(model, data, rows, keep, batch_size))
                for name, rows in clips.items()
            }
            for kept in subsets(model.modalities)
            for keep in [tuple(m in kept for m in model.modalities)]
        }
    return scores, np.concatenate(list(found.values()))


def scored(
    data: Dataset, clips: NDArray[np.int64], probabilities_NC: NDArray[np.float64], resamples: int
) -> dict[str, Any]:
    """Scores of a split with their 95 % intervals, and the confusion (rows are the truth)."""
    truth_N, predicted_N = data.label[clips], probabilities_NC.argmax(axis=1)
    intervals = metrics.bootstrap(truth_N, predicted_N, len(data.classes), resamples)
    return {
        "clips": len(clips),
        **validated(data, clips, probabilities_NC),
        **{f"{name}_95": [interval.low, interval.high] for name, interval in intervals.items()},
        "confusion": metrics.confusion(truth_N, predicted_N, len(data.classes)).tolist(),
    }


def subsets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """Every non-empty subset, the small ones first."""
    return [kept for n in range(1, len(modalities) + 1) for kept in combinations(modalities, n)]


def write_predictions(path: Path, data: Dataset, probabilities_NC: NDArray[np.float64]) -> None:
    """id, split, label, predicted, and p:<class> of each class, of validation and test clips."""
    clips = np.concatenate([data.clips_of(split) for split in _SCORED.values()])
    columns: dict[str, Any] = {
        "id": [data.ids[clip] for clip in clips],
        "split": data.split[clips].tolist(),
        "label": [data.classes[c] for c in data.label[clips]],
        "predicted": [data.classes[c] for c in probabilities_NC.argmax(axis=1)],
    }
    for c, name in enumerate(data.classes):
        columns[f"p:{name}"] = probabilities_NC[:, c]
    pq.write_table(pa.table(columns), path, compression="zstd")
