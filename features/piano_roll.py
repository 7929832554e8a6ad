"""Piano roll: what sounds in each frame.

Conventions: frame k of an entry is [k/fps, (k+1)/fps) from its origin. The origin is the clip's, or
the last frame border before the first note where that is earlier, or the start of the window that
was asked for. Planes:

    onset      velocity of a note that begins in the frame
    sustain    1 where a note sounds in the frame, were it for an instant
    velocity   velocity of the note that sounds
    drums      velocity of a drum that is struck in the frame, by its key

Where notes overlap the louder wins, never the sum. Drums are in their own plane or nowhere. The
pedal is not in it. A time within a microframe of a border counts as on it, so that rounding of
seconds moves nothing.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.errors import ConfigError, MidiError
from mmfuse.features.midi_scan import DRUM
from mmfuse.features.notes import COLUMN
from mmfuse.features.spec import Entry, StreamSpec, Timing

PLANES = ("onset", "sustain", "velocity", "drums")
_SNAP = 1e-6  # frames
_MAX_CELLS = 1 << 30  # frames of all notes together, far above any music
_CHUNK = 1 << 20  # cells filled at a time


@dataclass(frozen=True, slots=True)
class PianoRollParams:
    """What changes the roll."""

    fps: int = 50  # frames per second
    max_s: int = 6 * 3600  # a longer roll is refused
    planes: tuple[str, ...] = ("onset", "sustain", "velocity")

    def __post_init__(self) -> None:
        if self.fps < 1 or self.max_s < 1:
            raise ConfigError("piano_roll: fps and max_s are at least 1")
        wrong = sorted(set(self.planes) - set(PLANES))
        if wrong or not self.planes or len(set(self.planes)) < len(self.planes):
            raise ConfigError(
                f"piano_roll: planes are {list(self.planes)}; some of {list(PLANES)}, each once"
            )


def piano_roll_spec(params: PianoRollParams = PianoRollParams()) -> StreamSpec:
    """The `piano_roll` stream: uint8 (T, planes, 128)."""
    drums = "a plane" if "drums" in params.planes else "left out"
    return StreamSpec(
        name="piano_roll",
        modality="midi",
        item=(len(params.planes), 128),
        dtype="uint8",
        params={**asdict(params), "planes": list(params.planes), "overlap": "max", "drums": drums},
        timing=Timing("frames", first_s=Fraction(1, 2 * params.fps), hop_s=Fraction(1, params.fps)),
        version=2,
    )


def roll_entry(
    notes_values: NDArray[np.float64],
    params: PianoRollParams = PianoRollParams(),
    start_s: Fraction | None = None,
    stop_s: Fraction | None = None,
) -> Entry:
    """Rows of the `notes` stream to a roll.

    Args:
        notes_values: (n, 15) float64, fields as in `notes.FIELDS`.
        params: frame rate, planes, longest roll.
        start_s: where frame 0 begins on the clip's timeline, exact, on a frame border or not; the
            clip's origin or the first note, whichever is earlier, where it is left out.
        stop_s: end of the last frame, the next border after it; the end of the last note where it
            is left out. What lies outside the window is cut off, and T is the window's.

    Returns:
        values (T, planes, 128) uint8; T may be 0.

    Raises:
        MidiError: `too_long`, `too_dense`.
    """
    drum = (notes_values[:, COLUMN["flags"]].astype(np.int64) & DRUM) > 0
    drums = bool(drum.any())
    if drums and "drums" not in params.planes:
        notes_values, drum, drums = notes_values[~drum], drum[~drum], False
    begin = 0.0 if start_s is None else float(start_s * params.fps)
    onset, offset = (notes_values[:, COLUMN[name]] * params.fps for name in ("onset_s", "offset_s"))
    first = np.floor(onset + (_SNAP - begin)).astype(np.int64)
    end = np.ceil(offset - (_SNAP + begin)).astype(np.int64)
    end = np.maximum(end, first + 1)  # a note of no length sounds in the frame of its onset
    if drums:
        end[drum] = first[drum] + 1  # struck, not held
    border = min(0, int(first.min(initial=0))) if start_s is None else 0
    origin_s = Fraction(border, params.fps) if start_s is None else start_s
    frames = max(int(end.max(initial=border)) - border, 0)
    if stop_s is not None:
        frames = max(math.ceil((stop_s - origin_s) * params.fps), 0)
    if frames > params.max_s * params.fps:
        raise MidiError(
            "too_long", f"piano roll of {frames / params.fps:.0f} s; up to {params.max_s} s"
        )
    begins = np.maximum(first - border, 0)
    length = np.maximum(np.minimum(end - border, frames) - begins, 0)  # 0 outside the window
    if length.sum() > _MAX_CELLS:
        raise MidiError("too_dense", f"{len(first)} notes, most of which never end")

    roll_TPK = np.zeros((frames, len(params.planes), 128), np.uint8)  # time, plane, key
    place = {plane: 128 * number for number, plane in enumerate(params.planes)}
    cell = begins * (128 * len(place)) + notes_values[:, COLUMN["pitch"]].astype(np.int64)
    velocity = notes_values[:, COLUMN["velocity"]].astype(np.uint8)
    begun = (first >= border) & (length > 0)
    for plane, struck in (("onset", begun & ~drum), ("drums", begun & drum)):
        if plane in place:
            np.maximum.at(roll_TPK.reshape(-1), cell[struck] + place[plane], velocity[struck])
    if drums:
        length[drum] = 0
    _hold(roll_TPK, place, cell, length, velocity)
    return Entry(roll_TPK, origin_s=origin_s, windows=((Fraction(0), frames),))


def _hold(
    roll_TPK: NDArray[np.uint8],
    place: Mapping[str, int],
    cell: NDArray[np.int64],
    length: NDArray[np.int64],
    velocity: NDArray[np.uint8],
) -> None:
    """Fill `sustain` and `velocity`, where they are wanted, with notes of `length` frames.

    `cell` is the place in the flat roll where a note begins, in plane 0.
    """
    flat = roll_TPK.reshape(-1)
    for chunk in _chunks(length):
        cells = _runs(cell[chunk], length[chunk], 128 * len(place))
        if "sustain" in place:
            flat[place["sustain"] :][cells] = 1
        if "velocity" in place:
            loudness = np.repeat(velocity[chunk], length[chunk])
            np.maximum.at(flat[place["velocity"] :], cells, loudness)


def _chunks(length: NDArray[np.int64]) -> Iterator[slice]:
    """Notes of `_CHUNK` cells together, or one that is longer: bounds the memory of the filling."""
    total = np.cumsum(length)
    note = 0
    while note < len(length):
        most = total[note] - length[note] + _CHUNK
        following = max(int(np.searchsorted(total, most, side="right")), note + 1)
        yield slice(note, following)
        note = following


def _runs(first: NDArray[np.int64], length: NDArray[np.int64], step: int) -> NDArray[np.int64]:
    """first[0], first[0] + step, ... `length[0]` of them, then those of first[1], and so on."""
    before = np.cumsum(length) - length
    runs = np.repeat(first - step * before, length)
    runs += step * np.arange(len(runs))
    return runs
