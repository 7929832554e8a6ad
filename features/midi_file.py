"""Standard MIDI files to notes: one tolerant reader that raises nothing but `MidiError`.

Conventions: ticks are int64; time is kept as an integer over one denominator (microseconds times
ticks per quarter, or SMPTE subframes) and becomes float64 seconds once, at the end. Whatever had
to be mended is in `MidiFile.warnings`.

What is tolerated: running status across meta and system events, data bytes above 127 (the event
is dropped), quantities of five bytes and more that fit 28 bits, tracks that are cut or have no
end, wrong track counts, foreign chunks, long headers, tempo 0 (skipped), `RIFF`/`RMID` wrappers.
Note-offs pair with note-ons first in, first out by (track, channel, pitch); a note that never ends
is closed at the end of its track and flagged. Programs and banks are those set in the same track.

Source: Standard MIDI Files 1.0 (RP-001).
"""

from bisect import bisect_left
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmfuse.features import midi_drums, pedal
from mmfuse.features.clock import Timecode
from mmfuse.features.midi_chunks import (
    DEFAULT_LIMITS,
    Chunks,
    MidiLimits,
    MidiWarning,
    WarningLog,
    read_chunks,
)
from mmfuse.features.midi_meta import (
    LYRIC,
    MARKER,
    NAME,
    TEXT,
    Key,
    Metas,
    Words,
    read_metas,
    read_start,
    text_of,
)
from mmfuse.features.midi_scan import (
    CONTROL,
    DRUM,
    FLAGS,
    HANGING,
    NOTE,
    OFFSET,
    ONSET,
    TRACK,
    ZERO_LENGTH,
)
from mmfuse.features.midi_time import (
    MAX_NUMERATOR,
    TempoMap,
    place_notes,
    tempo_map_of,
)

__all__ = [
    "CONTROL",
    "DRUM",
    "HANGING",
    "NOTE",
    "ZERO_LENGTH",
    "Key",
    "MidiFile",
    "MidiLimits",
    "MidiWarning",
    "Sequence",
    "TempoMap",
    "Text",
    "read_midi",
    "sequence_of",
]


class Text(NamedTuple):
    """Words at a time of their sequence."""

    tick: int
    time_s: float
    text: str


class Sequence(NamedTuple):
    """One timeline: everything of a format 0 or 1 file, or one track of a format 2 file.

    `notes` is a structured array of dtype `NOTE`, sorted by onset, then pitch. `bar` counts from 0
    by the meter map (4/4 before any meter; a change inside a bar starts a new one) and
    `beat_in_bar` is in quarters. With SMPTE division a bar is a bin of 2 s and `beat_in_bar` is
    seconds into it. `controls` (dtype `CONTROL`) are all control changes as they are, sorted by
    tick. `tempos` is (tick, microseconds in a quarter), `meters` is (tick, beats, beat unit);
    `words` are all meta events that hold text; `end_tick` is the end of the longest track.
    """

    notes: NDArray[np.void]
    controls: NDArray[np.void]
    tempo_map: TempoMap
    tempos: tuple[tuple[int, int], ...]
    meters: tuple[tuple[int, int, int], ...]
    keys: tuple[Key, ...]
    words: tuple[Words, ...]
    end_tick: int

    @property
    def end_s(self) -> float:
        """The end of the longest track, in seconds."""
        return self.tempo_map.second(self.end_tick)

    @property
    def pedals(self) -> NDArray[np.void]:
        """The controls 64 (sustain), 66 (sostenuto) and 67 (soft), as they are."""
        return self.controls[np.isin(self.controls["number"], pedal.NUMBERS)]

    @property
    def lyrics(self) -> tuple[Text, ...]:
        """Syllables as they are sung (FF 05)."""
        return self._texts(LYRIC)

    @property
    def markers(self) -> tuple[Text, ...]:
        """Points that are named, such as "Verse 1" (FF 06)."""
        return self._texts(MARKER)

    @property
    def texts(self) -> tuple[Text, ...]:
        """Text that is none of the others (FF 01)."""
        return self._texts(TEXT)

    @property
    def track_names(self) -> dict[int, str]:
        """The first name of each track that has one (FF 03)."""
        names = [words for words in self.words if words[3] == NAME]
        return {track: text_of(data) for _, _, track, _, data in reversed(names)}

    def sustained(self) -> "Sequence":
        """The same with notes that end where they stop sounding, by the pedals; see `pedal`.

        Notes that get longer are no longer flagged as of no length.
        """
        notes = self.notes.copy()
        notes["offset_tick"] = pedal.sounding_ends(notes, self.controls, self.end_tick)
        notes["offset_s"] = self.tempo_map.seconds(notes["offset_tick"])
        notes["flags"][notes["offset_tick"] > notes["onset_tick"]] &= ~np.uint8(ZERO_LENGTH)
        return self._replace(notes=notes)

    def _texts(self, kind: int) -> tuple[Text, ...]:
        return tuple(
            Text(tick, self.tempo_map.second(tick), text_of(data))
            for tick, _, _, which, data in self.words
            if which == kind
        )


