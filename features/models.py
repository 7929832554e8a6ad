"""Pretrained models on this machine: found, and refused before anything of them is run.

Conventions: a model is a folder with `config.json` and safetensors, named by its path, or by a hub
id with `@revision` that lies in the local cache already. Nothing is fetched. Refused are types that
are not on the encoder's list, models that bring code of their own, and weights that are pickles.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmfuse.features.errors import ConfigError, MissingError

_MAX_CONFIG_BYTES = 2**20
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.ckpt")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model's folder, what `config.json` says, and its weights by file name -> sha256."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    weights: Mapping[str, str]


def find_model(name: str, allowed: Collection[str], *, weights: bool = True) -> ModelFiles:
    """Find a model and refuse what must not be loaded; no weight is looked into.

    Args:
        name: folder, or hub id with `@revision`.
        allowed: model types (`model_type` in config.json) that the encoder knows.
        weights: whether weights are wanted; without, only the configuration is read.

    Raises:
        MissingError: no such folder, nothing in the cache, or no weights.
        ConfigError: another type, code of its own, or weights as pickles.
    """
    folder = Path(name)
    if not folder.is_dir():
        folder = _cached(name)
    config = _config(folder, name)
    kind = config.get("model_type")
    if "auto_map" in config:
        raise ConfigError(
            f"model {name} brings code of its own ({kind}, auto_map), which mmfuse never runs; "
            f"choose one of the types {', '.join(sorted(allowed))}"
        )
    if kind not in allowed:
        raise ConfigError(
            f"model {name} is of type {kind!r}; this encoder takes {', '.join(sorted(allowed))}"
        )
    return ModelFiles(name, folder, config, _weights(folder, name) if weights else {})


def _cached(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    model_id, _, revision = name.partition("@")
    fetch = f"hf download {model_id}" + (f" --revision {revision}" if revision else "")
    try:
        return Path(snapshot_download(model_id, revision=revision or None, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        raise MissingError(
            f"no model {name}: no such folder, and not in the local cache; fetch it with: {fetch}"
        ) from None


def _config(folder: Path, name: str) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ConfigError(f"model {name}: config.json is larger than 1 MiB")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {name}: can't read config.json ({error})") from None
    if not isinstance(config, dict):
        raise ConfigError(f"model {name}: config.json is no object")
    return config


def _weights(folder: Path, name: str) -> dict[str, str]:
    """sha256 of each safetensors file: the one, or those that the index names."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"model {name}: {index.name} is damaged ({error})") from None
        if any(not isinstance(part, str) or Path(part).name != part for part in named):
            raise ConfigError(f"model {name}: {index.name} names files outside the folder")
    else:
        named = ["model.safetensors"]
    missing = [part for part in named if not (folder / part).is_file()]
    if missing and any((folder / pickle).is_file() for pickle in _PICKLES):
        raise ConfigError(
            f"model {name} has its weights as pickles, which can run code; save it as safetensors "
            "first: AutoModel.from_pretrained(...).save_pretrained(FOLDER), where you trust it"
        )
    if missing:
        raise MissingError(f"model {name} has no {missing[0]} in {folder}; fetch it whole")
    return {part: _sha256(folder / part) for part in named}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
