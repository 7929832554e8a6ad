"""Three thousand damaged recordings: none crashes, none takes 5 s, none takes a gibibyte."""

import json
import subprocess
import sys

import numpy as np
import pytest
from test_audio import BW64, FILES, REASONS
from test_engine import mmfeat

from mmfuse.features.store import open_store

COUNT = 3_000
CODE = f"""
import resource, sys, time
sys.path.insert(0, sys.argv[1])
from test_audio import BW64, FILES, REASONS
from test_audio_fuzz import damaged
from mmfuse.features.audio import read_audio
from mmfuse.features.errors import DecodeError

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
files = [*FILES.values(), BW64]
readable, slowest = 0, 0.0
for number in range({COUNT}):
    data = damaged(files[number % len(files)], number, files)
    began = time.perf_counter()
    try:
        readable += read_audio(data).frames > 0
    except DecodeError as error:
        assert error.reason in REASONS and str(error), error
    slowest = max(slowest, time.perf_counter() - began)
print(readable, slowest, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def damaged(whole, number, files):
    """A file with one of four kinds of damage, drawn by `number`."""
    rng, data = np.random.default_rng(number), bytearray(whole)
    kind = number // len(files) % 4
    near = 200 if kind % 2 else len(data)  # headers, or anywhere
    if kind < 2:  # some bits
        for bit in rng.integers(8 * min(near, len(data)), size=rng.integers(1, 12)).tolist():
            data[bit // 8] ^= 1 << bit % 8
    elif kind == 2:  # a number in a header becomes a large one
        at = int(rng.integers(min(200, len(data) - 8)))
        data[at : at + 4] = rng.choice([b"\xff" * 4, b"\x7f" + b"\xff" * 3, b"\0" * 4])
    else:  # a part of another file
        other = files[rng.integers(len(files))]
        first, last = sorted(rng.integers(len(data), size=2).tolist())
        data[first:last] = other[first : last + int(rng.integers(64))]
    return bytes(data)


@pytest.mark.slow
def test_damaged_recordings_cost_neither_the_process_nor_time_nor_memory(request):
    folder = str(request.path.parent)
    line = [sys.executable, "-c", CODE, folder]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    readable, slowest_s, peak_kib = done.stdout.split()[-3:]
    assert 0 < int(readable) < COUNT
    assert float(slowest_s) < 5
    assert int(peak_kib) < 1 << 20


@pytest.mark.parametrize("count", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_a_run_over_damaged_recordings_makes_the_good_ones_and_tells_of_the_others(tmp_path, count):
    (tmp_path / "corpus").mkdir()
    files = [*FILES.values(), BW64]
    for number in range(count):
        data = files[number % len(files)]
        data = data if number % 3 == 0 else damaged(data, number, files)
        (tmp_path / "corpus" / f"{number:04d}.wav").write_bytes(data)
    store = tmp_path / "s.zarr"
    line = ("extract", "--encoder", "waveform", "--corpus", tmp_path / "corpus", "--store", store)
    report = json.loads(mmfeat(*line, "--json", code=3).stdout)
    failures = open_store(store).failures().to_pylist()
    assert {row["reason"] for row in failures} <= REASONS | {"too_short"}
    assert all(row["detail"] for row in failures)
    assert report["made"]["waveform"] + len(failures) == count
    assert report["made"]["waveform"] >= count // 3
