"""The contract of encoders: those of mmfuse keep it, and what breaks it is found."""

import sys
from fractions import Fraction
from importlib.metadata import EntryPoint
from types import ModuleType

import numpy as np
import pytest
import torch
from test_wav2vec2 import saved
from typer.testing import CliRunner

from mmfuse.features import devices, encoders, plugins
from mmfuse.features.config import AudioPreprocessing
from mmfuse.features.conformance import check_encoder
from mmfuse.features.encoders import CPU, Compute, build_encoder
from mmfuse.features.errors import ConfigError
from mmfuse.features.spec import StreamSpec, Timing
from mmfuse.features.windows import Windows
from mmfuse.pipeline.cli import app

HOP = 160


class Energy:
    """A small encoder that keeps the promise: mean square and peak of 10 ms."""

    rate_hz, shortest = 16_000, HOP
    windows = Windows(Fraction(1), Fraction(1))
    specs = (StreamSpec("energy", "audio", (2,), "float16", {}, Timing("frames", hop_s=Fraction(1, 100))),)  # fmt: skip  # noqa: E501

    def __init__(self, compute=CPU):
        self.calls = 0

    def frames(self, samples):
        return samples // HOP

    def encode(self, samples_BN):
        self.calls += 1
        parts = samples_BN[:, : self.frames(samples_BN.shape[1]) * HOP]
        parts = parts.reshape(len(parts), -1, HOP)
        return {"energy": np.stack([(parts**2).mean(2), np.abs(parts).max(2)], axis=2)}


class Forgetful(Energy):  # depends on how often it was called
    def encode(self, samples_BN):
        return {"energy": super().encode(samples_BN)["energy"] * (1 + 1e-6 * self.calls)}


class Sociable(Energy):  # depends on its neighbours
    def encode(self, samples_BN):
        return super().encode(samples_BN / np.abs(samples_BN).max())


class Lucky(Energy):  # depends on the global source of chance
    def encode(self, samples_BN):
        values = super().encode(samples_BN)["energy"]
        return {"energy": values + 1e-6 * np.random.rand()}  # noqa: NPY002


class Ordered(Energy):  # depends on its place in the batch
    def encode(self, samples_BN):
        scale = np.linspace(1, 2, len(samples_BN))[:, None, None]
        return {"energy": super().encode(samples_BN)["energy"] * scale}


class Vain(Energy):  # writes into what it was given
    def encode(self, samples_BN):
        found = super().encode(samples_BN)
        samples_BN *= 0.5
        return found


class Padded(Energy):  # rows that frames() does not know
    def encode(self, samples_BN):
        return super().encode(np.pad(samples_BN, ((0, 0), (0, HOP))))


class Broken(Energy):
    def encode(self, samples_BN):
        return {"energy": super().encode(samples_BN)["energy"] * np.nan}


class Renamed(Energy):
    def encode(self, samples_BN):
        return {"power": super().encode(samples_BN)["energy"]}


class Early(Energy):
    shortest = HOP - 1


class Trained(Energy):
    def __init__(self, compute=CPU):
        super().__init__()
        self.net = torch.nn.Dropout(0.5)


class Restless(Energy):
    def __init__(self, compute=CPU):
        super().__init__()
        params = {"made": id(self)}
        self.specs = (StreamSpec("energy", "audio", (2,), "float16", params, Timing("frames")),)


def broken(encoder):
    return [finding for finding in check_encoder(encoder) if finding.ok is False]


def test_a_good_encoder_has_no_finding():
    assert broken(Energy) == []


@pytest.mark.parametrize(
    ("encoder", "check"),
    [
        (Forgetful, "twice the same"),
        (Sociable, "alone or in a batch"),
        (Lucky, "chance and threads"),
        (Ordered, "in another order"),
        (Vain, "samples are left"),
        (Padded, "the frame formula"),
        (Broken, "values are finite"),
        (Early, "the frame formula"),
        (Trained, "eval mode"),
        (Restless, "specs are the same"),
    ],
)
def test_what_breaks_the_promise_is_found(encoder, check):
    assert any(check in finding.check for finding in broken(encoder))


def test_streams_that_specs_do_not_name_are_found():
    (finding, *_) = [f for f in broken(Renamed) if "shape" in f.check]
    assert "encode() gave ['power'], specs name ['energy']" in finding.detail


@pytest.mark.parametrize("name", ["logmel", "waveform", "audio_statistics"])
def test_encoders_without_a_model_keep_the_promise(name):
    assert broken(lambda compute: build_encoder(AudioPreprocessing(encoder=name), compute)) == []


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm", "wav2vec2-conformer"])
def test_models_keep_the_promise(tmp_path, kind):
    config = AudioPreprocessing(encoder="wav2vec2", model=str(saved(tmp_path / "m", kind)), layers="all")  # fmt: skip  # noqa: E501
    assert broken(lambda compute: build_encoder(config, compute)) == []


