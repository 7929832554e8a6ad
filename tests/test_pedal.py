"""With pedals a note sounds as long as on the instrument; without, as long as its key is down."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from midi_bytes import OFF, ON, control, smf, times, track

from mmfuse.features.midi_file import CONTROL, NOTE, ZERO_LENGTH, read_midi
from mmfuse.features.pedal import sounding_ends

DOWN, UP = control(64, 127), control(64, 0)


def sounding(*events: tuple[int, bytes]) -> list[tuple[float, float]]:
    data = smf(track(*events))
    assert times(read_midi(data))[0][1] <= times(read_midi(data, sustain=True))[0][1]
    return times(read_midi(data, sustain=True))


def test_a_key_let_up_while_the_pedal_is_down_sounds_until_it_comes_up():
    assert sounding((0, DOWN), (0, ON), (480, OFF), (480, UP)) == [(0.0, 1.0)]
    assert sounding((0, ON), (480, OFF), (0, DOWN), (480, UP)) == [(0.0, 1.0)]  # at one tick
    assert sounding((0, ON), (480, OFF), (1, DOWN), (480, UP)) == [(0.0, 0.5)]  # too late
    assert sounding((0, DOWN), (0, ON), (240, UP), (240, OFF)) == [(0.0, 0.5)]


@pytest.mark.parametrize(("value", "end_s"), [(63, 0.5), (64, 1.0)])
def test_the_pedal_is_down_from_64_on(value, end_s):
    assert sounding((0, control(64, value)), (0, ON), (480, OFF), (480, UP)) == [(0.0, end_s)]


def test_a_pedal_that_stays_down_comes_up_at_the_end_and_at_a_reset():
    assert sounding((0, DOWN), (0, ON), (480, OFF), (960, b"\xff\x01\x00")) == [(0.0, 1.5)]
    assert sounding((0, DOWN), (0, ON), (480, OFF), (480, control(121, 0)), (480, UP)) == [(0.0, 1)]


def test_a_string_that_is_struck_again_ends_its_earlier_note():
    found = sounding((0, DOWN), (0, ON), (240, OFF), (240, ON), (240, OFF), (240, UP))
    assert found == [(0.0, 0.5), (0.5, 1.0)]


def test_sostenuto_holds_the_keys_that_are_down_when_it_goes_down():
    low = b"\x90\x30\x40", b"\x80\x30\x40"
    sostenuto, up = control(66, 127), control(66, 0)
    found = sounding((0, ON), (240, sostenuto), (0, OFF), (0, low[0]), (240, low[1]), (480, up))
    assert found == [(0.0, 0.25), (0.25, 1.0)]  # keys of the same tick move first
    found = sounding((0, ON), (120, sostenuto), (120, OFF), (0, low[0]), (240, low[1]), (480, up))
    assert found == [(0.0, 1.0), (0.25, 0.5)]
    found = sounding((0, ON), (120, sostenuto), (120, OFF), (0, DOWN), (240, up), (480, UP))
    assert found == [(0.0, 1.0)]  # one pedal takes over from the other


def test_a_pedal_counts_for_its_channel_in_every_track_and_soft_for_nothing():
    data = smf(
        track((0, DOWN), (0, control(67, 127, 1)), (960, UP)),
        track((0, ON), (480, OFF)),
        track((0, b"\x91\x3c\x40"), (480, b"\x81\x3c\x40")),
    )
    midi = read_midi(data, sustain=True)
    assert times(midi) == [(0.0, 1.0), (0.0, 0.5)]
    assert times(read_midi(data)) == [(0.0, 0.5), (0.0, 0.5)]
    assert midi.sequences[0].pedals["number"].tolist() == [64, 67, 64]


def test_a_note_of_no_length_that_sounds_is_none_any_more():
    data = smf(track((0, DOWN), (480, ON), (0, OFF), (480, UP)))
    assert read_midi(data).sequences[0].notes["flags"].tolist() == [ZERO_LENGTH]
    assert read_midi(data, sustain=True).sequences[0].notes["flags"].tolist() == [0]


def one_by_one(notes: np.ndarray, controls: np.ndarray, end_tick: int) -> list[int]:
    """The same, tick by tick."""
    ends = []
    for note in notes:
        mine = controls[controls["channel"] == note["channel"]]
        again = notes["onset_tick"][
            (notes["pitch"] == note["pitch"])
            & (notes["channel"] == note["channel"])
            & (notes["onset_tick"] > note["onset_tick"])
        ].min(initial=10**9)
        sustain = sostenuto = caught = False
        sounds_until = int(note["offset_tick"])
        for tick in range(end_tick + 1):
            before = sostenuto
            for control_ in mine[mine["tick"] == tick]:
                down = control_["value"] >= 64
                sustain = down if control_["number"] == 64 else sustain
                sostenuto = down if control_["number"] == 66 else sostenuto
            went_down = sostenuto and not before
            caught = caught and sostenuto
            caught |= went_down and note["onset_tick"] <= tick < note["offset_tick"]
            if tick >= note["offset_tick"] and not (sustain or caught):
                sounds_until = tick
                break
        else:
            sounds_until = max(end_tick, sounds_until)
        ends.append(max(min(sounds_until, int(again)), int(note["offset_tick"])))
    return ends


ticks, channels = st.integers(0, 30), st.integers(0, 1)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(ticks, st.integers(0, 8), st.integers(60, 61), channels), max_size=8),
    st.lists(st.tuples(ticks, st.sampled_from([64, 66]), st.booleans(), channels), max_size=12),
)
def test_ends_are_those_of_going_tick_by_tick(keys, moves):
    notes = np.zeros(len(keys), NOTE)
    for row, (onset, length, pitch, channel) in zip(notes, sorted(keys), strict=True):
        row["onset_tick"], row["offset_tick"] = onset, onset + length
        row["pitch"], row["channel"] = pitch, channel
    controls = np.zeros(len(moves), CONTROL)
    for row, (tick, number, down, channel) in zip(
        controls, sorted(moves, key=lambda move: move[0]), strict=True
    ):
        row["tick"], row["number"], row["value"], row["channel"] = tick, number, 127 * down, channel
    assert sounding_ends(notes, controls, 40).tolist() == one_by_one(notes, controls, 40)
