"""An exported model says what the run's model says, for every subset and length."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mmfuse.features.errors import ConfigError
from mmfuse.trainer.cli import app
from mmfuse.trainer.encoders import build_encoder
from mmfuse.trainer.export import Program, example, export, input_names
from mmfuse.trainer.predictions import Asked, predict_clips
from mmfuse.trainer.run import train
from mmfuse.trainer.saved import load_saved

SUBSETS = [tuple(bool(n >> m & 1) for m in range(3)) for n in range(8)]
LENGTHS = (2, 5, 11)


def differences(folder, program):
    """Largest differences of logits between a folder's model and a program of plain inputs."""
    saved = load_saved(folder)
    model = Program(saved.model, saved.task)
    with torch.no_grad():
        for length in LENGTHS:
            present_BM, streams = example(saved, length, clips=4)
            for kept in SUBSETS:
                seen_BM = present_BM & torch.tensor(kept)
                hidden = {
                    name: tuple(
                        part.masked_fill(torch.tensor(not here), torch.nan)
                        if part.is_floating_point()
                        else part
                        for part in given
                    )
                    for here, (name, given) in zip(kept, streams.items(), strict=True)
                }  # NaN in place of what is not to be seen
                yield float((program(seen_BM, hidden) - model(seen_BM, streams)).abs().max())


def test_the_exported_folder_is_complete_and_its_model_the_same(trained, tmp_path):
    outcome = CliRunner().invoke(
        app, ["export", str(trained / "a"), "--out", str(tmp_path / "e"), "--json"]
    )
    assert outcome.exit_code == 0, outcome.output
    assert json.loads(outcome.stdout)["files"] == [
        "README.md", "model.safetensors", "resolved.toml", "result.json",
    ]  # fmt: skip
    asked = Asked(split="test")
    assert predict_clips(tmp_path / "e", asked).rows == predict_clips(trained / "a", asked).rows
    card = (tmp_path / "e" / "README.md").read_text()
    told = json.loads((trained / "a" / "result.json").read_text())
    for said in (
        f"{told['test']['accuracy']:.3f}", told["streams"]["audio"], "n_mels 80", "## Limits",
        f"Trained on {told['train_clips']} clips", "text+audio+midi", "mmtrain run resolved.toml",
    ):  # fmt: skip
        assert said in card, said


def test_a_torch_program_agrees_for_every_subset_and_length(trained, tmp_path):
    result = export(trained / "a", "torch-export", tmp_path / "e")
    assert result["parity"] <= 1e-5
    loaded = torch.export.load(tmp_path / "e" / "model.pt2").module()
    assert all(off <= 1e-5 for off in differences(tmp_path / "e", loaded))


@pytest.mark.slow
def test_an_onnx_graph_agrees_for_every_subset_and_length(trained, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    export(trained / "a", "onnx", tmp_path / "e")
    session = onnxruntime.InferenceSession(str(tmp_path / "e" / "model.onnx"))
    names = input_names(load_saved(tmp_path / "e"))
    read = {given.name for given in session.get_inputs()}

    def program(present_BM, streams):
        flat = [present_BM, *(part for given in streams.values() for part in given)]
        feed = {n: x.numpy() for n, x in zip(names, flat, strict=True) if n in read}
        return torch.from_numpy(session.run(None, feed)[0])

    assert all(off <= 1e-4 for off in differences(tmp_path / "e", program))
    described = json.loads((tmp_path / "e" / "inputs.json").read_text())
    assert [given["name"] for given in described["inputs"]] == names
    assert np.prod(described["inputs"][4]["shape"][2:]) == 80


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torch-export", "onnx"])
@pytest.mark.parametrize(
    "model",
    [
        ("early", "event_based"), ("cross_modal", "music_transformer"), ("gated", "piano_roll"),
        ("low_rank", "event_based"), ("bottleneck", "event_based"),
    ],
)  # fmt: skip
def test_every_fusion_and_encoder_can_be_exported(trained, tmp_path, model, form):
    fusion, midi = model
    text = (trained / "run.toml").read_text()
    text = text.replace('"late"', f'"{fusion}"').replace('"event_based"', f'"{midi}"')
    (tmp_path / "run.toml").write_text(text)
    train(tmp_path / "run.toml", ("train.epochs=1",), tmp_path / "a")
    assert export(tmp_path / "a", form, tmp_path / "e")["parity"] <= 1e-4


def test_what_can_not_be_exported_is_refused(trained, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="'tflite'; choose from: safetensors, torch-export, onnx"):
        export(trained / "a", "tflite", tmp_path / "e")
    with pytest.raises(ConfigError, match="is the run itself"):
        export(trained / "a", "safetensors", trained / "a")
    (tmp_path / "thesis.txt").write_text("one")
    with pytest.raises(ConfigError, match=r"other things than an export \(thesis.txt\)"):
        export(trained / "a", "safetensors", tmp_path)
    from mmfuse.trainer import export as module

    kind = type(build_encoder(load_saved(trained / "a").config.model.text_encoder,
                              load_saved(trained / "a").specs["text"]))  # fmt: skip
    monkeypatch.setattr(module, "FineTunedEncoder", kind)
    with pytest.raises(ConfigError, match="no graph can hold; take --format safetensors"):
        export(trained / "a", "onnx", tmp_path / "e")
