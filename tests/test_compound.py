"""One row a note or bar, each field a number that an embedding can take."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfuse.features.compound import BAR, NOTE, Compound
from mmfuse.features.midi_file import DRUM
from mmfuse.features.midi_tokens import midi_tokens_spec, tokens_entry
from mmfuse.features.notes import COLUMN
from mmfuse.features.remi import Remi

ALL = Compound(programs=True, tempos=True)


def test_a_bar_is_spelled_out(in_bars):
    values = in_bars((0, 1, 60), (0, 2, 64), (Fraction(3, 2), Fraction(1, 3), 67))
    entry = tokens_entry(values, Compound())
    assert Compound().fields == (
        "kind", "position", "pitch", "velocity", "duration", "onset_s", "bar", "beat_in_bar",
    )  # fmt: skip
    assert entry.values.tolist() == [
        [BAR, 0, 0, 0, 0, 0, 0, 0],
        [NOTE, 1, 61, 17, 12, 0, 0, 0],
        [NOTE, 1, 65, 17, 24, 0, 0, 0],
        [NOTE, 19, 68, 17, 4, 0.75, 0, 1.5],
    ]


def test_program_and_tempo_are_fields_where_they_are_wanted(in_bars):
    values = np.concatenate([in_bars((0, 1, 60), program=5), in_bars((5, 1, 36), flags=DRUM)])
    rows = tokens_entry(values, ALL).values
    fields = dict(zip(ALL.fields, rows.T.tolist(), strict=True))
    assert fields["kind"] == [BAR, NOTE, BAR, NOTE]
    assert fields["program"] == [0, 6, 0, 129]
    assert fields["tempo"] == [0, 36, 0, 36]
    assert fields["bar"] == [0, 0, 1, 1]


def test_every_bar_has_its_row_the_empty_ones_too(in_bars):
    rows = tokens_entry(in_bars((5, 1, 60), (17, 1, 60)), Compound()).values
    assert rows[:, 0].tolist() == [BAR, BAR, NOTE, BAR, BAR, BAR, NOTE]
    assert rows[:, -3].tolist() == [2.5, 2.5, 2.5, 8.5, 8.5, 8.5, 8.5]  # of the note it leads to
    assert rows[:, -2].tolist() == [0, 1, 1, 2, 3, 4, 4]
    assert rows[:, -1].tolist() == [0, 0, 1, 0, 0, 0, 1]


@pytest.mark.parametrize("kept", [1, 2, 6, 7, 24, 25, 26])
def test_what_is_beyond_max_events_is_counted(in_bars, kept):
    values = in_bars(*[(k, 1, 60 + k) for k in range(20)])
    whole = tokens_entry(values, Compound())
    entry = tokens_entry(values, Compound(max_events=kept))
    assert len(whole.values) == 25
    assert np.array_equal(entry.values, whole.values[:kept])
    left_out = max(25 - kept, 0)
    assert entry.note == (f"midi_tokens: {left_out} of 25 tokens left out" if left_out else "")
    assert entry.windows == ((Fraction(0), len(entry.values)),)


def test_a_billion_bars_of_silence_cost_no_more_than_max_events(in_bars):
    values = in_bars((0, 1, 60))
    values[0, COLUMN["bar"]] = 2**31 - 1
    entry = tokens_entry(values, Compound())
    assert entry.values.shape == (4096, 8)
    assert entry.note.endswith(f"of {2**31 + 1} tokens left out")


notes = st.lists(
    st.tuples(
        st.integers(0, 30_000), st.integers(0, 9000), st.integers(0, 127), st.integers(1, 127)
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(notes, st.integers(1, 48), st.sampled_from([1.5, 3, 4]), st.booleans())
def test_separate_and_compound_tokens_say_the_same_notes(in_bars, ticks, positions, bar, programs):
    values = in_bars(
        *[(Fraction(on, 480), Fraction(length, 480), p, v) for on, length, p, v in ticks], bar=bar
    )
    chosen = {
        "positions_per_quarter": positions, "programs": programs, "velocity_bins": 128,
        "max_events": 10**6,
    }  # fmt: skip
    separate, compound = Remi(**chosen), Compound(**chosen)
    in_remi, in_rows = tokens_entry(values, separate), tokens_entry(values, compound)
    assert in_remi.note == in_rows.note
    for name, size in compound.sizes.items():
        numbers = in_rows.values[:, compound.fields.index(name)]
        assert numbers.min() >= 0
        assert numbers.max() < size
    back = compound.decode(in_rows.values)
    assert len(back) == len(ticks)
    assert np.array_equal(separate.decode(in_remi.values[:, 0]), back)
    # a model's rows have no times
    assert np.array_equal(compound.decode(in_rows.values[:, : len(compound.sizes)]), back)


def test_decode_skips_what_is_no_note():
    rows = [[0] * 5, [NOTE, 1, 0, 1, 1], [9, 1, 61, 1, 1], [NOTE, 1, 61, 1, 12]]
    assert Compound().decode(np.array(rows)).tolist() == [[0, 0, 1, 60, 2, -1]]
    assert Compound().decode(np.zeros((0, 5))).shape == (0, 6)


def test_the_vocabulary_is_in_the_spec():
    vocabulary = midi_tokens_spec(ALL).params["vocabulary"]
    assert (vocabulary["name"], vocabulary["version"]) == ("compound", 1)
    assert vocabulary["sizes"] == {
        "kind": 3, "position": 193, "tempo": 50, "program": 130, "pitch": 129, "velocity": 33,
        "duration": 193,
    }  # fmt: skip
    spec = midi_tokens_spec(Compound())
    assert spec.item == (8,)
    assert spec.fingerprint != midi_tokens_spec(Remi()).fingerprint
