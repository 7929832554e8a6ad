"""What several test modules use: the real corpus beside the project, a sample corpus, the CLI."""

import json
from pathlib import Path

import numpy as np
import pytest

LIEDER8 = Path(__file__).parents[2] / "shared" / "data" / "lieder8"


@pytest.fixture(scope="session")
def lieder8():
    """Folder of the lieder8 corpus, where it lies beside the project."""
    if not LIEDER8.is_dir():
        pytest.skip("the lieder8 corpus is not beside the project (../shared/data/lieder8)")
    return LIEDER8


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """Folder of a small sample corpus; do not write into it."""
    from mmfuse.pipeline.sample import write_sample

    folder = tmp_path_factory.mktemp("sample") / "corpus"
    write_sample(folder, clips=48, seed=3)
    return folder


@pytest.fixture(scope="session")
def hostile(sample, tmp_path_factory):
    """A store, and its corpus: ids, texts, labels and file names that would be markup."""
    import pyarrow.parquet as pq
    from browser import EVIL
    from typer.testing import CliRunner

    from mmfuse.pipeline.cli import app

    folder = tmp_path_factory.mktemp("hostile")
    kept = ("text", "label", "split", "audio_path", "midi_path", "smpte_rate",
            "audio_smpte_start", "midi_smpte_start")  # fmt: skip
    table = pq.read_table(sample / "manifest.parquet").to_pylist()
    whole = [row for row in table if row["audio_path"] and row["midi_path"] and row["text"]][:6]
    rows = [{"id": f"clip-{n}", **{key: row[key] for key in kept}} for n, row in enumerate(whole)]
    for row in rows:
        for path in (row["audio_path"], row["midi_path"]):
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes((sample / path).read_bytes())
    rows[0] |= {"id": f"a {EVIL}", "text": f"</script>{EVIL}<img src=x onerror=alert(2)>"}
    rows[0]["label"] = f"\"'>{EVIL}{90 * 'x'}"
    rows[1]["audio_path"] = "<script>alert(3)<.flac"  # there is no such file
    rows[2]["audio_path"] = None
    rows[3]["text"] = None
    rows[4]["id"] = 300 * "y"
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections = ("audio", "midi", "text")
    (folder / "f.toml").write_text("\n".join(f"[preprocessing.{name}]" for name in sections))
    words = ("run", folder / "f.toml", "--corpus", folder, "--store", folder / "s.zarr", "-q")
    assert CliRunner().invoke(app, list(map(str, words))).exit_code == 3
    return folder / "s.zarr", folder


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium, where one is installed."""
    from browser import ARGUMENTS, PROGRAM

    if PROGRAM is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=PROGRAM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def in_bars():
    """Rows of the notes stream of notes that are given in quarters, at one tempo and meter."""
    from mmfuse.features.notes import COLUMN, FIELDS

    def rows(*notes, bar=4, quarter_s=0.5, ticks=480, velocity=64, program=0, flags=0):
        """Each note is (onset, duration, pitch) in quarters, or has a velocity behind that."""
        values = np.zeros((len(notes), len(FIELDS)))
        for row, (onset, duration, pitch, *loud) in zip(values, notes, strict=True):
            named = {
                "tick": onset * ticks, "offset_tick": (onset + duration) * ticks,
                "onset_s": onset * quarter_s, "offset_s": (onset + duration) * quarter_s,
                "pitch": pitch, "velocity": loud[0] if loud else velocity, "program": program,
                "flags": flags, "bar": onset // bar, "beat_in_bar": onset % bar,
                "bar_length": bar, "ticks_per_quarter": ticks, "quarter_s": quarter_s,
            }  # fmt: skip
            for name, value in named.items():
                row[COLUMN[name]] = float(value)
        return values[np.lexsort((values[:, COLUMN["pitch"]], values[:, COLUMN["tick"]]))]

    return rows


@pytest.fixture
def features_toml(tmp_path):
    """A configuration that asks for every stream."""
    path = tmp_path / "features.toml"
    path.write_text("[preprocessing.audio]\n[preprocessing.midi]\n[preprocessing.text]\n")
    return path


@pytest.fixture
def others_agree():
    """Compare all entries of a store with what three other Zarr readers see; how many were."""

    def compare(path):
        from mmfuse.features.store import open_store

        store, compared = open_store(path), 0
        for key, spec in store.specs().items():
            stream = store[key]
            for reader in ("zarr", "tensorstore", "zarrs"):
                values, starts, lengths = (
                    _other_open(path / key / name, reader)
                    for name in ("values", "starts", "lengths")
                )
                starts, lengths = np.asarray(starts[:]), np.asarray(lengths[:])
                for entry, (start, rows) in enumerate(zip(starts, lengths, strict=True)):
                    found = np.asarray(values[start : start + rows])
                    assert found.dtype == np.dtype(spec.dtype)
                    assert found.tobytes() == stream.stored(entry).tobytes(), (reader, key, entry)
                    compared += 1
        return compared

    return compare


def _other_open(path, reader):
    """The array as another reader opens it; slices of it turn into numpy arrays."""
    if reader == "tensorstore":
        import tensorstore as ts

        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
        return ts.open(spec, read=True).result()
    import zarr

    if reader == "zarrs":
        import zarrs  # noqa: F401
    pipeline = {"zarr": "zarr.core.codec_pipeline.BatchedCodecPipeline",
                "zarrs": "zarrs.ZarrsCodecPipeline"}[reader]  # fmt: skip
    with zarr.config.set({"codec_pipeline.path": pipeline}):
        return zarr.open_array(path, mode="r")
