"""The `notes` stream: every note of a clip's MIDI, on the clip's own timeline.

Conventions: one row of float64 per note, sorted by onset, then pitch; whole numbers stay exact
below 2**53. `onset_s` and `offset_s` count from the clip's origin (its first audio sample), and
are negative for notes before it; ticks count from the start of the MIDI. Tokens and rolls are made
from these rows and nothing else: the last three fields turn ticks into quarters.

With SMPTE division a file has no quarters. Its bars are bins of two seconds from the start of the
MIDI, `beat_in_bar` and `bar_length` are seconds, `ticks_per_quarter` and `quarter_s` are 0.
"""

from collections import Counter
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.midi_file import MidiFile, Sequence
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
    "bar_length",  # of the note's bar, in the unit of beat_in_bar
    "ticks_per_quarter",  # 0 at SMPTE division
    "quarter_s",  # length of a quarter, by the tempo where the note begins; 0 at SMPTE division
)
COLUMN = {name: number for number, name in enumerate(FIELDS)}
SMPTE_BAR_S = 2.0  # a bar where bars can't be known, as in `midi_time.bars_of`


def notes_spec() -> StreamSpec:
    """The `notes` stream: float64 (n, 15)."""
    return StreamSpec(
        name="notes",
        modality="midi",
        item=(len(FIELDS),),
        dtype="float64",
        params={"pairing": "fifo", "hanging": "closed at the end of the track", "pedal": "raw"},
        timing=Timing("field", field="onset_s"),
        fields=FIELDS,
        version=2,
    )


def notes_entry(midi: MidiFile, offset_s: Fraction = Fraction(0)) -> Entry:
    """Notes as rows, moved onto the clip's timeline.

    Args:
        midi: the file; of format 2, whose tracks are independent, the first that has notes.
        offset_s: start of the MIDI minus start of the audio, in seconds, exact.

    Returns:
        values (n, 15) float64; n may be 0. Each time is computed exactly and rounded once.
    """
    sequence = chosen_sequence(midi)
    notes = sequence.notes
    ticks = np.concatenate([notes["onset_tick"], notes["offset_tick"]])
    onset_s, off_s = sequence.tempo_map.seconds(ticks, offset_s).reshape(2, -1)
    columns: dict[str, NDArray[np.float64]] = {
        "tick": notes["onset_tick"],
        "onset_s": onset_s,
        "offset_s": off_s,
        **_metre(sequence),
    }
    values = np.empty((len(notes), len(FIELDS)), np.float64)
    for number, name in enumerate(FIELDS):
        values[:, number] = columns[name] if name in columns else notes[name]
    return Entry(values, windows=((Fraction(0), len(values)),), note=_note(midi))


def chosen_sequence(midi: MidiFile) -> Sequence:
    """The timeline that notes are taken from: the first that has any."""
    return next((one for one in midi.sequences if len(one.notes)), midi.sequences[0])


def _metre(sequence: Sequence) -> dict[str, NDArray[np.float64]]:
    """What a tick is in its bar and its quarter: three columns, (n,) each."""
    notes, tempo_map = sequence.notes, sequence.tempo_map
    if not tempo_map.division:
        none = np.zeros(len(notes))
        bar_length = np.full(len(notes), SMPTE_BAR_S)
        return {"bar_length": bar_length, "ticks_per_quarter": none, "quarter_s": none}
    division = tempo_map.division
    ticks = notes["onset_tick"]
    changes = sequence.meters
    changes = changes if changes and changes[0][0] == 0 else ((0, 4, 4), *changes)
    first_ticks, beats, units = np.array(changes, np.int64).T
    at = np.searchsorted(first_ticks, ticks, side="right") - 1
    following = np.append(first_ticks[1:], np.iinfo(np.int64).max)[at]
    whole = 4 * division * beats[at]  # of a bar, in ticks / unit; a change of meter cuts it short
    into = (ticks - first_ticks[at]) * units[at] % whole
    rest = np.minimum(following - ticks, whole) * units[at]
    tempo_ticks, microseconds, _ = tempo_map.columns()
    tempo = microseconds[np.searchsorted(tempo_ticks, ticks, side="right") - 1]
    return {
        "bar_length": np.minimum(whole, into + rest) / (units[at] * division),
        "ticks_per_quarter": np.full(len(notes), float(division)),
        "quarter_s": tempo / 1_000_000,
    }


def _note(midi: MidiFile) -> str:
    """What had to be mended, in a line."""
    mended = Counter(warning.code for warning in midi.warnings)
    parts = [f"{code} x{count}" if count > 1 else code for code, count in sorted(mended.items())]
    if len(midi.sequences) > 1:
        parts.append(f"format 2: one of {len(midi.sequences)} sequences")
    return f"midi: {', '.join(parts)}" if parts else ""
