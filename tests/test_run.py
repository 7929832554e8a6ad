"""`mmfeat` as a person uses it: whole runs, bad files, resuming, and what it says."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from typer.testing import CliRunner

from mmfuse.features.corpus import open_corpus
from mmfuse.features.store import open_store
from mmfuse.pipeline.cli import app
from mmfuse.pipeline.tasks import spans

ALL = "[preprocessing.audio]\n[preprocessing.midi]\n[preprocessing.text]\n"
STREAMS = {"logmel", "notes", "midi_tokens", "piano_roll", "text_tokens"}


def mmfeat(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def run(config, corpus, store, *more, code=0):
    options = ("--corpus", corpus, "--store", store, "--json", *more)
    return json.loads(mmfeat("run", config, *options, code=code).stdout)


def contents(store):
    """Every entry of a store: (stream, clip) -> bytes."""
    opened = open_store(store)
    return {(key, clip): opened[key][clip].tobytes()
            for key in opened.specs() for clip in opened[key].ids}  # fmt: skip


@pytest.fixture(scope="module")
def whole(sample, tmp_path_factory):
    """The sample corpus' store, made once; do not write into it."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "c.toml").write_text(
        "[preprocessing.audio]\n[preprocessing.midi]\n[preprocessing.text]"
    )
    run(folder / "c.toml", sample, folder / "s.zarr")
    return folder / "s.zarr"


@pytest.fixture
def corpus(sample, tmp_path):
    """A copy of the sample corpus that a test may break."""
    shutil.copytree(sample, tmp_path / "corpus")
    return tmp_path / "corpus"


def clips_with(folder, *modalities):
    return [clip for clip in open_corpus(folder).clips()
            if all(getattr(clip, modality) for modality in modalities)]  # fmt: skip


def test_every_modality_of_every_clip_is_in_the_store(sample, whole):
    store = open_store(whole)
    assert {spec.name for spec in store.specs().values()} == STREAMS
    for stream, modality in (("logmel", "audio"), ("notes", "midi"), ("midi_tokens", "midi"),
                             ("piano_roll", "midi"), ("text_tokens", "text")):  # fmt: skip
        expected = [clip.id for clip in clips_with(sample, modality)]
        assert sorted(store[stream].ids) == sorted(expected)
    assert store.failures().num_rows == 0


def test_three_other_readers_see_the_same_bits(whole, others_agree):
    assert others_agree(whole) == 3 * len(contents(whole))


def test_a_second_run_does_nothing(sample, whole, features_toml):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("values/c/*/*")}
    report = run(features_toml, sample, whole)
    assert report["made"] == {}
    assert set(report["already"]) == STREAMS
    assert report["root"] == open_store(whole).root
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("values/c/*/*")}


def test_stages_one_by_one_give_the_same_store(sample, whole, tmp_path):
    options = ("--corpus", sample, "--store", tmp_path / "s.zarr", "--quiet")
    mmfeat("tokenize", *options)
    mmfeat("extract", "--encoder", "logmel", *options)
    assert open_store(tmp_path / "s.zarr").root == open_store(whole).root


def test_a_limited_run_is_continued(sample, whole, features_toml, tmp_path):
    report = run(features_toml, sample, tmp_path / "s.zarr", "--limit", 10)
    assert report["clips"] == 10
    report = run(features_toml, sample, tmp_path / "s.zarr")
    assert report["root"] == open_store(whole).root


def test_other_settings_are_another_stream_beside_the_first(sample, features_toml, tmp_path):
    store = tmp_path / "s.zarr"
    run(features_toml, sample, store, "--limit", 4)
    run(features_toml, sample, store, "--limit", 4, "--set", "preprocessing.audio.n_mels=40")
    mels = [spec.item for spec in open_store(store).specs().values() if spec.name == "logmel"]
    assert sorted(mels) == [(40,), (80,)]


