"""MIDI files as read here to `pretty_midi.PrettyMIDI` and back, without bytes in between.

Conventions: one instrument for each (track, channel, program, drums or not), in that order.
`PrettyMIDI` counts time in float64 seconds and keeps tempos as floats; going there each time is
ours, rounded once, and coming back it is the nearest tick.

Source: Raffel and Ellis, "Intuitive analysis, creation and manipulation of MIDI data with
pretty_midi" (2014).
"""

from collections.abc import Iterator
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.errors import MidiError, MissingError
from mmfuse.features.midi_chunks import controls_of
from mmfuse.features.midi_file import MidiFile, Sequence, sequence_of
from mmfuse.features.midi_meta import LYRIC, NAME, TEXT, Key, Metas, Words
from mmfuse.features.midi_scan import (
    CONTROL_COLUMNS,
    DRUM,
    DRUM_CHANNEL,
    FLAGS,
    NOTE_COLUMNS,
    OFFSET,
    ONSET,
    ZERO_LENGTH,
)
from mmfuse.features.midi_time import MAX_NUMERATOR, TempoMap, tempo_map_of

if TYPE_CHECKING:
    from pretty_midi import PrettyMIDI

_MAX_TICK = 10_000_000  # where pretty_midi stops: it keeps a time for every tick
_TIMES = ("onset_s", "offset_s")
_CHANNELS = [channel for channel in range(16) if channel != DRUM_CHANNEL]


def to_pretty_midi(midi: MidiFile, sequence: int = 0) -> "PrettyMIDI":
    """One timeline of a file as a `PrettyMIDI`.

    Not carried: the timecode of tick 0, SMPTE division (its ticks become those of a quarter of one
    second), the other sequences of format 2, release velocities, banks except as controls, which
    notes hang, markers, which key of two of one sound (C sharp and D flat), warnings. Controls of
    a track and channel without notes become an instrument of their own.

    Args:
        midi: the file.
        sequence: which of its timelines.

    Raises:
        MissingError: pretty_midi is not installed.
        MidiError: `too_long`: more ticks than pretty_midi takes.
    """
    library = _library()
    one = midi.sequences[sequence]
    if one.end_tick >= _MAX_TICK:
        raise MidiError("too_long", f"{one.end_tick} ticks; pretty_midi takes {_MAX_TICK}")
    pretty = library.PrettyMIDI(resolution=_resolution(midi.division))
    scales = [(tick, rate / one.tempo_map.denominator) for tick, rate, _ in one.tempo_map.segments]
    pretty._tick_scales = scales  # the only way in, as its own reader does it
    pretty._update_tick_to_time(one.end_tick + 1)
    pretty.instruments = list(_instruments(one, library))
    pretty.time_signature_changes = [
        library.TimeSignature(beats, unit, one.tempo_map.second(tick))
        for tick, beats, unit in one.meters
    ]
    pretty.key_signature_changes = [
        library.KeySignature(_key_number(key), one.tempo_map.second(key.tick)) for key in one.keys
    ]
    pretty.lyrics = [library.Lyric(lyric.text, lyric.time_s) for lyric in one.lyrics]
    pretty.text_events = [library.Text(text.text, text.time_s) for text in one.texts]
    return pretty


