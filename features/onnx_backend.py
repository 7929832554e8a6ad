"""Models of torch through onnxruntime: the same numbers to five digits, in less time on a CPU.

Conventions: a model is exported once as a graph without weights, which depends on its architecture
and on the versions of the exporter alone. That takes some twenty seconds, so the graph is kept in
the user's cache folder (`$XDG_CACHE_HOME/mmfuse` or `~/.cache/mmfuse`), a file a graph, with its
own hash in front; the weights come from the torch model each time. A file that is damaged is
written anew; where the folder can't be written, every process exports for itself. Nothing is
unpickled: a graph is a protobuf without code.

A session is tried against the torch model before it is used, with a window shorter and one longer
than the exporter has seen, so that no graph gives other numbers unnoticed.

Source: torch.onnx, the exporter that works on torch.export; onnxruntime.
"""

import importlib.metadata
import importlib.util
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from mmfuse.features.audio import Samples
from mmfuse.features.errors import ConfigError, MissingError

if TYPE_CHECKING:
    import torch

BACKENDS = ("torch", "onnxruntime")
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
PARITY = 1e-5  # of the largest value of a layer; sums in another order
_GRAPH = 1  # raise it whenever a graph is made in another way
_EXPORTERS = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript")  # whose versions count
_TRACED, _TRIED = 16_000, (11_440, 20_123)  # samples of the window exported, of those tried
_NO_NUMBERS = ("transformers_version", "_name_or_path", "architectures", "dtype")  # of a config
_INPUT, _LAST = "samples", "last"


def require_onnx() -> None:
    """Refuse to begin without the extra.

    Raises:
        MissingError: with the command that installs it.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingError(
            f"backend onnxruntime needs {' and '.join(missing)}: pip install 'mmfuse[onnx]'"
        )


class OnnxSession:
    """A model that takes samples and gives hidden states, run by onnxruntime.

    Args:
        model: in eval mode, on the CPU; nothing of it is kept, but its attention is set to the
            form that has no masks.
        layers: those that `__call__` gives: `last`, or numbers of hidden states. What none of
            them needs is not computed.
        threads: that share an operation; there is never more than one operation at once.

    Raises:
        ConfigError: the model can't be exported, or its graph gives other numbers.
    """

    def __init__(self, model: "torch.nn.Module", layers: Sequence[str], threads: int) -> None:
        import onnxruntime

        wrapped = _wrapped(model)
        weights = {name: t.detach() for name, t in wrapped.state_dict().items()}
        graph = _graph(wrapped, weights)
        self._names = _outputs(graph, layers)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.use_deterministic_compute = True
        options.log_severity_level = 4  # what goes wrong is raised, too
        named = [t.name for t in graph.graph.initializer if t.external_data]
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(weights[n].numpy()) for n in named]
        options.add_external_initializers(named, values)
        try:
            self._session = onnxruntime.InferenceSession(
                graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions have no base of their own
            raise _refused(model, error) from None
        for samples in _TRIED:
            self._try(wrapped, samples)

    def __call__(self, samples_BN: Samples) -> dict[str, NDArray[np.float32]]:
        """(1, N) samples, normalised where the model wants it -> (1, T, D) for each layer."""
        found = self._session.run(list(self._names.values()), {_INPUT: samples_BN})
        return dict(zip(self._names, found, strict=True))

    def _try(self, wrapped: "torch.nn.Module", samples: int) -> None:
        import torch

        samples_BN = np.random.default_rng(0).standard_normal((1, samples), np.float32)
        try:
            mine = self(samples_BN)
        except Exception as error:
            raise _refused(wrapped.model, error) from None
        with torch.inference_mode():
            states = wrapped(torch.from_numpy(samples_BN))
        for layer, values in mine.items():
            theirs = states[-1 if layer == _LAST else int(layer)].numpy()
            if values.shape != theirs.shape:
                raise _refused(wrapped.model, f"layer {layer} is {values.shape[1]} frames long")
            off = float(np.abs(values - theirs).max() / np.abs(theirs).max())
            if not off <= PARITY:
                raise _refused(wrapped.model, f"layer {layer} is off by {off:.0e}")


def _refused(model: Any, error: object) -> ConfigError:
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
    return ConfigError(
        f"this {model.config.model_type} model does not run in onnxruntime ({reason}); "
        "take --backend torch"
    )


def _wrapped(model: "torch.nn.Module") -> "torch.nn.Module":
    """The model as one that gives plain tensors, with weight norms made into weights.

    The hidden states come first; the last one of all is `last_hidden_state`, be it one of them.
    """
    import torch
    from torch.nn.utils import parametrize

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, samples: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found = self.model(samples, output_hidden_states=True)
            last, states = found.last_hidden_state, found.hidden_states
            return tuple(states) if last is states[-1] else (*states, last)

    for part in model.modules():
        if parametrize.is_parametrized(part):
            for name in list(part.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(part, name)
    model.set_attn_implementation("eager")  # type: ignore[operator]
    return Wrapped().eval()


# -- graphs ----------------------------------------------------------------------------------------


def _graph(wrapped: "torch.nn.Module", weights: Mapping[str, "torch.Tensor"]) -> Any:
    """The model's graph, from the cache where it is there."""
    import onnx

    path = cache_folder() / f"{_key(wrapped, weights)}.onnx"
    data = _read(path)
    if data is None:
        try:
            with _quiet():
                data = _export(wrapped, weights)
        except Exception as error:  # whatever the exporter meets in a model
            raise _refused(wrapped.model, error.__cause__ or error) from None
        _write(path, data)
    return onnx.load_model_from_string(data)