def break_one_in_ten(folder):
    """Spoil files; the reasons that the failures table must give, by clip id."""
    both = clips_with(folder, "audio", "midi")
    expected = {}

    def spoil(clip, modality, data):
        (folder / getattr(clip, modality).path).write_bytes(data)

    clip = both[0]
    spoil(clip, "audio", b"")
    expected[clip.id, "audio"] = "empty"
    clip = both[3]
    data = (folder / clip.audio.path).read_bytes()
    spoil(clip, "audio", data[:30])
    expected[clip.id, "audio"] = None  # the reason depends on the container
    clip = both[6]
    spoil(clip, "audio", b"This is my diary, not a recording.\n" * 50)
    expected[clip.id, "audio"] = "not_audio"
    clip = both[9]
    samples = np.zeros(48000, np.float32)
    samples[777] = np.nan
    soundfile.write(folder / clip.audio.path, samples, 16000, format="WAV", subtype="FLOAT")
    expected[clip.id, "audio"] = "non_finite"
    clip = both[12]
    spoil(clip, "midi", os.urandom(500))
    expected[clip.id, "midi"] = None
    clip = both[15]
    (folder / clip.midi.path).unlink()
    expected[clip.id, "midi"] = None
    return expected


def test_bad_files_are_told_and_every_good_clip_is_made(corpus, whole, features_toml, tmp_path):
    store = tmp_path / "s.zarr"
    expected = break_one_in_ten(corpus)
    options = ("--corpus", corpus, "--store", store)
    result = mmfeat("run", features_toml, *options, code=3)
    assert "Traceback" not in result.output
    assert f"mmfeat inspect {store} --failures" in result.stdout
    found = {
        (row["clip_id"], row["stage"]): row for row in open_store(store).failures().to_pylist()
    }
    assert found.keys() == expected.keys()
    for key, reason in expected.items():
        assert reason in (None, found[key]["reason"])
        assert found[key]["detail"]
    good = {(stream, clip): data for (stream, clip), data in contents(whole).items()
            if (clip, open_store(whole).specs()[stream].modality) not in expected}  # fmt: skip
    assert contents(store) == good

    # what is known to be bad is not tried again, and still told
    report = run(features_toml, corpus, store, code=3)
    assert report["made"] == {}
    assert sum(row["clips"] for row in report["failed"]) == 6


def test_mended_files_are_taken_up(corpus, sample, whole, features_toml, tmp_path):
    store = tmp_path / "s.zarr"
    assert len(break_one_in_ten(corpus)) == 6
    run(features_toml, corpus, store, code=3)
    shutil.copytree(sample, corpus, dirs_exist_ok=True)
    report = run(features_toml, corpus, store)
    assert sum(report["made"].values()) == 4 + 2 * 3
    assert report["root"] == open_store(whole).root
    assert open_store(store).failures().num_rows == 0


def test_a_row_without_any_modality_is_told(sample, features_toml, tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"id": "a", "text": "word"}\n{"id": "b", "text": null}\n')
    report = run(features_toml, path, tmp_path / "s.zarr", code=3)
    assert report["failed"] == [{"stage": "manifest", "reason": "no_modality", "clips": 1}]


