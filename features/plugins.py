"""What other packages bring: encoders, tokenizers, augmentations and fusions, found by name.

A package declares an entry point in the group of the kind, `mmfuse.encoders` and so on. Its name is
what a configuration says, its object is called with settings and gives the thing. Nothing of a
package is imported before it is asked for, and a name of mmfuse's own can't be taken.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from mmfuse.features.errors import ConfigError

KINDS = ("encoder", "tokenizer", "augmentation", "fusion")


@dataclass(frozen=True, slots=True)
class Offer:
    """A thing that can be asked for: its name, whose it is, and what it says of itself."""

    name: str
    package: str
    about: str


def group(kind: str) -> str:
    """The group of entry points of a kind."""
    assert kind in KINDS
    return f"mmfuse.{kind}s"


def installed(kind: str, own: Iterable[str] = ()) -> dict[str, EntryPoint]:
    """Entry points of a kind by name, but for the names of mmfuse's `own`."""
    taken = set(own)
    return {
        point.name: point for point in entry_points(group=group(kind)) if point.name not in taken
    }


def offers(kind: str, own: Mapping[str, str]) -> list[Offer]:
    """What there is of a kind: ours, with what each says of itself, then those of packages."""
    found = [Offer(name, "mmfuse", about) for name, about in own.items()]
    others = installed(kind, own).values()
    return found + [Offer(p.name, p.dist.name if p.dist else "?", p.value) for p in others]


def unknown(kind: str, name: object, own: Iterable[str]) -> str:
    """What to say of a name that nothing has; "" if something has it."""
    names = list(own)
    names += sorted(installed(kind, names))
    if name in names:
        return ""
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    choice = f"choose from: {', '.join(names)}" if names else f"no package brings any {kind}"
    hint = f"did you mean {near[0]!r}?" if near else choice
    return f"no {kind} named {name!r}; {hint}"


def load(kind: str, name: str, own: Iterable[str] = ()) -> Any:
    """The object behind an entry point.

    Raises:
        ConfigError: there is none of this name, or it does not load.
    """
    own = list(own)
    points = installed(kind, own)
    if name not in points:
        raise ConfigError(unknown(kind, name, own))
    try:
        return points[name].load()
    except Exception as error:  # whatever another package's import raises
        place = points[name].value
        raise ConfigError(f"{kind} {name!r} ({place}) does not load: {error}") from None
