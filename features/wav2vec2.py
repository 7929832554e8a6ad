"""Frames of the wav2vec2 family: wav2vec2, HuBERT, WavLM, Conformer, data2vec, UniSpeech-SAT.

Conventions: a window goes through the model alone and at its true length. Nothing is padded, so no
clip's numbers depend on what stood beside it: with group normalisation, padding by half moves the
features by a quarter. Samples are normalised per window where the model's processor says so. Frame
i of a window is at `first_s + i * hop_s`, the middle of what its convolutions see: 12.5 + 20 i ms.

Layers are streams of their own, so that reading one costs one. `last` is `last_hidden_state`, which
in models with a stable layer norm is not the last of the hidden states.

Source: Baevski et al., arXiv 2006.11477; Hsu et al., arXiv 2106.07447; the models of transformers.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmfuse.features.audio import DECODER, MIXDOWN, RESAMPLER, Samples
from mmfuse.features.devices import exact_sums, precision
from mmfuse.features.encoders import CPU, Compute
from mmfuse.features.errors import ConfigError
from mmfuse.features.models import (
    ModelFiles,
    architecture,
    find_model,
    load_weights,
    read_settings,
    seed_weights,
)
from mmfuse.features.spec import StreamSpec, Timing
from mmfuse.features.windows import Windows

if TYPE_CHECKING:
    import torch

    from mmfuse.features.onnx_backend import OnnxSession

TYPES = ("wav2vec2", "hubert", "wavlm", "wav2vec2-conformer", "data2vec-audio", "unispeech-sat")
BASES = {f"{kind.removesuffix('-audio')}-base": kind for kind in TYPES}  # for random weights
EPSILON = 1e-7  # of the processor's normalisation
_SPARE = ("masked_spec_embed",)  # stands for masked frames, which only training has


@dataclass(frozen=True, slots=True)
class Wav2vec2Params:
    """What changes the numbers.

    `model` is a folder, a hub id with `@revision`, or, with `random_weights`, one of `BASES`.
    `layers` is `last`, `all`, `mean`, or numbers such as `0,6,12`; 0 is what enters the first
    layer. `random_weights` seeds an architecture without its weights. `threads` split sums, so the
    number shows in the last bits: it is fixed here, not by the machine. `precision` is that of the
    sums, not of what is stored. `backend` is `torch` or `onnxruntime`, which differ by 1e-6.
    """

    model: str
    windows: Windows
    layers: str = "last"
    random_weights: int | None = None
    threads: int = 2
    precision: str = "float32"
    backend: str = "torch"


class Wav2vec2:
    """One model of the family: its specs at once, the model itself when first called.

    Raises:
        ConfigError: the model is refused, or a layer is asked for that it does not have.
        MissingError: there is no such model on this machine, or not the backend's extra.
    """

    def __init__(self, params: Wav2vec2Params, compute: Compute = CPU) -> None:
        if not params.model:
            raise ConfigError(
                "wav2vec2 needs a model; name one with --model FOLDER or --model ID@REVISION, or "
                f"try one without weights: --random-weights 0 --model {next(iter(BASES))}"
            )
        self.params, self.windows, self._compute = params, params.windows, compute
        seeded = params.random_weights is not None
        self._files: ModelFiles | None = None
        if not (seeded and params.model in BASES):
            self._files = find_model(params.model, TYPES, weights=not seeded)
        self.config = _configuration(self._files, params.model)
        self.rate_hz, self.normalise = _processor(self._files)
        kernels, strides = self.config.conv_kernel, self.config.conv_stride
        self.stride = prod(strides)
        self.shortest = 1 + sum((k - 1) * prod(strides[:i]) for i, k in enumerate(kernels))
        self.layers = _layers(params.layers, int(self.config.num_hidden_layers))
        self.specs = tuple(self._spec(layer) for layer in self.layers)
        self._model: torch.nn.Module | None = None
        self._session: OnnxSession | None = None
        if params.backend != "torch":
            self._check_backend()

    def frames(self, samples: int) -> int:
        """Frames of so many samples: each convolution's formula, one after the other."""
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            samples = (samples - kernel) // stride + 1
        return max(samples, 0)

    def encode(self, samples_BN: Samples) -> dict[str, NDArray[np.float32]]:
        """(B, N) samples at the model's rate -> (B, T, D) float32 for each layer asked for.

        On the CPU the windows go one at a time, where a batch gains nothing and could move a bit.
        """
        if self.normalise:
            samples_BN = np.stack([_normalised(samples_N) for samples_N in samples_BN])
        step = 1 if self._compute.device == "cpu" else len(samples_BN)
        run = self._by_torch if self.params.backend == "torch" else self._by_onnxruntime
        parts = [run(samples_BN[first : first + step]) for first in range(0, len(samples_BN), step)]
        return {
            spec.name: np.concatenate([part[layer] for part in parts])
            for spec, layer in zip(self.specs, self.layers, strict=True)
        }

    def _by_torch(self, samples_BN: Samples) -> dict[str, NDArray[np.float32]]:
        import torch

        model, device = self.load(), self._compute.device
        assert not model.training
        torch.set_num_threads(self.params.threads)
        wanted = any(layer != "last" for layer in self.layers)
        with torch.inference_mode(), precision(device, self.params.precision):
            found = model(torch.from_numpy(samples_BN).to(device), output_hidden_states=wanted)
        return {layer: _array(picked(found, layer)) for layer in self.layers}

    def _by_onnxruntime(self, samples_BN: Samples) -> dict[str, NDArray[np.float32]]:
        if self._session is None:
            from mmfuse.features.onnx_backend import OnnxSession

            count = int(self.config.num_hidden_layers)
            layers = _layers("all", count) if self.layers == ("mean",) else self.layers
            self._session = OnnxSession(self.load(), layers, self.params.threads)
            self._model = None  # the session has weights of its own
        found = self._session(samples_BN)
        if self.layers == ("mean",):
            return {"mean": np.asarray(sum(found.values()) / np.float32(len(found)))}
        return found

    def _check_backend(self) -> None:
        from mmfuse.features.onnx_backend import require_onnx

        if self._compute.device != "cpu":
            raise ConfigError(
                f"backend {self.params.backend} runs on the processor, not on "
                f"{self._compute.device}; add --device cpu, or take --backend torch"
            )
        if self.params.precision != "float32":
            raise ConfigError(
                f"backend {self.params.backend} computes in float32, not in "
                f"{self.params.precision}; take --backend torch"
            )
        require_onnx()

    def load(self) -> "torch.nn.Module":
        """The model itself, in evaluation mode: the same one each time."""
        from transformers import AutoModel

        if self._model is None:
            seed = self.params.random_weights
            if seed is not None:
                self._model = seed_weights(AutoModel.from_config, self.config, seed)
            else:
                assert self._files is not None
                self._model = load_weights(AutoModel, self._files, self.config, _SPARE)
            exact_sums()
            self._model.to(self._compute.device)
        return self._model

    def _spec(self, layer: str) -> StreamSpec:
        seeded = self.params.random_weights is not None
        name = "wav2vec2_random" if seeded else "wav2vec2"
        weights: dict[str, Any] = (
            {"random_weights": self.params.random_weights}
            if seeded
            else {"weights_sha256": dict(self._files.weights if self._files else {})}
        )
        return StreamSpec(
            name=name if layer == "last" else f"{name}_{_named(layer)}",
            modality="audio",
            item=(int(self.config.hidden_size),),
            dtype="float16",
            params={
                "model": self.params.model,
                "model_type": self.config.model_type,
                "architecture": architecture(self.config),
                **weights,
                "layer": "last_hidden_state" if layer == "last" else layer,
                "windows": self.params.windows.to_json(),
                "normalised": "per window" if self.normalise else "no",
                "rate_hz": self.rate_hz,
                "threads": self.params.threads,
                "precision": self.params.precision,
                "backend": self.params.backend,
                "decoder": DECODER,
                "resampler": RESAMPLER,
                "mono": MIXDOWN,
            },
            timing=Timing(
                "frames",
                first_s=Fraction(self.shortest, 2 * self.rate_hz),
                hop_s=Fraction(self.stride, self.rate_hz),
            ),
        )