@pytest.mark.parametrize(
    ("number", "workers"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 2),
                            (signal.SIGTERM, 2), (signal.SIGKILL, 2)]
)  # fmt: skip
def test_an_interrupted_run_leaves_a_store_that_goes_on(
    sample, whole, features_toml, number, workers
):
    store = features_toml.parent / "s.zarr"
    program = "import sys; from mmfuse.pipeline.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "run", features_toml, "--corpus", sample]
    process = subprocess.Popen(
        [*command, "--store", store, "--workers", str(workers)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(store.glob("_mm/logmel-*/*.journal")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    began, children = time.monotonic(), descendants(process.pid)
    assert workers == 1 or children
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - began < 5 + 5 * (os.getloadavg()[0] > os.cpu_count())
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert errors.count("\n") == 1
        assert "to go on, give the same command again" in errors
    deadline = time.monotonic() + 5
    while any(os.path.exists(f"/proc/{child}") for child in children):
        assert time.monotonic() < deadline, "workers outlive the run"
        time.sleep(0.05)
    assert run(features_toml, sample, store)["root"] == open_store(whole).root


def descendants(pid):
    """Processes that a process has started, and those that they have started."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True)
    parents = [tuple(map(int, line.split())) for line in listed.stdout.splitlines()]
    found = {pid}
    while more := {child for child, parent in parents if parent in found} - found:
        found |= more
    return found - {pid}


def test_tasks_do_not_depend_on_workers():
    assert [stop - start for start, stop in spans(503)] == [63] * 7 + [62]
    assert list(spans(0)) == []
    sizes = [stop - start for start, stop in spans(5000)]
    assert [stop for _, stop in spans(5000)][:-1] == [start for start, _ in spans(5000)][1:]
    assert sum(sizes) == 5000
    assert max(sizes) <= 1024
    assert len(sizes) == 16


# -- what it says --------------------------------------------------------------------------------


def test_scan_tells_what_is_there_and_what_is_wrong(sample, corpus):
    found = json.loads(mmfeat("scan", "--corpus", sample, "--json").stdout)
    assert found["clips"] == 48
    assert found["modalities"] == {
        modality: len(clips_with(sample, modality)) for modality in ("audio", "midi", "text")
    }
    assert found["problems"] == []
    assert len(found["audio_formats"]) >= 3
    expected = break_one_in_ten(corpus)
    result = mmfeat("scan", "--corpus", corpus, code=3)
    for clip_id, _ in expected:
        assert clip_id in result.stdout


def test_inspect_tells_streams_clips_and_failures(sample, whole):
    overview = json.loads(mmfeat("inspect", whole, "--json").stdout)
    assert {row["stream"].rpartition("-")[0] for row in overview["streams"]} == STREAMS
    assert "midi_tokens" in mmfeat("inspect", whole).stdout
    clip = clips_with(sample, "audio", "midi", "text")[0]
    entries = json.loads(mmfeat("inspect", whole, "--clip", clip.id, "--json").stdout)["entries"]
    assert len(entries) == 5
    assert mmfeat("inspect", whole, "--failures").stdout == "no failures\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "nowhere.toml"], 2, "can't read configuration nowhere.toml"),
        (["run", "{toml}"], 2, "no store; name one with --store DIR"),
        (["run", "{toml}", "--store", "{tmp}/s.zarr"], 2, "no corpus; name one with --corpus"),
        (["run", "{toml}", "--store", "s", "--corpus", "{tmp}/none"], 2, "no corpus at"),
        (["run", "{toml}", "--set", "preprocessing.audio.n_mel=3"], 2, "did you mean 'n_mels'?"),
        (["run", "{toml}", "--set", "n_mels"], 2, "is no assignment; write --set"),
        (
            ["run", "{toml}", "--store", "{tmp}", "--corpus", "{sample}"],
            4,
            "is not a feature store",
        ),
        (["inspect", "{tmp}/none"], 6, "no feature store at"),
        (["inspect", "{whole}", "--clip", "nobody"], 6, "has a clip 'nobody'"),
        (
            ["extract", "--encoder", "wav2vec3", "--corpus", "{sample}", "--store", "{tmp}/s"],
            2,
            "no encoder named 'wav2vec3'; did you mean 'wav2vec2'?",
        ),
        (["run", "{toml}", "--store", "s", "--corpus", "{sample}", "--column", "id"], 2, "mapping"),
    ],
)
def test_a_mistake_is_one_line_with_its_exit_code(
    arguments, code, message, features_toml, tmp_path, sample, whole
):
    names = {"toml": features_toml, "tmp": tmp_path, "sample": sample, "whole": whole}
    result = mmfeat(*(argument.format(**names) for argument in arguments), code=code)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("mmfeat: ")
    assert result.stdout == ""


def test_names_from_a_corpus_do_not_steer_the_terminal(tmp_path, features_toml):
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({"id": "\x1b[2Jred", "text": "nul \0 here"}) + "\n")
    run(features_toml, path, tmp_path / "s.zarr", code=3)
    result = mmfeat("inspect", tmp_path / "s.zarr", "--failures")
    assert "\\x1b[2Jred" in result.stdout
    assert "\x1b" not in result.stdout


def test_the_real_corpus_gives_one_root_from_files_and_from_bytes(lieder8, features_toml, tmp_path):
    reports = [
        run(features_toml, lieder8 / name, tmp_path / f"{name}.zarr", "--limit", 120)
        for name in ("manifest.parquet", "lieder8-00000-of-00001.parquet")
    ]
    assert reports[0]["root"] == reports[1]["root"]
    assert reports[0]["failed"] == []
    assert reports[0]["audio_hours"] > 0.25
    columns = ["id", "audio_minus_midi_s"]
    rows = pq.read_table(lieder8 / "manifest.parquet", columns=columns).to_pylist()[:120]
    notes = open_store(tmp_path / "manifest.parquet.zarr")["notes"]
    onset, tick = (notes.spec.fields.index(name) for name in ("onset_s", "tick"))
    assert any(notes[row["id"]][0, tick] == 0 for row in rows if row["id"] in notes)
    for row in rows:
        if row["id"] in notes and row["audio_minus_midi_s"] is not None:
            first = notes[row["id"]][0]
            if first[tick] == 0:
                assert first[onset] == pytest.approx(-row["audio_minus_midi_s"], abs=1e-9)


def test_of_very_many_texts_a_tokenizer_learns_from_the_same_few(tmp_path, monkeypatch):
    rows = [json.dumps({"id": str(n), "text": f"word{n} song{n % 7}"}) for n in range(60)]
    (tmp_path / "c.toml").write_text("[preprocessing.text]\nvocab_size = 300")
    names = []
    for most in (60, 10):
        monkeypatch.setattr("mmfuse.pipeline.run._TEXTS", most)
        for order in (rows, rows[::-1]):
            store = tmp_path / f"{len(names)}.zarr"
            (tmp_path / "m.jsonl").write_text("\n".join(order))
            run(tmp_path / "c.toml", tmp_path / "m.jsonl", store)
            names += [path.name for path in store.glob("_mm/tokenizer-*.json")]
    assert names[0] == names[1] != names[2] == names[3]


def test_a_named_tokenizer_gives_other_texts_the_same_stream(whole, tmp_path):
    (tmp_path / "m.jsonl").write_text('{"id": "new", "text": "it seems joyful", "split": "train"}')
    (tmp_path / "c.toml").write_text("[preprocessing.text]")
    (tokenizer,) = (whole / "_mm").glob("tokenizer-*.json")
    named = f"preprocessing.text.tokenizer={tokenizer}"
    run(tmp_path / "c.toml", tmp_path / "m.jsonl", tmp_path / "s.zarr", "--set", named)
    (key,) = open_store(tmp_path / "s.zarr").keys()
    assert key in open_store(whole).specs()
    for wrong, said in ((tmp_path, "can't be read"), (tmp_path / "c.toml", "no tokenizer's JSON")):
        words = ("--set", f"preprocessing.text.tokenizer={wrong}", "--store", tmp_path / "t.zarr")
        corpus = ("--corpus", tmp_path / "m.jsonl")
        assert said in mmfeat("run", tmp_path / "c.toml", *corpus, *words, code=2).stderr
    model = ("--set", "preprocessing.text.encoder=clap", "--set", named)
    found = mmfeat(
        "run", tmp_path / "c.toml", *corpus, "--store", tmp_path / "t.zarr", *model, code=2
    )
    assert "a model has its own" in found.stderr
