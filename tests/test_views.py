"""Views through the command line: audio and notes of each view stay as they were to each other."""

import json
import shutil
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crc32c import crc32c
from typer.testing import CliRunner

from mmfuse.features import layout
from mmfuse.features.alignment import estimate_lag
from mmfuse.features.audio import Audio
from mmfuse.features.augment import Draw
from mmfuse.features.failures import Failure
from mmfuse.features.index import Record
from mmfuse.features.midi_file import DRUM
from mmfuse.features.notes import COLUMN
from mmfuse.features.spec import Entry
from mmfuse.features.store import open_store
from mmfuse.features.writer import StoreWriter
from mmfuse.pipeline.cli import app

AUGMENTED = """
[preprocessing]
views = {views}
[preprocessing.audio]
encoder = "waveform"
[preprocessing.audio.augmentations]
time_stretch = [0.85, 1.15]
pitch_shift = 4
noise_snr_db = [20, 40]
gain_db = [-6, 3]
[preprocessing.midi.augmentations]
velocity = 10
"""
PLAIN = '[preprocessing.audio]\nencoder = "waveform"\n[preprocessing.midi]\n'
SEARCH_S = 0.1  # pieces repeat themselves; how far they may be off is far less


def mmfeat(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def made(config, corpus, store, *more, code=0):
    given = ("--corpus", corpus, "--store", store, "--json", *more)
    return json.loads(mmfeat("run", config, *given, code=code).stdout)


def write(folder, text, **values):
    path = folder / "c.toml"
    path.write_text(text.format(**values) if values else text)
    return path


def every(stream):
    """(clip, view) -> (bytes, augmentation, content)."""
    ids, views = stream.ids, stream.views.tolist()
    drawn = stream.table["augmentation"].to_pylist()
    content = stream.table["content"].to_pylist()
    return {
        (ids[n], views[n]): (stream.at(n).tobytes(), drawn[n], content[n])
        for n in range(len(stream))
    }


@pytest.fixture(scope="module")
def some(sample, tmp_path_factory):
    """A store of the sample corpus with two views of its train clips; do not write into it."""
    folder = tmp_path_factory.mktemp("views")
    config = write(folder, AUGMENTED, views=2)
    made(config, sample, folder / "s.zarr", "--limit", 24)
    return folder / "s.zarr"


def pairs(folder, count):
    """Ids of the first train clips with audio and MIDI, and the limit that makes them."""
    table = pq.read_table(folder / "manifest.parquet")
    rows = [
        (number, row["id"])
        for number, row in enumerate(
            table.select(["id", "split", "audio_path", "midi_path"]).to_pylist()
        )
        if row["split"] == "train" and row["audio_path"] and row["midi_path"]
    ]
    return [clip_id for _, clip_id in rows[:count]], rows[:count][-1][0] + 1


def check_together(path, clip_ids, views):
    """Check transposition and times of each view exactly; lags against view 0's, in ms."""
    store = open_store(path)
    sound, notes = store["waveform"], store["notes"]
    rate_hz = sound.spec.params["rate_hz"]

    def lag(clip_id, view):
        samples_N = sound[clip_id, view].astype(np.float32) / 32767
        audio = Audio(samples_N, rate_hz, 1, len(samples_N), "WAV")
        return estimate_lag(audio, notes[clip_id, view], SEARCH_S)

    found_ms = []
    for clip_id in clip_ids:
        before, rows = lag(clip_id, 0), notes[clip_id]
        for view in range(1, views + 1):
            of_sound, of_notes = (
                Draw.from_json(
                    stream.table["augmentation"][stream.find([clip_id], view)[0]].as_py()
                )
                for stream in (sound, notes)
            )
            joint = of_sound.stretch, of_sound.semitones
            assert joint == (of_notes.stretch, of_notes.semitones)
            check_rows(rows, notes[clip_id, view], *joint)
            seconds = len(sound[clip_id]) / rate_hz
            assert len(sound[clip_id, view]) / rate_hz == pytest.approx(
                seconds * float(of_sound.stretch), abs=2 / 8000
            )
            found_ms.append(1000 * (lag(clip_id, view).lag_s - before.lag_s))
    return np.array(found_ms)


def check_rows(rows, moved, stretch, semitones):
    """Notes of a view are those of the clip: each pitch and each time, exactly."""
    pitched = (rows[:, COLUMN["flags"]].astype(int) & DRUM) == 0
    expected = rows.copy()
    expected[pitched, COLUMN["pitch"]] += semitones
    for name in ("onset_s", "offset_s", "quarter_s"):
        seconds = rows[:, COLUMN[name]].tolist()
        expected[:, COLUMN[name]] = [float(Fraction(second) * stretch) for second in seconds]
    left_out = {"velocity"}
    if (rows[:, COLUMN["ticks_per_quarter"]] == 0).any():  # ticks are time there, and whole
        left_out |= {"tick", "offset_tick", "bar", "beat_in_bar"}
    same = [number for name, number in COLUMN.items() if name not in left_out]
    keys = [COLUMN[name] for name in ("onset_s", "pitch", "offset_s", "channel", "track")]
    expected, moved = (
        values[np.lexsort([values[:, key] for key in keys])] for values in (expected, moved)
    )
    assert np.array_equal(moved[:, same], expected[:, same])
    assert np.abs(moved[:, COLUMN["velocity"]] - expected[:, COLUMN["velocity"]]).max() <= 10


def summary(off_ms):
    return (
        f"{len(off_ms)} views: median {np.median(off_ms):+.2f} ms, mean size "
        f"{np.abs(off_ms).mean():.2f} ms, largest {np.abs(off_ms).max():.2f} ms"
    )


def test_sound_and_notes_of_views_stay_together(some, sample):
    clip_ids, _ = pairs(sample, 6)
    off_ms = check_together(some, clip_ids, 2)
    assert np.abs(off_ms).max() < 10, summary(off_ms)


@pytest.mark.slow
def test_sound_and_notes_of_400_views_of_lieder8_stay_together(lieder8, tmp_path, capsys):
    clip_ids, limit = pairs(lieder8, 100)
    config = write(tmp_path, AUGMENTED, views=4)
    store = tmp_path / "s.zarr"
    report = made(config, lieder8, store, "--limit", limit)
    off_ms = check_together(store, clip_ids, 4)
    with capsys.disabled():
        print(f"\n{report['made']}, {report['seconds']:.0f} s; {summary(off_ms)}")
    assert len(off_ms) == 400
    assert np.abs(off_ms).max() < 10, summary(off_ms)


def test_views_are_those_of_train_clips_and_say_what_was_drawn(some, sample):
    splits = dict(
        zip(
            *pq.read_table(sample / "manifest.parquet", columns=["id", "split"])
            .to_pydict()
            .values(),
            strict=True,
        )
    )
    store = open_store(some)
    for name in ("waveform", "notes", "midi_tokens", "piano_roll"):
        stream = store[name]
        found = every(stream)
        here = [clip_id for clip_id in splits if clip_id in stream]
        wanted = {(clip_id, 0) for clip_id in here}
        wanted |= {
            (clip_id, view) for clip_id in here if splits[clip_id] == "train" for view in (1, 2)
        }
        assert set(found) == wanted
        for (_, view), (_, drawn, _) in found.items():
            assert (drawn == "") == (view == 0)
        drawn = [text for _, text, _ in found.values() if text]
        assert len({Draw.from_json(text).stretch for text in drawn}) > 8
    assert "velocity" not in "".join(text for _, text, _ in every(store["waveform"]).values())
    assert "snr_db" not in "".join(text for _, text, _ in every(store["notes"]).values())


def test_view_0_and_its_fingerprint_are_the_same_without_views(some, sample, tmp_path):
    made(write(tmp_path, PLAIN), sample, tmp_path / "plain.zarr", "--limit", 12)
    plain, with_views = open_store(tmp_path / "plain.zarr"), open_store(some)
    assert list(plain.specs()) == list(with_views.specs())
    for key in plain.specs():
        whole = every(with_views[key])
        for one, found in every(plain[key]).items():
            assert whole[one] == found


def test_views_of_a_store_without_them_are_added_and_view_0_is_not_made_again(sample, tmp_path):
    plain, store = write(tmp_path, PLAIN), tmp_path / "s.zarr"
    before = made(plain, sample, store, "--limit", 8)
    after = made(write(tmp_path, AUGMENTED, views=1), sample, store, "--limit", 8)
    assert after["already"] == before["made"]
    assert 0 < after["made"]["notes"] < before["made"]["notes"]
    again = made(write(tmp_path, AUGMENTED, views=1), sample, store, "--limit", 8)
    assert again["made"] == {}
    assert again["root"] == after["root"]


def test_a_view_is_the_same_whatever_was_made_before_it(some, sample, tmp_path):
    # audio and MIDI by commands of their own, backwards in views, beside other clips
    config = write(tmp_path, AUGMENTED, views=2)
    for command in ("tokenize", "extract"):
        for views in (1, 2):
            more = ("--encoder", "waveform") if command == "extract" else ()
            mmfeat(command, "--config", config, "--corpus", sample, "--store", tmp_path / "s.zarr",
                   "--limit", 5, "--views", views, "-q", *more)  # fmt: skip
    one, other = open_store(tmp_path / "s.zarr"), open_store(some)
    for name in ("waveform", "notes", "piano_roll"):
        whole = every(other[name])
        part = every(one[name])
        assert any(view == 2 for _, view in part)
        assert all(whole[key] == found for key, found in part.items())


def test_another_policy_makes_new_the_views_that_it_changes(sample, tmp_path):
    store = tmp_path / "s.zarr"
    made(write(tmp_path, AUGMENTED, views=1), sample, store, "--limit", 8)
    before = {name: every(open_store(store)[name]) for name in ("waveform", "notes")}
    louder = write(tmp_path, AUGMENTED.replace("velocity = 10", "velocity = 20"), views=1)
    report = made(louder, sample, store, "--limit", 8)
    assert set(report["made"]) == {"notes", "midi_tokens", "piano_roll"}
    after = {name: every(open_store(store)[name]) for name in ("waveform", "notes")}
    assert after["waveform"] == before["waveform"]
    changed = {key for key, found in after["notes"].items() if found != before["notes"][key]}
    assert changed == {key for key in after["notes"] if key[1] == 1}
    other = made(louder, sample, store, "--limit", 8, "--set", "preprocessing.view_seed=1")
    assert other["made"]["waveform"] == len([key for key in after["waveform"] if key[1] == 1])


def test_views_that_differ_in_nothing_are_refused(sample, tmp_path):
    store = tmp_path / "s.zarr"
    result = mmfeat("extract", "--corpus", sample, "--store", store, "--views", 3, code=2)
    assert "preprocessing.views = 3, but nothing that is made is augmented" in result.stderr
    assert not store.exists()


def test_sections_that_contradict_each_other_are_refused(sample, tmp_path):
    config = write(tmp_path, AUGMENTED.replace("velocity = 10", "pitch_shift = 2"), views=1)
    result = mmfeat("run", config, "--corpus", sample, "--store", tmp_path / "s.zarr", code=2)
    assert "pitch_shift = 2: moves audio and MIDI together" in result.stderr


def test_a_clip_that_fails_is_told_once_and_not_once_a_view(sample, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rows = pq.read_table(sample / "manifest.parquet").to_pylist()
    row = next(row for row in rows if row["audio_path"] and row["split"] == "train")
    (corpus / "bad.wav").write_bytes(b"RIFF\0\0\0\0WAVEbroken")
    table = {"id": ["bad"], "audio_path": ["bad.wav"], "split": ["train"], "label": [row["label"]]}
    pq.write_table(pa.table(table), corpus / "manifest.parquet")
    config, store = write(tmp_path, AUGMENTED, views=3), tmp_path / "s.zarr"
    for _ in range(2):
        report = made(config, corpus, store, code=3)
        assert [failure["clips"] for failure in report["failed"]] == [1]
        assert open_store(store).failures()["view"].to_pylist() == [0]


def test_a_view_that_fails_leaves_the_others(sample, tmp_path, monkeypatch):
    monkeypatch.setattr("mmfuse.features.augment.MAX_SAMPLES", 1)
    config, store = write(tmp_path, AUGMENTED, views=2), tmp_path / "s.zarr"
    report = made(config, sample, store, "--limit", 4, code=3)
    assert {failure["reason"] for failure in report["failed"]} == {"too_long"}
    opened = open_store(store)
    failed = opened.failures()
    assert set(failed["view"].to_pylist()) == {1, 2}
    assert set(opened["waveform"].views.tolist()) == {0}
    assert set(opened["notes"].views.tolist()) == {0, 1, 2}
    again = made(config, sample, store, "--limit", 4, code=3)
    assert again["made"] == {}
    monkeypatch.undo()
    mended = made(config, sample, store, "--limit", 4, "--retry-failed")
    assert mended["made"] == {"waveform": len(failed)}
    assert len(open_store(store).failures()) == 0


def test_inspect_tells_views_and_what_was_drawn(some, sample):
    clip_id = pairs(sample, 1)[0][0]
    streams = json.loads(mmfeat("inspect", some, "--json").stdout)["streams"]
    assert {stream["views"] for stream in streams} == {2}
    entries = json.loads(mmfeat("inspect", some, "--clip", clip_id, "--json").stdout)["entries"]
    of_notes = {e["view"]: e["augmentation"] for e in entries if e["stream"].startswith("notes")}
    assert sorted(of_notes) == [0, 1, 2]
    assert of_notes[0] == {}
    assert of_notes[1]["velocity"] == 10
    told = mmfeat("inspect", some, "--clip", clip_id).stdout
    assert f"stretch {of_notes[1]['stretch']}" in told


def test_views_are_made_again_and_compared(some, sample, tmp_path):
    found = json.loads(mmfeat("verify", some, "--recompute", 30, "--json").stdout)
    store = open_store(some)
    assert found["recomputed"] == sum(len(store[key]) for key in store.specs())
    # one view of one clip, with other samples than were drawn
    copy = tmp_path / "s.zarr"
    shutil.copytree(some, copy)
    clip_id = pairs(sample, 1)[0][0]
    stream = store["waveform"]
    number = int(stream.find([clip_id], 2)[0])
    row = stream.table.slice(number, 1).to_pylist()[0]
    with StoreWriter(copy) as writer:
        values = stream.at(number).copy()
        values[100] += 1
        writer.stream(stream.spec).append(
            clip_id, row["content"], Entry(values), 2, row["augmentation"]
        )
    result = mmfeat("verify", copy, "--recompute", 30, "--json", code=4)
    assert f"of '{clip_id}', view 2" in result.stdout
    assert result.stdout.count("made again it has other values") == 1


# Reading


def test_readers_see_view_0_unless_told(some, sample):
    clip_id = pairs(sample, 1)[0][0]
    stream = open_store(some)["notes"]
    entries = [int(stream.find([clip_id], view)[0]) for view in range(3)]
    assert stream.views[entries].tolist() == [0, 1, 2]
    assert stream.find([clip_id])[0] == entries[0]
    assert stream.find(["nobody", clip_id], 9).tolist() == [-1, -1]
    assert np.array_equal(stream[clip_id], stream.at(entries[0]))
    assert np.array_equal(stream[clip_id, 2], stream.at(entries[2]))
    with pytest.raises(Exception, match=f"no view 7 of clip '{clip_id}'"):
        stream[clip_id, 7]


def test_stores_from_before_there_were_views_open_and_grow(sample, tmp_path):
    store = tmp_path / "s.zarr"
    made(write(tmp_path, PLAIN), sample, store, "--limit", 6)
    before = {key: every(open_store(store)[key]) for key in open_store(store).specs()}
    path = store / layout.META / "manifest.json"
    manifest = json.loads(path.read_text())
    for key, stream in manifest["streams"].items():
        for shard in stream["shards"]:
            sidecar = layout.sidecar_path(store, key, shard["k"])
            table = pa.ipc.open_file(sidecar).read_all().drop_columns(["augmentation"])
            with pa.ipc.new_file(sidecar, table.schema) as writer:
                writer.write_table(table)
            shard["sidecar_bytes"] = sidecar.stat().st_size
            shard["sidecar_crc32c"] = crc32c(sidecar.read_bytes())
    for later in ("files", layout.CHECKSUM):
        del manifest[later]
    path.write_bytes(layout.to_json(manifest))
    opened = open_store(store)
    assert {key: every(opened[key]) for key in opened.specs()} == before
    report = made(write(tmp_path, AUGMENTED, views=1), sample, store, "--limit", 6)
    assert report["already"]["notes"] == len(before[opened["notes"].key])
    grown = every(open_store(store)["notes"])
    assert before[opened["notes"].key].items() < grown.items()


def test_failures_and_journals_from_before_there_were_views_are_read(tmp_path):
    with StoreWriter(tmp_path / "s.zarr") as writer:
        writer.failures.add(Failure("clip", "audio", "empty", "nothing", "logmel-0", bytes(32)))
    path = tmp_path / "s.zarr" / layout.META / "failures.parquet"
    old = pq.read_table(path).drop_columns(["view"]).replace_schema_metadata(None)
    path.chmod(0o644)
    pq.write_table(old, path)
    with StoreWriter(tmp_path / "s.zarr") as writer:
        assert writer.failures.get("clip", "logmel-0", bytes(32)).view == 0
        assert writer.failures.get("clip", "logmel-0", bytes(32), 1) is None
    record = Record("clip", bytes(32), 0, 0, 5, 1, bytes(32), ((Fraction(0), 5),), Fraction(0), "")
    assert Record.from_json(record.to_json()) == record
    assert Record.from_json(record.to_json()[:-1]) == record
