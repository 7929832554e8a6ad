"""The same clip gives the same bytes, whatever the order, batch, workers or place of a stop."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from test_wav2vec2 import SMALL, bare, saved
from transformers import AutoConfig, AutoModel, Wav2Vec2FeatureExtractor
from typer.testing import CliRunner

from mmfuse.features.audio import read_audio, resample
from mmfuse.features.corpus import open_corpus
from mmfuse.features.store import open_store
from mmfuse.pipeline.cli import app

PROGRAM = "import sys; from mmfuse.pipeline.cli import main; sys.exit(main())"
ORDERS = {
    "as they are": np.arange,
    "backwards": lambda n: np.arange(n)[::-1],
    "mixed": lambda n: np.random.default_rng(0).permutation(n),
}


def ordered(source, folder, order, rows=None):
    """The corpus with its manifest in another order, in a folder of its own."""
    table = pq.read_table(source / "manifest.parquet")
    table = table.take(pa.array(rows)) if rows is not None else table
    folder.mkdir()
    pq.write_table(table.take(pa.array(ORDERS[order](len(table)))), folder / "manifest.parquet")
    for part in ("audio", "midi"):
        (folder / part).mkdir()
    for row in table.to_pylist():
        for path in (row["audio_path"], row["midi_path"]):
            if path:
                os.link(source / path, folder / path)
    return folder


def command(corpus, store, model, *more):
    options = ["extract", "--encoder", "wav2vec2", "--model", model, "--device", "cpu"]
    options += ["--corpus", corpus, "--store", store, "--json", *more]
    return [sys.executable, "-c", PROGRAM, *(str(option) for option in options)]


def extract(corpus, store, model, *more):
    line = command(corpus, store, model, *more)
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["root"]


def killed(corpus, store, model, *more):
    """Begin, and be killed as soon as something is written."""
    process = subprocess.Popen(
        command(corpus, store, model, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not any(part.stat().st_size for part in store.glob("_mm/wav2vec2-*/*.part")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def matrix(source, model, folder, rows=None):
    """Roots of runs that differ in everything that must not show."""
    plain = ordered(source, folder / "plain", "as they are", rows)
    back = ordered(source, folder / "back", "backwards", rows)
    mixed = ordered(source, folder / "mixed", "mixed", rows)
    roots = {
        "plain": extract(plain, folder / "a.zarr", model),
        "backwards, batches of 4": extract(back, folder / "b.zarr", model, "--batch", 4),
        "mixed, 16, 2 workers": extract(
            mixed, folder / "c.zarr", model, "--batch", 16, "--workers", 2
        ),
    }
    killed(mixed, folder / "d.zarr", model, "--batch", 4)
    roots["killed, then 2 workers"] = extract(mixed, folder / "d.zarr", model, "--workers", 2)
    return roots


def beside_the_bare_model(corpus, store, model):
    """Largest relative error of what is stored, against one clip at a time in transformers."""
    stream = open_store(store)["wav2vec2"]
    worst = 0.0
    for clip in corpus:
        audio = read_audio(clip.audio.read())
        samples_N = resample(audio.samples_N, audio.rate_hz, 16_000)
        wanted = bare(model, samples_N)[-1]
        worst = max(worst, np.abs(stream[clip.id] - wanted).max() / np.abs(wanted).max())
    return worst


def test_nothing_that_must_not_show_shows(sample, tmp_path):
    model = saved(tmp_path / "model")
    roots = matrix(sample, model, tmp_path)
    assert len(set(roots.values())) == 1, roots
    clips = [clip for clip in open_corpus(sample).clips() if clip.audio][:8]
    assert beside_the_bare_model(clips, tmp_path / "c.zarr", model) <= 1e-3


def test_nor_in_any_order_with_any_batch(sample, tmp_path):
    """The whole matrix, in this process; the test above has the workers and the kill."""
    model = saved(tmp_path / "model")
    corpora = {order: ordered(sample, tmp_path / order, order) for order in ORDERS}
    roots = set()
    for (order, corpus), batch in itertools.product(corpora.items(), (1, 4, 16)):
        store = tmp_path / f"{order} {batch}.zarr"
        line = command(corpus, store, model, "--batch", batch)[3:]
        done = CliRunner().invoke(app, line)
        assert done.exit_code == 0, done.output
        roots.add(open_store(store).root)
    assert len(roots) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wav2vec2", "hubert"])
def test_nor_at_full_size_on_real_music(lieder8, tmp_path, kind):
    torch.manual_seed(0)
    model = tmp_path / "model"
    AutoModel.from_config(AutoConfig.for_model(kind)).save_pretrained(model)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(model)
    table = pq.read_table(lieder8 / "manifest.parquet", columns=["id", "audio_duration_s"])
    lengths = np.array(table["audio_duration_s"].to_pylist(), dtype=float)
    there = np.argsort(np.where(np.isnan(lengths), np.inf, lengths), kind="stable")
    rows = there[: int(np.isfinite(lengths).sum())]
    rows = np.sort(rows[np.linspace(0, len(rows) - 1, 40).astype(int)])
    roots = matrix(lieder8, model, tmp_path, rows)
    assert len(set(roots.values())) == 1, roots
    clips = list(open_corpus(tmp_path / "plain").clips())
    assert len(clips) == 40
    line = [sys.executable, "-c", PROGRAM, "verify", tmp_path / "c.zarr", "--recompute", "20"]
    verified = subprocess.run(line, capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stdout
    assert "20 made again: all is well" in verified.stdout
    assert beside_the_bare_model(clips, tmp_path / "c.zarr", model) <= 1e-3


def test_reading_one_layer_maps_the_bytes_of_one_layer(sample, tmp_path):
    model = tmp_path / "model"
    config = AutoConfig.for_model("wav2vec2", **{**SMALL, "num_hidden_layers": 12})
    AutoModel.from_config(config).save_pretrained(model)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(model)
    store = tmp_path / "s.zarr"
    extract(sample, store, model, "--layers", "all", "--limit", 12)
    code = f"""
from mmfuse.features.store import open_store
from mmfuse.pipeline.cli import app
store = open_store({str(store)!r})
stream = store["wav2vec2_layer06"]
total = sum(float(stream.at(entry).astype("f4").sum()) for entry in range(len(stream)))
print(sum(int(b, 16) - int(a, 16) for line in open("/proc/self/maps") if "/values/c/" in line
          for a, b in [line.split()[0].split("-")]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    layers = [key for key in open_store(store).specs() if "_layer" in key]
    sizes = {
        key: sum(f.stat().st_size for f in store.glob(f"{key}/values/c/**/0") if f.is_file())
        for key in layers
    }
    assert len(sizes) == 13
    one = sum(sizes.values()) / 13
    assert one <= int(done.stdout) <= one + 4096 * 16  # pages round up
