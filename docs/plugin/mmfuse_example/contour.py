"""A tokenizer of MIDI: two tokens a note, where it goes from the note before, and its pitch."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from mmfuse.features.config import MidiPreprocessing
from mmfuse.features.errors import ConfigError
from mmfuse.features.notes import COLUMN
from mmfuse.features.spec import Entry

PITCH, DIRECTION = 1, 129  # first token of each; down, same, up


@dataclass(frozen=True)
class Contour:
    """Tokens 1 to 131; 0 is nothing."""

    max_events: int = 4096
    fields = ("token", "onset_s", "bar", "beat_in_bar")

    @property
    def spec_params(self):
        """`size` and `pitch` let mmfuse's own MIDI encoders read it: [first token, count]."""
        vocabulary = {
            "name": "contour",
            "version": 1,
            "size": DIRECTION + 3,
            "pad": 0,
            "pitch": [PITCH, 128],
            "direction": [DIRECTION, 3],
        }
        return {"max_events": self.max_events, "vocabulary": vocabulary}

    def encode(self, notes_values):
        """Rows of the `notes` stream, (n, 15), to rows of `fields`."""
        pitch = notes_values[:, COLUMN["pitch"]]
        direction = np.sign(np.diff(pitch, prepend=pitch[:1])) + 1
        tokens = np.stack([DIRECTION + direction, PITCH + pitch], axis=1).ravel()
        rest = [notes_values[:, COLUMN[name]].repeat(2) for name in self.fields[1:]]
        rows = np.column_stack([tokens, *rest])[: self.max_events]
        lost = len(tokens) - len(rows)
        note = f"contour: {lost} of {len(tokens)} rows cut" if lost else ""
        return Entry(rows, windows=((Fraction(0), len(rows)),), note=note)


def build(config: MidiPreprocessing) -> Contour:
    """What `[preprocessing.midi] tokenization = "contour"` means."""
    if config.options:
        raise ConfigError(f"contour takes no options; {config.options} given")
    return Contour(config.max_events)
