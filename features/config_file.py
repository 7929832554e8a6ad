"""The file of a run configuration, and what `--set` changes in it; faults become one line."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mmfuse.features.config_faults import fault, other_names, toml_fault, within
from mmfuse.features.errors import ConfigError

MAX_CONFIG_BYTES = 2**20
SHIPPED = Path(__file__).parents[1] / "configs"  # in the repository, and in the wheel
Config = TypeVar("Config", bound=BaseModel)


def read_toml(path: Path, model: type[BaseModel], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A TOML document with `section.key=value` overrides applied; values are TOML, or else text.

    `configs/NAME.toml`, where there is no such file, is the one that comes with mmfuse. `model` is
    what `read_overrides` takes.

    Raises:
        ConfigError: no such file, not TOML, or an override that is no assignment.
    """
    if path.parent == Path("configs") and not path.exists() and (SHIPPED / path.name).is_file():
        path = SHIPPED / path.name
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path} is larger than 1 MiB; that is no run configuration")
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"can't read configuration {path}: {_reason(path, error)}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{path}: line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8; save the "
            "file as UTF-8"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {toml_fault(str(error), text)}") from None
    read_overrides(document, overrides, model)
    return document


def read_overrides(
    document: dict[str, Any], overrides: Sequence[str], model: type[BaseModel] | None = None
) -> None:
    """Apply `section.key=value` texts to a document in place; the value is TOML, or else text.

    A key takes the place of one that means the same, as far as `model` knows.

    Raises:
        ConfigError: a text is no assignment.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        names = key.strip().split(".")
        if not equals or not all(names):
            raise ConfigError(f"--set {override!r} is no assignment; write --set train.lr=3e-4")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        section = document
        for depth, name in enumerate(names[:-1], start=1):
            value_before = section.get(name)
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                whole, rest = ".".join(names[:depth]), ".".join(names[depth:])
                raise ConfigError(
                    f"--set {override!r}: {whole} = {value_before!r} is a value, not a section; "
                    f"make it one: --set '{whole}={{{rest}={text}}}'"
                )
        for other in other_names(model, names) if model else ():
            section.pop(other, None)
        section[names[-1]] = value


def validate(
    model: type[Config], document: Mapping[str, Any], source: str, overrides: Sequence[str] = ()
) -> Config:
    """Check a document against a section's model.

    Args:
        model: the section's.
        document: what was read.
        source: where from, for messages.
        overrides: what `--set` was given; the one at fault is named.

    Raises:
        ConfigError: one line that names file, key, value and what to write instead.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        key, text = fault(model, error)
        typed = [
            override for override in overrides if within(override.partition("=")[0].strip(), key)
        ]
        source += f" with --set {typed[-1]}" if typed else ""
        raise ConfigError(f"{source}: {text}") from None


def _reason(path: Path, error: OSError) -> str:
    """Why a file can't be read, and which one was probably meant."""
    if path.is_dir():
        return "it is a folder; name a file in it"
    beside = [str(other) for other in path.parent.glob("*.toml")]
    near = difflib.get_close_matches(str(path), beside, n=1)
    ours = ",".join(sorted(file.stem for file in SHIPPED.glob("*.toml")))
    shipped = f"those that come with mmfuse are configs/{{{ours}}}.toml"
    return f"{error.strerror}; {f'did you mean {near[0]}?' if near else shipped}"
