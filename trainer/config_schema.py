"""JSON Schema of the run configuration, for editors: `configs/schema.json` is what this makes.

The comment beside a field is its description, the docstring of a section the section's. What a
schema can't say, how values go together, is said when the file is read.
"""

import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from mmfuse.features import plugins
from mmfuse.features.config import TOKENIZATIONS, MidiPreprocessing
from mmfuse.features.config_faults import models_in, names_of
from mmfuse.trainer.config import MODALITIES, ModelConfig, RunConfig
from mmfuse.trainer.fusion_config import FUSIONS, PluginFusionConfig

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_UNTOLD = {"discriminator", "format"}  # the one is OpenAPI's, the other says "path" of a path


class _Plain(GenerateJsonSchema):
    """Without titles, which repeat names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Never."""
        return False


def run_schema() -> dict[str, Any]:
    """The schema of a run configuration, with the fusions of installed packages."""
    document = RunConfig.model_json_schema(schema_generator=_Plain)
    sections = document["$defs"]
    for model in dict.fromkeys(_models(RunConfig)):
        _describe(sections.get(model.__name__, document), model)
    sections[ModelConfig.__name__]["anyOf"] = [
        {"required": [f"{name}_encoder"]} for name in MODALITIES
    ]
    _name_plugins(sections)
    return {"$schema": DRAFT, "title": "A run of mmfuse", **_tidied(document)}


def _name_plugins(sections: dict[str, Any]) -> None:
    """Let what packages bring have the names of installed ones only."""
    tokenizers = [*TOKENIZATIONS, *sorted(plugins.installed("tokenizer", TOKENIZATIONS))]
    sections[MidiPreprocessing.__name__]["properties"]["tokenization"]["enum"] = tokenizers
    own, names = PluginFusionConfig.__name__, sorted(plugins.installed("fusion", FUSIONS))
    if names:
        for key in ("type", "strategy"):
            sections[own]["properties"][key]["enum"] = names
    else:
        del sections[own]
        sections[ModelConfig.__name__]["properties"]["fusion"]["oneOf"].remove(
            {"$ref": f"#/$defs/{own}"}
        )


def _models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A model and all that stand below it."""
    yield model
    for field in model.model_fields.values():
        for below in models_in(field.annotation):
            yield from _models(below)


def _describe(section: dict[str, Any], model: type[BaseModel]) -> None:
    """Add descriptions and other names; a section of several kinds has to say which it is."""
    properties, comments = section["properties"], comments_of(model)
    section["description"] = about = inspect.cleandoc(model.__doc__ or "")
    for name, field in model.model_fields.items():
        said = comments[name] or (about if name == "type" else "")
        properties[name] |= {"description": said} if said else {}
        own, *others = names_of(name, field)
        for other in others:
            properties[other] = {**properties[name], "description": f"Another name of {own}."}
        choice = [{"required": [each]} for each in (own, *others)]
        if name == "type":
            section["oneOf"] = choice
        elif others:
            section.setdefault("allOf", []).append({"not": {"required": [own, *others]}})


def comments_of(model: type[BaseModel]) -> dict[str, str]:
    """The comment beside each field of a model, those that it inherits included."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if issubclass(kind, BaseModel) and kind is not BaseModel:
            source = textwrap.dedent(inspect.getsource(kind))
            said = {
                token.start[0]: token.string.removeprefix("#").strip()
                for token in tokenize.generate_tokens(io.StringIO(source).readline)
                if token.type == tokenize.COMMENT
            }
            (body,) = ast.parse(source).body
            for node in getattr(body, "body", ()):
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                    found[node.target.id] = " ".join(said[line] for line in lines if line in said)
    return found


def _tidied(node: Any) -> Any:
    """Without what TOML does not have (null) and what is of no use to an editor."""
    if isinstance(node, list):
        return [_tidied(each) for each in node if each != {"type": "null"}]
    if not isinstance(node, dict):
        return node
    kept = {key: _tidied(value) for key, value in node.items() if key not in _UNTOLD}
    if kept.get("default", 0) is None:
        del kept["default"]
    if len(kept.get("anyOf", ())) == 1:
        (only,) = kept.pop("anyOf")
        kept = {**only, **kept}
    return kept
