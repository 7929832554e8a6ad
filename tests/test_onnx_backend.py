"""onnxruntime gives torch's numbers to five digits, under a stream of its own, or says why not."""

import importlib.util
import json

import numpy as np
import pytest
from test_wav2vec2 import encoder, noise, saved
from typer.testing import CliRunner

from mmfuse.features import onnx_backend
from mmfuse.features.encoders import Compute, encode_clip
from mmfuse.features.errors import ConfigError, MissingError
from mmfuse.features.onnx_backend import PARITY, cache_folder
from mmfuse.features.store import open_store
from mmfuse.features.wav2vec2 import TYPES, Wav2vec2, Wav2vec2Params
from mmfuse.features.windows import Windows
from mmfuse.pipeline.cli import app

ONE = {"num_hidden_layers": 1}
FEW = {"conv_dim": [16] * 3, "conv_kernel": [10, 8, 4], "conv_stride": [5, 8, 8]}  # exported faster
LENGTHS = (400, 719, 16_000, 50_123)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model") / "small", **ONE, **FEW)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """A cache of this module's own: exporting takes ten seconds, so once is enough."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cache(request, graphs, monkeypatch, tmp_path):
    own = request.node.get_closest_marker("slow")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path if own else graphs))


def off(mine, theirs):
    return max(
        float(np.abs(mine[name] - theirs[name]).max() / np.abs(theirs[name]).max())
        for name in theirs
    )


def agree(folder, layers, lengths=LENGTHS):
    by_onnx, by_torch = encoder(folder, layers, backend="onnxruntime"), encoder(folder, layers)
    for samples in lengths:
        samples_BN = noise(samples).samples_N[None]
        mine, theirs = by_onnx.encode(samples_BN), by_torch.encode(samples_BN)
        assert {name: v.shape for name, v in mine.items()} == {
            name: v.shape for name, v in theirs.items()
        }
        assert off(mine, theirs) <= PARITY


@pytest.mark.parametrize("layers", ["all", "last", "mean", "0"])
def test_every_choice_of_layers_gives_the_numbers_of_torch(model, layers):
    agree(model, layers)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TYPES)
def test_every_type_gives_the_numbers_of_torch(tmp_path, kind):
    agree(saved(tmp_path / "m", kind), "all", (*LENGTHS, 480_000))


@pytest.mark.slow
def test_a_stable_layer_norm_has_a_last_state_of_its_own(tmp_path):
    folder = saved(tmp_path / "m", do_stable_layer_norm=True, feat_extract_norm="layer", **ONE)
    agree(folder, "all")
    agree(folder, "last")
    states = encoder(folder, "all", backend="onnxruntime").encode(noise(8_000).samples_N[None])
    last = encoder(folder, backend="onnxruntime").encode(noise(8_000).samples_N[None])
    assert np.abs(states["wav2vec2_layer01"] - last["wav2vec2"]).max() > 0.1


def test_a_window_has_the_same_bits_whatever_is_beside_it(model):
    ours = encoder(model, backend="onnxruntime")
    windows_BN = np.stack([noise(16_000, seed).samples_N for seed in range(3)])
    together = ours.encode(windows_BN)["wav2vec2"]
    again = encoder(model, backend="onnxruntime")
    for window_N, rows in zip(windows_BN[::-1], together[::-1], strict=True):
        assert (again.encode(window_N[None])["wav2vec2"][0] == rows).all()


def test_another_backend_is_another_stream(sample, model, tmp_path):
    def extract(*more):
        options = ["--encoder", "wav2vec2", "--model", model, "--corpus", sample, "--limit", 3]
        command = ["extract", *options, "--store", tmp_path / "s.zarr", "--json", *more]
        result = CliRunner().invoke(app, [str(part) for part in command])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)["made"]

    assert extract() == extract("--backend", "onnxruntime") != {}
    assert extract("--backend", "onnxruntime") == {}
    store = open_store(tmp_path / "s.zarr")
    specs = store.specs()
    first, second = (specs[key].params["backend"] for key in specs)
    assert {first, second} == {"torch", "onnxruntime"}
    for clip in store[next(iter(specs))].table["clip_id"].to_pylist():
        ours, theirs = (store[key][clip].astype(np.float32) for key in specs)
        assert np.abs(ours).max() > 0
        assert np.abs(ours - theirs).max() <= 1e-3 * np.abs(theirs).max()


# -- graphs ----------------------------------------------------------------------------------------


