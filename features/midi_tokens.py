"""The `midi_tokens` stream: notes as tokens, in one of three ways of writing them down.

    midi_like   NOTE_ON, NOTE_OFF, TIME_SHIFT, VELOCITY in real time, 10 ms steps
    remi        Bar, Position, Pitch, Velocity, Duration on the grid of bars and beats
    compound    the same, one row of fields a note

All are made from the same rows of the `notes` stream, and each row keeps the real onset in seconds,
the bar and the beat. Which one it is, with its version and sizes, is `params["vocabulary"]` of the
spec, so another way is another stream. `docs/midi.md` says when to use which. Other packages bring
more (`plugins.py`): what is called with `[preprocessing.midi]` and gives a `Tokenization`.
"""

from collections.abc import Mapping
from dataclasses import fields
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mmfuse.features import plugins
from mmfuse.features.compound import Compound
from mmfuse.features.config import MidiPreprocessing
from mmfuse.features.errors import ConfigError
from mmfuse.features.midi_like import MidiLike
from mmfuse.features.remi import Remi
from mmfuse.features.spec import Entry, StreamSpec, Timing


class Tokenization(Protocol):
    """Parameters that know how to write notes down."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Columns of a row; one is `onset_s`."""

    @property
    def spec_params(self) -> dict[str, Any]:
        """What the stream's spec says, `vocabulary` with `name` and `version` included."""

    def encode(self, notes_values: NDArray[np.float64]) -> Entry:
        """Rows of the `notes` stream, one at least, to rows of tokens."""


TOKENIZATIONS: Mapping[str, type[MidiLike | Remi | Compound]] = {
    "midi_like": MidiLike,
    "remi": Remi,
    "compound": Compound,
}
DEFAULT = MidiLike()


def build_tokenization(config: MidiPreprocessing) -> Tokenization:
    """The way of writing notes down that `[preprocessing.midi]` names, with what it says of it.

    Raises:
        ConfigError: there is none of this name, or one that refuses its settings.
    """
    name = config.tokenization
    if (own := TOKENIZATIONS.get(name)) is not None:
        return own(**config.model_dump(include={field.name for field in fields(own)}))
    found: Tokenization = plugins.load("tokenizer", name, TOKENIZATIONS)(config)
    said = found.spec_params.get("vocabulary", {})
    if said.get("name") != name or "version" not in said:
        raise ConfigError(
            f"tokenizer {name!r} calls its vocabulary {said.get('name')!r}, version "
            f"{said.get('version')!r}; `spec_params` has to give it its own name, and a version"
        )
    return found


def midi_tokens_spec(tokenization: Tokenization = DEFAULT) -> StreamSpec:
    """The `midi_tokens` stream: float64 (n, fields)."""
    return StreamSpec(
        name="midi_tokens",
        modality="midi",
        item=(len(tokenization.fields),),
        dtype="float64",
        params=tokenization.spec_params,
        timing=Timing("field", field="onset_s"),
        fields=tokenization.fields,
    )


def tokens_entry(notes_values: NDArray[np.float64], tokenization: Tokenization = DEFAULT) -> Entry:
    """Rows of the `notes` stream to tokens.

    Args:
        notes_values: (n, 15) float64, fields as in `notes.FIELDS`.
        tokenization: the way to write them down, and how many rows are kept.

    Returns:
        values (m, fields) float64, m <= max_events; what was left out is counted in `note`.
    """
    if not len(notes_values):
        return Entry(np.empty((0, len(tokenization.fields))), windows=((Fraction(0), 0),))
    return tokenization.encode(notes_values)