def test_the_command_lists_and_checks(tmp_path):
    listed = CliRunner().invoke(app, ["encoders"])
    assert listed.exit_code == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()][:2] == ["logmel", "waveform"]
    model = str(saved(tmp_path / "m"))
    checked = CliRunner().invoke(app, ["encoders", "--check", "wav2vec2", "--model", model])
    assert checked.exit_code == 0, checked.output
    assert "ok   alone or in a batch, the same" in checked.stdout
    assert "wav2vec2: kept" in checked.stdout


# -- encoders of other packages --------------------------------------------------------------------


@pytest.fixture
def plugin(monkeypatch):
    """A module that another package could bring, declared as an entry point."""
    module = ModuleType("mm_energy")
    module.build = lambda config, compute: (Sociable if config.options.get("bad") else Energy)()
    monkeypatch.setitem(sys.modules, "mm_energy", module)
    points = [
        EntryPoint("energy", "mm_energy:build", plugins.group("encoder")),
        EntryPoint("gone", "mm_gone:build", plugins.group("encoder")),
        EntryPoint("logmel", "mm_energy:build", plugins.group("encoder")),  # ours can't be replaced
    ]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)


def test_an_encoder_of_another_package_is_one_name_more(plugin, sample, tmp_path):
    listed = CliRunner().invoke(app, ["encoders"]).stdout
    assert "energy" in listed
    assert "mm_energy:build" in listed
    options = ["--corpus", str(sample), "--store", str(tmp_path / "s.zarr"), "--limit", "3"]
    made = CliRunner().invoke(app, ["extract", "--encoder", "energy", *options])
    assert made.exit_code == 0, made.output
    assert "energy: 3 made" in made.stdout
    check = ["encoders", "--check", "energy"]
    assert CliRunner().invoke(app, check).exit_code == 0
    bad = CliRunner().invoke(app, [*check, "--set", "preprocessing.audio.options.bad=true"])
    assert bad.exit_code == 4
    assert "FAIL alone or in a batch, the same (energy is off by" in bad.stdout


def test_an_encoder_that_does_not_load_is_one_line(plugin):
    with pytest.raises(
        ConfigError, match=r"encoder 'gone' \(mm_gone:build\) does not load: No mod"
    ):
        build_encoder(AudioPreprocessing(encoder="gone"))
    with pytest.raises(ConfigError, match="did you mean 'energy'"):
        build_encoder(AudioPreprocessing(encoder="energ"))


# -- devices and memory ----------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_refused_by_name():
    assert devices.choose("cpu") == Compute("cpu", 1)
    assert devices.choose("cpu", 4) == Compute("cpu", 4)
    with pytest.raises(ConfigError, match="choose auto, cpu, cuda, cuda:1 or mps"):
        devices.choose("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"--device cuda:7: torch .* finds no such .* cpu"):
            devices.choose("cuda:7")
        assert devices.choose("auto").device in ("cpu", "mps")


class Small(Energy):
    """Runs out of memory beyond two windows, or, with `room = 0`, at once."""

    room = 2
    tried: list[int]

    def __init__(self, config=None, compute=CPU):
        super().__init__()
        self.tried = []

    def encode(self, samples_BN):
        self.tried.append(len(samples_BN))
        if len(samples_BN) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().encode(samples_BN)


def extracted(monkeypatch, sample, store, encoder, batch):
    monkeypatch.setitem(encoders.ENCODERS, "energy", lambda config, compute: encoder)
    options = ["--corpus", str(sample), "--store", str(store), "--limit", "12", "--batch", batch]
    return CliRunner().invoke(app, ["extract", "--encoder", "energy", *map(str, options), "--json"])


def test_a_full_card_halves_the_batch_and_goes_on(monkeypatch, sample, tmp_path):
    small = Small()
    done = extracted(monkeypatch, sample, tmp_path / "a.zarr", small, 8)
    assert done.exit_code == 0, done.output
    assert max(small.tried) > 2
    assert set(small.tried[small.tried.index(2) :]) <= {1, 2}
    whole = extracted(monkeypatch, sample, tmp_path / "b.zarr", Energy(), 1)
    roots = [line.partition('"root": "')[2][:64] for line in (done.stdout, whole.stdout)]
    assert roots[0] == roots[1] != ""


def test_a_window_that_no_card_holds_is_its_clip_s_failure(monkeypatch, sample, tmp_path):
    small = Small()
    small.room = 0
    done = extracted(monkeypatch, sample, tmp_path / "a.zarr", small, 4)
    assert done.exit_code == 3
    assert '"reason": "out_of_memory"' in done.stdout
