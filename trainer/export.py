"""Trained models for other programs: safetensors, a `torch.export` program, or ONNX.

The graph of a program reads `present` (B, M), bool, which says what to look at of which clip, and
of each modality its rows, their mask and their seconds; it gives logits (B, C), or numbers (B, 1)
in the label's unit. Batch and lengths are free; where an encoder shortens a stream by a stride,
lengths are multiples of it (padding changes nothing). What stands where `present` or the mask is
False has no influence, not even as NaN.

Before a program is written, it is held against the model: every subset of the modalities, two
lengths.

Shapes: B batch, T row, M modality, C class.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmfuse.features.errors import ConfigError, MissingError
from mmfuse.features.spec import StreamSpec
from mmfuse.trainer import folder
from mmfuse.trainer.batch import Batch
from mmfuse.trainer.card import write_card
from mmfuse.trainer.encoders import stream_names
from mmfuse.trainer.fine_tuned import FineTunedEncoder
from mmfuse.trainer.model import FusionModel
from mmfuse.trainer.saved import Saved, load_saved
from mmfuse.trainer.task import Task

FORMATS = ("safetensors", "torch-export", "onnx")
PROGRAM, GRAPH, INPUTS = "model.pt2", "model.onnx", "inputs.json"
PARITY = 1e-4  # of logits, which are about 1, and of numbers in deviations
_LENGTHS = (3, 7)  # of each stream, in strides
Inputs = dict[str, tuple[Tensor, Tensor, Tensor]]


class Program(nn.Module):
    """A model with plain tensors as inputs: `present`, and (rows, mask, seconds) by modality."""

    def __init__(self, model: FusionModel, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, present_BM: Tensor, streams: Inputs) -> Tensor:
        """Logits (B, C), or a number (B, 1)."""
        x, mask, times_s = ({name: given[i] for name, given in streams.items()} for i in range(3))
        nothing_B = torch.zeros(present_BM.shape[:1], dtype=torch.int64)
        batch = Batch(np.empty(0, np.int64), x, mask, times_s, present_BM, nothing_B)
        return self.task.exported(self.model(batch, present_BM).logits_BC)


def export(run: Path, form: str, out: Path) -> dict[str, Any]:
    """Write a run's model into a folder: the format asked for, weights as safetensors, a card.

    Returns:
        `out`, `files`, and of programs the largest difference from the model, `parity`.

    Raises:
        ConfigError: no such format, a folder with other things, or a model that can't be put so.
        MissingError: the format needs a package that is not there.
    """
    if form not in FORMATS:
        raise ConfigError(f"--format {form!r}; choose from: {', '.join(FORMATS)}")
    saved = load_saved(run)
    _check_out(run, out)
    program, parity = (None, None) if form == "safetensors" else _program(saved, form)
    out.mkdir(parents=True, exist_ok=True)
    for name in (folder.MODEL, folder.RESOLVED, folder.RESULT):
        if (run / name).is_file():
            shutil.copyfile(run / name, out / name)
    if program is not None:
        _write_inputs(out / INPUTS, saved)
        if form == "onnx":
            program.save(str(out / GRAPH))
        else:
            torch.export.save(program, out / PROGRAM)
    write_card(out, saved, run)
    files = sorted(path.name for path in out.iterdir())
    return {"run": str(run), "out": str(out), "format": form, "files": files, "parity": parity}


def _check_out(run: Path, out: Path) -> None:
    ours = {folder.MODEL, folder.RESOLVED, folder.RESULT, PROGRAM, GRAPH, INPUTS, "README.md"}
    if out.resolve() == run.resolve():
        raise ConfigError(f"--out {out} is the run itself; name another folder")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; name a folder")
    strangers = {path.name for path in out.iterdir()} - ours if out.exists() else set()
    if strangers:
        raise ConfigError(
            f"--out {out} holds other things than an export ({min(strangers)}); name another folder"
        )


def _program(saved: Saved, form: str) -> tuple[Any, float]:
    """The program and its largest difference from the model."""
    _refuse(saved.model)
    wrapped = Program(saved.model, saved.task).eval()
    with _quiet(), torch.no_grad():
        try:
            exported = torch.export.export(
                wrapped,
                example(saved, _LENGTHS[0]),
                dynamic_shapes=_shapes(saved),
                strict=False,
            )
            if form == "torch-export":
                exported._example_inputs = None  # else they are saved as a pickle beside the graph
                return exported, _parity(saved, wrapped, exported.module())
            graph = _onnx(exported, input_names(saved), saved.task.output)
        except (MissingError, ConfigError):
            raise
        except Exception as error:  # whatever the exporters meet in a model
            reason = str(error.__cause__ or error).strip().splitlines()[0][:200]
            other = "torch-export" if form == "onnx" else "safetensors"
            raise ConfigError(
                f"this model can't be exported as {form} ({reason}); take --format {other}"
            ) from None
        return graph, _parity(saved, wrapped, _session(graph, saved))


def _refuse(model: FusionModel) -> None:
    for name, encoder in model.encoders.items():
        if isinstance(encoder, FineTunedEncoder):
            raise ConfigError(
                f"model.{name}_encoder runs a pretrained model on clips of one length at a time, "
                "which no graph can hold; take --format safetensors"
            )


def strides(saved: Saved) -> dict[str, int]:
    """Of which number the length of each stream has to be a multiple."""
    return {
        name: getattr(section, "stride", 1)
        for name, section in saved.config.model.encoders().items()
    }


def input_names(saved: Saved) -> list[str]:
    """Names of the inputs in their order."""
    parts = ("", "_mask", "_times_s")
    return ["present", *(f"{name}{part}" for name in saved.specs for part in parts)]


def example(saved: Saved, length: int, clips: int = 3) -> tuple[Tensor, Inputs]:
    """Inputs of some clips of up to `length` strides of rows, made up but of the right kind."""
    rng = torch.Generator().manual_seed(length)
    streams = {}
    for name, spec in saved.specs.items():
        rows = length * strides(saved)[name]
        lengths_B = torch.linspace(rows, 1, clips).long()
        mask_BT = torch.arange(rows) < lengths_B[:, None]
        times_BT = torch.arange(rows).expand(clips, rows) * 0.05
        x = _rows(saved, name, spec, (clips, rows), rng)
        if spec.timing.kind == "none":
            times_BT = torch.full((clips, rows), torch.nan)
        streams[name] = (x, mask_BT, times_BT.clone())
    return torch.ones(clips, len(saved.specs), dtype=torch.bool), streams


def _rows(
    saved: Saved, name: str, spec: StreamSpec, shape: tuple[int, int], rng: torch.Generator
) -> Tensor:
    if _are_ids(spec):
        return torch.randint(1, 200, shape, generator=rng)
    layers = len(stream_names(saved.config.model.encoders()[name], spec))
    item = spec.item if layers == 1 else (layers, *spec.item)
    return 8 * torch.rand((*shape, *item), generator=rng)


def _are_ids(spec: StreamSpec) -> bool:
    return spec.timing.kind == "none" and np.dtype(spec.dtype).kind in "uib"


def _shapes(saved: Saved) -> dict[str, Any]:
    """Which dimensions are free, for torch.export."""
    batch = torch.export.Dim("batch", min=1, max=65536)
    streams = {}
    for name, stride in strides(saved).items():
        steps = torch.export.Dim(f"{name}_steps", min=2, max=1 << 20)
        length = stride * steps if stride > 1 else steps
        streams[name] = ({0: batch, 1: length},) * 3
    return {"present_BM": {0: batch}, "streams": streams}


def _parity(saved: Saved, model: nn.Module, program: Any) -> float:
    """Largest difference of outputs over every subset of the modalities and two lengths.

    Raises:
        ConfigError: it is beyond `PARITY`.
    """
    worst = 0.0
    for length, kept in product(_LENGTHS, product((True, False), repeat=len(saved.specs))):
        present_BM, streams = example(saved, length)
        present_BM = present_BM & torch.tensor(kept)
        off_BC = program(present_BM, streams) - model(present_BM, streams)
        worst = max(worst, float(off_BC.abs().max()))
    if not worst <= PARITY * saved.task.unit:
        raise ConfigError(f"the exported program is off by {worst:.1e}; take --format safetensors")
    return worst


def _onnx(exported: Any, names: list[str], output: str) -> Any:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingError(
            f"--format onnx needs {error.name}; install it: pip install 'mmfuse[onnx]'"
        ) from None
    return torch.onnx.export(
        exported,
        (),
        input_names=names,
        output_names=[output],
        dynamo=True,
        optimize=False,
        verbose=False,
    )


def _session(graph: Any, saved: Saved) -> Any:
    """The graph as a function of `present` and streams, in onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph.model_proto.SerializeToString())
    read = {given.name for given in session.get_inputs()}  # a graph drops what it does not read

    def run(present_BM: Tensor, streams: Inputs) -> Tensor:
        flat = [present_BM, *(part for given in streams.values() for part in given)]
        feed = dict(zip(input_names(saved), flat, strict=True))
        (logits_BC,) = session.run(
            [saved.task.output],
            {name: given.numpy() for name, given in feed.items() if name in read},
        )
        return torch.from_numpy(logits_BC)

    return run


def _write_inputs(path: Path, saved: Saved) -> None:
    """What each input is, for whoever feeds the program."""
    text = json.dumps(describe(saved), indent=2) + "\n"
    path.write_text(text, encoding="utf-8")


def describe(saved: Saved) -> Mapping[str, Any]:
    """Order, type and shape of the inputs; -1 is free, and a multiple of `multiple_of`."""
    _, streams = example(saved, 2)
    inputs: list[dict[str, Any]] = [
        {"name": "present", "dtype": "bool", "shape": [-1, len(streams)]}
    ]
    for name, given in streams.items():
        for part, x in zip(("", "_mask", "_times_s"), given, strict=True):
            kind = str(x.dtype).removeprefix("torch.")
            inputs.append(
                {
                    "name": f"{name}{part}",
                    "dtype": kind,
                    "shape": [-1, -1, *x.shape[2:]],
                    "multiple_of": strides(saved)[name],
                    "at_least": 2 * strides(saved)[name],
                }
            )
    return {"inputs": inputs, "output": saved.task.output, "classes": list(saved.task.classes)}


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters tell of optional packages and of each step."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
