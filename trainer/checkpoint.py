"""Checkpoints of a run in the making: the whole state of training after an optimizer step.

checkpoint/step-<n>.safetensors   every tensor: weights, their average, the best ones, the optimizer
checkpoint/step-<n>.json          all else, and the blake3 of the tensors; written last, by rename

The two newest are kept. One whose files do not agree to the bit does not count: the one before it
takes its place, and a warning says so.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from safetensors.torch import load, save
from torch import Tensor

from mmfuse.features.errors import ConfigError
from mmfuse.features.layout import seal_fault, to_json, to_sealed_json, write_durably
from mmfuse.features.store import FeatureStore
from mmfuse.trainer import distributed
from mmfuse.trainer.config import RunConfig
from mmfuse.trainer.dataset import Dataset

FOLDER = "checkpoint"
REFIT = "refit"  # in it, those of the second training of a run with `train.refit`
FORM = 2  # of what checkpoints hold; one of another form is another run
_KEPT = 2
_SHARE = 50  # a checkpoint may take a fiftieth of the time


class Checkpoints:
    """The checkpoints of one run.

    Args:
        run: folder of the run.
        identity: what has to be the same for a run to go on: settings and data, as nested dicts.
        every_s: seconds between checkpoints; 0 takes one after every step. Where writing is slow it
            is done less often, so that it takes 2 % of the time at most.
        warn: called with one line for each checkpoint that is not as it was written.
    """

    def __init__(
        self, run: Path, identity: Mapping[str, Any], every_s: float, warn: Callable[[str], None]
    ) -> None:
        self.folder, self.identity, self.every_s = run / FOLDER, dict(identity), every_s
        self._warn = warn
        self._last, self._took = time.monotonic(), 0.0

    def due(self) -> bool:
        """Whether it is time for the next one."""
        wait = max(self.every_s, _SHARE * self._took) if self.every_s else 0.0
        return time.monotonic() - self._last >= wait

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write a checkpoint, whole or not at all, then remove those beyond the two newest."""
        began = time.monotonic()
        data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        stem = self.folder / f"step-{step:09}"
        write_durably(stem.with_suffix(".safetensors"), data)
        document = {
            "identity": self.identity,
            "state": dict(state),
            "tensors": blake3(data).hexdigest(),
            "torch": torch.__version__,
        }
        write_durably(stem.with_suffix(".json"), to_sealed_json(document))
        keep = {path.stem for path in self._documents()[:_KEPT]}
        for path in self.folder.iterdir():
            if path.name.partition(".")[0] not in keep:
                path.unlink()
        self._last = time.monotonic()
        self._took = self._last - began

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and state of the newest checkpoint that is whole; None if there is none."""
        documents = self._documents()
        for path in documents:
            try:
                document = _read(path)
                raw = _tensors(path, document)
            except ValueError as error:
                self._warn(f"{error}; looking for an earlier checkpoint")
                continue
            if document["torch"] != torch.__version__:
                self._warn(
                    f"{path} was written by torch {document['torch']}, and this is "
                    f"{torch.__version__}: last digits may differ from those of a run in one piece"
                )
            return load(raw), document["state"]
        if documents:
            self._warn(f"no checkpoint in {self.folder} is whole; the run begins anew")
        return None

    def _documents(self) -> list[Path]:
        return _newest_first(self.folder)


_OVERWRITE = "name another folder with --out DIR, or add --overwrite"


def refuse_another(
    run: Path, identity: Mapping[str, Any], what: str = "run", else_do: str = _OVERWRITE
) -> None:
    """Let nothing but the same run go on in a folder with checkpoints.

    Args:
        run: the folder.
        identity: what has to be the same.
        what: what it is to a person.
        else_do: what to do with another one.

    Raises:
        ConfigError: settings or data differ from those of the unfinished run.
    """
    for path in _newest_first(run / FOLDER):
        try:
            before, now = _flat(_read(path)["identity"]), _flat(identity)
        except ValueError:
            continue
        others = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        if others:
            raise ConfigError(
                f"{run} holds an unfinished {what} with {others[0]} = {before.get(others[0])}, "
                f"and this one has {now.get(others[0])}; bring that one to its end, {else_do}"
            )
        return


def identity_of(config: RunConfig, data: Dataset, store: FeatureStore) -> dict[str, Any]:
    """What makes a run the same run: model, training, clips with labels and splits, and streams."""
    document: dict[str, Any] = {
        "model": config.model.model_dump(mode="json"),
        "train": config.train.model_dump(mode="json", exclude={"checkpoint_s", "imbalance", "log"}),
    }
    clips = [data.ids, data.split.tolist(), data.label.tolist()]
    roots = {
        stream.key: store.manifest["streams"][stream.key]["root"]
        for layers in data.layers.values()
        for stream in layers
    }
    document["train"]["processes"] = distributed.size()
    document["form"] = FORM
    rows = [rows.tolist() for rows in data.rows.values()]
    digests = {"clips": clips, "rows": rows}
    digested = {name: blake3(to_json(value)).hexdigest() for name, value in digests.items()}
    return document | {"data": {"streams": roots} | digested}


def clear(run: Path) -> None:
    """Remove the checkpoints of a run."""
    for folder in (run / FOLDER, run / REFIT / FOLDER):
        if folder.is_dir():
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
    if (run / REFIT).is_dir():
        (run / REFIT).rmdir()


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.json"), reverse=True)


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint's document; ValueError if a bit of it was changed."""
    raw = path.read_bytes()
    fault = seal_fault(raw)
    if fault is not None:
        raise ValueError(f"{path} is damaged: {fault}")
    document: dict[str, Any] = json.loads(raw)
    return document


def _tensors(path: Path, document: Mapping[str, Any]) -> bytes:
    """Its tensors' file; ValueError if it is not the one that was written."""
    file = path.with_suffix(".safetensors")
    raw = file.read_bytes() if file.is_file() else b""
    if blake3(raw).hexdigest() != document["tensors"]:
        raise ValueError(f"{file} is not what was written")
    return raw


def _flat(document: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        inner = isinstance(value, Mapping)
        flat |= _flat(value, f"{above}{key}.") if inner else {f"{above}{key}": value}
    return flat
