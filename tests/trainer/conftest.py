"""Small stores and corpora with planted signals, made in the test's own folder."""

import json
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mmfuse.features.midi_like import NOTE_OFF, NOTE_ON, MidiLike
from mmfuse.features.midi_tokens import midi_tokens_spec
from mmfuse.features.spec import Entry, StreamSpec, Timing
from mmfuse.features.text import TextParams, text_tokens_spec
from mmfuse.features.writer import StoreWriter
from mmfuse.trainer.config import load_run_config
from mmfuse.trainer.load import load_dataset

BANDS = 8
SPECS = {
    "text": text_tokens_spec(TextParams(vocab_size=300, max_tokens=64), "{}"),
    "audio": StreamSpec(
        "logmel", "audio", (BANDS,), "float16", {"n_mels": BANDS},
        Timing("frames", Fraction(32, 1000), Fraction(1, 50)),
    ),
    "midi": midi_tokens_spec(MidiLike(max_events=256)),
}  # fmt: skip
SECTIONS = {
    "text": '[model.text_encoder]\ntype = "text"',
    "audio": '[model.audio_encoder]\ntype = "mel_cnn"\nmask_bands = 2\nmask_frames = 4\nstride = 4',
    "midi": '[model.midi_encoder]\ntype = "event_based"\nstride = 4\ntranspose = 2',
}


def text_rows(rng, bit):
    """Words that say nothing, and two that tell the bit."""
    tokens = rng.integers(20, 60, rng.integers(6, 12))
    tokens[rng.choice(len(tokens), 2, replace=False)] = 5 + bit
    return tokens.astype(np.uint16)


def audio_rows(rng, bit):
    """Noise at -40 dB; the bit lifts one band or another."""
    frames = rng.normal(-40, 6, (rng.integers(20, 60), BANDS))
    frames[:, 2 + 3 * bit] += 15
    return frames.astype(np.float16)


def midi_rows(rng, bit):
    """Notes on the white keys, or two octaves higher."""
    count = int(rng.integers(6, 20))
    pitch = rng.choice([60, 62, 64, 65, 67], count) + 24 * bit - 12
    tokens = np.stack([NOTE_ON + pitch, NOTE_OFF + pitch], axis=1).ravel()
    onset_s = np.arange(2 * count) * 0.05
    return np.stack([tokens, onset_s, 0 * onset_s, 0 * onset_s], axis=1).astype(np.float64)


ROWS = {"text": text_rows, "audio": audio_rows, "midi": midi_rows}


@dataclass
class Planted:
    """A corpus, a store and a configuration below `folder`."""

    folder: Path

    @property
    def config(self):
        return self.folder / "run.toml"

    def run_config(self, *overrides):
        return load_run_config(self.config, overrides)

    def data(self, *overrides):
        return load_dataset(self.run_config(*overrides), self.config, overrides)[0]


def write_config(folder, modalities, fusion="late", **train):
    """A run configuration, small and quick; `train` values go into [train]."""
    values = {"epochs": 2, "batch_size": 16, "threads": 1, "warmup_steps": 3, "lr": 5e-3}
    values |= {"modality_dropout": 0.1, "ema": 0.0, "crop_s": 0.0} | train
    document = [
        'name = "planted"',
        f'[data]\ncorpus = "{folder / "manifest.jsonl"}"\nstore = "{folder / "s.zarr"}"',
        "[preprocessing.audio]\nn_mels = 8",
        "[preprocessing.text]\nvocab_size = 300\nmax_tokens = 64",
        "[preprocessing.midi]\nmax_events = 256",
        *(f"{SECTIONS[name]}\nhidden_dim = 16\ndropout = 0.1" for name in modalities),
        f'[model.fusion]\ntype = "{fusion}"\nhidden_dim = 16\ndropout = 0.2',
        "[train]",
        *(f"{key} = {json.dumps(value)}" for key, value in values.items()),
        "[eval]\nbootstrap = 200",
    ]
    (folder / "run.toml").write_text("\n".join(document))


@pytest.fixture
def plant(tmp_path, plant_in):
    """`plant(label_of, counts, modalities, fusion, missing, **train)` writes all three."""
    return partial(plant_in, tmp_path)


@pytest.fixture(scope="session")
def plant_in():
    """As `plant`, into a folder that is given first.

    `label_of` turns the bits of a clip, by modality, into its label. `missing` is the share of
    modalities left out; text is never missing. `group_of` turns a clip's number into its group.
    """

    def write(
        folder,
        label_of=lambda bits: f"{bits['text']}{bits['midi']}",
        counts=(40, 16, 20),
        modalities=("text", "audio", "midi"),
        fusion="late",
        missing=0.0,
        group_of=None,
        **train,
    ):
        rng = np.random.default_rng(11)
        splits = np.repeat(["train", "validation", "test"], counts).tolist()
        lines = []
        with StoreWriter(folder / "s.zarr") as writer:
            streams = {name: writer.stream(spec) for name, spec in SPECS.items()}
            for number, split in enumerate(splits):
                bits = {name: int(rng.integers(2)) for name in SPECS}
                for name, stream in streams.items():
                    rows = ROWS[name](rng, bits[name])
                    if name == "text" or rng.random() >= missing:
                        entry = Entry(rows, windows=((Fraction(0), len(rows)),))
                        stream.append(f"c{number}", number.to_bytes(32, "little"), entry)
                row = {"id": f"c{number}", "text": "x", "split": split, "label": label_of(bits)}
                if group_of:
                    row["group"] = group_of(number)
                lines.append(json.dumps(row))
        (folder / "manifest.jsonl").write_text("\n".join(lines))
        write_config(folder, modalities, fusion, **train)
        return Planted(folder)

    return write


@pytest.fixture
def specs():
    """Spec of each modality's stream in planted stores."""
    return SPECS


@pytest.fixture(scope="session")
def configure():
    """`configure(folder, modalities, fusion, **train)` writes another run.toml."""
    return write_config


SAMPLE_RUN = """
name = "sample"
[preprocessing.audio]
[preprocessing.midi]
[preprocessing.text]
[model.audio_encoder]
type = "mel_cnn"
hidden_dim = 16
[model.midi_encoder]
type = "event_based"
hidden_dim = 16
[model.text_encoder]
type = "text"
hidden_dim = 16
[model.fusion]
type = "late"
hidden_dim = 16
[train]
epochs = 2
threads = 1
[eval]
bootstrap = 100
"""


@pytest.fixture(scope="session")
def trained(sample, tmp_path_factory):
    """Folder with `run.toml`, `s.zarr` of the sample corpus and a run `a`; do not write there."""
    from typer.testing import CliRunner

    from mmfuse.pipeline.cli import app
    from mmfuse.trainer.run import train

    folder = tmp_path_factory.mktemp("trained")
    data = f'[data]\ncorpus = "{sample}"\nstore = "{folder / "s.zarr"}"\n'
    (folder / "run.toml").write_text(SAMPLE_RUN + data)
    outcome = CliRunner().invoke(app, ["run", str(folder / "run.toml"), "--quiet"])
    assert outcome.exit_code == 0, outcome.output
    train(folder / "run.toml", (), folder / "a")
    return folder
