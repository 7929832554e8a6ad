import dataclasses
import hashlib
import io
import json
import os
import re
import struct
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import mido
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from sklearn.linear_model import LogisticRegression

from mmfuse.features.clock import FrameRate, Timecode, wrap_s
from mmfuse.features.errors import ConfigError
from mmfuse.pipeline.containers import audio_bytes
from mmfuse.pipeline.planting import LABELS, MODALITIES, TEXT, Plan, origins_of, plan_clips
from mmfuse.pipeline.sample import best_accuracy, make_clip, perform, write_sample
from mmfuse.pipeline.words import sentence

CLIPS = 30


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "corpus"
    write_sample(out, CLIPS, seed=3)
    return out


def rows_of(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / "manifest.parquet").to_pylist()
    return rows


def digest(out: Path) -> dict[str, str]:
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def a_plan(**changes: Any) -> Plan:
    plan = Plan(0, 5, "glad", "block", "reed", "train", frozenset())
    return dataclasses.replace(plan, **changes)


def test_the_same_clips_and_seed_give_the_same_bytes_in_another_process(
    sample: Path, tmp_path: Path
) -> None:
    code = "import sys, pathlib; from mmfuse.pipeline.sample import write_sample as w; "
    code += f"w(pathlib.Path(sys.argv[1]), {CLIPS}, 3)"
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "again")],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
    )
    assert digest(tmp_path / "again") == digest(sample)
    assert {".flac", ".ogg", ".wav", ".mid"} <= {Path(name).suffix for name in digest(sample)}


def test_writing_the_same_sample_again_changes_nothing_and_deletes_nothing(tmp_path: Path) -> None:
    first = write_sample(tmp_path, 16)
    (tmp_path / "notes.txt").write_text("mine")
    before = digest(tmp_path)
    assert write_sample(tmp_path, 16) == first
    assert digest(tmp_path) == before
    assert first.total_bytes == sum(
        path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()
    ) - len("mine")


def test_another_seed_gives_other_clips() -> None:
    ours, theirs = (make_clip(a_plan(seed=seed)) for seed in (0, 1))
    assert ours[0]["text"] != theirs[0]["text"]
    assert not set(ours[1].values()) & set(theirs[1].values())


def test_classes_and_splits_are_balanced_and_some_of_each_modality_is_missing_in_each() -> None:
    plans = plan_clips(240, 0)
    assert Counter(plan.label for plan in plans) == dict.fromkeys(LABELS, 30)
    assert Counter(plan.split for plan in plans) == {"train": 120, "validation": 36, "test": 84}
    for split in ("train", "validation", "test"):
        ours = [plan for plan in plans if plan.split == split]
        counts = Counter(plan.label for plan in ours).values()
        assert max(counts) - min(counts) <= 1
        missing = [sum(name in plan.missing for plan in ours) for name in MODALITIES]
        assert missing == [max(1, round(0.06 * len(ours)))] * 3
    assert [plan.index for plan in plans] == list(range(240))


@pytest.mark.parametrize("clips", [16, 17, 31, 100])
def test_any_number_of_clips_fills_every_split_and_leaves_no_clip_empty(clips: int) -> None:
    for seed in range(20):
        plans = plan_clips(clips, seed)
        assert len({plan.id for plan in plans}) == clips
        assert {plan.split for plan in plans} == {"train", "validation", "test"}
        assert {plan.label for plan in plans} == set(LABELS)
        assert max(len(plan.missing) for plan in plans) < len(MODALITIES)


def test_manifest_lists_what_lies_in_the_folder_and_says_that_it_is_synthesized(
    sample: Path,
) -> None:
    rows = rows_of(sample)
    listed = [row[name] for row in rows for name in ("audio_path", "midi_path") if row[name]]
    about = {"README.md", "sample.json", "manifest.parquet"}
    assert set(digest(sample)) == {*listed, *about}
    assert {row["source"] for row in rows} == {"synthesized by mmfeat sample"}
    assert "**synthesized**" in (sample / "README.md").read_text()
    assert {row["label"] for row in rows} == set(LABELS)
    for row in rows:
        if row["audio_path"]:
            info = soundfile.info(sample / row["audio_path"])
            assert info.frames / info.samplerate == row["audio_duration_s"]
            assert 4 < row["audio_duration_s"] < 7.5


def test_known_offset_is_the_difference_of_the_timecodes_across_midnight_too(
    sample: Path,
) -> None:
    wraps = 0
    for row in rows_of(sample):
        if row["audio_minus_midi_s"] is None:
            assert not (row["audio_path"] and row["midi_path"])
            continue
        rate = FrameRate.parse(row["smpte_rate"])
        audio, midi = (
            Timecode.parse(row[name], rate).seconds
            for name in ("audio_smpte_start", "midi_smpte_start")
        )
        assert float(wrap_s(audio - midi, rate.day_s)) == row["audio_minus_midi_s"]
        wraps += abs(audio - midi) > 3600
    assert wraps >= 1
    assert {row["smpte_rate"] for row in rows_of(sample)} == {
        *("23.976", "24", "25", "29.97", "29.97df", "30")
    }


