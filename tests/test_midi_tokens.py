"""One stream, three ways to write the same notes down; the choice is in the fingerprint."""

import json
import struct
from fractions import Fraction

import numpy as np
import pytest

from mmfuse.features.config import MidiPreprocessing, validate
from mmfuse.features.errors import ConfigError
from mmfuse.features.midi_file import read_midi
from mmfuse.features.midi_tokens import (
    TOKENIZATIONS,
    build_tokenization,
    midi_tokens_spec,
    tokens_entry,
)
from mmfuse.features.notes import COLUMN, notes_entry
from mmfuse.pipeline.makers import MidiMaker

# as of the first release: a store that was made with the defaults stays good
MIDI_LIKE = "1b26479e85fd5f6896a3dd997ecc1500d6142a559ea11a1a5f1f43d2be5d8823"

each = pytest.mark.parametrize("chosen", TOKENIZATIONS.values(), ids=TOKENIZATIONS)
METRIC = {name: TOKENIZATIONS[name] for name in ("remi", "compound")}
each_metric = pytest.mark.parametrize("chosen", METRIC.values(), ids=METRIC)


def decode(entry, params):
    """Notes of an entry: pitch and velocity of each, in their order."""
    compound = "kind" in params.fields
    back = params.decode(entry.values if compound else entry.values[:, 0])
    return back[:, -3:-1] if back.shape[1] == 6 else back[:, 2:]


def test_the_default_is_midi_like_as_it_always_was():
    assert midi_tokens_spec().fingerprint == MIDI_LIKE
    assert MidiPreprocessing().tokenization == "midi_like"
    assert MidiMaker(MidiPreprocessing()).specs[1].fingerprint == MIDI_LIKE


@each
def test_a_spec_names_its_vocabulary_and_its_version(chosen):
    spec = midi_tokens_spec(chosen())
    vocabulary = json.loads(json.dumps(spec.to_json()))["params"]["vocabulary"]
    assert TOKENIZATIONS[vocabulary["name"]] is chosen
    assert vocabulary["version"] == 1
    assert vocabulary["pad"] == 0
    assert (spec.name, spec.timing.field, spec.item) == (
        "midi_tokens",
        "onset_s",
        (len(spec.fields),),
    )
    assert set(spec.fields) >= {"onset_s", "bar", "beat_in_bar"}


@each
def test_a_clip_without_notes_has_no_rows(chosen, in_bars):
    entry = tokens_entry(in_bars(), chosen())
    assert entry.values.shape == (0, len(chosen().fields))
    assert (entry.windows, entry.note) == (((Fraction(0), 0),), "")
    assert len(decode(entry, chosen())) == 0


@each
def test_chords_are_kept_whole_across_tracks(chosen, in_bars):
    chord = [(0, 1, pitch, 64) for pitch in range(128)]
    values = in_bars(*chord)
    values[:, COLUMN["track"]] = np.arange(128) % 16
    back = decode(tokens_entry(values, chosen(velocity_bins=128)), chosen(velocity_bins=128))
    assert back.tolist() == [[pitch, 64] for pitch in range(128)]


@each
def test_two_notes_of_one_pitch_at_once_stay_two(chosen, in_bars):
    values = in_bars((0, 1, 60, 30), (0, 3, 60, 90), (0.5, 1, 60, 50))
    back = decode(tokens_entry(values, chosen(velocity_bins=128)), chosen(velocity_bins=128))
    assert sorted(back.tolist()) == [[60, 30], [60, 50], [60, 90]]


@each_metric
def test_overlapping_notes_of_one_pitch_keep_their_lengths(chosen, in_bars):
    params = chosen()
    entry = tokens_entry(in_bars((0, 3, 60), (1, 1, 60)), params)
    back = params.decode(
        entry.values if chosen is TOKENIZATIONS["compound"] else entry.values[:, 0]
    )
    assert back[:, 1:3].tolist() == [[0, 3], [1, 1]]


