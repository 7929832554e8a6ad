"""The `notes` stream: every note of a clip's MIDI, on the clip's own timeline.

Conventions: one row of float64 per note, sorted by onset, then pitch; whole numbers stay exact
below 2**53. `onset_s` and `offset_s` count from the clip's origin (its first audio sample), and
are negative for notes before it; ticks count from the start of the MIDI. Tokens and rolls are made
from these rows.
"""

from collections import Counter
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.midi_file import MidiFile
from mmfuse.features.spec import Entry, StreamSpec, Timing

FIELDS = (
    "tick",  # of the note-on, from the start of the MIDI
    "offset_tick",
    "onset_s",  # on the clip's timeline
    "offset_s",
    "pitch",  # 0-127
    "velocity",  # 1-127
    "program",  # 0-127, as set when the note began
    "channel",  # 0-15; 9 is drums
    "track",
    "flags",  # 1 hanging (never ended), 2 zero length, 4 drum
    "bar",  # from 0
    "beat_in_bar",  # quarters; seconds at SMPTE division
)
COLUMN = {name: number for number, name in enumerate(FIELDS)}


def notes_spec() -> StreamSpec:
    """The `notes` stream: float64 (n, 12)."""
    return StreamSpec(
        name="notes",
        modality="midi",
        item=(len(FIELDS),),
        dtype="float64",
        params={"pairing": "fifo", "hanging": "closed at the end of the track", "pedal": "raw"},
        timing=Timing("field", field="onset_s"),
        fields=FIELDS,
    )


def notes_entry(midi: MidiFile, offset_s: Fraction = Fraction(0)) -> Entry:
    """Notes as rows, moved onto the clip's timeline.

    Args:
        midi: the file; of format 2, whose tracks are independent, the first that has notes.
        offset_s: start of the MIDI minus start of the audio, in seconds, exact.

    Returns:
        values (n, 12) float64; n may be 0. Each time is computed exactly and rounded once.
    """
    sequence = next((one for one in midi.sequences if len(one.notes)), midi.sequences[0])
    notes, seconds = sequence.notes, sequence.tempo_map.seconds
    columns: dict[str, NDArray[np.float64]] = {
        "tick": notes["onset_tick"],
        "onset_s": seconds(notes["onset_tick"], offset_s),
        "offset_s": seconds(notes["offset_tick"], offset_s),
    }
    values = np.empty((len(notes), len(FIELDS)), np.float64)
    for number, name in enumerate(FIELDS):
        values[:, number] = columns[name] if name in columns else notes[name]
    return Entry(values, windows=((Fraction(0), len(values)),), note=_note(midi))


def _note(midi: MidiFile) -> str:
    """What had to be mended, in a line."""
    mended = Counter(warning.code for warning in midi.warnings)
    parts = [f"{code} x{count}" if count > 1 else code for code, count in sorted(mended.items())]
    if len(midi.sequences) > 1:
        parts.append(f"format 2: one of {len(midi.sequences)} sequences")
    return f"midi: {', '.join(parts)}" if parts else ""