def test_smpte_offset_events_agree_with_the_manifest_and_stand_at_tick_zero() -> None:
    found = 0
    for index in range(40):
        plan = a_plan(index=index)
        row, files = make_clip(dataclasses.replace(plan, missing=frozenset({"audio"})))
        file = mido.MidiFile(file=io.BytesIO(files[row["midi_path"]]))
        assert (file.type, len(file.tracks)) == (1, 4)
        assert sum(message.type == "set_tempo" for message in file.tracks[0]) >= 2
        for message in file.tracks[0]:
            if message.type == "smpte_offset":
                label = row["midi_smpte_start"].replace(";", ":").split(":")
                stamp = (message.hours, message.minutes, message.seconds, message.frames)
                assert stamp == tuple(int(part) for part in label)
                rates = {24: "24", 25: "25", 29.97: "29.97df", 30: "30"}
                assert rates[message.frame_rate] == row["smpte_rate"]
                assert message.time == 0
                found += 1
    assert found >= 5


def test_bext_counts_the_timecode_in_samples_of_the_files_own_rate(sample: Path) -> None:
    checked = 0
    for row in rows_of(sample):
        data = (sample / row["audio_path"]).read_bytes() if row["audio_path"] else b""
        if data[12:16] != b"bext":
            continue
        low, high = struct.unpack_from("<II", data, 20 + 338)
        start = Timecode.parse(row["audio_smpte_start"], FrameRate.parse(row["smpte_rate"]))
        rate_hz = soundfile.info(sample / row["audio_path"]).samplerate
        assert abs((high << 32) + low - start.seconds * rate_hz) <= Fraction(1, 2)
        checked += 1
    assert checked >= 4


def test_bext_time_reference_of_a_late_timecode_is_exact() -> None:
    # 23:59:59:23 at 23.976 and 48 kHz: 2073599 frames of 2002 samples each
    start = Timecode.parse("23:59:59:23", FrameRate.parse("23.976"))
    data = audio_bytes(np.zeros(100, np.float32), 48000, "bwf", start)
    assert struct.unpack_from("<Q", data, 20 + 338)[0] == 2073599 * 2002
    assert soundfile.info(io.BytesIO(data)).frames == 100


def test_ogg_pages_carry_checksums_that_a_bitwise_crc_confirms() -> None:
    tone = np.sin(np.arange(9000) / 9).astype(np.float32)
    data = audio_bytes(tone, 22050, "ogg", Timecode(0, FrameRate.parse("25")))
    at = pages = 0
    while at < len(data):
        segments = data[at + 26]
        end = at + 27 + segments + sum(data[at + 27 : at + 27 + segments])
        crc = 0
        for byte in data[at : at + 22] + bytes(4) + data[at + 26 : end]:
            crc ^= byte << 24
            for _ in range(8):
                crc = (crc << 1) ^ (0x104C11DB7 if crc & 0x80000000 else 0)
        assert struct.unpack_from("<I", data, at + 22)[0] == crc
        at, pages = end, pages + 1
    assert pages >= 3
    assert soundfile.info(io.BytesIO(data)).frames == 9000


def onset_lag_s(row: dict[str, Any], files: dict[str, bytes], offset_s: float) -> float:
    """The shift of MIDI onsets, moved onto the audio's clock, that best fits rises of energy."""
    samples, rate_hz = soundfile.read(io.BytesIO(files[row["audio_path"]]), always_2d=True)
    hop = rate_hz // 200  # 5 ms
    frames = np.lib.stride_tricks.sliding_window_view(samples.mean(1), 4 * hop)[::hop]
    spectra = np.abs(np.fft.rfft(frames * np.hanning(4 * hop)))
    rise = np.maximum(np.diff(np.log(spectra + 1e-2), axis=0), 0).sum(1)
    rise_s = (np.arange(len(rise)) + 1) * hop / rate_hz + 2 * hop / rate_hz
    now, onsets = 0.0, []
    for message in mido.MidiFile(file=io.BytesIO(files[row["midi_path"]])):
        now += message.time
        if message.type == "note_on" and message.velocity:
            onsets.append(now - offset_s)
    lags = np.arange(-0.3, 0.3, 0.005)
    scores = [np.interp(np.array(onsets) + lag, rise_s, rise).sum() for lag in lags]
    return float(lags[int(np.argmax(scores))])


