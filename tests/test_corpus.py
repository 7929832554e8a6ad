"""A corpus reads the same from every form of manifest, and says where a manifest is wrong."""

import csv
import json
import tracemalloc
from fractions import Fraction

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmfuse.features import rows
from mmfuse.features.corpus import open_corpus
from mmfuse.features.errors import AlignError, ClipError, ConfigError
from mmfuse.features.origins import midi_offset_s

ROWS = [
    {"id": "a", "text": "one", "label": "x", "split": "train", "group": "g", "audio_path": "a.wav",
     "midi_path": "a.mid", "smpte_rate": "25", "audio_smpte_start": "01:00:00:00",
     "midi_smpte_start": "00:59:59:00", "audio_start_s": None, "midi_start_s": None},
    {"id": "b", "text": "", "label": "y", "split": "val", "group": None, "audio_path": None,
     "midi_path": "b.mid", "smpte_rate": None, "audio_smpte_start": None,
     "midi_smpte_start": None, "audio_start_s": "0.1", "midi_start_s": "0.3"},
    {"id": "c", "text": "drei", "label": "x", "split": None, "group": "g", "audio_path": "c.wav",
     "midi_path": None, "smpte_rate": None, "audio_smpte_start": None, "midi_smpte_start": None,
     "audio_start_s": None, "midi_start_s": None},
]  # fmt: skip


def write(folder, rows_, form="parquet", name="manifest"):
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / f"{name}.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows_), path)
    elif form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows_))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows_[0])
            writer.writeheader()
            writer.writerows(rows_)
    return path


def touch(folder):
    for name in ("a.wav", "c.wav", "a.mid", "b.mid"):
        (folder / name).write_bytes(name.encode())


def seen(corpus):
    return [
        (c.id, c.text, c.label, c.split, c.group, c.audio and c.audio.read(),
         c.midi and c.midi.read(), c.origins)
        for c in corpus.clips()
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv"])
def test_every_form_of_manifest_gives_the_same_clips(tmp_path, form):
    path = write(tmp_path / form, ROWS, form)
    touch(tmp_path / form)
    corpus = open_corpus(path)
    assert corpus.check() == len(corpus) == 3
    first, second, third = seen(corpus)
    assert first[:7] == ("a", "one", "x", "train", "g", b"a.wav", b"a.mid")
    assert second[:7] == ("b", None, "y", "validation", None, None, b"b.mid")
    assert third[:7] == ("c", "drei", "x", None, "g", b"c.wav", None)
    assert seen(open_corpus(tmp_path / form)) == [first, second, third]  # the folder finds it


def test_bytes_inside_a_shard_are_the_same_clips(tmp_path):
    inside = [
        {
            "id": row["id"],
            "text": row["text"],
            "label": "xy".index(row["label"]),
            "split": row["split"],
            "audio": row["audio_path"]
            and {"bytes": row["audio_path"].encode(), "path": "far/away.wav"},
            "midi": row["midi_path"] and row["midi_path"].encode(),
        }
        for row in ROWS
    ]
    features = {"info": {"features": {"label": {"names": ["x", "y"], "_type": "ClassLabel"}}}}
    table = pa.Table.from_pylist(inside)
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, tmp_path / "shard-0.parquet")
    write(tmp_path / "files", ROWS)
    touch(tmp_path / "files")
    ours, theirs = seen(open_corpus(tmp_path)), seen(open_corpus(tmp_path / "files"))
    assert [row[:4] for row in ours] == [row[:4] for row in theirs]
    assert [row[5:7] for row in ours] == [row[5:7] for row in theirs]
    assert [clip.label for clip in open_corpus(tmp_path).labels()] == ["x", "y", "x"]


