"""Piano roll: what sounds in each frame.

Conventions: frame k of an entry is [k/fps, (k+1)/fps) from its origin, which is the clip's, or the
last frame border before the first note where that is earlier. Plane 0 is `onset` (the velocity of
a note that begins in the frame), plane 1 `velocity` (the loudest note that sounds in it, were it
for an instant); where notes overlap the louder wins, never the sum. Drums are left out. A time
within a microframe of a border counts as on it, so that rounding of seconds moves nothing.
"""

from dataclasses import asdict, dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.errors import ConfigError, MidiError
from mmfuse.features.midi_scan import DRUM
from mmfuse.features.notes import COLUMN
from mmfuse.features.spec import Entry, StreamSpec, Timing

PLANES = ("onset", "velocity")
_SNAP = 1e-6  # frames
_MAX_CELLS = 1 << 30  # frames of all notes together, far above any music


@dataclass(frozen=True, slots=True)
class PianoRollParams:
    """What changes the roll."""

    fps: int = 50  # frames per second
    max_s: int = 6 * 3600  # a longer roll is refused

    def __post_init__(self) -> None:
        if self.fps < 1 or self.max_s < 1:
            raise ConfigError("piano_roll: fps and max_s are at least 1")


def piano_roll_spec(params: PianoRollParams = PianoRollParams()) -> StreamSpec:
    """The `piano_roll` stream: uint8 (T, 2, 128)."""
    return StreamSpec(
        name="piano_roll",
        modality="midi",
        item=(len(PLANES), 128),
        dtype="uint8",
        params={**asdict(params), "planes": list(PLANES), "overlap": "max", "drums": "left out"},
        timing=Timing("frames", first_s=Fraction(1, 2 * params.fps), hop_s=Fraction(1, params.fps)),
    )


def roll_entry(
    notes_values: NDArray[np.float64], params: PianoRollParams = PianoRollParams()
) -> Entry:
    """Rows of the `notes` stream to a roll.

    Args:
        notes_values: (n, 12) float64, fields as in `notes.FIELDS`.
        params: frame rate, longest roll.

    Returns:
        values (T, 2, 128) uint8, to the end of the last note; T may be 0.

    Raises:
        MidiError: `too_long`, `too_dense`.
    """
    drums = notes_values[:, COLUMN["flags"]].astype(np.int64) & DRUM
    notes = notes_values[drums == 0]
    if not len(notes):
        return Entry(np.zeros((0, len(PLANES), 128), np.uint8), windows=((Fraction(0), 0),))
    first = np.floor(notes[:, COLUMN["onset_s"]] * params.fps + _SNAP).astype(np.int64)
    end = np.ceil(notes[:, COLUMN["offset_s"]] * params.fps - _SNAP).astype(np.int64)
    end = np.maximum(end, first + 1)  # a note of no length sounds in the frame of its onset
    origin = min(0, int(first.min()))
    first, end = first - origin, end - origin
    frames = int(end.max())
    if frames > params.max_s * params.fps:
        raise MidiError(
            "too_long", f"piano roll of {frames / params.fps:.0f} s; up to {params.max_s} s"
        )
    if int((end - first).sum()) > _MAX_CELLS:
        raise MidiError("too_dense", f"{len(notes)} notes, most of which never end")
    roll_TPK = np.zeros((frames, len(PLANES), 128), np.uint8)  # time, plane, key
    key = notes[:, COLUMN["pitch"]].astype(np.int64)
    velocity = notes[:, COLUMN["velocity"]].astype(np.uint8)
    np.maximum.at(roll_TPK, (first, 0, key), velocity)
    order = np.argsort(velocity, kind="stable")  # soft to loud: what is written last is the loudest
    rows = (first[order], end[order], key[order], velocity[order])
    for begin, stop, pitch, loudness in zip(*(row.tolist() for row in rows), strict=True):
        roll_TPK[begin:stop, 1, pitch] = loudness
    return Entry(roll_TPK, origin_s=Fraction(origin, params.fps), windows=((Fraction(0), frames),))