class MidiFile(NamedTuple):
    """A MIDI file as read. `division` is the header's word; `start` is the timecode of tick 0."""

    format: int
    division: int
    start: Timecode | None
    sequences: tuple[Sequence, ...]
    warnings: tuple[MidiWarning, ...]


def read_midi(
    data: bytes, limits: MidiLimits = DEFAULT_LIMITS, *, sustain: bool = False
) -> MidiFile:
    """Read a Standard MIDI File.

    Args:
        data: the whole file.
        limits: how much of it is read; what lies beyond is left out, with a warning
            (`too_many_tracks`, `too_many_events`, `too_long`).
        sustain: notes end where the pedals let them, not where their keys do.

    Raises:
        MidiError: `empty`, `not_midi`, `bad_header`, `bad_division`.
    """
    log = WarningLog()
    chunks = read_chunks(data, limits, log)
    start = read_start(chunks, log)
    alone = chunks.format == 2 and chunks.end_ticks
    tracks = range(len(chunks.end_ticks)) if alone else [None]
    sequences = [_sequence(chunks, track, limits, log) for track in tracks]
    if sustain:
        sequences = [sequence.sustained() for sequence in sequences]
    return MidiFile(chunks.format, chunks.division, start, tuple(sequences), tuple(log.warnings))


def sequence_of(
    notes: NDArray[np.int64],
    controls: NDArray[np.void],
    metas: Metas,
    tempo_map: TempoMap,
    end_tick: int,
) -> Sequence:
    """A timeline of notes and controls in any order, whose ticks are given.

    Args:
        notes: rows of `midi_scan.NOTE_COLUMNS`.
        controls: dtype `CONTROL`; times are computed.
        metas: what else is on this timeline.
        tempo_map: of its tempos; all ticks are earlier than 2**62 / denominator seconds.
        end_tick: end of the timeline.
    """
    placed = place_notes(notes, tempo_map, metas.meters)
    if len(controls):  # take is several times quicker than an index
        controls = controls.take(controls["tick"].argsort(kind="stable"))
        controls["time_s"] = tempo_map.seconds(controls["tick"])
    if metas.sysexes:
        midi_drums.flag_drums(placed, controls, metas.sysexes)
    return Sequence(
        placed,
        controls,
        tempo_map,
        metas.tempos,
        metas.meters,
        metas.keys,
        metas.words,
        end_tick,
    )


def _sequence(chunks: Chunks, track: int | None, limits: MidiLimits, log: WarningLog) -> Sequence:
    """The timeline of one track, or of all."""
    notes, controls, rows = chunks.notes, chunks.controls, chunks.metas
    end_ticks = chunks.end_ticks
    if track is not None:
        here = (track, track + 1)
        notes = notes[slice(*np.searchsorted(notes[:, TRACK], here))]
        controls = controls[slice(*np.searchsorted(controls["track"], here))]
        rows = rows[slice(*(bisect_left(rows, [number]) for number in here))]
        end_ticks = [end_ticks[track]]
    metas = read_metas(chunks.data, rows, log)
    tempo_map = tempo_map_of(metas.tempos, chunks.division)
    end_tick = max(end_ticks, default=0)
    longest = min(limits.duration_s * tempo_map.denominator, MAX_NUMERATOR)
    last_tick = min(tempo_map.tick_before(longest), limits.ticks)
    if end_tick > last_tick:
        notes, controls = _cut(notes, controls, last_tick, tempo_map, log)
    return sequence_of(notes, controls, metas, tempo_map, end_tick)


def _cut(
    notes: NDArray[np.int64],
    controls: NDArray[np.void],
    last: int,
    tempo_map: TempoMap,
    log: WarningLog,
) -> tuple[NDArray[np.int64], NDArray[np.void]]:
    """What begins before tick `last`; notes that go on then are ended there, and flagged."""
    kept, kept_controls = notes[notes[:, ONSET] < last], controls[controls["tick"] < last]
    over = kept[:, OFFSET] > last
    kept[over, OFFSET] = last
    kept[over, FLAGS] |= HANGING
    lost, lost_controls = len(notes) - len(kept), len(controls) - len(kept_controls)
    if lost or lost_controls or over.any():
        log.add(
            "too_long",
            -1,
            0,
            f"after {tempo_map.second(last):.0f} s {lost} notes and {lost_controls} controls left "
            f"out, {over.sum()} notes ended",
        )
    return kept, kept_controls