def test_labels_may_be_lists_in_parquet_and_jsonl(tmp_path):
    rows = [
        {"id": "a", "text": "x", "label": ["sad", "slow"]},
        {"id": "b", "text": "x", "label": []},
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    numbers = pa.table({"id": ["a", "b"], "text": ["x", "x"], "label": [[1, 0], []]})
    names = {"names": ["slow", "sad"], "_type": "ClassLabel"}
    for number, kind in enumerate(({"feature": names, "_type": "List"}, [names])):
        features = json.dumps({"info": {"features": {"label": kind}}})
        file = tmp_path / f"{number}.parquet"
        pq.write_table(numbers.replace_schema_metadata({"huggingface": features}), file)
    for name in ("m.jsonl", "m.parquet", "0.parquet", "1.parquet"):
        found = [clip.label for clip in open_corpus(tmp_path / name).labels()]
        assert found == [("sad", "slow"), ()], name


def test_an_empty_label_in_a_list_is_named(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"id": "a", "text": "x", "label": ["sad", ""]}')
    with pytest.raises(ConfigError, match=r"row 1, column label: the list .* holds an empty label"):
        open_corpus(tmp_path / "m.jsonl").labels()


def test_a_folder_is_a_corpus_of_matching_stems(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("x.wav", "x.mid", "deep/x.flac", "deep/x.txt", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    clips = {clip.id: clip for clip in open_corpus(tmp_path).clips()}
    assert set(clips) == {"x", "deep/x"}
    assert clips["x"].midi.read() == b"x.mid"
    assert clips["deep/x"].text == "deep/x.txt"
    (tmp_path / "x.ogg").touch()
    with pytest.raises(ConfigError, match="would be one clip 'x'; rename one"):
        open_corpus(tmp_path)


def test_columns_of_other_names_are_mapped(tmp_path):
    renamed = [{"utt": row["id"], "caption": row["text"], "wav": row["audio_path"]} for row in ROWS]
    path = write(tmp_path, renamed)
    with pytest.raises(ConfigError, match="no column id; it has: caption, utt, wav.*--column"):
        open_corpus(path)
    corpus = open_corpus(path, {"id": "utt", "text": "caption", "audio_path": "wav"})
    assert [(c.id, c.text) for c in corpus.clips()] == [("a", "one"), ("b", None), ("c", "drei")]
    with pytest.raises(ConfigError, match="no column utterance"):
        open_corpus(path, {"id": "utterance"})
    with pytest.raises(ConfigError, match="'sound', which mmfuse does not know; it knows: id"):
        open_corpus(path, {"sound": "wav"})


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "a"}, "row 3, column id: id 'a' is there already in row 1; ids must be unique"),
        ({"id": ""}, "row 3, column id: no id; give it a unique one"),
        ({"split": "held-out"}, "row 3, column split: unknown split 'held-out'; write train"),
        ({"audio_path": "../c.wav"}, "row 3, column audio_path: '../c.wav' leads out of the corp"),
        ({"midi_path": "/etc/passwd"}, "row 3, column midi_path: '/etc/passwd' leads out"),
        ({"audio_path": "c\0.wav"}, r"row 3, column audio_path: the path 'c\\x00.wav' holds a NUL"),
    ],
)
def test_a_wrong_row_is_named_with_column_and_mend(tmp_path, form, change, message):
    path = write(tmp_path, [*ROWS[:2], {**ROWS[2], **change}], form)
    touch(tmp_path)
    with pytest.raises(ConfigError, match=message):
        open_corpus(path).check()


def test_files_that_are_all_elsewhere_are_told_before_the_run(tmp_path):
    path = write(tmp_path, ROWS)
    with pytest.raises(ConfigError, match="not one of the first 4 files is there"):
        open_corpus(path).check()


def test_one_file_that_is_not_there_is_one_clip(tmp_path):
    path = write(tmp_path, ROWS)
    touch(tmp_path)
    (tmp_path / "c.wav").unlink()
    corpus = open_corpus(path)
    assert corpus.check() == 3
    *_, clip = corpus.clips()
    with pytest.raises(ClipError, match=r"row 3, column audio_path: no file 'c\.wav'.*restore it"):
        clip.audio.read()