@each
def test_rows_are_those_of_the_notes_on_the_clips_clock(chosen, in_bars):
    values = in_bars((0, 1, 60), (Fraction(11, 3), 2, 62), (9, 1, 64))
    values[:, [COLUMN["onset_s"], COLUMN["offset_s"]]] -= 1.25
    entry = tokens_entry(values, chosen())
    fields = dict(zip(chosen().fields, entry.values.T, strict=True))
    onsets = values[:, COLUMN["onset_s"]]
    assert set(onsets) <= set(fields["onset_s"])
    if chosen in METRIC.values():
        assert (np.diff(fields["onset_s"]) >= 0).all()
        assert set(fields["onset_s"]) == set(onsets)


def smpte(*notes):
    """A file of 25 frames of 40 ticks: notes (on, off, pitch) are given in milliseconds."""
    body, now = b"", 0
    events = [(on, bytes([0x90, pitch, 64])) for on, _, pitch in notes]
    events += [(off, bytes([0x80, pitch, 0])) for _, off, pitch in notes]
    for tick, event in sorted(events):
        delta, now = tick - now, tick
        body += bytes([0x80 | delta >> 14 & 0x7F, 0x80 | delta >> 7 & 0x7F, delta & 0x7F]) + event
    body += b"\0\xff\x2f\0"
    header = b"MThd" + struct.pack(">IHHH", 6, 0, 1, 0xE728)
    return header + b"MTrk" + struct.pack(">I", len(body)) + body


@each_metric
def test_smpte_division_has_bars_of_two_seconds_and_quarters_of_half_a_second(chosen):
    # 1.0 s is the second quarter of the first bar; 1.99 s rounds to the second bar
    values = notes_entry(
        read_midi(smpte((0, 500, 60), (1000, 1250, 61), (1990, 3990, 62), (9125, 9130, 63)))
    ).values
    params = chosen(tempos=True)
    entry = tokens_entry(values, params)
    compound = chosen is TOKENIZATIONS["compound"]
    back = params.decode(entry.values if compound else entry.values[:, 0])
    assert back[:, 0].tolist() == [0, 0, 1, 4]  # bars
    assert back[:, 1].tolist() == [0, 2, 0, 2.25]  # quarters
    assert back[:, 2].tolist() == [1, 0.5, 4, 1 / 12]
    fields = dict(zip(params.fields, entry.values.T, strict=True))
    if compound:
        assert (fields["tempo"] == 0).all()  # unknown
    else:
        first, count = params.spec_params["vocabulary"]["tempo"]
        assert not ((fields["token"] >= first) & (fields["token"] < first + count)).any()


@each
def test_a_configuration_chooses(chosen):
    name = next(name for name, kind in TOKENIZATIONS.items() if kind is chosen)
    config = validate(
        MidiPreprocessing, {"tokenization": name, "velocity_bins": 16, "max_events": 77}, "x.toml"
    )
    assert build_tokenization(config) == chosen(velocity_bins=16, max_events=77)


def test_a_configuration_sets_the_grid():
    document = {
        "tokenization": "remi",
        "positions_per_quarter": 24,
        "programs": True,
        "tempos": True,
    }
    chosen = build_tokenization(validate(MidiPreprocessing, document, "x.toml"))
    assert chosen == TOKENIZATIONS["remi"](positions_per_quarter=24, programs=True, tempos=True)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (
            {"tokenization": "octuple"},
            "tokenization = 'octuple': no tokenizer named 'octuple'; choose from: midi_like",
        ),
        ({"tokens": "remi"}, "tokens = 'remi': no such key; did you mean 'tokenization'"),
        ({"programs": True}, "programs = true: midi_like has no use for it; set tokenization"),
        (
            {"tokenization": "midi_like", "positions_per_quarter": 8},
            "positions_per_quarter = 8: .*midi_like has no use for it",
        ),
    ],
)
def test_a_wrong_choice_is_refused_in_one_line(document, message):
    with pytest.raises(ConfigError, match=message):
        validate(MidiPreprocessing, document, "x.toml")


@each
def test_every_note_of_real_files_comes_back(chosen, lieder8):
    params = chosen(velocity_bins=128, max_events=10**6)
    for file in sorted((lieder8 / "midi").glob("*.mid"))[::5]:
        values = notes_entry(read_midi(file.read_bytes())).values
        entry = tokens_entry(values, params)
        back = decode(entry, params)
        wanted = values[:, [COLUMN["pitch"], COLUMN["velocity"]]]
        assert sorted(back.tolist()) == sorted(wanted.tolist()), file.name
