"""PrettyMIDI objects hold the notes that were read, and come back tick by tick."""

import io
import sys

import numpy as np
import pretty_midi
import pytest
from midi_bytes import HARD, OFF, ON, control, meta, meter, smf, tempo, track

from mmfuse.features.errors import MidiError, MissingError
from mmfuse.features.midi_file import DRUM, MidiLimits, Sequence, read_midi
from mmfuse.features.pretty_midi_bridge import from_pretty_midi, to_pretty_midi

SONG = smf(
    track((0, tempo(612_345)), (0, meter(3, 2)), (0, meta(0x59, b"\xfd\x00")),
          (960, tempo(400_001)), (0, meta(0x59, b"\x02\x01"))),
    track((0, meta(3, b"Voice")), (0, b"\xc0\x34"), (0, ON), (100, control(64, 127)), (377, OFF),
          (0, meta(5, b"la")), (0, ON), (480, OFF), (5, meta(1, b"fine"))),
    track((0, b"\x99\x24\x70"), (7, b"\x89\x24\x00"), (0, control(7, 99, 4))),
)  # fmt: skip


def rows(sequence: Sequence) -> list[tuple[int, ...]]:
    fields = ["onset_tick", "offset_tick", "pitch", "velocity", "program", "flags", "bar"]
    return sorted(sequence.notes[fields].tolist())


def test_notes_times_and_words_are_those_that_were_read():
    (one,) = read_midi(SONG).sequences
    pretty = to_pretty_midi(read_midi(SONG))
    assert [i.name for i in pretty.instruments] == ["Voice", "", ""]
    assert [i.program for i in pretty.instruments] == [0x34, 0, 0]
    assert [i.is_drum for i in pretty.instruments] == [False, True, False]
    notes = [(n.start, n.end, n.pitch, n.velocity) for i in pretty.instruments for n in i.notes]
    expected = one.notes[["onset_s", "offset_s", "pitch", "velocity"]].tolist()
    assert sorted(notes) == sorted(expected)
    assert [(c.number, c.value) for c in pretty.instruments[0].control_changes] == [(64, 127)]
    assert [(c.number, c.value) for c in pretty.instruments[2].control_changes] == [(7, 99)]
    assert [(lyric.text, lyric.time) for lyric in pretty.lyrics] == [("la", one.lyrics[0].time_s)]
    assert [text.text for text in pretty.text_events] == ["fine"]
    assert [str(key).split(" at")[0] for key in pretty.key_signature_changes] == [
        "Eb Major",
        "B minor",
    ]
    assert [(s.numerator, s.denominator) for s in pretty.time_signature_changes] == [(3, 4)]
    bpm = pretty.get_tempo_changes()[1]
    np.testing.assert_allclose(bpm, [60e6 / 612_345, 60e6 / 400_001], rtol=1e-12)


def test_a_file_comes_back_tick_by_tick():
    midi = read_midi(SONG)
    back = from_pretty_midi(to_pretty_midi(midi))
    (one,), (other,) = midi.sequences, back.sequences
    assert rows(one) == rows(other)
    assert (one.tempos, one.meters, one.keys) == (other.tempos, other.meters, other.keys)
    assert (one.lyrics, one.texts) == (other.lyrics, other.texts)
    assert one.notes["onset_s"].tolist() == other.notes["onset_s"].tolist()
    fields = ["tick", "number", "value"]
    assert one.controls[fields].tolist() == other.controls[fields].tolist()
    assert (back.division, back.start, back.warnings) == (480, None, ())


def test_what_pretty_midi_writes_is_what_it_holds():
    pretty = pretty_midi.PrettyMIDI(resolution=960, initial_tempo=120)
    drums = pretty_midi.Instrument(0, is_drum=True)
    piano = pretty_midi.Instrument(3, name="Piano")
    rng = np.random.default_rng(5)
    for pitch, (onset, length) in enumerate(rng.integers(1, 9_000, (128, 2)).tolist()):
        note = pretty_midi.Note(64, pitch, onset / 1920, (onset + length) / 1920)
        (piano if onset % 3 else drums).notes.append(note)
    pretty.instruments += [drums, piano]
    file = io.BytesIO()
    pretty.write(file)
    fields = ["onset_tick", "offset_tick", "onset_s", "pitch", "program", "channel", "flags"]
    written, held = read_midi(file.getvalue()), from_pretty_midi(pretty)
    assert [len(midi.sequences[0].notes) for midi in (written, held)] == [128, 128]
    assert (written.sequences[0].notes[fields] == held.sequences[0].notes[fields]).all()
    flags = held.sequences[0].notes["flags"]
    assert np.count_nonzero(flags & DRUM) == len(drums.notes)


SMPTE = [hard for hard in HARD if hard.data[12:13] >= b"\xe0" and not hard.reason]


@pytest.mark.parametrize("hard", SMPTE, ids=lambda hard: hard.name)
def test_smpte_division_becomes_quarters_of_a_second(hard):
    pretty = to_pretty_midi(read_midi(hard.data))
    (note,) = pretty.instruments[0].notes
    assert [(note.start, note.end)] == [(float(n[0]), float(n[1])) for n in hard.notes[0]]
    (other,) = from_pretty_midi(pretty).sequences[0].notes
    assert (other["onset_s"], other["offset_s"]) == pytest.approx((note.start, note.end), abs=1e-12)


def test_all_keys_come_back_but_for_those_of_one_sound():
    keys = [meta(0x59, bytes([sharps % 256, minor])) for sharps in range(-5, 7) for minor in (0, 1)]
    midi = read_midi(smf(track(*[(1, key) for key in keys], (1, ON), (1, OFF))))
    assert from_pretty_midi(to_pretty_midi(midi)).sequences[0].keys == midi.sequences[0].keys


def test_what_does_not_fit_is_refused_with_a_reason():
    long = read_midi(smf(track((10_000_000, ON), (1, OFF))))
    with pytest.raises(MidiError, match="pretty_midi takes 10000000"):
        to_pretty_midi(long)
    longer = read_midi(smf(track((0x0FFFFFFF, ON), (1, OFF))), MidiLimits(duration_s=10**6))
    assert len(longer.sequences[0].notes) == 1
    with pytest.raises(MidiError, match="40000 ticks in a quarter"):
        from_pretty_midi(pretty_midi.PrettyMIDI(resolution=40_000))
    for time_s in (-1.0, float("nan"), float("inf"), 1e30):
        odd = pretty_midi.PrettyMIDI()
        odd.instruments = [pretty_midi.Instrument(0)]
        odd.instruments[0].notes = [pretty_midi.Note(1, 1, time_s, time_s)]
        with pytest.raises(MidiError, match="not between 0 and"):
            from_pretty_midi(odd)


def test_an_empty_object_is_an_empty_file():
    midi = from_pretty_midi(pretty_midi.PrettyMIDI())
    assert len(midi.sequences[0].notes) == 0
    assert to_pretty_midi(read_midi(smf())).instruments == []


def test_without_pretty_midi_the_line_that_installs_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "pretty_midi", None)
    with pytest.raises(MissingError, match=r"pip install 'mmfuse\[pretty-midi\]'"):
        to_pretty_midi(read_midi(SONG))