def cache_folder() -> Path:
    """Where graphs are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmfuse" / "onnx"


def _key(wrapped: "torch.nn.Module", weights: Mapping[str, "torch.Tensor"]) -> str:
    config: Any = wrapped.model.config  # type: ignore[union-attr]
    says = {
        "graph": _GRAPH,
        "config": {k: v for k, v in config.to_dict().items() if k not in _NO_NUMBERS},
        "weights": {name: (str(t.dtype), list(t.shape)) for name, t in weights.items()},
        "versions": {name: importlib.metadata.version(name) for name in _EXPORTERS},
    }
    return blake3(json.dumps(says, sort_keys=True, default=str).encode()).hexdigest()


def _export(wrapped: "torch.nn.Module", weights: Mapping[str, "torch.Tensor"]) -> bytes:
    import onnx_ir
    import torch

    count = len(wrapped(torch.zeros(1, _TRACED)))
    layers = int(wrapped.model.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
    program = torch.onnx.export(
        wrapped,
        (torch.zeros(1, _TRACED),),
        dynamo=True,
        dynamic_shapes={"samples": {1: torch.export.Dim.DYNAMIC}},
        input_names=[_INPUT],
        output_names=[str(n) if n <= layers else _LAST for n in range(count)],
        optimize=False,  # onnxruntime does it, and it would fold weights into the graph
        verbose=False,
    )
    assert program is not None
    for name, value in program.model.graph.initializers.items():
        if name in weights:
            tensor = value.const_value
            assert tensor is not None
            shape = onnx_ir.Shape(weights[name].shape)
            value.const_value = onnx_ir.ExternalTensor(
                "weights", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name
            )
    return bytes(onnx_ir.to_proto(program.model).SerializeToString())


def _outputs(graph: Any, layers: Sequence[str]) -> dict[str, str]:
    """Name of the output of each layer; others are taken out of the graph."""
    last = graph.graph.output[-1].name
    names = {layer: last if layer == _LAST else layer for layer in layers}
    kept = [output for output in graph.graph.output if output.name in names.values()]
    del graph.graph.output[:]
    graph.graph.output.extend(kept)
    return names


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of optional packages and of each step."""
    import torch

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with torch.no_grad():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _read(path: Path) -> bytes | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data[32:] if blake3(data[32:]).digest() == data[:32] else None


def _write(path: Path, data: bytes) -> None:
    """As one step, whoever else writes the same file; or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(blake3(data).digest() + data)
        Path(file.name).replace(path)
    except OSError:
        return
