"""The shape of the project: who imports whom, what is banned, which versions are safe."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "features": {"features"},
    "pipeline": {"features", "pipeline"},
    "trainer": {"features", "trainer"},
}
BANNED_MODULES = {"pickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal"}
BANNED_NAMES = {"torch.load", "joblib.Memory", "joblib.load", "joblib.dump"}
ONLY_FALSE = {"allow_pickle", "trust_remote_code"}  # keywords that may be nothing else
MAX_LINES = 400
LOCAL_PATH = re.compile(
    r"(?<![\w.~-])/(?:home|root|Users|work|tmp|mnt|opt|srv|data)/\w|\b[A-Z]:\\\w"
)
# older ones run code from a file: torch from weights, transformers from config.json, numcodecs
# from a codec's name; torchaudio is the oldest that goes with that torch
FLOORS = {"torch": "2.10", "torchaudio": "2.9", "transformers": "5.3", "numcodecs": "0.16.6"}
HEAVY = ("torch", "torchaudio", "transformers", "librosa", "numba", "polars", "pyarrow")

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MODULES = [file for package in MAY_IMPORT for file in sorted((ROOT / package).rglob("*.py"))]
REQUIREMENTS = [
    Requirement(line)
    for lines in (
        PYPROJECT["project"]["dependencies"],
        *PYPROJECT["project"]["optional-dependencies"].values(),
    )
    for line in lines
]


def complaints(source: str, package: str) -> list[str]:
    """What is wrong with a module of a package, a line each."""
    tree = ast.parse(source)
    found = [] if ast.get_docstring(tree) else ["1: no docstring"]
    lines = source.count("\n")
    if lines > MAX_LINES:
        found.append(f"{lines}: longer than {MAX_LINES} lines")
    names = {}
    for line, name, local in imports(tree):
        names[local] = name
        top, *rest = name.split(".")
        if top in MAY_IMPORT:
            found.append(f"{line}: bare import of {top}; write mmfuse.{top}")
        if top == "mmfuse" and rest and rest[0] not in MAY_IMPORT[package]:
            found.append(f"{line}: {package} imports {rest[0]}")
        if top in BANNED_MODULES or name in BANNED_NAMES:
            found.append(f"{line}: {name} is banned")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and dotted(node, names) in BANNED_NAMES:
            found.append(f"{node.lineno}: {dotted(node, names)} is banned")
        if isinstance(node, ast.keyword) and node.arg in ONLY_FALSE:
            value = node.value
            if not (isinstance(value, ast.Constant) and value.value is False):
                found.append(f"{value.lineno}: {node.arg} is banned")
    return found


def imports(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """(line, full name, name it has here) of all that is imported, wherever in the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                local = alias.asname or alias.name.split(".")[0]
                yield node.lineno, alias.name, local
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            for alias in node.names:
                yield node.lineno, f"{start}.{alias.name}", alias.asname or alias.name


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """`a.b.c` with what `a` was imported as put in its place; "" if it is no plain name."""
    if isinstance(node, ast.Attribute):
        start = dotted(node.value, names)
        return start and f"{start}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def local_paths(source: str) -> list[str]:
    return [
        f"{number}: {line.strip()}"
        for number, line in enumerate(source.splitlines(), start=1)
        if LOCAL_PATH.search(line)
    ]


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_a_module_keeps_the_rules(file):
    assert complaints(file.read_text(encoding="utf-8"), file.relative_to(ROOT).parts[0]) == []


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("from mmfuse.pipeline.run import make_features", "features imports pipeline"),
        ("from mmfuse import trainer", "features imports trainer"),
        ("def f():\n    import mmfuse.trainer.loop", "features imports trainer"),
        ("from features import clock", "bare import of features"),
        ("import trainer.loop", "bare import of trainer"),
        ("import pickle", "pickle is banned"),
        ("from dill import loads", "dill.loads is banned"),
        ("import torch as t\nt.load('x')", "torch.load is banned"),
        ("from torch import load", "torch.load is banned"),
        ("import joblib\ncache = joblib.Memory('x')", "joblib.Memory is banned"),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", "allow_pickle is banned"),
        ("model(trust_remote_code=flag)", "trust_remote_code is banned"),
        ("\n" * MAX_LINES, "longer than 400 lines"),
    ],
)
def test_the_check_finds_a_bad_module(code, complaint):
    (found,) = complaints(f'"""A module."""\n{code}\n', "features")
    assert complaint in found


