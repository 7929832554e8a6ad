"""One run: configuration -> dataset -> model -> fit -> scores, in a folder of its own.

Shapes: N clip, K output of the task.
"""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmfuse.features.store import FeatureStore
from mmfuse.trainer import distributed, folder
from mmfuse.trainer.audio_encoders import MelCNNEncoder
from mmfuse.trainer.checkpoint import REFIT, Checkpoints, identity_of, refuse_another
from mmfuse.trainer.compiled import WARNING
from mmfuse.trainer.config import RunConfig, load_run_config
from mmfuse.trainer.dataset import Dataset
from mmfuse.trainer.device import chosen
from mmfuse.trainer.evaluate import SCORED, evaluate
from mmfuse.trainer.folder import RunFolder, check_free
from mmfuse.trainer.gradients import imbalance, summary
from mmfuse.trainer.load import load_dataset
from mmfuse.trainer.loggers import RunLogs
from mmfuse.trainer.loop import fit, reproducible
from mmfuse.trainer.model import FusionModel
from mmfuse.trainer.saved import save_model
from mmfuse.trainer.state import Fit, Record
from mmfuse.trainer.statistics_encoders import NgramBagEncoder, StatisticsEncoder
from mmfuse.trainer.windows import windows_of

_PACKAGES = ("mmfuse", "numpy", "torch")


@dataclass(frozen=True, slots=True)
class Refit:
    """A model of train and validation clips together, the dataset where they are one split."""

    model: FusionModel
    data: Dataset
    fit: Fit


