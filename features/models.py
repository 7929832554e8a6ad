"""Pretrained models on this machine: found, refused before anything of them is run, and loaded.

Conventions: a model is a folder with `config.json` and safetensors, named by its path, or by a hub
id with `@revision` that lies in the local cache already. Nothing is fetched. Refused are types that
are not on the encoder's list, models that bring code of their own, and weights that are pickles.
transformers fill up weights that a file lacks with random numbers; here such a file is refused.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfuse.features.errors import ConfigError, MissingError

if TYPE_CHECKING:
    import torch

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
    config = _json(folder / "config.json", name)
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


def load_weights(
    kind: Any, files: ModelFiles, config: Any, spare: tuple[str, ...] = ()
) -> "torch.nn.Module":
    """A model with its weights, float32, in eval.

    Args:
        kind: class of transformers that has `from_pretrained`.
        files: what `find_model` found.
        config: the architecture; the folder's is not read again.
        spare: prefixes of weights that the encoder does not use, and that may be missing.

    Raises:
        ConfigError: a weight is missing or of another shape, or the file is damaged.
    """
    import torch
    from transformers.utils import logging

    told = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model, report = kind.from_pretrained(
            files.folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # a library's own for each: shapes, headers, lengths
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"model {files.name}: its weights can't be loaded ({first})") from None
    finally:
        logging.set_verbosity(told)
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(spare))
    if missing:
        raise ConfigError(
            f"model {files.name} lacks {len(missing)} weights of {kind.__name__}, such as "
            f"{missing[0]}; they would be random. Fetch it whole, or save it from that class"
        )
    return model.eval()  # type: ignore[no-any-return]


def seed_weights(
    make: Callable[[Any], "torch.nn.Module"], config: Any, seed: int
) -> "torch.nn.Module":
    """An architecture with random weights, float32, in eval; the global generator is left."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(config).float().eval()


def architecture(config: Any) -> dict[str, Any]:
    """A configuration without what does not change numbers, for a spec's params."""
    idle = ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype")
    kept = {key: value for key, value in config.to_dict().items() if key not in idle}
    return dict(json.loads(json.dumps(kept, sort_keys=True, default=str)))


def read_settings(files: ModelFiles, name: str) -> dict[str, Any]:
    """A small JSON file beside the weights; {} where there is none.

    Raises:
        ConfigError: it is larger than 1 MiB, no JSON, or no object.
    """
    path = files.folder / name
    return _json(path, files.name) if path.is_file() else {}


def sha256_of(path: Path) -> str:
    """sha256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def _json(path: Path, name: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ConfigError(f"model {name}: {path.name} is larger than 1 MiB")
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {name}: can't read {path.name} ({error})") from None
    if not isinstance(document, dict):
        raise ConfigError(f"model {name}: {path.name} is no object")
    return document


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
    return {part: sha256_of(folder / part) for part in named}
