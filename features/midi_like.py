"""Notes as a stream of events in real time: NOTE_ON, NOTE_OFF, TIME_SHIFT, VELOCITY.

Conventions: times are put on a grid of 10 ms by rounding each note's own seconds, half up, and
shifts are differences on the grid, so no error adds up. A time within 10 ns of half a step counts
as half, so that rounding of seconds moves nothing. A note lasts one step at least. At one
time, NOTE_OFF comes before NOTE_ON, then low pitches before high ones. VELOCITY is said where its
bin changes. A gap longer than the longest shift takes several. Counting begins at the clip's
origin, or at the first note where that is earlier (`Entry.origin_s`).

Each row is a token with the real seconds, bar and beat of the event that it is, or leads to:
`onset_s` is the note's onset (NOTE_OFF: its offset), never what the grid made of it; `bar` and
`beat_in_bar` are those of the onset of the token's note.

Tokens name pitches, not channels: where notes of one pitch overlap, `decode` ends the oldest first.

Source: Oore et al., "This time with feeling" (2018), with 10 ms steps and 32 velocities.
"""

from collections import defaultdict, deque
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.errors import ConfigError
from mmfuse.features.notes import COLUMN
from mmfuse.features.spec import Entry

PAD = 0
NOTE_ON = 1  # + pitch
NOTE_OFF = 129  # + pitch
TIME_SHIFT = 257  # + steps - 1
STEP_S = Fraction(1, 100)
_SNAP = 1e-6  # steps
FIELDS = ("token", "onset_s", "bar", "beat_in_bar")


@dataclass(frozen=True, slots=True)
class MidiLike:
    """Events on a grid of 10 ms, and what changes them."""

    max_shift_steps: int = 100  # longest TIME_SHIFT: 1 s
    velocity_bins: int = 32
    max_events: int = 4096  # rows kept of one clip; the rest is counted in the entry's note

    def __post_init__(self) -> None:
        if self.max_shift_steps < 1 or self.max_events < 1 or not 1 <= self.velocity_bins <= 128:
            raise ConfigError(
                "midi_tokens: max_shift_steps and max_events are at least 1, velocity_bins 1 to 128"
            )

    @property
    def velocity(self) -> int:
        """The first VELOCITY token."""
        return TIME_SHIFT + self.max_shift_steps

    @property
    def vocabulary_size(self) -> int:
        """Tokens are 0 ... vocabulary_size - 1."""
        return self.velocity + self.velocity_bins

    @property
    def fields(self) -> tuple[str, ...]:
        """Columns of a row."""
        return FIELDS

    @property
    def spec_params(self) -> dict[str, Any]:
        """What the stream's spec says of it."""
        vocabulary = {
            "name": "midi_like",
            "version": 1,
            "size": self.vocabulary_size,
            "pad": PAD,
            "note_on": [NOTE_ON, 128],  # first token, count
            "note_off": [NOTE_OFF, 128],
            "time_shift": [TIME_SHIFT, self.max_shift_steps],
            "velocity": [self.velocity, self.velocity_bins],
        }
        return {**asdict(self), "step_s": str(STEP_S), "vocabulary": vocabulary}

    def encode(self, notes_values: NDArray[np.float64]) -> Entry:
        """Rows of the `notes` stream, one at least, to tokens.

        Args:
            notes_values: (n, 15) float64, fields as in `notes.FIELDS`.

        Returns:
            values (m, 4) float64, m <= max_events; what was left out is counted in `note`.
        """
        onset_s, offset_s = notes_values[:, COLUMN["onset_s"]], notes_values[:, COLUMN["offset_s"]]
        on_step = _on_grid(onset_s)
        off_step = np.maximum(_on_grid(offset_s), on_step + 1)
        origin = min(0, int(on_step.min()))

        # two events a note, in the order of the stream
        count = len(notes_values)
        note = np.tile(np.arange(count), 2)
        step = np.concatenate([on_step, off_step])
        is_on = np.repeat([True, False], count)
        pitch = notes_values[note, COLUMN["pitch"]].astype(np.int64)
        order = np.lexsort((pitch, is_on, step))
        note, step, is_on, pitch = note[order], step[order], is_on[order], pitch[order]

        # an event takes shifts to get there, a velocity where that changes, and its own token
        gap = np.diff(step, prepend=origin)
        shifts = -(-gap // self.max_shift_steps)
        loudness = (
            notes_values[note, COLUMN["velocity"]].astype(np.int64) * self.velocity_bins // 128
        )
        changed = np.zeros(len(note), np.bool_)
        changed[is_on] = np.diff(loudness[is_on], prepend=-1) != 0
        sizes = shifts + changed + 1
        ends = np.cumsum(sizes)
        total = int(ends[-1])
        kept = slice(0, int(np.searchsorted(ends, self.max_events)) + 1)  # the last may be cut

        event = np.repeat(np.arange(len(note))[kept], sizes[kept])[: self.max_events]
        place = np.arange(len(event)) - (ends - sizes)[event]  # within its event
        last_shift = gap - (shifts - 1) * self.max_shift_steps
        steps = np.where(place < shifts[event] - 1, self.max_shift_steps, last_shift[event])
        token = np.where(is_on, NOTE_ON, NOTE_OFF)[event] + pitch[event]
        token = np.where(place < sizes[event] - 1, self.velocity + loudness[event], token)
        token = np.where(place < shifts[event], TIME_SHIFT + steps - 1, token)

        values = np.empty((len(event), len(FIELDS)))
        values[:, 0] = token
        values[:, 1] = np.where(is_on, onset_s[note], offset_s[note])[event]
        values[:, 2] = notes_values[note, COLUMN["bar"]][event]
        values[:, 3] = notes_values[note, COLUMN["beat_in_bar"]][event]
        left_out = total - len(values)
        return Entry(
            values,
            origin_s=origin * STEP_S,
            windows=((Fraction(0), len(values)),),
            note=f"midi_tokens: {left_out} of {total} tokens left out" if left_out else "",
        )

    def decode(self, tokens: NDArray[Any], origin_s: Fraction = Fraction(0)) -> NDArray[np.float64]:
        """Tokens back to notes on the grid: (n, 4) of onset_s, offset_s, pitch, velocity.

        For looking and listening; the pipeline never takes its times from here. Velocities are
        the middles of their bins. A NOTE_OFF without a note is skipped; notes still open end at
        the last time. Sorted by onset, then pitch.
        """
        step, loudness, notes = 0, 0, list[list[int]]()
        sounding: defaultdict[int, deque[list[int]]] = defaultdict(deque)
        for token in np.asarray(tokens).astype(np.int64).tolist():
            if token >= self.velocity:
                loudness = ((token - self.velocity) * 256 + 128) // (2 * self.velocity_bins)
            elif token >= TIME_SHIFT:
                step += token - TIME_SHIFT + 1
            elif token >= NOTE_OFF:
                if sounding[token - NOTE_OFF]:
                    sounding[token - NOTE_OFF].popleft()[1] = step
            elif token >= NOTE_ON:
                notes.append([step, -1, token - NOTE_ON, loudness])
                sounding[token - NOTE_ON].append(notes[-1])
        for queue in sounding.values():
            for open_note in queue:
                open_note[1] = step
        values = np.array(notes, np.float64).reshape(-1, 4)
        origin = int(origin_s / STEP_S)
        values[:, :2] = (values[:, :2] + origin) / STEP_S.denominator
        return values[np.lexsort((values[:, 2], values[:, 0]))]


def _on_grid(times_s: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.floor(times_s * STEP_S.denominator + (0.5 + _SNAP)).astype(np.int64)