def from_pretty_midi(pretty: "PrettyMIDI") -> MidiFile:
    """A `PrettyMIDI` as a file of format 1, a track for each instrument.

    Not carried: times between ticks (the nearest tick is taken), pitch bends, parts of a
    microsecond in tempos. Instruments take the channels that `PrettyMIDI.write` gives them.

    Raises:
        MidiError: `bad_division`: a resolution that no file can hold; `too_long`: times that are
            negative, infinite or beyond all bounds.
    """
    if not 0 < pretty.resolution < 0x8000:
        raise MidiError("bad_division", f"{pretty.resolution} ticks in a quarter; up to 32767")
    micros = pretty.resolution * 1_000_000
    tempos = tuple((int(tick), round(scale * micros)) for tick, scale in pretty._tick_scales)
    tempo_map = tempo_map_of(tempos, pretty.resolution)
    notes, controls, words = list[tuple[Any, ...]](), list[tuple[Any, ...]](), list[Words]()
    for track, instrument in enumerate(pretty.instruments):
        channel = DRUM_CHANNEL if instrument.is_drum else _CHANNELS[track % len(_CHANNELS)]
        flags = DRUM if instrument.is_drum else 0
        notes += [
            (note.start, note.end, note.pitch, note.velocity, 64, channel, instrument.program,
             0, track, flags, -1)
            for note in instrument.notes
        ]  # fmt: skip
        controls += [
            (track, control.time, channel, control.number, control.value)
            for control in instrument.control_changes
        ]
        if instrument.name:
            words.append((0, track, track, NAME, instrument.name.encode()))
    note_table = np.array(notes, np.float64).reshape(-1, len(NOTE_COLUMNS))
    control_table = np.array(controls, np.float64).reshape(-1, len(CONTROL_COLUMNS))
    note_table[:, :2] = _ticks(note_table[:, :2], tempo_map)
    note_table[note_table[:, ONSET] == note_table[:, OFFSET], FLAGS] += ZERO_LENGTH
    control_table[:, 1] = _ticks(control_table[:, 1], tempo_map)

    def ticked(events: list[Any]) -> list[tuple[int, Any]]:
        ticks = _ticks([one.time for one in events], tempo_map).tolist()
        return sorted(zip(ticks, events, strict=True), key=itemgetter(0))

    for kind, events in ((LYRIC, pretty.lyrics), (TEXT, pretty.text_events)):
        words += [(tick, 0, 0, kind, one.text.encode()) for tick, one in ticked(events)]
    meters = {
        tick: (tick, one.numerator, one.denominator)
        for tick, one in ticked(pretty.time_signature_changes)
    }
    keys = {tick: _key(one, tick) for tick, one in ticked(pretty.key_signature_changes)}
    ends = [*note_table[:, OFFSET], *control_table[:, 1], *(one[0] for one in words)]
    sequence = sequence_of(
        note_table.astype(np.int64),
        controls_of(control_table.astype(np.int64)),
        Metas(tempos, tuple(meters.values()), tuple(keys.values()), tuple(sorted(words))),
        tempo_map,
        int(max(ends, default=0)),
    )
    return MidiFile(1, pretty.resolution, None, (sequence,), ())


def _library() -> Any:
    try:
        import pretty_midi
    except ImportError as error:
        raise MissingError(
            "pretty_midi is not installed; type: pip install 'mmfuse[pretty-midi]'"
        ) from error
    return pretty_midi


def _resolution(division: int) -> int:
    """Ticks in a quarter; at SMPTE division those of a second of labels."""
    fps = 256 - (division >> 8)
    return (30 if fps == 29 else fps) * (division & 0xFF) if division & 0x8000 else division


def _instruments(sequence: Sequence, library: Any) -> Iterator[Any]:
    """Instruments with their notes, and with the controls of their track and channel."""
    notes, controls = sequence.notes, sequence.controls
    drums = notes["flags"] & DRUM
    voice = [notes[name] for name in ("track", "channel", "program")]
    voices = np.unique(np.stack([*voice, drums], axis=1).astype(np.int64), axis=0).tolist()
    heard = {(track, channel) for track, channel, _, _ in voices}
    mute = np.unique(np.stack([controls["track"], controls["channel"]], axis=1), axis=0).tolist()
    voices += [[*pair, 0, pair[1] == DRUM_CHANNEL] for pair in mute if tuple(pair) not in heard]
    names, given = sequence.track_names, set[tuple[int, int]]()
    for track, channel, program, drum in voices:
        instrument = library.Instrument(program, bool(drum), names.get(track, ""))
        mine = (voice[0] == track) & (voice[1] == channel) & (voice[2] == program) & (drums == drum)
        instrument.notes = [
            library.Note(velocity, pitch, onset_s, offset_s)
            for velocity, pitch, onset_s, offset_s in zip(
                *(notes[name][mine].tolist() for name in ("velocity", "pitch", *_TIMES)),
                strict=True,
            )
        ]
        if (track, channel) not in given:
            given.add((track, channel))
            mine = (controls["track"] == track) & (controls["channel"] == channel)
            instrument.control_changes = [
                library.ControlChange(number, value, time_s)
                for number, value, time_s in controls[mine][["number", "value", "time_s"]].tolist()
            ]
        yield instrument


def _ticks(times_s: Any, tempo_map: TempoMap) -> NDArray[np.int64]:
    """The nearest ticks.

    Raises:
        MidiError: `too_long`.
    """
    times_s = np.asarray(times_s, np.float64)
    longest_s = MAX_NUMERATOR / tempo_map.denominator
    if not ((times_s >= 0) & (times_s < longest_s)).all():
        raise MidiError("too_long", f"times that are not between 0 and {longest_s:.0f} s")
    return tempo_map.ticks(times_s)


def _key_number(key: Key) -> int:
    """0 to 11 for C to B major, 12 to 23 for C to B minor."""
    return (7 * key.sharps + 9) % 12 + 12 if key.minor else 7 * key.sharps % 12


def _key(signature: Any, tick: int) -> Key:
    """The key of fewest signs; of F sharp and G flat the first."""
    minor = signature.key_number >= 12
    sharps = 7 * (signature.key_number - 9 * minor) % 12
    return Key(tick, sharps - 12 if sharps > 6 else sharps, minor)
