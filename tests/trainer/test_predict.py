"""A model says the same of a clip from the store it was trained on and from the raw files."""

import csv
import json
import shutil

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from mmfuse.features.errors import ConfigError, MissingError
from mmfuse.features.store import open_store
from mmfuse.trainer import raw_clips
from mmfuse.trainer.cli import app
from mmfuse.trainer.predictions import Asked, predict_clips
from mmfuse.trainer.raw_clips import one_clip


def mmtrain(*words, code=0):
    outcome = CliRunner().invoke(app, [str(word) for word in words])
    assert outcome.exit_code == code, outcome.output
    return outcome


@pytest.fixture(scope="session")
def rows(sample):
    """Rows of the sample corpus' manifest, by id."""
    return {row["id"]: row for row in pq.read_table(sample / "manifest.parquet").to_pylist()}


def chances(row):
    return {name: value for name, value in row.items() if name.startswith("p:")}


def test_predictions_of_a_split_are_those_that_the_run_left(trained):
    left = {row["id"]: row for row in pq.read_table(trained / "a/predictions.parquet").to_pylist()}
    found = predict_clips(trained / "a", Asked(split="test"))
    assert [row["id"] for row in found.rows] == [i for i in left if left[i]["split"] == "test"]
    for row in found.rows:
        assert chances(row) == pytest.approx(chances(left[row["id"]]), abs=1e-6)
        assert (row["label"], row["predicted"]) == (
            left[row["id"]]["label"],
            left[row["id"]]["predicted"],
        )
    assert found.failed == 0


def test_raw_clips_with_one_broken_file_and_the_same_clips_of_the_store(
    trained, sample, rows, tmp_path
):
    corpus = tmp_path / "corpus"
    shutil.copytree(sample, corpus)
    ids = [i for i, row in rows.items() if row["split"] == "test"][:4]
    broken = next(i for i in ids if rows[i]["audio_path"] and rows[i]["text"])
    (corpus / rows[broken]["audio_path"]).write_bytes(b"RIFF no audio at all")
    names = [word for i in ids for word in ("--ids", i)]
    out = tmp_path / "p.jsonl"
    said = mmtrain(
        "predict", trained / "a", "--corpus", corpus, *names, "--out", out, "--json",
        "--keep", tmp_path / "kept.zarr", code=3,
    )  # fmt: skip
    document = json.loads(said.stdout)
    assert (document["clips"], document["failed"]) == (4, 1)
    assert "mmfeat run" in document["features"]["commands"][0]
    from_store = {row["id"]: row for row in predict_clips(trained / "a", Asked(ids=ids)).rows}
    for line in out.read_text().splitlines():
        row = json.loads(line)
        if row["id"] == broken:
            assert row["reason"].startswith("audio: ")
            assert "audio" not in row["saw"]
            assert row["predicted"]  # from what is left
        else:
            assert chances(row) == pytest.approx(chances(from_store[row["id"]]), abs=1e-6)
            assert row["saw"] == from_store[row["id"]]["saw"]
    kept, of_training = open_store(tmp_path / "kept.zarr"), open_store(trained / "s.zarr")
    compared = 0
    for key in kept.specs():
        for clip in kept[key].ids:
            assert kept[key][clip].tobytes() == of_training[key][clip].tobytes()
            compared += 1
    assert compared >= 4 * 3
    whole = [i for i in ids if i != broken]  # the kept store needs no raw files any more
    again = predict_clips(trained / "a", Asked(corpus, tmp_path / "kept.zarr", ids=whole))
    for row in again.rows:
        assert chances(row) == pytest.approx(chances(from_store[row["id"]]), abs=1e-6)


def test_one_clip_by_its_files_is_that_clip(trained, sample, rows, tmp_path):
    row = next(row for row in rows.values() if row["text"] and row["midi_path"])
    found = mmtrain(
        "predict", trained / "a", "--text", row["text"], "--midi", sample / row["midi_path"],
        "--out", tmp_path / "p.csv",
    )  # fmt: skip
    assert "Features made as for training" in found.stdout
    (line,) = csv.DictReader((tmp_path / "p.csv").read_text().splitlines())
    assert line["saw"] == "text+midi"
    assert line["reason"] == ""
    assert sum(float(p) for p in chances(line).values()) == pytest.approx(1)


def test_a_clip_that_the_store_lacks_says_so_and_is_not_guessed_silently(trained, rows, tmp_path):
    clip = next(row for row in rows.values() if row["text"])
    line = {"id": "stranger", "text": clip["text"]}
    (tmp_path / "m.jsonl").write_text(json.dumps(line) + '\n{"id": "empty", "text": ""}')
    asked = Asked(tmp_path / "m.jsonl", trained / "s.zarr")
    found = predict_clips(trained / "a", asked)
    assert [row["predicted"] for row in found.rows] == [None, None]
    assert found.rows[0]["reason"] == f"text: not_made: not in {trained / 's.zarr'}"
    assert found.rows[1]["reason"] == "nothing: it has no text, audio, midi"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked(split="dev"), "has no clips in split 'dev'; leave --split out"),
        (Asked(ids=["nobody"]), "has no clip 'nobody'"),
    ],
)
def test_clips_that_are_not_there_are_errors(trained, asked, message):
    with pytest.raises(ConfigError, match=message):
        predict_clips(trained / "a", asked)


def test_files_and_names_that_do_not_fit_are_errors(trained, tmp_path):
    with pytest.raises(ConfigError, match=r"--audio .*gone.wav: there is no such file"):
        one_clip("x", tmp_path / "gone.wav", None)
    with pytest.raises(ConfigError, match="--text is empty"):
        one_clip(" ", None, None)
    said = mmtrain("predict", trained / "a", "--out", tmp_path / "p.xlsx", code=2)
    assert "ends with .parquet, .csv, .jsonl" in said.stderr
    said = mmtrain("predict", tmp_path, code=2)
    assert "holds no trained model; train one with: mmtrain run" in said.stderr


def test_a_store_made_otherwise_is_refused_with_the_difference(trained, sample, tmp_path):
    from mmfuse.pipeline.cli import app as mmfeat

    words = ["extract", "--corpus", sample, "--store", tmp_path / "s.zarr", "--limit", "1"]
    words += ["--set", "preprocessing.audio.n_mels=40"]
    assert CliRunner().invoke(mmfeat, [str(word) for word in words]).exit_code == 0
    with pytest.raises(MissingError, match=r"trained on logmel-\w+: n_mels is 40, was 80"):
        predict_clips(trained / "a", Asked(sample, tmp_path / "s.zarr"))


def test_what_mmfeat_refuses_is_told_in_its_words_and_with_its_code(trained, tmp_path):
    (tmp_path / "m.jsonl").write_text('{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}')
    said = mmtrain("predict", trained / "a", "--corpus", tmp_path / "m.jsonl", code=2)
    assert "ids that occur twice" in said.stderr
    with pytest.raises(ConfigError, match="features: .*no such key"):
        raw_clips._run([raw_clips._program(), "run", str(_bad(tmp_path)), "--json"])


def _bad(folder):
    (folder / "bad.toml").write_text("[preprocessing.audio]\nmels = 3")
    return folder / "bad.toml"
