"""The `midi_tokens` stream: notes as tokens, in one of three ways of writing them down.

    midi_like   NOTE_ON, NOTE_OFF, TIME_SHIFT, VELOCITY in real time, 10 ms steps
    remi        Bar, Position, Pitch, Velocity, Duration on the grid of bars and beats
    compound    the same, one row of fields a note

All are made from the same rows of the `notes` stream, and each row keeps the real onset in seconds,
the bar and the beat. Which one it is, with its version and sizes, is `params["vocabulary"]` of the
spec, so another way is another stream. `docs/midi.md` says when to use which.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.compound import Compound
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