def _configuration(files: ModelFiles | None, model: str) -> Any:
    """The architecture, as transformers fills it up; its adapter has frames of its own."""
    from transformers import AutoConfig

    if files is None:
        return AutoConfig.for_model(BASES[model])
    kind = str(files.config["model_type"])
    config = AutoConfig.for_model(kind).__class__.from_dict(dict(files.config))
    if getattr(config, "add_adapter", False):
        raise ConfigError(f"model {model} ends in an adapter with other frames; choose one without")
    return config


def _processor(files: ModelFiles | None) -> tuple[int, bool]:
    """(rate in Hz, whether samples are normalised), as the model's processor says.

    It is saved beside the weights in one of two files, by itself or with a tokenizer.
    """
    if files is None:
        return 16_000, True
    said = read_settings(files, "preprocessor_config.json")
    said = said or read_settings(files, "processor_config.json").get("feature_extractor", {})
    try:
        return int(said.get("sampling_rate", 16_000)), bool(said.get("do_normalize", True))
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"model {files.name}: its processor makes no sense ({error})") from None


def _layers(text: str, count: int) -> tuple[str, ...]:
    """Names of the layers asked for: `last`, `mean` or numbers."""
    if text in ("last", "mean"):
        return (text,)
    if text == "all":
        return tuple(str(number) for number in range(count + 1))
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = [-1]
    if numbers[0] < 0 or numbers[-1] > count:
        raise ConfigError(f"layers {text!r}; write last, all, mean, or numbers from 0 to {count}")
    return tuple(str(number) for number in numbers)


def _named(layer: str) -> str:
    return "mean" if layer == "mean" else f"layer{int(layer):02}"


def _normalised(samples_N: Samples) -> Samples:
    centred_N = samples_N - samples_N.mean()
    return np.asarray(centred_N / np.sqrt(samples_N.var() + EPSILON), dtype=np.float32)


def _array(values: "torch.Tensor") -> NDArray[np.float32]:
    return np.asarray(values.float().cpu().numpy(), dtype=np.float32)


def picked(found: Any, layer: str) -> "torch.Tensor":
    """A layer of what a model gave with its hidden states, (B, T, D)."""
    if layer == "last":
        return found.last_hidden_state  # type: ignore[no-any-return]
    if layer == "mean":
        return sum(found.hidden_states) / len(found.hidden_states)  # type: ignore[no-any-return]
    return found.hidden_states[int(layer)]  # type: ignore[no-any-return]
