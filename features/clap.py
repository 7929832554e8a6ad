"""CLAP: one vector for ten seconds of audio, in the space of its texts.

Conventions: a recording is cut into windows as long as the model hears (10 s at 48 kHz), and each
goes through the model's own feature extraction and audio tower alone. What is shorter, the tail, is
repeated as often as it fits whole and filled up with zeros, as the model was trained (repeatpad).
The extraction draws crops at random from what is longer, and picks a random clip of a batch for
fused models; neither is ever reached: no window is longer, and fused models are refused. A row has
unit length, so that a dot product with a row of the text branch is their similarity, and stands at
its window's start.

Source: Wu et al., arXiv 2211.06687; the models and feature extraction of transformers.
"""

from dataclasses import dataclass
from fractions import Fraction
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

TYPES = ("clap",)
BASES = ("clap-htsat-unfused",)  # for random weights
RATE_HZ = 48_000
WINDOW_S = 10  # of every released checkpoint
WINDOWS = Windows(Fraction(WINDOW_S), Fraction(WINDOW_S))
_TRUNCATION, _PADDING = "rand_trunc", "repeatpad"
_DEFAULTS = {
    "feature_size": 64,
    "sampling_rate": RATE_HZ,
    "hop_length": 480,
    "max_length_s": WINDOW_S,
    "fft_window_size": 1024,
    "frequency_min": 0,
    "frequency_max": 14_000,
    "truncation": _TRUNCATION,
    "padding": _PADDING,
}


@dataclass(frozen=True, slots=True)
class ClapParams:
    """What changes the numbers.

    `model` is a folder, a hub id with `@revision`, or, with `random_weights`, one of `BASES`.
    `windows` are as long as the model hears. `random_weights` seeds an architecture without its
    weights. `threads` split sums, so the number shows in the last bits: it is fixed here, not by
    the machine. `precision` is that of the sums, not of what is stored.
    """

    model: str
    windows: Windows = WINDOWS
    random_weights: int | None = None
    threads: int = 2
    precision: str = "float32"


class Clap:
    """The audio tower of one checkpoint: its spec at once, the model itself when first called.

    Raises:
        ConfigError: the model is refused, fused for one, or its settings contradict each other.
        MissingError: there is no such model on this machine.
    """

    def __init__(self, params: ClapParams, compute: Compute = CPU) -> None:
        self.params, self.windows, self._compute = params, params.windows, compute
        self._files, whole = clap_files(params.model, params.random_weights)
        self.config = whole.audio_config
        if self.config.enable_fusion:
            raise ConfigError(
                f"model {params.model} is a fused CLAP: it mixes crops drawn at random, so that a "
                "clip would get other numbers in every run; choose an unfused one, such as "
                "laion/clap-htsat-unfused"
            )
        self._mel = _mel_settings(self._files, params.model, self.config)
        if self.windows.duration_s != self._mel["max_length_s"] or self.windows.tail == "pad":
            raise ConfigError(
                f"clap hears windows of {self._mel['max_length_s']} s and fills the last one up by "
                'its own rule; leave duration_s out, and set tail = "short" or "drop"'
            )
        self.rate_hz = RATE_HZ
        self.shortest = int(self._mel["fft_window_size"])
        self.specs = (self._spec(),)
        self._extract: Any = None
        self._model: torch.nn.Module | None = None

    def frames(self, samples: int) -> int:
        """One row for a window of whatever length."""
        return int(samples >= self.shortest)

    def encode(self, samples_BN: Samples) -> dict[str, NDArray[np.float32]]:
        """Windows at 48 kHz, (B, N) -> (B, 1, D) float32 of unit length.

        On the CPU they go one at a time, where a batch gains nothing and could move a bit.
        """
        import torch

        model, extract = self._loaded()
        assert not model.training
        assert self.shortest <= samples_BN.shape[1] <= self.windows.duration_s * self.rate_hz
        torch.set_num_threads(self.params.threads)
        mels = [
            extract(
                samples_N,
                truncation=_TRUNCATION,
                padding=_PADDING,
                sampling_rate=self.rate_hz,
                return_tensors="pt",
            )["input_features"]
            for samples_N in samples_BN
        ]
        device = self._compute.device
        step = 1 if device == "cpu" else len(mels)
        rows = []
        for first in range(0, len(mels), step):
            mel_B1TF = torch.cat(mels[first : first + step]).to(device)
            with torch.inference_mode(), precision(device, self.params.precision):
                row_BD = model(mel_B1TF).audio_embeds.float()
            row_BD = torch.nn.functional.normalize(row_BD, dim=-1)
            rows.append(row_BD.cpu().numpy())
        return {self.specs[0].name: np.concatenate(rows)[:, None]}

    def _loaded(self) -> tuple["torch.nn.Module", Any]:
        from transformers import ClapAudioModelWithProjection, ClapFeatureExtractor

        if self._model is None:
            kind, seed = ClapAudioModelWithProjection, self.params.random_weights
            if seed is not None:
                self._model = seed_weights(kind, self.config, seed)
            else:
                assert self._files is not None
                self._model = load_weights(kind, self._files, self.config)
            exact_sums()
            self._model.to(self._compute.device)
            self._extract = ClapFeatureExtractor(**self._mel)
        return self._model, self._extract

    def _spec(self) -> StreamSpec:
        return StreamSpec(
            name="clap" if self.params.random_weights is None else "clap_random",
            modality="audio",
            item=(int(self.config.projection_dim),),
            dtype="float16",
            params={
                "model": self.params.model,
                "model_type": "clap",
                "architecture": architecture(self.config),
                **clap_weights(self._files, self.params.random_weights),
                "mel": self._mel,
                "windows": self.windows.to_json(),
                "length": "unit",
                "threads": self.params.threads,
                "precision": self.params.precision,
                "decoder": DECODER,
                "resampler": RESAMPLER,
                "mono": MIXDOWN,
            },
            timing=Timing("frames", hop_s=self.windows.hop_s),
        )


