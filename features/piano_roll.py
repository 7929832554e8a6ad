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
from dataclasses import asdict, dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.errors import ConfigError, MidiError
from mmfuse.features.spec import Entry, StreamSpec, Timing

PLANES = ("onset", "sustain", "velocity", "drums")
_MAX_CELLS = 1 << 30  # frames of all notes together, far above any music


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
    from mmfuse.features.roll_loops import fill, spans

    begin = 0.0 if start_s is None else float(start_s * params.fps)
    spans_N2 = spans(notes_values, params.fps, begin, "drums" in params.planes)
    lowest, highest = (int(spans_N2.min()), int(spans_N2.max())) if len(spans_N2) else (0, 0)
    border = min(0, lowest) if start_s is None else 0
    origin_s = Fraction(border, params.fps) if start_s is None else start_s
    frames = max(highest - border, 0)
    if stop_s is not None:
        frames = max(math.ceil((stop_s - origin_s) * params.fps), 0)
    if frames > params.max_s * params.fps:
        raise MidiError(
            "too_long", f"piano roll of {frames / params.fps:.0f} s; up to {params.max_s} s"
        )
    if len(spans_N2) * frames > _MAX_CELLS:
        inside_N2 = np.clip(spans_N2 - border, 0, frames)
        if (inside_N2[:, 1] - inside_N2[:, 0]).sum() > _MAX_CELLS:
            raise MidiError("too_dense", f"{len(spans_N2)} notes, most of which never end")
    roll_TPK = np.zeros((frames, len(params.planes), 128), np.uint8)  # time, plane, key
    place = [params.planes.index(plane) if plane in params.planes else -1 for plane in PLANES]
    fill(roll_TPK, notes_values, spans_N2, border, np.array(place))
    return Entry(roll_TPK, origin_s=origin_s, windows=((Fraction(0), frames),))
