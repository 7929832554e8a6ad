"""Whatever kills a process that changes a store, nothing is lost, and going on ends the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmfuse.pipeline.planting import plan_clips
from mmfuse.pipeline.sample import make_clip


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Two corpora of a few clips each; they share one, and so the vocabulary of their texts."""
    folder = tmp_path_factory.mktemp("crash")
    plans = [p for p in plan_clips(240, seed=0) if not p.missing]
    for name, numbers in (("corpus", (0, 1, 2)), ("corpus-1", (0, 3))):
        for kind in ("audio", "midi"):
            (folder / name / kind).mkdir(parents=True)
        with (folder / name / "manifest.jsonl").open("w") as manifest:
            for number in numbers:
                row, files = make_clip(plans[number])
                for path, data in files.items():
                    (folder / name / path).write_bytes(data)
                wanted = {key: row[key] for key in ("id", "text", "audio_path", "midi_path")}
                split = "test" if number else "train"
                manifest.write(json.dumps({**wanted, "split": split}) + "\n")
    return folder


def crash(*arguments):
    script = Path(__file__).with_name("crash.py")
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("step", [37, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("action", "operations"),
    [("extract", 250), ("merge", 200), ("merge-into", 150), ("subset", 180), ("gc", 25)],
)
def test_a_crash_after_any_file_operation_loses_nothing(corpora, action, operations, step):
    report = crash("operations", action, corpora, step)
    assert report["operations"] > operations
    assert report["deaths"] >= operations // step
    assert report["torn"] > 0 or step > 1


@pytest.mark.parametrize("kills", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_at_random_ends_like_one_that_is_not(corpora, kills):
    report = crash("kills", kills, corpora)
    assert report["kills"] == kills
    assert report["runs"] >= 1  # that came to their end between the kills
