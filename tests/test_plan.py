"""`mmfeat plan` says before a run what the run then does, and touches nothing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from simulated import simulate_manifest
from test_verify import mmfeat

from mmfuse.features.corpus import open_corpus
from mmfuse.features.store import open_store

PLANNED = """
import json, sys, time
began = time.perf_counter()
from mmfuse.pipeline.cli import app
try:
    app(["plan", *sys.argv[1:], "--json"])
except SystemExit as stop:
    assert not stop.code
heavy = ("torch", "torchaudio", "transformers", "librosa", "polars")
status = open("/proc/self/status").read()  # ru_maxrss would be that of the parent, if it is larger
peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
loaded = [name for name in heavy if name in sys.modules]
print(json.dumps({"s": time.perf_counter() - began, "bytes": peak, "loaded": loaded}))
"""


def planned(*arguments):
    """The forecast, and what it cost in a process of its own."""
    command = [sys.executable, "-c", PLANNED, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *text, cost = done.stdout.splitlines()
    return json.loads("\n".join(text)), json.loads(cost)


def plan(*arguments):
    return json.loads(mmfeat("plan", *arguments, "--json").stdout)


def snapshot(folder):
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*")}


def test_what_is_forecast_is_what_the_run_makes(sample, tmp_path, features_toml):
    corpus, store = shutil.copytree(sample, tmp_path / "c"), tmp_path / "s.zarr"
    where = [features_toml, "--corpus", corpus, "--store", store]
    before, cost = planned(*where)
    assert cost["loaded"] == []
    assert not store.exists()
    assert before["seconds"] is None
    assert before["measure"].startswith(f"mmfeat run {features_toml} --corpus {corpus} --store")
    assert before["measure"].endswith("--limit 200")
    made = json.loads(mmfeat("run", *where, "--json").stdout)
    files = snapshot(tmp_path)
    after = plan(*where, "--workers", "4")
    assert snapshot(tmp_path) == files
    assert after["seconds"] == after["bytes"] == 0
    opened = open_store(store)
    for forecast, found in zip(before["streams"], after["streams"], strict=True):
        name = forecast["stream"]
        assert (forecast["there"], forecast["to_make"]) == (0, made["made"][name])
        assert (found["there"], found["to_make"]) == (made["made"][name], 0)
        rows = int(opened[name].lengths.sum())
        assert abs(forecast["rows"] - rows) <= (0.5 if name == "text_tokens" else 0.1) * rows
        assert found["speed"]["entries"] == made["made"][name]


def test_a_changed_file_is_there_by_id_and_not_by_content(sample, tmp_path, features_toml):
    corpus, store = shutil.copytree(sample, tmp_path / "c"), tmp_path / "s.zarr"
    where = [features_toml, "--corpus", corpus, "--store", store, "--set", "preprocessing.views=1",
             "--set", "preprocessing.audio.augmentations.gain_db=[-3, 3]"]  # fmt: skip
    mmfeat("run", *where, "-q")
    audio = sorted((corpus / "audio").iterdir())
    audio[0].write_bytes(audio[1].read_bytes())
    by_id, by_content = plan(*where), plan(*where, "--hash")
    views = 1 + (
        next(c for c in open_corpus(corpus).clips() if c.id == audio[0].stem).split == "train"
    )
    for one, other in zip(by_id["streams"], by_content["streams"], strict=True):
        assert one["to_make"] == 0
        assert other["to_make"] == (views if other["modality"] == "audio" else 0)
    assert by_content["seconds"] > 0
    assert plan(*where, "--hash", "--workers", "4")["seconds"] == pytest.approx(
        by_content["seconds"] / 4, abs=0.01
    )
    mmfeat("run", *where, "-q")
    assert {s["to_make"] for s in plan(*where, "--hash")["streams"]} == {0}


def test_durations_come_from_the_manifest_where_it_has_them(tmp_path):
    simulate_manifest(tmp_path / "m.parquet", 2200)
    where = ["--corpus", tmp_path / "m.parquet", "--store", tmp_path / "s.zarr"]
    found = plan("--encoder", "logmel", *where)
    assert found["audio_s"] == pytest.approx(2200 * 10, rel=0.01)
    assert found["has"] == {"audio": 2200, "midi": 2200, "text": 734}
    assert found["streams"][0]["rows"] == pytest.approx(2200 * 10 * 50, rel=0.02)
    assert found["tasks"] == found["streams"][0]["shards"] == 16
    assert plan("--encoder", "logmel", *where, "--limit", "100")["clips"] == 100
    simulate_manifest(tmp_path / "m.parquet", 100, durations=False)
    unknown = plan("--encoder", "logmel", *where)
    assert (unknown["audio_s"], unknown["streams"][0]["rows"], unknown["bytes"]) == (None, None, 0)
    assert "at least 0.0 MB needed" in mmfeat("plan", "--encoder", "logmel", *where).stdout
    assert "name an encoder with --encoder" in mmfeat("plan", *where, code=2).stderr


def test_bytes_inside_a_manifest_are_not_read_to_count_them(sample, tmp_path):
    table = pq.read_table(sample / "manifest.parquet").select(["id"])
    files = [(clip.id, clip.audio) for clip in open_corpus(sample).clips()]
    cells = [one and {"bytes": one.read(), "path": None} for _, one in files]
    structs = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(table.append_column("audio", structs), tmp_path / "struct.parquet")
    plain = pa.array([cell and cell["bytes"] for cell in cells], pa.binary())
    pq.write_table(table.append_column("audio", plain), tmp_path / "plain.parquet")
    there = sum(cell is not None for cell in cells)
    assert 0 < there < len(cells)
    for name, expected in (("struct", there), ("plain", len(cells))):
        where = ["--corpus", tmp_path / f"{name}.parquet", "--store", tmp_path / "s.zarr"]
        found = plan("--encoder", "logmel", *where)
        assert found["has"]["audio"] == expected
        assert found["audio_s"] / expected == pytest.approx(5, rel=0.1)


def test_layers_of_a_model_are_forecast_without_its_library(tmp_path):
    simulate_manifest(tmp_path / "m.parquet", 1000)
    found, cost = planned(
        "--encoder", "wav2vec2", "--model", "wav2vec2-base", "--random-weights", "0", "--layers",
        "all", "--corpus", tmp_path / "m.parquet", "--store", tmp_path / "s.zarr",
    )  # fmt: skip
    assert cost["loaded"] == []
    assert [s["stream"] for s in found["streams"]] == [
        f"wav2vec2_random_layer{number:02}" for number in range(13)
    ]
    assert found["streams"][0]["bytes"] == pytest.approx(1000 * 10 * 50 * 768 * 2, rel=0.02)


@pytest.mark.parametrize("clips", [10**5, pytest.param(10**7, marks=pytest.mark.slow)])
def test_a_large_corpus_is_forecast_in_little_memory(tmp_path, features_toml, clips):
    simulate_manifest(tmp_path / "m.parquet", clips)
    found, cost = planned(
        features_toml, "--corpus", tmp_path / "m.parquet", "--store", tmp_path / "s.zarr"
    )
    assert found["clips"] == clips
    assert cost["bytes"] < 400e6 + 50 * clips, cost
    if clips == 10**7:
        assert cost["s"] < 60, cost
        assert cost["bytes"] < 2e9, cost
    assert not (Path(tmp_path) / "s.zarr").exists()
