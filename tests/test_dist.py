"""What people install: the sdist is whole, and the wheel works outside of the repository."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("features", "pipeline", "trainer")
BUILD = "import sys; from setuptools import build_meta as b; b.build_{}(sys.argv[1])"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """sdist of the repository's own files, and the wheel that is made from it alone."""
    folder = tmp_path_factory.mktemp("dist")
    listed = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"]
    found = subprocess.run(listed, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip("this is no git repository, so what belongs to it can't be told")
    names = sorted(name for name in found.stdout.split("\0") if name and (ROOT / name).is_file())
    for name in names:
        (folder / "repo" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "repo" / name).write_bytes((ROOT / name).read_bytes())
    build("sdist", folder / "repo", folder)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    there = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    build("wheel", source, folder)
    (wheel,) = folder.glob("*.whl")
    return names, there, wheel


def build(what, source, target):
    line = [sys.executable, "-W", "ignore", "-c", BUILD.format(what), str(target)]
    done = subprocess.run(line, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_sdist_has_all_but_what_only_the_repository_needs(built):
    names, there, _ = built
    assert {name for name in names if name not in there} <= {".gitignore", ".ci/run"}
    made = {name for name in there - set(names) if not name.startswith("mmfuse.egg-info/")}
    assert made <= {"PKG-INFO", "setup.cfg"}


def test_the_wheel_has_every_module_configuration_and_mark_and_nothing_else(built):
    names, _, wheel = built
    wanted = {
        f"mmfuse/{name}"
        for name in names
        if name.startswith("configs/") or name.split("/")[0] in PACKAGES
    }
    with zipfile.ZipFile(wheel) as archive:
        there = {name for name in archive.namelist() if ".dist-info/" not in name}
        (scripts,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        declared = archive.read(scripts).decode()
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        said = archive.read(metadata).decode()
    assert there == wanted
    assert "mmfeat = mmfuse.pipeline.cli:main" in declared
    assert "mmtrain = mmfuse.trainer.cli:main" in declared
    assert "License-Expression: Apache-2.0" in said
    assert "Five commands" in said  # the README


@pytest.fixture(scope="module")
def clean(built, tmp_path_factory):
    """An environment that has the wheel and, beside it, only what others publish."""
    folder = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    python = folder / "env" / "bin" / "python"
    site = next((folder / "env").glob("lib/python3*/site-packages"))
    # as plain folders: .pth files in them, such as that of an editable mmfuse, are not read
    places = [place for place in sys.path if place.endswith("site-packages")]
    (site / "dependencies.pth").write_text("".join(f"{place}\n" for place in places))
    line = ["-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    line += ["--disable-pip-version-check", str(built[2])]
    pip = subprocess.run([sys.executable, *line], capture_output=True, text=True, check=False)
    assert pip.returncode == 0, pip.stderr

    def run(program, *arguments):
        settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        settings.pop("PYTHONPATH", None)
        line = [str(python.with_name(program)), *map(str, arguments)]
        done = subprocess.run(
            line, cwd=folder, capture_output=True, text=True, env=settings, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    return folder, run


def test_the_wheel_extracts_trains_and_reports_in_a_clean_environment(clean):
    folder, run = clean
    where = run("python", "-c", "import mmfuse.features.store as s; print(s.__file__)")
    assert Path(where.strip()).is_relative_to(folder / "env")
    run("mmfeat", "sample", "demo/corpus", "--clips", 48)
    run("mmfeat", "run", "configs/late.toml")  # of the wheel: there is no such folder here
    assert not (folder / "configs").exists()
    told = run("mmtrain", "run", "configs/late.toml", "--set", "train.epochs=2", "--json")
    assert 0 <= json.loads(told.strip().splitlines()[-1])["test"]["accuracy"] <= 1
    run("mmfeat", "report", "demo/store.zarr", "--out", "demo/report.html", "--clips", 1)
    run("mmtrain", "report", "runs/late", "--out", "demo/runs.html")
    for page in ("report", "runs"):
        assert "<html" in (folder / "demo" / f"{page}.html").read_text(encoding="utf-8")
