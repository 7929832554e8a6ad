"""Whether a recording and its MIDI are together is measured, to a few milliseconds."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from mmfuse.features.alignment import DETECTOR_LAG_S, estimate_lag, onset_strength, warp
from mmfuse.features.audio import Audio
from mmfuse.features.corpus import open_corpus
from mmfuse.features.notes import COLUMN, FIELDS
from mmfuse.features.origins import midi_offset_s
from mmfuse.features.store import open_store
from mmfuse.pipeline.cli import app

RATE_HZ = 16_000


def mmfeat(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def rows_of(onset_s, pitch=None):
    values = np.zeros((len(onset_s), len(FIELDS)))
    values[:, COLUMN["onset_s"]] = onset_s
    values[:, COLUMN["offset_s"]] = np.asarray(onset_s) + 0.3
    values[:, COLUMN["velocity"]] = 90
    values[:, COLUMN["pitch"]] = 60 if pitch is None else pitch
    return values


def played(onset_s, duration_s, rise_s=0.02, pitch=None):
    """Sines that die away, each beginning at its very time, not at a sample."""
    samples = np.zeros(int(duration_s * RATE_HZ) + RATE_HZ)
    rng = np.random.default_rng(1)
    for number, start_s in enumerate(onset_s):
        first = int(np.ceil(start_s * RATE_HZ))
        t = (np.arange(RATE_HZ) + first) / RATE_HZ - start_s
        hz = rng.uniform(200, 1500) if pitch is None else 440 * 2 ** ((pitch[number] - 69) / 12)
        samples[first : first + RATE_HZ] += (
            np.sin(2 * np.pi * hz * t) * np.exp(-9 * t) * np.minimum(t / rise_s, 1)
        )
    samples = samples[: int(duration_s * RATE_HZ)] * 0.3 + 1e-4 * rng.normal(
        size=int(duration_s * RATE_HZ)
    )
    return Audio(samples.astype(np.float32), RATE_HZ, 1, len(samples), "WAV")


@pytest.fixture(scope="module")
def onset_s():
    return np.sort(np.random.default_rng(0).uniform(0.3, 11, 40))


def test_the_detector_adds_nothing_to_notes_that_rise_in_20_ms(onset_s):
    lag = estimate_lag(played(onset_s, 12), rows_of(onset_s))
    assert abs(lag.lag_s) < 0.001
    assert lag.onsets == 40
    assert lag.confidence > 0.3
    assert abs(lag.drift_s) < 0.002
    at_once = estimate_lag(played(onset_s, 12, rise_s=1e-9), rows_of(onset_s))
    assert at_once.lag_s == pytest.approx(-0.003, abs=0.001)
    assert abs(DETECTOR_LAG_S) < 0.004


@pytest.mark.parametrize("shift_s", [0.04, -0.04, 0.5, -0.7, 1 / 30])
def test_a_shift_is_found_with_its_sign(onset_s, shift_s):
    lag = estimate_lag(played(onset_s, 12), rows_of(onset_s - shift_s))
    assert lag.lag_s == pytest.approx(shift_s, abs=0.002)


def test_drift_is_found_where_the_audio_runs_slow(onset_s):
    lag = estimate_lag(played(onset_s * 1.001, 12), rows_of(onset_s))
    assert lag.drift_s == pytest.approx(0.012, abs=0.003)


def test_what_can_not_be_compared_is_none(onset_s):
    silence = Audio(np.zeros(RATE_HZ * 5, np.float32), RATE_HZ, 1, RATE_HZ * 5, "WAV")
    assert estimate_lag(silence, rows_of(onset_s)) is None
    short = Audio(np.ones(100, np.float32), RATE_HZ, 1, 100, "WAV")
    assert estimate_lag(short, rows_of(onset_s)) is None
    assert estimate_lag(played(onset_s, 12), rows_of([])) is None
    assert estimate_lag(played(onset_s, 12), rows_of([500.0])) is None


def test_noise_has_little_confidence(onset_s):
    noise = np.random.default_rng(5).normal(0, 0.1, 12 * RATE_HZ).astype(np.float32)
    found = [
        estimate_lag(
            Audio(np.roll(noise, 999 * i), RATE_HZ, 1, len(noise), "WAV"), rows_of(onset_s)
        )
        for i in range(5)
    ]
    assert np.median([lag.confidence for lag in found]) < 0.15


def test_long_recordings_are_taken_in_blocks():
    noise = np.random.default_rng(0).normal(0, 0.1, 40 * RATE_HZ).astype(np.float32)
    whole, half = onset_strength(noise), onset_strength(noise[: 20 * RATE_HZ])
    np.testing.assert_allclose(half[:9000], whole[:9000], atol=1e-5)


def test_warping_follows_a_performance_that_slows_down(onset_s):
    pitch = np.random.default_rng(2).integers(48, 84, len(onset_s))
    heard_s = onset_s + 0.02 * onset_s**2
    path = warp(played(heard_s, 15, pitch=pitch), rows_of(onset_s, pitch))
    at = np.searchsorted(path[:, 0], onset_s)
    assert np.median(np.abs(path[np.minimum(at, len(path) - 1), 1] - heard_s)) < 0.06
    assert (np.diff(path, axis=0) >= 0).all()


def test_the_sample_corpus_is_together(sample, tmp_path):
    out = tmp_path / "a.parquet"
    found = json.loads(
        mmfeat("align", "--corpus", sample, "--out", out, "--max-lag-ms", 30, "--json").stdout
    )
    assert found["pairs"] == found["measured"] + found["uncertain"] > 25
    assert found["within"]["20_ms"] == 1
    table = pq.read_table(out)
    assert len(table) == found["pairs"]
    assert sum(count for _, count in found["histogram_ms"]) == found["measured"]


def test_bad_clips_are_rows_of_the_table(sample, tmp_path):
    rows = pq.read_table(sample / "manifest.parquet").to_pylist()
    rows = [row for row in rows if row["audio_path"] and row["midi_path"]][:3]
    rows[1]["midi_path"] = rows[1]["audio_path"]
    for row in rows:
        for column in ("audio_path", "midi_path"):
            path = tmp_path / row[column]
            path.parent.mkdir(exist_ok=True)
            path.write_bytes((sample / row[column]).read_bytes())
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "manifest.parquet")
    out = tmp_path / "a.parquet"
    result = mmfeat("align", "--corpus", tmp_path, "--out", out, code=3)
    assert "Traceback" not in result.output
    problems = pq.read_table(out)["problem"].to_pylist()
    assert [problem.partition(":")[0] for problem in problems] == ["", "not_midi", ""]


def shifted(corpus, folder, shift_s, every=1):
    """A manifest of the corpus' pairs with plain seconds as origins, MIDI moved by `shift_s`."""
    rows = []
    for clip in list(open_corpus(corpus).clips())[::every]:
        if clip.audio is not None and clip.midi is not None:
            offset_s, _ = midi_offset_s(clip)
            starts = {} if shift_s is None else {
                "audio_start_s": "0", "midi_start_s": str(offset_s + shift_s)}  # fmt: skip
            rows.append(
                {"id": clip.id, "audio": clip.audio.read(), "midi": clip.midi.read()} | starts
            )
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "manifest.parquet")
    return folder, len(rows)