def test_a_graph_is_made_once_and_holds_no_weights(model, monkeypatch):
    audio = noise(4_000)
    first = encode_clip(encoder(model, backend="onnxruntime"), audio)["wav2vec2"].values
    (graph,) = (cache_folder()).glob("*.onnx")
    weights = sum(t.nbytes for t in encoder(model).load().state_dict().values())
    assert graph.stat().st_size < weights + 1_000_000
    with monkeypatch.context() as patched:
        patched.setattr(onnx_backend, "_export", None)  # whoever exports now, fails
        again = encode_clip(encoder(model, backend="onnxruntime"), audio)["wav2vec2"].values
    assert (again == first).all()


def test_other_weights_go_through_the_same_graph(model, tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    encoder(model, backend="onnxruntime").encode(noise(400).samples_N[None])
    folder = tmp_path / "m"
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: values * 0.5 for name, values in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    monkeypatch.setattr(onnx_backend, "_export", None)
    agree(folder, "all")


def test_a_damaged_graph_is_not_used(model, monkeypatch):
    encoder(model, backend="onnxruntime").encode(noise(400).samples_N[None])
    (graph,) = cache_folder().glob("*.onnx")
    whole = graph.read_bytes()
    made = []
    monkeypatch.setattr(onnx_backend, "_export", lambda *_: made.append(1) or whole[32:])
    for damaged in (whole[:-1], whole[:100] + b"\0" + whole[101:], b""):
        graph.write_bytes(damaged)
        encoder(model, backend="onnxruntime").encode(noise(400).samples_N[None])
        assert graph.read_bytes() == whole
    assert len(made) == 3


def test_without_a_cache_folder_it_works_too(model, monkeypatch, tmp_path):
    encoder(model, backend="onnxruntime").encode(noise(400).samples_N[None])
    (graph,) = cache_folder().glob("*.onnx")
    whole = graph.read_bytes()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(onnx_backend, "_export", lambda *_: whole[32:])
    agree(model, "last", (400,))


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_whose_graph_would_be_wrong_is_refused(tmp_path):
    # it keeps the rotary embeddings of the length that was exported
    folder = saved(tmp_path / "m", "wav2vec2-conformer", position_embeddings_type="rotary", **ONE)
    with pytest.raises(ConfigError, match="wav2vec2-conformer model does not run in onnxruntime"):
        encoder(folder, backend="onnxruntime").encode(noise(16_000).samples_N[None])


def test_other_numbers_are_refused(model, monkeypatch):
    encoder(model, backend="onnxruntime").encode(noise(400).samples_N[None])
    monkeypatch.setattr(onnx_backend, "PARITY", 1e-9)
    with pytest.raises(ConfigError, match=r"layer last is off by \de-0\d\); take --backend torch"):
        encoder(model, backend="onnxruntime").encode(noise(400).samples_N[None])


def test_what_the_exporter_can_not_do_is_one_line(model, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ours = encoder(model, backend="onnxruntime")
    torch_model = ours.load()
    # a choice that depends on the samples is no graph
    forward = torch_model.forward
    torch_model.forward = lambda x, **more: forward(x * (2 if x.abs().max() > 1 else 3), **more)
    with pytest.raises(ConfigError, match="does not run in onnxruntime .*; take --backend") as told:
        ours.encode(noise(400).samples_N[None])
    assert "\n" not in str(told.value)


def test_it_runs_on_the_cpu_in_single_precision_only(model):
    params = Wav2vec2Params(str(model), Windows(30, 30), backend="onnxruntime")
    with pytest.raises(ConfigError, match="not on cuda; add --device cpu"):
        Wav2vec2(params, Compute("cuda", 16))
    with pytest.raises(ConfigError, match="computes in float32, not in bfloat16"):
        encoder(model, backend="onnxruntime", precision="bfloat16")


def test_a_missing_extra_is_told_with_the_command(model, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "onnx" else found(name, *a)
    )
    with pytest.raises(MissingError, match=r"needs onnx: pip install 'mmfuse\[onnx\]'"):
        encoder(model, backend="onnxruntime")


def test_an_unknown_backend_is_refused():
    command = ["extract", "--encoder", "wav2vec2", "--model", "x", "--backend", "tvm"]
    result = CliRunner().invoke(app, [*command, "--corpus", "x", "--store", "y"])
    assert result.exit_code == 2
    assert "preprocessing.audio.backend = 'tvm'" in result.output
