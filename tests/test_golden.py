"""Stores that were written once open for ever. Never write the files of `tests/data` anew.

`store-1.zip` is a store of format 1; `store-1-unsealed.zip` is one from before its manifest carried
a checksum. Both hold the same entries, whose values and roots stand here.
"""

import hashlib
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import zarr

from mmfuse.features.index import root_of
from mmfuse.features.spec import Entry
from mmfuse.features.store import open_store
from mmfuse.features.verify import verify_store
from mmfuse.features.writer import StoreWriter

DATA = Path(__file__).parent / "data"
SHA256 = {
    "store-1": "9789045bed60b652477e0f75e3f410296a19d1bef1ec8b741cc530a412ee2bcf",
    "store-1-unsealed": "4712ee81670712d4fe7ee1ed8f6b88f80892066bdf4b624057c7caa8212f6719",
}
ROOT = "577159134ace683037807fc35908064441c084e3e790a142019d2e4d6f0aba18"
KEYS = ["frames-49d2ce54", "notes-4c4b4e04", "text-31ebdfd1"]
SHAPES = {"frames": ((4,), "float16"), "notes": ((2, 3), "float64"), "text": ((), "uint16")}


def values_of(name, number, rows):
    """What clip `number` holds."""
    item, dtype = SHAPES[name]
    return (np.arange(rows * int(np.prod(item))) * 7 + number).reshape(rows, *item).astype(dtype)


@pytest.fixture(params=SHA256)
def golden(request, tmp_path):
    packed = DATA / f"{request.param}.zip"
    assert hashlib.sha256(packed.read_bytes()).hexdigest() == SHA256[request.param]
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path / "store.zarr")
    return tmp_path / "store.zarr"


def test_a_golden_store_opens_and_holds_what_it_held(golden):
    store = open_store(golden)
    assert store.keys() == KEYS
    assert store.root == ROOT
    for name in SHAPES:
        stream = store[name]
        assert sorted(stream.ids) == ["clip-0", "clip-1", "clip-2", "clip-ä"]
        for number, clip_id in enumerate(["clip-0", "clip-1", "clip-2"]):
            rows = 0 if number == 2 else 5 + number
            expected = values_of(name, number, rows)
            assert stream[clip_id].dtype == expected.dtype
            np.testing.assert_array_equal(stream[clip_id], expected)
        np.testing.assert_array_equal(stream["clip-ä"], values_of(name, 9, 600))  # made anew
    frames = store["frames"]
    (entry,) = frames.find(["clip-1"])
    start = Fraction(-1001, 30000)
    centres = [start + Fraction(1, 2) * (i >= 3) + Fraction(i - 3 * (i >= 3), 50) for i in range(6)]
    assert frames.frame_times_s(entry).tolist() == [float(t) for t in centres]
    assert frames.table["note"][int(entry)].as_py() == "aligned at zero"
    (failure,) = store.failures().to_pylist()
    assert (failure["clip_id"], failure["reason"]) == ("clip-7", "not_audio")


def test_a_golden_store_is_whole(golden):
    report = verify_store(golden, 1.0)
    assert report.findings == []
    assert report.entries_read == 3 * 5
    store = open_store(golden)
    roots = {key: stream["root"] for key, stream in store.manifest["streams"].items()}
    assert {key: root_of(store[key].spec.fingerprint, [store[key].table]) for key in roots} == roots


def test_other_readers_still_read_a_golden_store(golden):
    lengths = zarr.open_array(golden / KEYS[0] / "lengths", mode="r")[:]
    assert lengths.tolist() == [5, 6, 0, 3, 600]
    starts = zarr.open_array(golden / KEYS[0] / "starts", mode="r")[:]
    values = zarr.open_array(golden / KEYS[0] / "values", mode="r")
    last = values[int(starts[4]) : int(starts[4] + 600)]
    np.testing.assert_array_equal(last, values_of("frames", 9, 600))


def test_a_golden_store_is_added_to(golden):
    with StoreWriter(golden) as writer:
        stream = writer.stream(open_store(golden)["frames"].spec)
        assert stream.has("clip-0", bytes(32))
        stream.append("new", bytes(32), Entry(values_of("frames", 3, 7)))
    store = open_store(golden)
    np.testing.assert_array_equal(store["frames"]["new"], values_of("frames", 3, 7))
    np.testing.assert_array_equal(store["frames"]["clip-1"], values_of("frames", 1, 6))
    assert store.root != ROOT
    assert verify_store(golden, 1.0).findings == []
