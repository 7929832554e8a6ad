"""The streams that a configuration will make, told without loading a model or its library.

Where the spec itself takes no more than numpy, it is the real one. Of models only `config.json` is
read; which stream of a store is theirs is then told by name and by what the settings state.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np

from mmfuse.features.config import AudioPreprocessing, Preprocessing, TextPreprocessing
from mmfuse.features.encoders import build_encoder, windows_of
from mmfuse.features.models import find_model
from mmfuse.features.spec import StreamSpec
from mmfuse.features.windows import Windows
from mmfuse.pipeline.makers import MidiMaker, text_params

CHARACTERS_A_TOKEN = 4  # an assumption, until a store has tokens of such texts
_KERNELS, _STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)  # of the family, as published
_HIDDEN, _LAYERS = 768, 12
_CLAP_DIM, _CLAP_HZ, _CLAP_S = 512, 48_000, 10
_HERE = ("logmel", "waveform")  # encoders whose specs need no library of models


@dataclass(frozen=True, slots=True)
class Expected:
    """One stream. `rows` gives those of an audio of so many seconds, or of so many characters.

    None where only a look at the clips can tell. `key` is None where only a model's library can.
    """

    modality: str
    name: str
    item: tuple[int, ...]
    dtype: str
    key: str | None = None
    states: Mapping[str, Any] = field(default_factory=dict)
    rows: Callable[[float], float] | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return int(np.dtype(self.dtype).itemsize * prod(self.item))

    def is_it(self, key: str, spec: StreamSpec) -> bool:
        """Whether a stream of a store is this one, as far as can be told."""
        if self.key is not None:
            return key == self.key
        same = all(spec.params.get(name) == value for name, value in self.states.items())
        return spec.name == self.name and spec.dtype == self.dtype and same


def expected_streams(config: Preprocessing) -> list[Expected]:
    """Streams of all sections, in the order in which they are made."""
    found: list[Expected] = []
    if config.audio is not None:
        found += _audio(config.audio)
    if config.midi is not None:
        found += [_exact(spec) for spec in MidiMaker(config.midi).specs]
    if config.text is not None:
        found.append(_text(config.text))
    return found


def _exact(spec: StreamSpec, rows: Callable[[float], float] | None = None) -> Expected:
    return Expected(spec.modality, spec.name, spec.item, spec.dtype, spec.key, rows=rows)


def _audio(config: AudioPreprocessing) -> list[Expected]:
    if config.encoder == "wav2vec2" and config.model:
        return _wav2vec2(config)
    if config.encoder == "clap" and config.model:
        states = {"model": config.model, "threads": config.threads, "precision": config.precision}
        rows = _counted(windows_of(config, _CLAP_S), _CLAP_HZ, 1, lambda samples: 1)
        name = "clap" if config.random_weights is None else "clap_random"
        return [Expected("audio", name, (_CLAP_DIM,), config.dtype, None, states, rows)]
    encoder = build_encoder(config)  # of another package: whatever it imports
    rows = _counted(encoder.windows, encoder.rate_hz, encoder.shortest, encoder.frames)
    return [_exact(spec, rows) for spec in encoder.specs]


def _wav2vec2(config: AudioPreprocessing) -> list[Expected]:
    """Hidden states; the numbers of layers and columns stand in config.json."""
    from mmfuse.features.wav2vec2 import BASES, TYPES

    seeded = config.random_weights is not None
    plain: Mapping[str, Any] = {}
    if not (seeded and config.model in BASES):
        plain = find_model(config.model, TYPES, weights=False).config
    kernels, strides = plain.get("conv_kernel", _KERNELS), plain.get("conv_stride", _STRIDES)
    shortest = 1 + sum((k - 1) * prod(strides[:i]) for i, k in enumerate(kernels))

    def frames(samples: int) -> int:
        for kernel, stride in zip(kernels, strides, strict=True):
            samples = (samples - kernel) // stride + 1
        return max(samples, 0)

    windows = windows_of(config, 30)
    states = {"model": config.model, "windows": windows.to_json(), "threads": config.threads,
              "precision": config.precision, "backend": config.backend}  # fmt: skip
    layers = config.layers.split(",")
    if config.layers == "all":
        layers = [str(n) for n in range(int(plain.get("num_hidden_layers", _LAYERS)) + 1)]
    name = "wav2vec2_random" if seeded else "wav2vec2"
    names = {
        "last": name, "mean": f"{name}_mean",
        **{n: f"{name}_layer{n.strip():0>2}" for n in layers if n.strip().isdigit()},
    }  # fmt: skip
    item = (int(plain.get("hidden_size", _HIDDEN)),)
    rows = _counted(windows, 16_000, shortest, frames)
    return [
        Expected("audio", names.get(layer, name), item, config.dtype, None, states, rows)
        for layer in layers
    ]


def _text(config: TextPreprocessing) -> Expected:
    if config.encoder == "bpe":
        params = text_params(config)
        vocabulary = {"vocab_size": params.vocab_size, "max_tokens": params.max_tokens}
        return Expected("text", "text_tokens", (), "uint16", None, vocabulary, _tokens(config))
    name = "clap_text" if config.encoder == "clap" else "text_embedding"
    name += "" if config.random_weights is None else "_random"
    states: dict[str, Any] = {"model": config.model, "threads": config.threads}
    if config.encoder == "clap":
        return Expected("text", name, (_CLAP_DIM,), "float16", None, states, lambda characters: 1)
    from mmfuse.features.text_models import TYPES

    plain = find_model(config.model, TYPES, weights=False).config if config.model else {}
    size = int(plain.get("hidden_size", plain.get("dim", _HIDDEN)))
    rows = _tokens(config) if config.pooling == "none" else lambda characters: 1.0
    states["pooling"] = config.pooling
    return Expected("text", name, (size,), "float16", None, states, rows)


def _tokens(config: TextPreprocessing) -> Callable[[float], float]:
    return lambda characters: min(characters / CHARACTERS_A_TOKEN, config.max_tokens)


def _counted(
    windows: Windows | None, rate_hz: int, shortest: int, frames: Callable[[int], int]
) -> Callable[[float], float]:
    """Rows of a recording of so many seconds, window by window."""

    def rows(seconds: float) -> float:
        samples = round(Fraction(seconds) * rate_hz)
        if windows is None or windows.overlap == "average":
            return frames(samples)
        silence = np.broadcast_to(np.float32(0), (samples,))
        return sum(frames(window.real) for window in windows.cut(silence, rate_hz, shortest))

    return rows
