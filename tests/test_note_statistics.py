"""Notes as one row: each descriptor against its definition, and what must not change it."""

from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest

from mmfuse.features.config import FeatureConfig, MidiPreprocessing, Preprocessing
from mmfuse.features.corpus import open_corpus
from mmfuse.features.note_statistics import (
    FIELDS,
    GROUPS,
    SIZES,
    STEPS,
    describe,
    note_statistics_spec,
    statistics_entry,
)
from mmfuse.features.notes import COLUMN
from mmfuse.features.notes import FIELDS as NOTE_FIELDS
from mmfuse.features.store import open_store
from mmfuse.pipeline.makers import MidiMaker
from mmfuse.pipeline.progress import Progress
from mmfuse.pipeline.run import make_features

QUARTER_S = 0.5


def notes_of(rows):
    """(track, onset in quarters, length in quarters, pitch, velocity) -> rows of `notes`."""
    values = np.zeros((len(rows), len(NOTE_FIELDS)))
    for row, (track, onset, length, pitch, velocity) in zip(values, rows, strict=True):
        row[COLUMN["track"]], row[COLUMN["pitch"]], row[COLUMN["velocity"]] = track, pitch, velocity
        row[COLUMN["onset_s"]] = onset * QUARTER_S
        row[COLUMN["offset_s"]] = (onset + length) * QUARTER_S
        row[COLUMN["beat_in_bar"]] = onset % 4
        row[COLUMN["bar_length"]], row[COLUMN["quarter_s"]] = 4, QUARTER_S
    return values[np.lexsort((values[:, COLUMN["pitch"]], values[:, COLUMN["onset_s"]]))]


@pytest.fixture
def song():
    """A voice over chords of three, with passing notes."""
    rng = np.random.default_rng(3)
    rows = []
    for bar in range(8):
        rows += [(1, 4 * bar + b, 0.9, 70 + int(rng.integers(-5, 6)), 80) for b in range(4)]
        root = 45 + int(rng.integers(0, 12))
        rows += [
            (2, 4 * bar + b, 1.9, root + i, 40 + 30 * (b > 0)) for b in (0, 2) for i in (0, 4, 7)
        ]
        rows += [(2, 4 * bar + 3.5, 0.45, root - 2, 50)]
    return notes_of(rows)


def test_sizes_and_names_agree(song):
    found = describe(song)
    assert list(found) == list(SIZES)
    assert {name: len(values) for name, values in found.items()} == dict(SIZES)
    entry, spec = statistics_entry(song), note_statistics_spec()
    assert entry.values.shape == (1, *spec.item)
    assert str(entry.values.dtype) == spec.dtype
    assert len(set(FIELDS)) == len(FIELDS) == len(GROUPS) * sum(SIZES.values())
    assert np.isfinite(entry.values).all()


