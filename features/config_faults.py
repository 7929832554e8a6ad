"""What is wrong with a configuration, in words: the key, its value, and the nearest valid name."""

import difflib
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError


def explain(model: type[BaseModel], error: ValidationError) -> str:
    """The first problem in words; the others by number."""
    first, *others = error.errors()
    location = [part for part in first["loc"] if isinstance(part, str)]
    unknown = [location.pop()] if first["type"] == "extra_forbidden" else []
    location = [*_without_tags(model, location), *unknown]
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        names = _fields_at(model, location[:-1])
        near = difflib.get_close_matches(location[-1], names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from: {', '.join(names)}"
        text = f"{key} = {first['input']!r}: no such key; {hint}"
    elif first["type"] == "missing":
        text = f"{key} is missing; add it"
    elif first["type"].startswith("union_tag_"):
        types, tag = _types_at(model, location), first.get("ctx", {}).get("tag")
        near = difflib.get_close_matches(str(tag), types, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from: {', '.join(types)}"
        said = "is missing" if tag is None else f"= {tag!r}: no such type"
        text = f"{key}.type {said}; {hint}"
    else:
        text = f"{key} = {first['input']!r}: {first['msg'].removeprefix('Value error, ')}"
    return text + (f" (and {len(others)} more)" if others else "")


def _without_tags(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    """A place as a person writes it, without the names of a union's members."""
    models, kept = [model], []
    for name in location:
        inside = [c.model_fields[name].annotation for c in models if name in c.model_fields]
        if inside or len(models) == 1:
            kept.append(name)
        models = [m for annotation in inside for m in _models_in(annotation)] or models
    return kept


def _fields_at(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    """Names of the fields of a nested model; unions are searched for the models they hold."""
    return sorted({name for each in _models_at(model, location) for name in each.model_fields})


def _types_at(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    """What `type` may be in a section that is a union of models."""
    fields = [each.model_fields.get("type") for each in _models_at(model, location)]
    return sorted({str(field.default) for field in fields if field is not None})


def _models_at(model: type[BaseModel], location: Sequence[str]) -> list[type[BaseModel]]:
    models = [model]
    for name in location:
        found: list[type[BaseModel]] = []
        for candidate in models:
            if name in candidate.model_fields:
                found += _models_in(candidate.model_fields[name].annotation)
        models = found or models
    return models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in getattr(annotation, "__args__", ()) for m in _models_in(part)]
