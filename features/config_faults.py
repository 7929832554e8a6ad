"""What is wrong with a configuration, in words: the key, its value, and what to write instead."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic.fields import FieldInfo

_LONGEST = 60  # characters of a value that are shown
_EXPECTED = {  # by pydantic's name of the fault; {} is its bound
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "finite_number": "expected a finite number",
    "bool_type": "expected true or false",
    "string_type": 'expected text in quotes, such as "this"',
    "path_type": 'expected a path in quotes, such as "this"',
    "tuple_type": "expected a list in brackets, such as [1, 2]",
    "dict_type": "expected a section of keys and values",
    "model_type": "expected a section of keys and values",
    "model_attributes_type": "expected a section of keys and values",
    "greater_than": "expected more than {gt}",
    "greater_than_equal": "expected {ge} or more",
    "less_than": "expected less than {lt}",
    "less_than_equal": "expected {le} or less",
    "too_short": "expected a list of {min_length} or more",
    "string_pattern_mismatch": "expected letters, digits, and . _ - after the first",
}
_SYNTAX = {  # by the beginning of what tomllib says
    "Cannot overwrite a value": "this key is given twice; take one out",
    "Cannot declare": "this section is given twice; join them",
    "Cannot mutate": "this is a value or a section already; take one out",
    "Invalid value": "no such value; text stands in quotes, decimals as 0.5",
    "Expected '=' after": "expected key = value",
    "Expected newline or end": "expected nothing more on this line",
    "Expected ']'": "expected ] at the end of a section's name",
    "Invalid statement": "expected key = value, [section] or # comment",
    "Unterminated": "text without its closing quote",
    "Unclosed": "a list or table without its closing bracket",
    "Illegal character": "text without its closing quote, or a control character",
}


class BadKeyError(ValueError):
    """What is wrong with one key of a section, where a look at others shows it.

    The message reads `section.key = value: text`, or `section.key text` where text is a verb.
    """

    def __init__(self, key: str, value: Any, text: str) -> None:
        super().__init__(text)
        self.key, self.value, self.text = key, value, text


def names_of(name: str, field: FieldInfo) -> list[str]:
    """Names under which a file may give a field, its own first."""
    others = field.validation_alias
    choices = others.choices if isinstance(others, AliasChoices) else ()
    return [name, *(str(other) for other in choices if other != name)]


def other_names(model: type[BaseModel], place: Sequence[str]) -> list[str]:
    """Other names of the key at a place, which mean the same."""
    _, holders, _ = _place(model, place)
    field = next((f for each in holders if (f := _field(each, place[-1]))), None)
    if field is None:
        return []
    own = next(n for each in holders for n, f in each.model_fields.items() if f is field)
    return [name for name in names_of(own, field) if name != place[-1]]


def fault(model: type[BaseModel], error: ValidationError) -> tuple[str, str]:
    """Key of the first problem, and all of it in words; the problems of other keys by number."""
    all_errors = error.errors()
    first = _deepest(all_errors)
    kind, value, context = first["type"], first["input"], first.get("ctx", {})
    place, holders, below = _place(model, first["loc"])
    own = context.get("error")
    if isinstance(own, BadKeyError):
        place, value = [*place, *own.key.split(".")], own.value
    key = _dotted(place)
    if kind == "extra_forbidden":
        text = f"{_said(key, value)}: {_unknown(model, place, holders)}"
    elif kind == "missing":
        what = f"section [{key}]" if below else key
        text = f"{what} is missing; add it, as the files in configs/ have it"
    elif kind == "union_tag_not_found":
        text = f"{key}.type is missing; choose from: {', '.join(_types(below))}"
    elif kind == "union_tag_invalid":
        key, value = f"{key}.type", context["tag"]
        text = f"{_said(key, value)}: no such type; {near(value, _types(below))}"
    elif kind == "literal_error":
        words = re.split(r", | or ", context["expected"].replace("'", ""))
        text = f"{_said(key, value)}: {near(value, words, 'expected one of:')}"
    elif isinstance(own, ValueError):
        text = f"{_said(key, value)}: {own}" if key else str(own)
    else:
        expected = _EXPECTED.get(kind, first["msg"])
        text = f"{_said(key, value)}: {expected.format(**context)}"
    others = {_dotted(_place(model, each["loc"])[0]) for each in all_errors if each is not first}
    count = sum(not within(key, other) for other in others)
    return key, text + (f" (and {count} more)" if count else "")


def within(one: str, other: str) -> bool:
    """Whether one of two keys is, or is in, the other."""
    parts, others = (re.split(r"[.\[]", key) for key in (one, other))
    return all(a == b for a, b in zip(parts, others, strict=False))


def near(given: Any, names: Sequence[str], lead: str = "choose from:") -> str:
    """The name that was probably meant, or all there are."""
    found = (
        difflib.get_close_matches(given, names, n=1, cutoff=0.5) if isinstance(given, str) else []
    )
    return f"did you mean {found[0]!r}?" if found else f"{lead} {', '.join(names)}"


def _deepest(errors: Sequence[Any]) -> Any:
    """The first error; of a list or section where a word may stand as well, what is wrong in it."""
    first = errors[0]
    place = first["loc"][:-1]
    if first["type"] != "literal_error" or isinstance(first["input"], str):
        return first
    inside = [each for each in errors[1:] if each["loc"][: len(place)] == place]
    return max(inside, key=lambda each: len(each["loc"]), default=first)


def toml_fault(message: str, text: str) -> str:
    """A syntax error with its line and column, the line itself, and what to write."""
    said, _, place = message.removesuffix(")").rpartition(" (at ")
    words = next((mend for start, mend in _SYNTAX.items() if said.startswith(start)), said)
    found = re.fullmatch(r"line (\d+), column (\d+)", place)
    if not found:
        return f"{place or 'somewhere'}: {words}"
    line = text.split("\n")[int(found[1]) - 1].strip()
    return f"{place}: {_short(line)}: {words}"


def _place(
    model: type[BaseModel], loc: Iterable[int | str]
) -> tuple[list[Any], list[type[BaseModel]], list[type[BaseModel]]]:
    """A place as a person writes it, without names of a union's members.

    And the models of which its last key is one, and those that stand below it.
    """
    models, holders, kept = [model], [model], list[Any]()
    for part in loc:
        found = [field for each in models if (field := _field(each, part)) is not None]
        if len(models) > 1 and not found:  # the name of a member
            models = holders = _tagged(models, part)
        elif models or isinstance(part, int) or "[" not in part:  # not: literal[...], tuple[...]
            kept, holders = [*kept, part], models or holders
            models = [member for field in found for member in models_in(field.annotation)]
    return kept, holders, models


def _tagged(models: Sequence[type[BaseModel]], tag: int | str) -> list[type[BaseModel]]:
    """Members of a union whose `type` is the tag; those with a `type` of any name, if none is."""
    fitting = [each for each in models if tag in _types([each])]
    return fitting or [each for each in models if not _types([each])] or list(models)


def _field(model: type[BaseModel], name: int | str) -> FieldInfo | None:
    for own, field in model.model_fields.items():
        if name in names_of(own, field):
            return field
    return None


def _unknown(model: type[BaseModel], place: Sequence[Any], models: Sequence[Any]) -> str:
    """What to write instead of a key that a section does not have."""
    name, section = place[-1], [model]
    for part in place[:-1]:
        fields = [field for each in section if (field := _field(each, part))]
        section = [member for field in fields for member in models_in(field.annotation)]
    elsewhere = _types(each for each in section if _field(each, name))
    if elsewhere:
        return f"no such key here; it belongs to type = {' or '.join(map(json.dumps, elsewhere))}"
    known = {n: names_of(n, f) for each in models for n, f in each.model_fields.items()}
    names = [*known, *(getattr(model, "ELSEWHERE", ()) if len(place) == 1 else ())]
    others = [other for several in known.values() for other in several[1:]]
    return f"no such key; {near(name, sorted(names) + others)}"


def _types(models: Iterable[type[BaseModel]]) -> list[str]:
    """What `type` may be in a section that is one of these models."""
    fields = (each.model_fields.get("type") for each in models)
    return sorted({f.default for f in fields if f is not None and isinstance(f.default, str)})


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Sections that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in getattr(annotation, "__args__", ()) for m in models_in(part)]


def _dotted(place: Iterable[Any]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")


def _said(key: str, value: Any) -> str:
    """`key = value` as TOML has it, a table by its name alone."""
    return f"[{key}]" if isinstance(value, Mapping) else f"{key} = {_toml(value)}"


def _toml(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return _short(text)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