def test_the_check_finds_a_missing_docstring_and_passes_a_good_module():
    assert complaints("x = 1\n", "trainer") == ["1: no docstring"]
    good = '"""Good."""\nimport numpy as np\nfrom mmfuse.features.clock import wrap_s\n'
    assert complaints(good + "np.load('x', allow_pickle=False)\n", "trainer") == []


def test_no_file_names_a_path_of_one_machine():
    files = [*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "docs").rglob("*.py")]
    found = {file.name: local_paths(file.read_text(encoding="utf-8")) for file in files}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_the_check_finds_a_path_of_one_machine():
    assert local_paths("x = '/" + "home/ann/corpus'")
    assert local_paths("x = r'C:" + "\\corpus'")
    assert not local_paths("x = 'demo/tmp/x'; y = '/dev/null'; z = a/home")


def test_the_wheel_has_every_package():
    folders = {file.parent for file in ROOT.glob("*/__init__.py")} - {ROOT / "tests"}
    setuptools = PYPROJECT["tool"]["setuptools"]
    shipped = [*MAY_IMPORT, "configs"]
    assert setuptools["packages"] == [f"mmfuse.{name}" for name in shipped]
    assert setuptools["package-dir"] == {f"mmfuse.{name}": name for name in shipped}
    assert sorted(folder.name for folder in folders) == sorted(MAY_IMPORT)
    assert all((folder / "py.typed").is_file() for folder in folders)
    assert {file.parent for file in MODULES} == folders, "packages are flat"


def test_the_wheel_has_every_file_of_the_packages():
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["*"]
    for package in MAY_IMPORT:
        for file in (ROOT / package).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".py":
                inside = file.relative_to(ROOT / package).as_posix()
                assert any(fnmatch(inside, pattern) for pattern in patterns), file


@pytest.mark.parametrize(("name", "floor"), FLOORS.items())
def test_installed_and_declared_versions_are_not_below_the_floors(name, floor):
    assert Version(importlib.metadata.version(name)) >= Version(floor)
    declared = [
        Version(part.version)
        for requirement in REQUIREMENTS
        if requirement.name == name
        for part in requirement.specifier
        if part.operator == ">="
    ]
    assert declared
    assert min(declared) >= Version(floor)


def test_the_lock_names_one_version_of_everything_and_no_place():
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    entries = [line for line in lines if line and not line.startswith("#")]
    wrong = [e for e in entries if not re.fullmatch(r"[A-Za-z0-9._-]+==\d[A-Za-z0-9.!]*", e)]
    assert wrong == []
    assert entries == sorted(entries, key=str.lower)
    assert "/" not in "".join(lines)
    locked = {canonical(name): version for name, _, version in (e.partition("==") for e in entries)}
    assert len(locked) == len(entries)
    for requirement in REQUIREMENTS:
        version = locked.get(canonical(requirement.name))
        assert version is not None, f"{requirement} is not in the lock"
        assert version in requirement.specifier, f"the lock has {version}, wanted {requirement}"
    for name, floor in FLOORS.items():
        assert Version(locked[name]) >= Version(floor)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_torch_and_torchaudio_go_together():
    # torchaudio refuses a torch that was compiled for another CUDA, when it is imported
    code = "import torch, torchaudio.transforms"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, f"{done.stderr.decode()}\nmake install takes a pair that fits"


@pytest.mark.parametrize(("program", "entry"), PYPROJECT["project"]["scripts"].items())
def test_help_loads_nothing_heavy(program, entry):
    module, _, function = entry.partition(":")
    code = f"""
import sys
import typer
from {module} import app, {function}
for arguments in [[], *([name] for name in typer.main.get_command(app).commands)]:
    sys.argv = [{program!r}, *arguments, "--help"]
    try:
        {function}()
    except SystemExit as stop:
        assert not stop.code, stop.code
print("loaded:", *(name for name in {HEAVY} if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"
