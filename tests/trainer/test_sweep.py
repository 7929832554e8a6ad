"""Models trained side by side are the models that each trained alone would be."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from mmfuse.features.errors import ConfigError
from mmfuse.features.spec import Entry, StreamSpec, Timing
from mmfuse.features.store import open_store
from mmfuse.features.writer import StoreWriter
from mmfuse.trainer import recorded, twister
from mmfuse.trainer.cli import app
from mmfuse.trainer.compare import compare
from mmfuse.trainer.config import ModelConfig, TrainConfig
from mmfuse.trainer.dataset import Dataset
from mmfuse.trainer.event_file import PREFIX
from mmfuse.trainer.loop import fit, reproducible
from mmfuse.trainer.model import FusionModel
from mmfuse.trainer.run import build_model, train
from mmfuse.trainer.stacked import Trainer
from mmfuse.trainer.sweep import obstacle, sweep

WIDTH = 12
EMBEDDINGS = {
    name: StreamSpec(stream, name, (WIDTH,), "float32", {}, Timing("none"))
    for name, stream in (("text", "text_embedding"), ("audio", "clap"))
}


@pytest.fixture(autouse=True)
def early(monkeypatch):
    """Steps run in both ways: by Python, and as they were written down."""
    monkeypatch.setattr(recorded, "AFTER", 1)


@pytest.fixture
def embedded(tmp_path):
    """`embedded(longest)`: clips with embeddings of 1 to `longest` rows, one in ten missing."""

    def write(longest, clips=70):
        rng = np.random.default_rng(1)
        label = rng.integers(0, 3, clips)
        with StoreWriter(tmp_path / f"e{longest}.zarr") as writer:
            for spec in EMBEDDINGS.values():
                stream = writer.stream(spec)
                for n in np.flatnonzero(rng.random(clips) > 0.1).tolist():
                    rows = int(rng.integers(1, longest + 1))
                    values = rng.normal(size=(rows, WIDTH)) + 1.5 * np.eye(WIDTH)[label[n]]
                    entry = Entry(values.astype("f4"), windows=((Fraction(0), rows),))
                    stream.append(f"c{n}", n.to_bytes(32, "little"), entry)
        store = open_store(tmp_path / f"e{longest}.zarr")
        splits = np.repeat(["train", "validation", "test"], (40, 20, clips - 60)).tolist()
        streams = {name: store[spec.key] for name, spec in EMBEDDINGS.items()}
        ids = [f"c{n}" for n in range(clips)]
        return Dataset(ids, splits, label.astype(str).tolist(), streams)

    return write


def model_config(fusion, dropout):
    side = {"hidden_dim": 8, "dropout": dropout}
    return ModelConfig.model_validate(
        {
            "text_encoder": {"type": "text_embedding", **side},
            "audio_encoder": {"type": "clap", **side},
            "fusion": {"type": fusion, "hidden_dim": 8, "dropout": 0.4},
        }
    )


@pytest.mark.parametrize(
    ("fusion", "longest", "more"),
    [
        pytest.param("late", 1, {}, marks=pytest.mark.slow),
        ("gated", 4, {"unimodal_weight": 0.0}),
        ("low_rank", 4, {"ema": 0.0, "modality_dropout": 0.0, "grad_clip": 0.0}),
        pytest.param("early", 1, {"patience": 1}, marks=pytest.mark.slow),
    ],
)
def test_stacked_models_have_the_weights_of_single_ones_in_float64(embedded, fusion, longest, more):
    data = embedded(longest)
    common = {"epochs": 4, "batch_size": 16, "warmup_steps": 2, "crop_s": 0, "threads": 1} | more
    configs = [
        TrainConfig(seed=3, lr=2e-3, **common),
        TrainConfig(seed=4, lr=8e-3, weight_decay=0.3, **common),
        TrainConfig(seed=3, lr=2e-3, **common),
    ]

    def build(k):
        config = model_config(fusion, dropout=(0.2, 0.2, 0.0)[k])
        heads = configs[k].unimodal_weight > 0
        return FusionModel(config, data.specs, 3, unimodal_heads=heads).double()

    models = stacked_as_alone(data, configs, build)
    different = list(zip(models[0].parameters(), models[2].parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in different), "dropout is each model's own"


def test_each_model_has_the_crops_of_its_single_run(plant):
    planted = plant(missing=0.2, counts=(50, 16, 20), epochs=3, crop_s=0.4)
    configs = [planted.run_config(f"train.seed={seed}") for seed in (0, 1)]
    data = planted.data()
    assert obstacle(configs[0], data) == ""

    def build(k):
        return build_model(configs[k], data).double()

    one, other = stacked_as_alone(data, [config.train for config in configs], build)
    assert not all(
        torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )


def stacked_as_alone(data, configs, build):
    """Models trained side by side, after they were found to be those that are trained alone."""
    alone, fits, models, states = [], [], [], []
    for k, config in enumerate(configs):
        with reproducible(config.seed, 1):
            alone.append(build(k))
            fits.append(fit(alone[-1], data, config))
        torch.manual_seed(config.seed)
        models.append(build(k))
        states.append(torch.get_rng_state())
    with reproducible(0, 1):
        found = Trainer(models, states, data, configs).fit()
    for one, other, told, expected in zip(models, alone, found, fits, strict=True):
        for (name, mine), theirs in zip(
            one.state_dict().items(), other.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9, msg=name)
        assert (told.best_epoch, told.steps) == (expected.best_epoch, expected.steps)
        for record, also in zip(told.records, expected.records, strict=True):
            shared = {key: also[key] for key in record}
            assert record == pytest.approx(shared, abs=1e-6)
    return models


def test_a_sweep_leaves_the_folders_of_single_runs(plant):
    planted = plant(modalities=("text", "midi"), missing=0.2, class_weights=True)
    words = ["sweep", planted.config, "--seeds", "2", "--grid", "train.lr=5e-3,1e-3", "--json"]
    words += ["--out", planted.folder / "many"]
    outcome = CliRunner().invoke(app, [str(word) for word in words])
    assert outcome.exit_code == 0, outcome.output
    found = json.loads(outcome.stdout)
    assert (found["stacked"], found["queued"], found["kept"]) == (4, {}, 0), found["queued"]
    assert [row["settings"] for row in found["points"]] == [{"train.lr": 5e-3}, {"train.lr": 1e-3}]
    train(planted.config, ("train.lr=0.001", "train.seed=1"), planted.folder / "alone")
    many = planted.folder / "many" / "lr=0.001,seed=1"
    names = [
        sorted(p.name.partition(PREFIX)[1] or p.name for p in folder.iterdir())
        for folder in (many, planted.folder / "alone")
    ]
    assert names[0] == names[1]
    assert (many / "resolved.toml").read_text() == (
        planted.folder / "alone" / "resolved.toml"
    ).read_text()
    one, other = (load_file(f / "model.safetensors") for f in (many, planted.folder / "alone"))
    for name, weights in one.items():
        torch.testing.assert_close(weights, other[name], rtol=0, atol=1e-3, msg=name)
    runs = [planted.folder / "many" / f"lr=0.001,seed={seed}" for seed in (0, 1)]
    assert compare(runs)["seeds"][0]["runs"] == 2
    again = CliRunner().invoke(app, [str(word) for word in words])
    assert json.loads(again.stdout)["kept"] == 4
    lines = CliRunner().invoke(app, [str(w) for w in words if w != "--json"]).stdout
    assert "best by validation" in lines


def test_what_can_not_be_stacked_is_queued_and_says_why(plant):
    planted = plant(modalities=("text", "midi"), fusion="early", counts=(20, 8, 8), epochs=1)
    said = []
    found = sweep(planted.config, (), 2, (), planted.folder / "many", report=said.append)
    assert found["stacked"] == 0
    (why,) = found["queued"]
    assert why == "model.fusion.type = 'early' joins text of any length"
    assert len(said) == 2
    data = planted.data()
    for override, reason in (
        ("train.accumulate=2", "train.accumulate is not stacked"),
        ("train.views=true", "train.views is not stacked"),
    ):
        assert obstacle(planted.run_config(override), data) == reason


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (["train.lr"], r"--grid 'train.lr' is no grid; write --grid train.lr=1e-3,3e-4"),
        (["train.lr=1", "train.lr=2"], "names a key twice"),
        (["train.lr=1,1"], "names the same value twice"),
        (["train.learning_rate=1"], "no such key"),
    ],
)
def test_a_grid_that_is_none_is_an_error(plant, grid, message):
    with pytest.raises(ConfigError, match=message):
        sweep(plant(counts=(4, 2, 2)).config, (), 1, grid, None)


@pytest.mark.parametrize("crop_s", [0.0, 0.4])
def test_batches_from_memory_are_those_from_the_map_to_the_bit(plant, crop_s):
    planted = plant(missing=0.3)
    memory, mapped = planted.data(), planted.data()
    vars(mapped)["_fits"] = False
    for rows in memory.order(memory.clips_of("train"), 16, 0, 1):
        one, other = (
            data.batch(rows, crop_s, np.random.default_rng(1)) for data in (memory, mapped)
        )
        assert torch.equal(one.present_BM, other.present_BM)
        for name in memory.streams:
            assert one.x[name].dtype == other.x[name].dtype
            assert torch.equal(one.x[name], other.x[name])
            assert torch.equal(one.mask[name], other.mask[name])
            assert torch.equal(one.times_s[name].nan_to_num(-1), other.times_s[name].nan_to_num(-1))


def test_dropouts_are_those_of_torch_and_so_are_the_states_afterwards():
    rng = np.random.default_rng(0)
    ours, theirs = ([torch.Generator().manual_seed(3 + k) for k in range(3)] for _ in range(2))
    assert twister._same()
    for count in (1, 2, 311, 312, 313, *rng.integers(1, 2000, 40).tolist()):
        kept, dtype = [*rng.random(2).tolist(), 1.0], (torch.float32, torch.float64)[count % 2]
        rooms = [torch.empty(3, size, dtype=dtype) for size in (count, 5)]
        for room in twister.dropouts(rooms, [kept, kept[::-1]], ours):
            for mine, p, generator in zip(room, kept, theirs, strict=True):
                expected = torch.ones_like(mine)
                if p < 1:
                    expected.bernoulli_(p, generator=generator).div_(p)
                assert torch.equal(mine, expected)
            kept.reverse()
        for one, other in zip(ours, theirs, strict=True):
            if count % 3 == 0:  # places in a block become odd
                torch.rand(1, generator=one), torch.rand(1, generator=other)
            assert torch.equal(one.get_state(), other.get_state())
