"""The worked plug-in of docs/plugin, built, installed, listed, checked, and used from its TOML."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmfuse.features import plugins
from mmfuse.features.config import FeatureConfig, validate
from mmfuse.features.errors import ConfigError
from mmfuse.features.plugin_checks import check_augmentation, check_tokenizer
from mmfuse.features.spec import Entry
from mmfuse.features.store import open_store

ROOT = Path(__file__).resolve().parent.parent
KINDS = {"encoders": "octaves", "tokenizers": "contour", "augmentations": "tremolo"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the plug-in as pip installs it; from a copy, since building writes there."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(ROOT / "docs" / "plugin", folder / "source")
    line = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--no-index"]
    line += ["--no-build-isolation", "--target", str(folder / "site"), str(source)]
    pip = subprocess.run([sys.executable, *line], capture_output=True, text=True, check=False)
    assert pip.returncode == 0, pip.stderr
    return folder / "site"


@pytest.fixture
def say(installed, tmp_path):
    """Run a command of mmfuse beside the plug-in; (exit code, output)."""
    paths = [str(installed), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}

    def run(program, *arguments, where=tmp_path):
        package = {"mmfeat": "pipeline", "mmtrain": "trainer"}[program]
        code = f"from mmfuse.{package}.cli import main; main()"
        line = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
        done = subprocess.run(
            line, capture_output=True, text=True, check=False, env=settings, cwd=where
        )
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.mark.parametrize(("command", "name"), KINDS.items())
def test_mmfeat_lists_the_plugin_and_its_kit_finds_nothing(say, command, name):
    code, listed = say("mmfeat", command)
    assert code == 0, listed
    assert any(
        line.startswith(f"{name} ") and "mmfuse-example" in line for line in listed.split("\n")
    )
    code, told = say("mmfeat", command, "--check", name)
    assert code == 0, told
    assert f"{name}: kept" in told
    assert told.count("ok   ") >= 8


def test_mmtrain_lists_the_fusion_and_its_kit_finds_nothing(say):
    code, listed = say("mmtrain", "fusions")
    assert code == 0, listed
    assert "voting       mmfuse_example.voting:Voting (mmfuse-example)" in listed
    code, told = say("mmtrain", "fusions", "--check", "voting", "--set", "options.sharpness=2.0")
    assert code == 0, told
    assert "voting: kept" in told


def test_every_part_is_used_from_one_toml(say, sample, tmp_path):
    config, store = ROOT / "docs" / "plugin" / "example.toml", tmp_path / "s.zarr"
    code, told = say("mmfeat", "run", config, "--corpus", sample, "--store", store)
    assert code == 0, told
    opened = open_store(store)
    assert opened["octaves"].spec.item == (6,)
    assert opened["midi_tokens"].spec.params["vocabulary"]["name"] == "contour"
    _both_views_differ(opened)
    where = ["--set", f"data.corpus={sample}", "--set", f"data.store={store}"]
    code, told = say("mmtrain", "run", config, *where, "--out", tmp_path / "run", "--json")
    assert code == 0, told
    assert 0 <= json.loads(told.strip().splitlines()[-1])["test"]["accuracy"] <= 1
    code, told = say("mmfeat", "verify", store, "--recompute", 3, "--corpus", sample)
    assert code == 0, told
    clip = open_store(store)["octaves"].ids[0]
    midi, audio = (next((sample / kind).glob(f"{clip}.*"), None) for kind in ("midi", "audio"))
    files = [*(["--midi", midi] if midi else []), *(["--audio", audio] if audio else [])]
    code, told = say("mmtrain", "predict", tmp_path / "run", *files)
    assert code == 0, told


def _both_views_differ(opened):
    for name, mark in (("octaves", "tremolo"), ("notes", "staccato")):
        stream = opened[name]
        varied = [n for n in range(len(stream)) if stream.views[n] == 1]
        assert varied
        row = stream.record(varied[0])
        assert mark in row["augmentation"]
        here, other = stream[row["clip_id"]], stream[row["clip_id"], 1]
        assert here.shape == other.shape
        assert not np.array_equal(here, other)


def test_without_the_plugin_each_name_is_one_line_with_what_there_is():
    wrong = {"tokenization": "contur"}
    with pytest.raises(ConfigError, match="no tokenizer named 'contur'.*midi_like, remi, compound"):
        validate(FeatureConfig, {"preprocessing": {"midi": wrong}}, "x.toml")
    with pytest.raises(ConfigError, match="no augmentation named 'tremolo'; no package brings any"):
        plugins.load("augmentation", "tremolo")


def test_an_augmentation_in_the_section_of_the_other_modality_is_told(say, sample, tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text(
        "[preprocessing]\nviews = 1\n[preprocessing.midi.augmentations.plugins.tremolo]\n"
    )
    code, told = say("mmfeat", "run", path, "--corpus", sample, "--store", tmp_path / "s.zarr")
    assert code == 2
    assert "'tremolo' is one of audio; move it to [preprocessing.audio.augmentations" in told
    path.write_text(
        "[preprocessing]\nviews = 1\n[preprocessing.audio.augmentations.plugins.tremolo]\nhz = 3\n"
    )
    code, told = say("mmfeat", "run", path, "--corpus", sample, "--store", tmp_path / "s.zarr")
    assert code == 2
    assert "tremolo: options {'hz': 3}; depth = 0 to 1" in told


# -- the kits find what is broken ------------------------------------------------------------------


class Gridded:
    """Tokens whose times are those of a grid, with a count that grows."""

    fields = ("token", "onset_s")
    calls = 0

    @property
    def spec_params(self):
        return {"vocabulary": {"name": "gridded", "version": 1}}

    def encode(self, notes_values):
        Gridded.calls += 1
        onsets_s = np.round(notes_values[:, 2], 1)
        return Entry(np.column_stack([np.full(len(onsets_s), Gridded.calls), onsets_s]))


def test_the_kit_of_tokenizers_finds_a_bad_one():
    failed = [f.check for f in check_tokenizer(Gridded, 64) if not f.ok]
    assert failed == [
        "times are those of notes, not of a grid",
        "twice the same",
        "built anew, the same",
        "max_events is kept, and a note says what is cut",
    ]


class Delayed:
    """An echo that is not there, in place."""

    modality, version = "audio", "first"

    @staticmethod
    def draw(options, rng):
        return {"s": 0.1}

    @staticmethod
    def apply(audio, drawn, rng):
        audio.samples_N[:] = np.roll(audio.samples_N, int(drawn["s"] * audio.rate_hz))
        return audio.samples_N


def test_the_kit_of_augmentations_finds_a_bad_one():
    failed = [f.check for f in check_augmentation(Delayed, {}) if not f.ok]
    assert "version is a whole number" in failed
    assert "what is given is left as it was" in failed
    assert "options that it does not know are refused" in failed
    assert any("sound stays where it was" in check for check in failed)