@pytest.mark.parametrize("index", [0, 1, 4, 7, 9, 20])
def test_midi_onsets_moved_by_the_known_offset_fall_on_rises_of_energy(index: int) -> None:
    texture, timbre = ("block", "broken")[index % 2], ("reed", "bow")[index // 2 % 2]
    row, files = make_clip(a_plan(index=index, texture=texture, timbre=timbre))
    offset_s = row["audio_minus_midi_s"]
    assert abs(offset_s) > 0.05
    assert abs(onset_lag_s(row, files, offset_s)) <= 0.03
    assert abs(onset_lag_s(row, files, offset_s + 0.1)) >= 0.05


def test_no_note_is_cut_at_the_start_of_either_file() -> None:
    for index in range(30):
        plan = a_plan(index=index)
        origins = origins_of(plan)
        performance = perform(plan, origins)
        first = min(note.onset_tick for track in performance.tracks for note in track.notes)
        assert performance.seconds(first) >= max(origins.audio_minus_midi_s, Fraction(0))


def test_each_modality_ignores_the_factors_that_it_does_not_carry() -> None:
    row, files = make_clip(a_plan())
    midi, audio = files[row["midi_path"]], files[row["audio_path"]]
    mood, mood_files = make_clip(a_plan(mood="wistful"))
    assert mood["text"] != row["text"]
    assert mood_files == files
    timbre, timbre_files = make_clip(a_plan(timbre="bow"))
    assert timbre["text"] == row["text"]
    assert timbre_files[row["midi_path"]] == midi
    assert timbre_files[row["audio_path"]] != audio
    texture, texture_files = make_clip(a_plan(texture="broken"))
    assert texture["text"] == row["text"]
    assert texture_files[row["midi_path"]] != midi
    times = ("smpte_rate", "audio_smpte_start", "midi_smpte_start", "audio_minus_midi_s")
    for other in (mood, timbre, texture):
        assert [other[name] for name in times] == [row[name] for name in times]


def test_words_tell_the_mood_and_nothing_else() -> None:
    plans = [plan for plan in plan_clips(240, 0) if "text" not in plan.missing]
    texts = [
        set(re.findall("[a-z]+", sentence(plan.mood, plan.rng(TEXT)).lower())) for plan in plans
    ]
    vocabulary = sorted(set().union(*texts))
    bags = np.array([[word in text for word in vocabulary] for text in texts], dtype=float)
    train = np.array([plan.split != "test" for plan in plans])
    scores = {}
    for factor in ("mood", "texture", "timbre"):
        wanted = np.array([getattr(plan, factor) for plan in plans])
        model = LogisticRegression().fit(bags[train], wanted[train])
        scores[factor] = model.score(bags[~train], wanted[~train])
    assert scores["mood"] > 0.97
    assert max(scores["texture"], scores["timbre"]) < 0.68  # 79 clips: chance and three deviations


def test_best_accuracy_is_what_a_hand_computes() -> None:
    whole = {"text": "t", "audio_path": "a", "midi_path": "m"}
    mute = {**whole, "audio_path": None}
    only_audio = {"text": "", "audio_path": "a", "midi_path": None}
    rows = [whole, mute, only_audio]
    assert best_accuracy(rows, ["text"]) == (1 / 4 + 1 / 4 + 1 / 8) / 3
    assert best_accuracy(rows, ["audio"]) == (1 / 2 + 1 / 8 + 1 / 2) / 3
    assert best_accuracy(rows, ["midi"]) == (1 / 4 + 1 / 4 + 1 / 8) / 3
    assert best_accuracy(rows, ["text", "audio"]) == (1 + 1 / 4 + 1 / 2) / 3
    assert best_accuracy(rows, ["audio", "midi"]) == (1 / 2 + 1 / 4 + 1 / 2) / 3
    assert best_accuracy(rows, MODALITIES) == (1 + 1 / 2 + 1 / 2) / 3
    assert best_accuracy(rows, []) == 1 / 8


def test_written_bounds_are_those_of_the_manifest(sample: Path) -> None:
    about = json.loads((sample / "sample.json").read_text())
    rows = rows_of(sample)
    test = [row for row in rows if row["split"] == "test"]
    for name, best in about["best_accuracy"]["test"].items():
        assert best == best_accuracy(test, name.split("+"))
        assert (
            f"| {name} | {best_accuracy(rows, name.split('+')):.4f} | {best:.4f} |"
            in (sample / "README.md").read_text()
        )
    assert about["labels"] == Counter(row["label"] for row in rows)


def test_bad_arguments_say_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--clips 15 is too few.*at least 16"):
        write_sample(tmp_path / "new", clips=15)
    with pytest.raises(ConfigError, match=r"--seed -1 is negative; give 0 or more"):
        write_sample(tmp_path / "new", seed=-1)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match="choose from: text, audio, midi"):
        best_accuracy([{}], ["video"])
    with pytest.raises(ConfigError, match="no rows"):
        best_accuracy([], ["text"])


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("do not touch")
    with pytest.raises(ConfigError, match="holds other files; give a new or empty folder"):
        write_sample(tmp_path)
    with pytest.raises(ConfigError, match="is a file; give a new folder"):
        write_sample(tmp_path / "thesis.tex")
    assert digest(tmp_path).keys() == {"thesis.tex"}
    (tmp_path / "sample.json").write_text('{"what": "something"}')
    with pytest.raises(ConfigError, match="holds another sample than --clips 240 --seed 0"):
        write_sample(tmp_path)
