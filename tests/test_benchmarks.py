"""The page of benchmarks is what the measurements say, and each names where it was made."""

import ast
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCH = sorted((ROOT / "docs" / "bench").glob("*.json"))
PAGE = runpy.run_path(str(ROOT / "docs" / "make_benchmarks.py"))
ALL = runpy.run_path(str(ROOT / "tests" / "benchmarks" / "all.py"))


def test_page_and_plot_are_what_the_measurements_say():
    found = PAGE["read"]()
    for name, made in (("benchmarks.md", "document"), ("benchmarks.svg", "plot")):
        said = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert said == PAGE[made](found), "write it anew: python docs/make_benchmarks.py"


@pytest.mark.parametrize("path", BENCH, ids=lambda path: path.stem)
def test_a_measurement_names_machine_versions_commit_and_command(path):
    one = json.loads(path.read_text(encoding="utf-8"))
    assert one["benchmark"] == path.stem
    assert one["benchmark"].removesuffix("_cost") in one["command"]
    assert one["commit"].strip("+-")
    assert {"processor", "cores", "memory_gb", "system"} <= set(one["machine"])
    assert {"python", "mmfuse", "torch", "numpy"} <= set(one["versions"])
    claims = list(PAGE["ratios"](path.stem, one["found"]))
    assert claims or list(PAGE["table"](path.stem, one["found"]))


def test_every_benchmark_is_run_by_the_one_command():
    scripts = {file.stem for file in (ROOT / "tests" / "benchmarks").glob("*.py")}
    told = {name.removesuffix("_cost") for name in ALL["RUNS"]}
    needs_a_corpus = {"folds", "lieder8"}
    assert told == scripts - {"all", "storage_peers", "encoder_peers"} - needs_a_corpus
    for name in ALL["RUNS"]:
        script = ROOT / "tests" / "benchmarks" / f"{name.removesuffix('_cost')}.py"
        tree = ast.parse(script.read_text(encoding="utf-8"))
        flags = {c.value for c in ast.walk(tree) if isinstance(c, ast.Constant)}
        typed = [w for options in ALL["RUNS"][name] for w in options if w.startswith("--")]
        assert {"--json", *typed} <= flags


def test_the_command_measures_and_writes_what_the_page_reads(tmp_path):
    line = [sys.executable, str(ROOT / "tests" / "benchmarks" / "all.py"), "fusions", "--quick"]
    line += ["--out", str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = PAGE["document"](PAGE["read"](tmp_path))
    assert "| late, sum only | 13056 |" in page
    assert "cores" in page
