"""Broken installations are told, each with its mend."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmfuse.pipeline import doctor

PROGRAM = "import sys; from mmfuse.pipeline.cli import main; sys.exit(main())"


def examined(*arguments, shim=None, **environment):
    """What the command says in an environment; `shim` is a folder of modules that come first."""
    paths = [str(shim)] if shim else []
    paths += [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment}
    line = [sys.executable, "-c", PROGRAM, "doctor", "--json", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, env=settings, check=False)
    assert done.returncode in (0, 6), done.stderr
    return done.returncode, {f["what"]: f for f in json.loads(done.stdout)["findings"]}


def broken(tmp_path, name, code):
    """A folder whose module `name` does something bad when it is imported."""
    (tmp_path / "shim").mkdir()
    (tmp_path / "shim" / f"{name}.py").write_text(code)
    return tmp_path / "shim"


def test_this_installation_is_well(tmp_path):
    code, found = examined("--store", tmp_path / "new" / "s.zarr")
    assert code == 0, [f for f in found.values() if f["state"] == "FAULT"]
    assert list(tmp_path.iterdir()) == []
    for what in ("torch", "torch + torchaudio", "audio files", "resampler", "lock", "memory map"):
        assert found[what]["state"] == "ok"
    assert "MP3" in found["audio files"]["seen"]


def test_torchaudio_of_another_torch(tmp_path):
    error = "libc10_cuda.so: cannot open shared object file"
    shim = broken(tmp_path, "torchaudio", f"raise OSError({error!r})")
    code, found = examined("--store", tmp_path, shim=shim)
    assert code == 6
    assert error in found["torch + torchaudio"]["seen"]
    assert found["torch + torchaudio"]["mend"] == "pip install --upgrade mmfuse torchaudio"


def test_a_library_that_kills_the_process(tmp_path):
    shim = broken(tmp_path, "soxr", "import os; os.abort()")
    code, found = examined("--store", tmp_path, shim=shim)
    assert code == 6
    assert found["resampler"]["seen"].startswith("the process died")
    assert found["resampler"]["mend"] == "pip install --force-reinstall soxr"


def test_a_sound_library_that_does_not_load(tmp_path):
    shim = broken(tmp_path, "soundfile", "raise OSError('sndfile library not found')")
    code, found = examined("--store", tmp_path, shim=shim)
    assert code == 6
    assert found["audio files"]["mend"] == "pip install --force-reinstall soundfile"


def test_loops_that_are_not_compiled_and_an_empty_cache_are_notes(tmp_path):
    code, found = examined(
        "--store", tmp_path, NUMBA_DISABLE_JIT="1", HF_HUB_CACHE=str(tmp_path / "none")
    )
    assert code == 0
    assert found["compiled MIDI reader"]["state"] == "note"
    assert "NUMBA_CACHE_DIR" in found["compiled MIDI reader"]["mend"]
    assert found["models"]["mend"].startswith("hf download")


def test_a_place_where_nothing_can_be_written():
    code, found = examined("--store", "/proc/self")
    assert code == 6
    assert any(f["state"] == "FAULT" and "--store" in f["mend"] for f in found.values())


@pytest.mark.parametrize(("name", "version"), [("torch", "2.4.1+cpu"), ("numcodecs", "0.16.0")])
def test_a_version_below_its_floor(monkeypatch, name, version):
    plain = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda n: version if n == name else plain(n))
    (found,) = [f for f in doctor._versions() if f.state == doctor.FAULT]
    assert found.what == name
    assert version in found.seen
    assert found.mend.startswith(f"pip install '{name}")


def test_a_library_that_is_not_there(monkeypatch):
    plain = importlib.metadata.version

    def version(name):
        if name == "blake3":
            raise importlib.metadata.PackageNotFoundError(name)
        return plain(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    (found,) = [f for f in doctor._versions() if f.state == doctor.FAULT]
    assert found.what == "blake3"
    assert found.mend == "pip install 'blake3>=1.0'"


def test_little_room_is_told(monkeypatch, tmp_path):
    class Full:
        f_bavail, f_frsize, f_favail, f_files = 10, 4096, 5, 1000

    monkeypatch.setattr(os, "statvfs", lambda path: Full)
    found = {finding.what: finding for finding in doctor._file_system(Path(tmp_path))}
    assert found["room"].state == doctor.FAULT
    assert "make room" in found["room"].mend