def test_a_link_out_of_the_corpus_is_not_followed(tmp_path):
    path = write(tmp_path / "corpus", ROWS)
    touch(tmp_path / "corpus")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "corpus" / "a.wav").unlink()
    (tmp_path / "corpus" / "a.wav").symlink_to(tmp_path / "secret")
    clip = next(open_corpus(path).clips())
    with pytest.raises(ClipError):
        clip.audio.read()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("m.jsonl", b'{"id": "a"}\n{"id": \n', "line 2: not JSON"),
        ("m.jsonl", b"[1]\n", "line 1: expected a JSON object"),
        ("m.jsonl", b'{"id": "\xff"}\n', "not UTF-8.*save it as UTF-8"),
        ("m.csv", b"id,text\na,\xff\n", "not UTF-8"),
        ("m.csv", b"", "no column id"),
        ("m.csv", b"id,label\na,b\n", "no column text, audio_path, audio, midi_path or midi"),
        ("m.parquet", b"PAR1 or so", "no Parquet file"),
        ("m.xlsx", b"PK", "no manifest; expected .parquet, .jsonl, .csv, .tar, or a folder"),
    ],
)
def test_a_file_that_is_no_manifest_is_one_line(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=message) as caught:
        open_corpus(tmp_path / name).check()
    assert "\n" not in str(caught.value)


def test_no_corpus_at_all_tells_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match="no corpus at .*mmfeat sample DIR"):
        open_corpus(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="holds no manifest and no audio or MIDI"):
        open_corpus(tmp_path)


def test_a_parquet_manifest_is_never_whole_in_memory(tmp_path):
    count = 200_000
    table = pa.table(
        {"id": pa.array([f"clip-{i:08}" for i in range(count)]), "text": ["word " * 20] * count}
    )
    pq.write_table(table, tmp_path / "m.parquet", row_group_size=10_000)
    corpus = open_corpus(tmp_path / "m.parquet")
    tracemalloc.start()
    pool = pa.total_allocated_bytes()
    clips, peak = corpus.clips(), 0
    for number, _ in enumerate(clips):
        if number % 10_000 == 0:
            peak = max(peak, pa.total_allocated_bytes() - pool)
        if number == 60_000:
            break
    clips.close()
    _, traced = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6e6  # the texts alone are 20 MB
    assert traced < 6e6
    assert rows.BATCH_ROWS < 10_000


# -- clocks --------------------------------------------------------------------------------------


def clip_of(tmp_path, **origins):
    path = write(tmp_path, [{**ROWS[0], **origins}])
    touch(tmp_path)
    return next(open_corpus(path).clips())


def test_origins_are_subtracted_exactly(tmp_path):
    assert midi_offset_s(clip_of(tmp_path)) == (Fraction(-1), "")
    clip = clip_of(tmp_path, smpte_rate="29.97df", audio_smpte_start="00:01:00;02",
                   midi_smpte_start="00:00:59;29")  # fmt: skip
    assert midi_offset_s(clip) == (Fraction(-1001, 30000), "")
    clip = clip_of(tmp_path, smpte_rate=None, audio_smpte_start=None, midi_smpte_start=None,
                   audio_start_s="0.1", midi_start_s="0.3")  # fmt: skip
    assert midi_offset_s(clip) == (Fraction(1, 5), "")


def test_midnight_is_crossed_the_short_way(tmp_path):
    clip = clip_of(tmp_path, smpte_rate="23.976", audio_smpte_start="00:00:01:00",
                   midi_smpte_start="23:59:59:00")  # fmt: skip
    assert midi_offset_s(clip) == (-2 * Fraction(1001, 1000), "")


def test_one_origin_without_the_other_is_told(tmp_path):
    offset_s, note = midi_offset_s(clip_of(tmp_path, midi_smpte_start=None))
    assert (offset_s, note) == (0, "no time origin of the MIDI: aligned at zero")


def test_a_timecode_without_a_rate_is_an_error(tmp_path):
    with pytest.raises(AlignError, match="no frame rate; fill the column smpte_rate"):
        midi_offset_s(clip_of(tmp_path, smpte_rate=None))


def test_the_real_corpus_has_the_known_offsets_in_both_forms(lieder8):
    table = pq.read_table(lieder8 / "manifest.parquet")
    known = dict(zip(table["id"].to_pylist(), table["audio_minus_midi_s"].to_pylist(), strict=True))
    for name in ("manifest.parquet", "lieder8-00000-of-00001.parquet"):
        compared = 0
        for clip in open_corpus(lieder8 / name).clips():
            if clip.audio is None or clip.midi is None:
                continue
            offset_s, note = midi_offset_s(clip)
            assert note == ""
            assert float(-offset_s) == pytest.approx(known[clip.id], abs=1e-9)
            compared += 1
        assert compared > 440
