"""Broken installations are told, each with its mend."""

import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmfuse.pipeline import doctor, probes
from mmfuse.pipeline.findings import FAULT

PROGRAM = "import sys; from mmfuse.pipeline.cli import main; sys.exit(main())"
PROBES = """
import json, sys
from pathlib import Path
from mmfuse.pipeline.findings import view
from mmfuse.pipeline.probes import examine_disk
print(json.dumps(view(list(examine_disk(Path(sys.argv[1]))))[0]))
"""


def examined(*arguments, python=sys.executable, **environment):
    """What the command says: its exit code, and findings by name, each with its one mend."""
    settings = {**os.environ, **environment}
    if python != sys.executable:
        settings.pop("PYTHONPATH", None)
    line = [str(python), "-c", PROGRAM, "doctor", "--json", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, env=settings, check=False)
    assert done.returncode in (0, 6), done.stdout + done.stderr
    found = {f["what"]: f for f in json.loads(done.stdout)["findings"]}
    assert all(bool(f["mend"]) == (f["state"] != "ok") for f in found.values())
    return done.returncode, found


def environment(folder, without=(), copied=()):
    """An environment of its own: links to all that is installed here, but for some packages.

    Gives its Python and its site-packages, where `copied` folders may be changed.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(folder.glob("lib/python3*/site-packages"))
    for place in (Path(p) for p in sys.path if p.endswith("site-packages")):
        for thing in place.iterdir():
            name, target = thing.name.split("-")[0].removesuffix(".py"), site / thing.name
            ours = thing.suffix != ".pth" or thing.name.startswith("__editable__")
            if name in without or not ours or target.is_symlink() or target.exists():
                continue
            if name in copied and thing.is_dir():
                shutil.copytree(thing, target, symlinks=True)
            else:
                target.symlink_to(thing)
    return folder / "bin" / "python", site


def on_disk(folder, options, then=""):
    """Faults of a file system of its own at `folder`, in memory, by name."""
    folder.mkdir()
    mount = f"mount -t tmpfs -o {options} tmpfs {shlex.quote(str(folder))}"
    inside = ["unshare", "--map-root-user", "--mount", "sh", "-c", f'{mount} && {then} exec "$@"']
    if subprocess.run([*inside, "sh", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    line = [*inside, "sh", sys.executable, "-c", PROBES, str(folder / "s.zarr")]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    return {f["what"]: f for f in json.loads(done.stdout)["findings"] if f["state"] == FAULT}


def test_this_installation_is_well(tmp_path):
    code, found = examined("--store", tmp_path / "new" / "s.zarr")
    assert code == 0, [f for f in found.values() if f["state"] == FAULT]
    assert list(tmp_path.iterdir()) == []
    for what in ("torch", "torch + torchaudio", "imports", "audio files", "resampler"):
        assert found[what]["state"] == "ok"
    for what in ("room", "rename", "fsync", "memory map", "lock", "hard link"):
        assert found[what]["state"] == "ok"
    assert "MP3" in found["audio files"]["seen"]


# environments that are broken for real


def test_packages_that_are_missing_and_too_old(tmp_path):
    python, site = environment(tmp_path / "env", without=("blake3", "numcodecs"))
    old = site / "numcodecs-0.16.0.dist-info"
    old.mkdir()
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: numcodecs\nVersion: 0.16.0\n")
    (site / "numcodecs.py").write_text("__version__ = '0.16.0'\n")
    code, found = examined("--store", tmp_path, python=python)
    assert code == 6
    assert found["blake3"]["seen"] == "not installed; >=1.0 wanted"
    assert found["blake3"]["mend"] == "pip install 'blake3>=1.0'"
    assert found["numcodecs"]["seen"] == "0.16.0; >=0.16.6 wanted"
    assert found["numcodecs"]["mend"] == "pip install 'numcodecs>=0.16.6'"
    assert found["import blake3"]["seen"] == "ModuleNotFoundError: No module named 'blake3'"


def test_libraries_that_are_damaged_on_disk(tmp_path):
    """torchaudio's compiled part and libsndfile are cut short, tokenizers kills the process."""
    copied = ("torchaudio", "_soundfile_data", "tokenizers")
    python, site = environment(tmp_path / "env", copied=copied)
    cut = [*site.glob("torchaudio/lib/*.so"), *site.glob("_soundfile_data/*.so")]
    assert len(cut) >= 2
    for library in cut:
        library.write_bytes(library.read_bytes()[:5000])
    (site / "tokenizers" / "__init__.py").write_text("import os; os.abort()\n")
    code, found = examined("--store", tmp_path, python=python)
    assert code == 6
    assert "do not load together" in found["torch + torchaudio"]["seen"]
    mend = found["torch + torchaudio"]["mend"]
    assert mend.startswith("pip install --force-reinstall 'torch<2.15,>=2.10' 'torchaudio>=2.9'")
    assert found["audio files"]["mend"] == "pip install --force-reinstall soundfile"
    assert found["import tokenizers"]["seen"].startswith("the process died")
    assert found["import tokenizers"]["mend"] == "pip install --force-reinstall tokenizers"


@pytest.mark.parametrize(
    ("options", "seen"), [("size=256k", "0.0 GB"), ("size=4g,nr_inodes=4", " 3 inodes")]
)
def test_a_disk_that_is_full_in_bytes_or_in_inodes(tmp_path, options, seen):
    faults = on_disk(tmp_path / "disk", options)
    assert seen in faults["room"]["seen"]
    mends = {fault["mend"] for fault in faults.values()}
    assert mends == {"make room, or name another place with --store"}


def test_a_disk_that_can_only_be_read(tmp_path):
    then = f"mount -o remount,ro {shlex.quote(str(tmp_path / 'disk'))} &&"
    faults = on_disk(tmp_path / "disk", "size=4g", then)
    assert list(faults) == ["write"]
    assert "Read-only file system" in faults["write"]["seen"]
    assert "the right to write there, or name another" in faults["write"]["mend"]


def test_loops_that_are_not_compiled_and_a_torn_cache_of_models_are_notes(tmp_path):
    (tmp_path / "hub" / "models--acme--torn").mkdir(parents=True)
    hub = str(tmp_path / "hub")
    code, found = examined("--store", tmp_path, NUMBA_DISABLE_JIT="1", HF_HUB_CACHE=hub)
    assert code == 0
    assert found["compiled MIDI reader"]["state"] == "note"
    assert "NUMBA_CACHE_DIR" in found["compiled MIDI reader"]["mend"]
    assert "torn" in found["model cache"]["seen"]
    assert found["models"]["mend"].startswith("hf download")


# what no machine at hand has


def test_a_file_system_without_locks_or_links(monkeypatch, tmp_path):
    def link(source, target):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", lambda file, how: None)
    monkeypatch.setattr(os, "link", link)
    found = {finding.what: finding for finding in probes.examine_disk(tmp_path)}
    assert found["lock"].state == FAULT
    assert "two runs could write to one store" in found["lock"].seen
    assert found["lock"].mend.startswith("put the store on a local disk")
    assert found["hard link"].state == "note"


@pytest.mark.parametrize(
    ("version", "place"),
    [("2.14.1+cpu", " --index-url https://download.pytorch.org/whl/cpu"), ("2.14.1", "")],
)
def test_the_mend_of_torchaudio_takes_the_build_of_torch(version, place):
    assert doctor._pair(version) == (
        f"pip install --force-reinstall 'torch<2.15,>=2.10' 'torchaudio>=2.9'{place}"
    )