def clap_files(model: str, random_weights: int | None) -> tuple[ModelFiles | None, Any]:
    """(files, whole configuration) of a checkpoint, or of a base with random weights.

    Raises:
        ConfigError: no model is named, or it is refused.
        MissingError: there is no such model on this machine.
    """
    from transformers import ClapConfig

    if not model:
        raise ConfigError(
            "clap needs a model; name one with --model FOLDER or --model ID@REVISION, or try one "
            f"without weights: --random-weights 0 --model {BASES[0]}"
        )
    if random_weights is not None and model in BASES:
        return None, ClapConfig()
    files = find_model(model, TYPES, weights=random_weights is None)
    try:
        return files, ClapConfig.from_dict(dict(files.config))
    except Exception as error:  # transformers check types by an exception of their own
        first = str(error).splitlines()[0]
        raise ConfigError(f"model {model}: config.json is no CLAP's ({first})") from None


def clap_weights(files: ModelFiles | None, random_weights: int | None) -> dict[str, Any]:
    """What a spec says of the weights."""
    if random_weights is not None:
        return {"random_weights": random_weights}
    assert files is not None
    return {"weights_sha256": dict(files.weights)}


def _mel_settings(files: ModelFiles | None, model: str, config: Any) -> dict[str, Any]:
    """Settings of the feature extraction, those of preprocessor_config.json checked."""
    if files is None:
        return dict(_DEFAULTS)
    said, name = read_settings(files, "preprocessor_config.json"), "preprocessor_config.json"
    if not said:  # newer processors are one file
        name = "processor_config.json"
        said = read_settings(files, name).get("feature_extractor") or {}
    if not said:
        raise ConfigError(
            f"model {model} has no preprocessor_config.json, which holds its mel settings; fetch "
            "it whole"
        )
    found = {key: said.get(key, default) for key, default in _DEFAULTS.items()}
    fixed = {"sampling_rate": RATE_HZ, "feature_size": config.num_mel_bins}
    for key, wanted in {**fixed, "truncation": _TRUNCATION, "padding": _PADDING}.items():
        if found[key] != wanted:
            raise ConfigError(
                f"model {model}: {name} says {key} {found[key]!r}, its unfused CLAP takes "
                f"{wanted!r}; take the file that belongs to the checkpoint"
            )
    numbers = {key: found[key] for key in _DEFAULTS if isinstance(_DEFAULTS[key], int)}
    if all(isinstance(value, int | float) and value % 1 == 0 for value in numbers.values()):
        found |= {key: int(value) for key, value in numbers.items()}
        frames = found["max_length_s"] * RATE_HZ // max(found["hop_length"], 1) + 1
        widest = config.spec_size * (config.spec_size // config.num_mel_bins)
        if (
            0 <= found["frequency_min"] < found["frequency_max"] <= RATE_HZ / 2
            and 0 < found["hop_length"] <= found["fft_window_size"]
            and 2 <= frames <= widest
        ):
            return found
    raise ConfigError(
        f"model {model}: {name} has mel settings that can't be: "
        f"{', '.join(f'{key} {value}' for key, value in numbers.items())}; take the file that "
        "belongs to the checkpoint"
    )
