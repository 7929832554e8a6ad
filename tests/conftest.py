"""What several test modules use: the real corpus beside the project, a sample corpus, the CLI."""

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