def train(
    config_path: Path,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    *,
    overwrite: bool = False,
    report: Callable[[RunConfig, Record], None] = lambda config, record: None,
    warn: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Train and test what a configuration describes; go on where a killed run of it stood.

    Args:
        config_path: run configuration (TOML).
        overrides: `section.key=value` texts.
        out: folder of the run; runs/<name> where it is left out.
        overwrite: replace a finished run.
        report: called with the configuration and one record after each epoch.
        warn: called with what is not as it should be, one line each.

    Returns:
        What result.json holds; nothing in processes of torchrun but the first, which only train.

    Raises:
        ConfigError: the configuration, the corpus or the folder can't be used, the folder holds an
            unfinished run of something else, or the loss ran off.
        MissingError: the store lacks a stream; the message ends with the command that makes it. Or
            a package that `train.log` names is not installed.
        LockedError: another process trains into the same folder.
    """
    began = time.monotonic()
    config = load_run_config(config_path, overrides)
    path = out or Path("runs") / config.name
    logs = RunLogs(config, warn)
    check_free(path, overwrite=overwrite)
    data, store = load_dataset(config, config_path, overrides)
    device = chosen(config.train.device, config.train.precision)
    data.place(device)
    identity = identity_of(config, data, store)
    if not overwrite:
        refuse_another(path, identity)
        refuse_another(path / REFIT, identity)
    again = Checkpoints(path / REFIT, identity, config.train.checkpoint_s, warn)
    if distributed.rank():
        with (
            reproducible(config.train.seed, config.train.threads, device),
            distributed.joined(device),
        ):
            model = build_model(config, data).to(device)
            distributed.meet()
            checkpoints = Checkpoints(path, identity, config.train.checkpoint_s, warn)
            fitted = fit(
                model, data, config.train, checkpoints=checkpoints, windows=windows_of(config)
            )
            refit(config, data, fitted, again)
        return {}
    with (
        reproducible(config.train.seed, config.train.threads, device),
        distributed.joined(device),
        RunFolder(path, overwrite=overwrite, logs=logs) as run,
    ):
        (path / folder.RESOLVED).write_text(to_toml(config), encoding="utf-8")
        model = build_model(config, data).to(device)
        checkpoints = Checkpoints(path, identity, config.train.checkpoint_s, warn)

        def note(record: Record) -> None:
            run.record(record)
            report(config, record)

        if config.train.compile:
            warn(WARNING)
        distributed.meet()  # now nobody finds a checkpoint that was cleared
        fitted = fit(model, data, config.train, note, checkpoints, windows_of(config))
        refitted = refit(config, data, fitted, again, lambda record: report(config, record))
        return conclude(run, model, data, store, config, fitted, began, refitted)


def refit(
    config: RunConfig,
    data: Dataset,
    fitted: Fit,
    checkpoints: Checkpoints | None = None,
    report: Callable[[Record], None] = lambda record: None,
) -> Refit | None:
    """Train anew on train and validation clips, for as many epochs as were best, if asked to.

    First weights and rates are those of the first training. None where `train.refit` is off, or
    Ctrl-C ended one of the two: then the first model is what there is.

    Source: Goodfellow, Bengio & Courville, Deep Learning, 2016, algorithm 7.2.
    """
    if not config.train.refit or fitted.interrupted:
        return None
    everything = data.joined()
    torch.manual_seed(config.train.seed)
    model = build_model(config, everything).to(data.device)
    again = fit(model, everything, config.train, report, checkpoints, epochs=fitted.best_epoch)
    fitted.interrupted = again.interrupted
    return None if again.interrupted else Refit(model, everything, again)


def conclude(
    run: RunFolder,
    model: FusionModel,
    data: Dataset,
    store: FeatureStore,
    config: RunConfig,
    fitted: Fit,
    began: float,
    refitted: Refit | None = None,
) -> dict[str, Any]:
    """Save and score a model that was fitted, and finish its folder; what result.json holds.

    `began` is when the run did, of `time.monotonic`. A model that was trained anew is the one that
    is saved, and tested; scores of validation, and the temperature, are of the first one.
    """
    path = run.path
    if refitted is None:
        save_model(path / folder.MODEL, model, config, data, store)
        scores, said_NK = evaluate(model, data, config)
    else:
        save_model(path / folder.MODEL, refitted.model, config, refitted.data, store)
        scores, said_NK = evaluate(model, data, config, {"val": SCORED["val"]})
        heat = scores.get("calibration", {}).get("temperature")
        tested, said_test_NK = evaluate(
            refitted.model, refitted.data, config, {"test": SCORED["test"]}, temperature=heat
        )
        scores, said_NK = joined(scores, tested), np.concatenate([said_NK, said_test_NK])
    write_predictions(path / folder.PREDICTIONS, data, said_NK)
    result = {
        **scores,
        "name": config.name,
        "task": data.task.name,
        "device": str(data.device),
        "seed": config.train.seed,
        "modalities": list(model.modalities),
        "classes": data.classes,
        "best_epoch": fitted.best_epoch,
        "epochs": len(fitted.records),
        "steps": fitted.steps,
        "interrupted": fitted.interrupted,
        "resumed_at": fitted.resumed_at,
        **({"compiled": fitted.compiled} if fitted.compiled else {}),
        **({"refit": _told(refitted)} if refitted else {}),
        "gradients": summary(last := fitted.records[-1] if fitted.records else {}),
        "imbalance": imbalance(last, config.train.imbalance),
        "seconds": round(time.monotonic() - began, 3),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "train_clips": len(data.clips_of("train")),
        "out": str(path),
        "corpus": str(config.data.corpus),
        "store": str(config.data.store),
        "store_root": store.root,
        "streams": data.keys,
        "versions": {"python": platform.python_version()} | {p: version(p) for p in _PACKAGES},
    }
    run.finish(result)
    return result


def _told(refitted: Refit) -> dict[str, Any]:
    return {
        "epochs": refitted.fit.best_epoch,
        "steps": refitted.fit.steps,
        "train_clips": len(refitted.data.clips_of("train")),
        "train_loss": refitted.fit.records[-1]["train_loss"],
        "resumed_at": refitted.fit.resumed_at,
    }


def joined(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Two documents in one; of what both have, mappings are joined, else the other's counts."""
    both = {
        key: joined(one[key], other[key])
        for key in one.keys() & other.keys()
        if isinstance(one[key], Mapping) and isinstance(other[key], Mapping)
    }
    return {**one, **other, **both}


def to_toml(config: RunConfig) -> str:
    """The whole configuration, defaults included; reading it gives an equal `RunConfig`."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def build_model(config: RunConfig, data: Dataset) -> FusionModel:
    """The model of a configuration, its inputs standardised by the train split."""
    taught = config.train.unimodal_weight > 0
    watched = getattr(config.train.balance, "type", config.train.balance) == "ogm_ge"
    model = FusionModel(
        config.model,
        data.specs,
        data.task.outputs,
        unimodal_heads=taught or watched,
        detached=not taught,
    )
    train = data.clips_of("train")
    for name, encoder in model.encoders.items():
        if isinstance(encoder, MelCNNEncoder | StatisticsEncoder):
            encoder.standardise(*data.moments(name, train))
        elif isinstance(encoder, NgramBagEncoder):
            encoder.weigh(_shares(encoder, data, name, train))
    return model


def _shares(encoder: NgramBagEncoder, data: Dataset, name: str, clips: NDArray[np.int64]) -> Tensor:
    """Share of the clips with the modality that have each bucket's n-grams, (buckets,)."""
    having_F, count = torch.zeros(encoder.buckets), 0
    for entry in data.entry[name][clips]:
        if entry >= 0 and data.streams[name].lengths[entry]:
            tokens_T = torch.from_numpy(data.streams[name].at(int(entry)).astype(np.int64))
            having_F += encoder.counts(tokens_T[None], torch.ones(1, len(tokens_T)).bool())[0] > 0
            count += 1
    return having_F / max(count, 1)


def write_predictions(path: Path, data: Dataset, said_NK: NDArray[np.float64]) -> None:
    """id, split, label, predicted, p:<class> of each class, of validation and test clips.

    And their group, where the corpus has groups; a clip without one is a group by itself.
    """
    task, clips = data.task, np.concatenate([data.clips_of(split) for split in SCORED.values()])
    columns: dict[str, Any] = {
        "id": [data.ids[clip] for clip in clips],
        "split": data.split[clips].tolist(),
        "label": [task.label(truth) for truth in data.label[clips]],
        "predicted": [task.verdict(said_K)["predicted"] for said_K in said_NK],
    }
    groups = data.groups_of(clips)
    if groups is not None:
        columns["group"] = groups.tolist()
    for c, name in enumerate(task.classes):
        columns[f"p:{name}"] = said_NK[:, c]
    pq.write_table(pa.table(columns), path, compression="zstd")
