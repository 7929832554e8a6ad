"""Notes become musical events on the grid of their bars, and come back from it."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfuse.features.errors import ConfigError
from mmfuse.features.midi_file import DRUM
from mmfuse.features.midi_tokens import midi_tokens_spec, tokens_entry
from mmfuse.features.notes import COLUMN
from mmfuse.features.remi import BAR, Remi

PARAMS = Remi()
WHOLE = Remi(velocity_bins=128, max_events=10**6)
ALL = Remi(programs=True, tempos=True)


def words(values, params=PARAMS):
    """Tokens as words: what they are, and their number."""
    names = {BAR: "Bar"}
    for name, first in params.first.items():
        names |= {first + n: f"{name}{n}" for n in range(params.counts[name])}
    return [names[token] for token in tokens_entry(values, params).values[:, 0].tolist()]


def test_a_bar_is_spelled_out(in_bars):
    values = in_bars((0, 1, 60), (0, 2, 64), (Fraction(3, 2), Fraction(1, 3), 67))
    assert words(values) == [
        "Bar",
        "position0", "pitch60", "velocity16", "duration11",
        "pitch64", "velocity16", "duration23",
        "position18", "pitch67", "velocity16", "duration3",
    ]  # fmt: skip


def test_every_bar_is_said_the_empty_ones_too(in_bars):
    said = words(in_bars((4, 1, 60), (17, 1, 60)))
    assert [word for word in said if word in ("Bar", "position0", "position12")] == [
        "Bar", "Bar", "position0", "Bar", "Bar", "Bar", "position12",
    ]  # fmt: skip


def test_the_same_position_in_another_bar_is_said_again(in_bars):
    assert words(in_bars((0, 1, 60), (4, 1, 60))).count("position0") == 2


def test_program_and_tempo_are_said_where_they_are_wanted(in_bars):
    piano, drums = in_bars((0, 1, 60)), in_bars((1, 1, 36), flags=DRUM)
    faster = in_bars((2, 1, 60), quarter_s=0.25, program=40)
    same = in_bars((3, 1, 60), quarter_s=0.251, program=40)
    assert words(np.concatenate([piano, drums, faster, same]), ALL) == [
        "Bar",
        "position0", "tempo35", "program0", "pitch60", "velocity16", "duration11",
        "position12", "program128", "pitch36", "velocity16", "duration11",
        "position24", "tempo47", "program40", "pitch60", "velocity16", "duration11",
        "position36", "program40", "pitch60", "velocity16", "duration11",
    ]  # fmt: skip


@pytest.mark.parametrize(("qpm", "number"), [(1, 0), (16, 0), (32, 12), (120, 35), (999, 48)])
def test_tempo_has_a_step_for_each_semitone_of_its_ratio(in_bars, qpm, number):
    assert words(in_bars((0, 1, 60), quarter_s=60 / qpm), ALL)[2] == f"tempo{number}"


def test_every_row_has_the_real_time_bar_and_beat_of_its_note(in_bars):
    rows = tokens_entry(in_bars((Fraction(41, 40), 1, 60), (9, 1, 62))).values
    entry = tokens_entry(in_bars((Fraction(41, 40), 1, 60), (9, 1, 62)), Remi())
    onset_s, bar, beat = entry.values[:, 1:].T.tolist()
    assert rows[0, 1] == onset_s[0] == 41 / 80
    assert onset_s == [41 / 80] * 5 + [4.5] * 6
    assert bar == [0] * 5 + [1, 2] + [2] * 4  # a bar has its own number
    assert beat == [0] + [1.025] * 4 + [0, 0] + [1] * 4


def test_an_onset_that_rounds_to_the_end_of_its_bar_begins_the_next(in_bars):
    values = in_bars((Fraction(399, 100), 1, 60))
    assert words(values)[:3] == ["Bar", "Bar", "position0"]
    rows = tokens_entry(values, Remi()).values
    assert rows[2:, 2].tolist() == [0] * 4  # the columns say what is, not what the grid made of it
    assert rows[2:, 3].tolist() == [3.99] * 4
    assert words(in_bars((Fraction(395, 100), 1, 60)))[:2] == ["Bar", "position47"]


def test_halves_round_up_though_beats_are_rounded(in_bars):
    onsets = [Fraction(2 * k + 1, 24) for k in range(47)]
    decoded = WHOLE.decode(
        tokens_entry(in_bars(*[(on, 1, 60) for on in onsets]), WHOLE).values[:, 0]
    )
    assert np.round(decoded[:, 1] * 12).tolist() == list(range(1, 48))


def test_a_note_lasts_a_step_at_least(in_bars):
    assert words(in_bars((0, 0, 60)))[-1] == "duration0"


def test_what_is_too_long_for_the_vocabulary_is_shortened_and_counted(in_bars):
    values = in_bars((0, 16, 60), (1, 17, 62), (17, 1, 64), (19, 1, 65), bar=20)
    entry = tokens_entry(values, Remi())
    assert entry.note == "midi_tokens: 3 notes beyond 16 quarters of bar or duration, shortened"
    back = Remi().decode(entry.values[:, 0])
    assert back[:, 2].tolist() == [16, 16, 1, 1]
    assert np.round(back[:, 1] * 12).tolist() == [0, 12, 191, 191]
    assert tokens_entry(values, Remi(max_quarters=20)).note == ""


@pytest.mark.parametrize("kept", [1, 2, 3, 5, 6, 29, 30, 31, 119, 120])
@pytest.mark.parametrize("params", [{}, {"programs": True, "tempos": True}])
def test_what_is_beyond_max_events_is_counted(in_bars, kept, params):
    values = in_bars(*[(3 * k, 1, 60 + k) for k in range(20)])
    whole = tokens_entry(values, Remi(**params))
    entry = tokens_entry(values, Remi(**params, max_events=kept))
    total = len(whole.values)
    assert np.array_equal(entry.values, whole.values[:kept])
    assert entry.windows == ((Fraction(0), len(entry.values)),)
    left_out = max(total - kept, 0)
    said = f"midi_tokens: {left_out} of {total} tokens left out" if left_out else ""
    assert entry.note == said
    assert len(Remi(**params).decode(entry.values[:, 0])) <= 20


def test_a_billion_bars_of_silence_cost_no_more_than_max_events(in_bars):
    values = in_bars((0, 1, 60), (4 * 10**9, 1, 62))
    values[1, COLUMN["bar"]] = 2**31 - 1
    entry = tokens_entry(values, Remi())
    assert entry.values[:6, 0].tolist()[0] == BAR
    assert (entry.values[5:, 0] == BAR).all()
    assert entry.values[-1, 2] == 4096 - 5
    assert entry.note == f"midi_tokens: {2**31 + 8 - 4096} of {2**31 + 8} tokens left out"


grid_notes = st.lists(
    st.tuples(
        st.integers(0, 600), st.integers(1, 16 * 24), st.integers(0, 127), st.integers(1, 127)
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(grid_notes, st.sampled_from([1, 4, 12, 24]), st.integers(1, 16), st.booleans())
def test_notes_on_the_grid_come_back_as_they_were(in_bars, notes, positions, bar, programs):
    steps = [(on, 1 + length % (16 * positions), p, v) for on, length, p, v in notes]
    step = Fraction(1, positions)
    params = Remi(
        positions_per_quarter=positions, velocity_bins=128, programs=programs, max_events=10**6
    )
    values = in_bars(
        *[(on * step, length * step, p, v) for on, length, p, v in steps], bar=bar, program=7
    )
    entry = tokens_entry(values, params)
    assert entry.note == ""
    assert entry.values[:, 0].min() >= 1
    assert entry.values[:, 0].max() < params.vocabulary_size
    back = params.decode(entry.values[:, 0])
    found = [
        (round((row[0] * bar + row[1]) * positions), round(row[2] * positions), *row[3:5])
        for row in back.tolist()
    ]
    assert sorted(found) == sorted(steps)  # several notes of one pitch and position among them
    assert set(back[:, 5]) == {7 if programs else -1}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 40_000), st.integers(0, 7680), st.integers(0, 127)), min_size=1
    ),
    st.integers(1, 48),
    st.sampled_from([1, 1.5, 3, 3.5, 4]),
)
def test_no_note_is_further_from_itself_than_half_a_step(in_bars, notes, positions, bar):
    ticks = [(Fraction(on, 480), Fraction(length, 480), p) for on, length, p in notes]
    params = Remi(positions_per_quarter=positions, velocity_bins=128, max_events=10**6)
    values = in_bars(*ticks, bar=bar)
    back = params.decode(tokens_entry(values, params).values[:, 0])
    assert len(back) == len(notes)
    assert sorted(back[:, 3]) == sorted(p for _, _, p in ticks)
    half = 0.5 / positions + 1e-6
    for pitch in set(back[:, 3]):
        at = back[:, 3] == pitch
        real = values[values[:, COLUMN["pitch"]] == pitch]
        onset = real[:, COLUMN["bar"]] * bar + real[:, COLUMN["beat_in_bar"]]
        assert np.abs(np.sort(back[at, 0] * bar + back[at, 1]) - np.sort(onset)).max() <= half
        quarters = (real[:, COLUMN["offset_tick"]] - real[:, COLUMN["tick"]]) / 480
        wanted = np.sort(np.maximum(quarters, 1 / positions))
        assert np.abs(np.sort(back[at, 2]) - wanted).max() <= half


@pytest.mark.parametrize("bins", [1, 3, 32, 128])
def test_velocities_come_back_within_their_bin(in_bars, bins):
    params = Remi(velocity_bins=bins)
    values = in_bars(*[(v, 1, 60, v) for v in range(1, 128)])
    back = params.decode(tokens_entry(values, params).values[:, 0])[:, 4].astype(int)
    assert (back * bins // 128 == np.arange(1, 128) * bins // 128).all()


def test_decode_skips_what_is_no_note(in_bars):
    first = Remi().first
    pitch, velocity, duration = (first[name] for name in ("pitch", "velocity", "duration"))
    tokens = [
        0, -1, 10**6, duration, pitch + 60, velocity, duration,  # before any position
        BAR, first["position"], duration, pitch + 61, duration,  # without a velocity
        pitch + 62, velocity, duration + 11, velocity, duration,
        BAR, pitch + 63, velocity, duration,  # its position was that of the bar before
    ]  # fmt: skip
    assert Remi().decode(np.array(tokens)).tolist() == [[0, 0, 1, 62, 2, -1]]
    assert Remi().decode(np.array([])).shape == (0, 6)


def test_the_vocabulary_is_in_the_spec():
    spec = midi_tokens_spec(ALL)
    vocabulary = spec.params["vocabulary"]
    covered = [vocabulary["pad"]]
    for name in ("bar", *ALL.counts):
        first, count = vocabulary[name]
        covered += range(first, first + count)
    assert covered == list(range(vocabulary["size"]))  # no gap, no overlap
    assert (vocabulary["name"], vocabulary["version"]) == ("remi", 1)
    assert vocabulary["size"] == ALL.vocabulary_size == 2 + 192 + 49 + 129 + 128 + 32 + 192
    assert spec.fields == ("token", "onset_s", "bar", "beat_in_bar")
    fingerprints = {
        midi_tokens_spec(params).fingerprint
        for params in (Remi(), ALL, Remi(programs=True), Remi(tempos=True), Remi(max_quarters=8),
                       Remi(positions_per_quarter=24), Remi(velocity_bins=16), Remi(max_events=99))
    }  # fmt: skip
    assert len(fingerprints) == 8


@pytest.mark.parametrize(
    "wrong", [{"positions_per_quarter": 0}, {"positions_per_quarter": 97}, {"max_quarters": 0},
              {"velocity_bins": 129}, {"max_events": 0}]
)  # fmt: skip
def test_impossible_parameters_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"midi_tokens: {name} is .*; 1 to"):
        Remi(**wrong)
