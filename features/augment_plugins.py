"""Augmentations that other packages bring: what they promise, and how views draw and apply them.

The object behind an entry point of the kind "augmentation" has the members of `Augmentation`, as a
module or a class of static functions has. Its settings stand in the configuration under
`[preprocessing.audio.augmentations.plugins.NAME]`, or `midi`. What was drawn goes into the store's
index and into the hash of the entry, so it is all that `apply` needs beside chance.

It changes one modality and leaves times as they are: what moves audio and MIDI together is ours.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mmfuse.features import plugins
from mmfuse.features.audio import Audio, Samples
from mmfuse.features.config import Augmentations, Preprocessing
from mmfuse.features.errors import ConfigError
from mmfuse.features.notes import FIELDS
from mmfuse.features.spec import Array

Options = Mapping[str, Any]


class Augmentation(Protocol):
    """What a plug-in has. `modality` is "audio" or "midi"; `version` rises when numbers change."""

    modality: str
    version: int

    def draw(self, options: Options, rng: np.random.Generator) -> Options:
        """What one view differs in, as plain JSON. Raises ConfigError for wrong options."""

    def apply(self, given: Any, drawn: Options, rng: np.random.Generator) -> Array:
        """`Audio` to as many samples, or rows of `notes` to as many, by tick and pitch."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What one plug-in drew for one view; `settings` is canonical JSON."""

    name: str
    modality: str
    version: int
    settings: str


def check(wanted: Preprocessing) -> None:
    """Whether every plug-in that is named is there, and stands in its modality's section.

    Raises:
        ConfigError: one is not, or does not.
    """
    for modality, section in (("audio", wanted.audio), ("midi", wanted.midi)):
        policy = section and section.augmentations
        for name in policy.plugins if policy else ():
            own = loaded(name).modality
            if own != modality:
                raise ConfigError(
                    f"augmentation {name!r} is one of {own}; move it to "
                    f"[preprocessing.{own}.augmentations.plugins.{name}]"
                )


def touched(policy: Augmentations, modality: str) -> bool:
    """Whether a plug-in of the policy changes a modality."""
    return any(loaded(name).modality == modality for name in policy.plugins)


def draw_plugins(
    policy: Augmentations, rng_of: "Mapping[str, np.random.Generator]"
) -> tuple[Drawn, ...]:
    """What each plug-in of a policy draws for a view, with its generator in `rng_of`."""
    found = []
    for name, options in sorted(policy.plugins.items()):
        plugin = loaded(name)
        try:
            settings = json.dumps(dict(plugin.draw(options, rng_of[name])), sort_keys=True)
        except (TypeError, ValueError, KeyError) as error:
            raise ConfigError(f"augmentation {name!r} refuses {options}: {error}") from None
        found.append(Drawn(name, plugin.modality, plugin.version, settings))
    return tuple(found)


def apply_to_audio(audio: Audio, drawn: Drawn, rng: np.random.Generator) -> Samples:
    """Samples (N,) float32 of a view.

    Raises:
        ConfigError: the plug-in gives another number of them, or NaN.
    """
    made = _made(audio, drawn, rng)
    if made.shape != audio.samples_N.shape or not np.isfinite(made).all():
        raise ConfigError(_odd(drawn, f"{len(audio.samples_N)} finite samples", made))
    return np.ascontiguousarray(made, np.float32)


def apply_to_notes(rows: Array, drawn: Drawn, rng: np.random.Generator) -> Array:
    """Rows of the `notes` stream of a view.

    Raises:
        ConfigError: the plug-in gives another number of them, NaN, or another order.
    """
    made = _made(rows, drawn, rng)
    tick, pitch = FIELDS.index("tick"), FIELDS.index("pitch")
    if made.shape != rows.shape or not np.isfinite(made).all():
        raise ConfigError(_odd(drawn, f"{rows.shape[0]} finite rows", made))
    if not np.array_equal(np.lexsort((made[:, pitch], made[:, tick])), np.arange(len(made))):
        raise ConfigError(_odd(drawn, "rows in the order of ticks and pitches", made))
    return made


def _made(given: Any, drawn: Drawn, rng: np.random.Generator) -> Array:
    return np.asarray(loaded(drawn.name).apply(given, json.loads(drawn.settings), rng))


def _odd(drawn: Drawn, wanted: str, made: Array) -> str:
    return (
        f"augmentation {drawn.name!r} has to give {wanted}, and gave {made.dtype} of {made.shape}; "
        f"mmfeat augmentations --check {drawn.name} says more"
    )


def loaded(name: str) -> Augmentation:
    """The plug-in of a name.

    Raises:
        ConfigError: there is none, or it lacks a member.
    """
    plugin: Augmentation = plugins.load("augmentation", name)
    lacking = [
        part for part in ("modality", "version", "draw", "apply") if not hasattr(plugin, part)
    ]
    if lacking or plugin.modality not in ("audio", "midi"):
        raise ConfigError(
            f"augmentation {name!r} lacks {', '.join(lacking) or 'a modality: audio or midi'}"
        )
    return plugin


def to_plain(drawn: Sequence[Drawn]) -> list[list[Any]]:
    """What the index keeps."""
    return [[one.name, one.modality, one.version, json.loads(one.settings)] for one in drawn]


def from_plain(kept: Sequence[Sequence[Any]]) -> tuple[Drawn, ...]:
    """What `to_plain` gave."""
    return tuple(Drawn(n, m, v, json.dumps(settings, sort_keys=True)) for n, m, v, settings in kept)
