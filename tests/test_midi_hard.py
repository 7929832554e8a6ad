"""Files that other readers lose, mend silently or time wrongly: each note is where it belongs."""

import pytest
from midi_bytes import HARD, ONE_NOTE, Hard, codes, plain_loops, riff, use_loops

from mmfuse.features import midi_chunks
from mmfuse.features.errors import MidiError
from mmfuse.features.midi_file import read_midi

every_file = pytest.mark.parametrize("hard", HARD, ids=[hard.name for hard in HARD])


@pytest.fixture(params=["compiled", "plain"])
def loops(request, monkeypatch):
    """The reader's loops, compiled and as plain Python."""
    if request.param == "plain":
        use_loops(monkeypatch, plain_loops())
    return request.param


def check(hard: Hard, data: bytes, *warnings: str) -> None:
    if hard.reason is not None:
        with pytest.raises(MidiError) as caught:
            read_midi(data, hard.limits)
        assert caught.value.reason == hard.reason
        return
    midi = read_midi(data, hard.limits)
    fields = ["onset_s", "offset_s", "pitch", "flags"]
    expected = [
        [(float(onset), float(offset), *rest) for onset, offset, *rest in notes]
        for notes in hard.notes
    ]
    assert [one.notes[fields].tolist() for one in midi.sequences] == expected
    assert codes(midi) == list(warnings)
    assert (midi.start.label if midi.start else None) == hard.start


@every_file
def test_every_note_is_exact_and_what_was_mended_is_said(hard, loops):
    check(hard, hard.data, *hard.warnings)


@every_file
def test_a_wrapper_changes_nothing(hard):
    if hard.data[:4] == ONE_NOTE[:4]:
        check(hard, riff(hard.data), "rmid", *hard.warnings)


def test_the_program_of_a_note_is_that_of_its_beginning():
    (hard,) = (hard for hard in HARD if hard.name == "program change during a note")
    assert read_midi(hard.data).sequences[0].notes["program"].tolist() == [0]


def test_compiled_and_plain_loops_are_two_things(loops):
    scan = midi_chunks.loops().scan_file
    assert hasattr(scan, "py_func") == (loops == "compiled")