def test_shares_are_of_what_they_say(song):
    found = describe(song)
    pitch, onset_s = song[:, COLUMN["pitch"]], song[:, COLUMN["onset_s"]]
    counts = Counter(int((p - 20) // 6) for p in pitch)
    assert found["register"] ** 2 == pytest.approx([counts[i] / len(pitch) for i in range(15)])
    chords = [pitch[onset_s == onset] for onset in sorted(set(onset_s))]
    sizes = Counter(len(chord) for chord in chords)
    assert found["chord"] ** 2 == pytest.approx([sizes[i + 1] / len(chords) for i in range(8)])
    for name, line in (("top", [max(c) for c in chords]), ("bottom", [min(c) for c in chords])):
        steps = [int(np.clip(b - a, -12, 12)) for a, b in pairwise(line)]
        shares = Counter(steps)
        wanted = [shares[i - 12] / len(steps) for i in range(25)]
        assert found[f"{name}_interval"] ** 2 == pytest.approx(wanted)
        assert found[f"{name}_motion"][0] == pytest.approx(np.mean(np.abs(steps)))
        assert found[f"{name}_motion"][2] == pytest.approx(steps.count(0) / len(steps))
        kinds = [int(np.digitize(b - a, STEPS)) for a, b in pairwise(line)]
    pairs = Counter(7 * a + b for a, b in pairwise(kinds))
    total = sum(pairs.values())
    assert found["bottom_pair"] ** 2 == pytest.approx([pairs[i] / total for i in range(49)])
    inside = Counter(int(abs(a - b)) % 12 for chord in chords for a, b in combinations(chord, 2))
    total = sum(inside.values())
    assert found["vertical"] ** 2 == pytest.approx([inside[i] / total for i in range(12)])
    beats = Counter(round(12 * q) % 12 for q in song[:, COLUMN["beat_in_bar"]])
    assert found["beat"] ** 2 == pytest.approx([beats[i] / len(pitch) for i in range(12)])


def test_what_sounds_together_is_every_pair_that_overlaps(song):
    pitch, onset_s, offset_s = (song[:, COLUMN[n]] for n in ("pitch", "onset_s", "offset_s"))
    together = Counter(
        int(abs(pitch[j] - pitch[i])) % 12
        for i, j in combinations(range(len(song)), 2)
        if onset_s[j] < offset_s[i] - 0.02
    )
    total = sum(together.values())
    wanted = [together[i] / total for i in range(12)]
    assert describe(song)["sounding"] ** 2 == pytest.approx(wanted)


def test_groups_are_all_notes_and_the_first_two_tracks(song):
    row = statistics_entry(song).values[0].reshape(len(GROUPS), -1)
    track = song[:, COLUMN["track"]]
    for g, part in enumerate((song, song[track == 1], song[track == 2])):
        assert row[g] == pytest.approx(np.concatenate(list(describe(part).values())), rel=1e-6)
    alone = statistics_entry(song[track == 2]).values[0].reshape(len(GROUPS), -1)
    assert (alone[0] == alone[1]).all()
    assert not alone[2].any()


def test_another_key_and_another_start_change_only_the_register(song):
    moved = song.copy()
    moved[:, COLUMN["pitch"]] += 5
    for name in ("onset_s", "offset_s"):
        moved[:, COLUMN[name]] += 3.0
    before, after = describe(song), describe(moved)
    changed = {name for name in SIZES if before[name] != pytest.approx(after[name])}
    assert changed == {"register", "pitch"}


def test_a_jitter_of_milliseconds_leaves_chords_whole(song):
    played = song.copy()
    played[:, COLUMN["onset_s"]] += np.random.default_rng(0).uniform(0, 0.008, len(song))
    played = played[np.argsort(played[:, COLUMN["onset_s"]], kind="stable")]
    for name in ("chord", "top_interval", "bottom_pair", "vertical"):
        assert describe(played)[name] == pytest.approx(describe(song)[name])


def test_one_note_and_none_and_no_quarters(song):
    one = statistics_entry(song[:1]).values
    assert np.isfinite(one).all()
    assert statistics_entry(song[:0]).values.shape == (0, len(FIELDS))
    smpte = song.copy()
    smpte[:, COLUMN["quarter_s"]] = 0
    assert describe(smpte)["length"] == pytest.approx(describe(song)["length"])  # 0.5 s by chance


def test_the_stream_is_made_where_it_is_asked_for(sample, tmp_path):
    names = [spec.name for spec in MidiMaker(MidiPreprocessing()).specs]
    assert "note_statistics" not in names
    config = FeatureConfig(preprocessing=Preprocessing(midi=MidiPreprocessing(statistics=True)))
    place = tmp_path / "s.zarr"
    make_features(open_corpus(sample), place, config, Progress(quiet=True), limit=5)
    store = open_store(place)
    streams = {spec.name: store[key] for key, spec in store.specs().items()}
    clip = streams["notes"].ids[0]
    wanted = statistics_entry(np.asarray(streams["notes"][clip])).values
    assert (streams["note_statistics"][clip] == wanted).all()
