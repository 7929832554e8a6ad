"""A trained model on disk: weights as safetensors, and in their header all that builds the model.

That is `[model]`, the specs of its streams, the task (of classes their names, and how many train
clips each of them had), and the tokenizer behind its text, so that the folder needs neither corpus
nor store.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from mmfuse.features.errors import ConfigError
from mmfuse.features.spec import StreamSpec
from mmfuse.features.store import FeatureStore
from mmfuse.features.text import stored_tokenizer
from mmfuse.trainer import folder
from mmfuse.trainer.config import ModelConfig, RunConfig, load_run_config
from mmfuse.trainer.dataset import Dataset
from mmfuse.trainer.model import FusionModel
from mmfuse.trainer.task import Task
from mmfuse.trainer.tasks import SingleLabel, task_of


@dataclass(frozen=True, slots=True)
class Saved:
    """What the folder of a run, or of an export, holds.

    `specs` has the first stream of each modality in use. `tokenizer` is JSON; None, where no text
    is tokenized or the store did not have it.
    """

    path: Path
    model: FusionModel
    config: RunConfig
    specs: Mapping[str, StreamSpec]
    task: Task
    tokenizer: str | None


def save_model(
    path: Path, model: FusionModel, config: RunConfig, data: Dataset, store: FeatureStore
) -> None:
    """Weights as safetensors; the header says what `load_saved` needs."""
    header: dict[str, Any] = {
        "model": config.model.model_dump(mode="json", exclude_none=True),
        "specs": {name: spec.to_json() for name, spec in data.specs.items()},
        "classes": data.classes,
        "train_clips": list(data.task.counts),
        "unimodal_heads": bool(model.unimodal),
    }
    if data.task.name != "single":
        header["task"] = data.task.to_json()
    if "text" in data.specs and (found := stored_tokenizer(store.path, data.specs["text"])):
        header["tokenizer"] = found
    # one key: safetensors writes several in an order that differs from file to file
    save_file(model.state_dict(), path, metadata={"mmfuse": json.dumps(header)})


def load_model(path: Path) -> tuple[FusionModel, list[str]]:
    """The model that a run left in a folder, in evaluation mode, and the names of its outputs.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    model, header = _read(path)
    return model, header["classes"]


def load_saved(path: Path) -> Saved:
    """The model in a folder with all that it takes to ask it.

    Raises:
        ConfigError: there is no model, or it is damaged or older than this needs.
    """
    model, header = _read(path)
    if "train_clips" not in header:
        raise ConfigError(
            f"{path / folder.MODEL} is of an older mmtrain; train again with: "
            f"mmtrain run {path / folder.RESOLVED} --out {path} --overwrite"
        )
    return Saved(
        path,
        model,
        load_run_config(path / folder.RESOLVED),
        {name: StreamSpec.from_json(spec) for name, spec in header["specs"].items()},
        _task(header),
        header.get("tokenizer"),
    )


def _task(header: Mapping[str, Any]) -> Task:
    if "task" in header:
        return task_of(header["task"])
    return SingleLabel(header["classes"], header.get("train_clips", []))


def _read(path: Path) -> tuple[FusionModel, dict[str, Any]]:
    file = path / folder.MODEL
    if not file.is_file():
        raise ConfigError(
            f"{path} holds no trained model; train one with: mmtrain run CONFIG --out {path}"
        )
    try:
        with safe_open(file, framework="pt") as opened:
            header: dict[str, Any] = json.loads(opened.metadata()["mmfuse"])
        weights = load_file(file)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{file} is not what mmtrain wrote ({error}); train again with --overwrite"
        ) from None
    model = FusionModel(
        ModelConfig.model_validate(header["model"]),
        {name: StreamSpec.from_json(spec) for name, spec in header["specs"].items()},
        _task(header).outputs,
        unimodal_heads=header["unimodal_heads"],
    )
    model.load_state_dict(weights)
    return model.eval(), header