def test_the_real_corpus_is_together_and_one_frame_of_error_is_flagged(lieder8, tmp_path):
    from fractions import Fraction

    out = tmp_path / "a.parquet"
    options = ("--out", out, "--max-lag-ms", 30, "--json")
    found = json.loads(mmfeat("align", "--corpus", lieder8, "--limit", 120, *options).stdout)
    assert found["within"]["20_ms"] >= 0.95
    assert found["flagged"] == []
    for number, shift_s in enumerate((Fraction(1, 25), Fraction(-1, 25))):
        corpus, count = shifted(lieder8, tmp_path / str(number), shift_s, every=8)
        result = mmfeat("align", "--corpus", corpus, *options, code=4)
        assert len(json.loads(result.stdout)["flagged"]) >= 0.95 * count


def test_offsets_of_clips_without_origins_are_estimated_and_said_to_be(lieder8, tmp_path):
    corpus, count = shifted(lieder8, tmp_path / "c", None, every=16)
    known = {clip.id: float(midi_offset_s(clip)[0]) for clip in open_corpus(lieder8).clips()}
    out = tmp_path / "a.parquet"
    mmfeat("align", "--corpus", corpus, "--out", out, "--refine", "--search-s", 12, "--quiet")
    rows = pq.read_table(out).to_pylist()
    assert sum(bool(row["assumed"]) for row in rows) > 0.9 * count  # some files tell both starts
    refined = [row for row in rows if row["refined_offset_s"] is not None]
    right = [r for r in refined if abs(r["refined_offset_s"] - known[r["clip_id"]]) < 0.03]
    assert len(refined) > 0.8 * count
    assert len(right) > 0.9 * len(refined)

    # and they count where a run is told of them
    store = tmp_path / "s.zarr"
    options = ("--corpus", corpus, "--store", store, "--quiet")
    mmfeat("tokenize", *options, "--alignment", out)
    notes = open_store(store)["notes"]
    row = right[0]
    entry = notes.find([row["clip_id"]])[0]
    assert notes.table["note"][int(entry)].as_py().startswith("aligned by an estimate")
    estimated = notes[row["clip_id"]][0, COLUMN["onset_s"]]
    mmfeat("tokenize", *options)
    at_zero = open_store(store)["notes"][row["clip_id"]][0, COLUMN["onset_s"]]
    assert estimated - at_zero == pytest.approx(row["refined_offset_s"], abs=1e-6)
    result = mmfeat("tokenize", *options, "--alignment", tmp_path / "none.parquet", code=2)
    assert "is no alignment table" in result.stderr
