"""The run configuration, whole: data, preprocessing, model, training, evaluation.

The same TOML serves `mmfeat run`, which reads `[data]` and `[preprocessing.*]` of it.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mmfuse.features.config import DataConfig, Preprocessing, Strict
from mmfuse.features.config_faults import BadKeyError
from mmfuse.features.config_file import read_toml, validate
from mmfuse.trainer.encoder_config import (
    AnyTextEncoderConfig,
    AudioEncoderConfig,
    MidiEncoderConfig,
    Schedule,
)
from mmfuse.trainer.fusion_config import FusionConfig, LateFusionConfig

MODALITIES = ("text", "audio", "midi")


class ModelConfig(Strict):
    """One encoder a modality, and how they meet. A modality without a section is not used."""

    audio_encoder: AudioEncoderConfig | None = None  # what reads a stream of audio
    midi_encoder: MidiEncoderConfig | None = None  # what reads a stream of MIDI
    text_encoder: AnyTextEncoderConfig | None = None  # what reads a stream of text
    fusion: FusionConfig = LateFusionConfig()  # how they meet

    @model_validator(mode="after")
    def _possible(self) -> "ModelConfig":
        if not self.encoders():
            raise ValueError("no encoder; add [model.text_encoder], audio_encoder or midi_encoder")
        encoders = {f"{name}_encoder": section for name, section in self.encoders().items()}
        for name, section in {**encoders, "fusion": self.fusion}.items():
            heads = getattr(section, "attention_heads", 1)
            step = math.lcm(2, heads)
            if section.hidden_dim % step:
                raise BadKeyError(
                    f"{name}.hidden_dim",
                    section.hidden_dim,
                    "expected an even number"
                    + (f" that attention_heads = {heads} divides" if heads > 1 else "")
                    + f", such as {-(-section.hidden_dim // step) * step}",
                )
        return self

    def encoders(self) -> dict[str, Any]:
        """Sections of the modalities in use, by modality, in a fixed order."""
        sections = {name: getattr(self, f"{name}_encoder") for name in MODALITIES}
        return {name: section for name, section in sections.items() if section is not None}


class OgmGeConfig(Strict):
    """Smaller gradients for the encoder that is ahead, and noise."""

    type: Literal["ogm_ge"] = "ogm_ge"
    alpha: float = Field(default=0.3, ge=0)  # how much smaller
    noise: bool = True  # generalization enhancement; without it, OGM
    first_epoch: int = Field(default=1, ge=1)  # of those in which it acts
    last_epoch: int = Field(default=0, ge=0)  # of those; 0: to the end


class MMParetoConfig(Strict):
    """Gradients of the joint and of the own loss, joined so that neither is hurt."""

    type: Literal["mmpareto"] = "mmpareto"
    gamma: float = Field(default=1.5, gt=0)  # how much longer they become


class GradientBlendingConfig(Strict):
    """Losses weighed by how well each generalizes."""

    type: Literal["gradient_blending"] = "gradient_blending"
    every: int = Field(default=3, ge=1)  # epochs from one estimate to the next


BalanceConfig = OgmGeConfig | MMParetoConfig | GradientBlendingConfig


class TrainConfig(Strict):
    """How the model is fitted."""

    task: Literal["single", "multilabel", "regression"] = "single"  # a class, labels, or a number
    seed: int = Field(default=0, ge=0)  # another one, other first weights and another order
    epochs: int = Field(default=30, ge=1)  # at most; early stopping may end sooner
    batch_size: int = Field(default=32, ge=1)  # clips
    accumulate: int = Field(default=1, ge=1)  # batches in one optimizer step
    lr: float = Field(default=2e-3, gt=0)  # peak, after warm-up
    warmup_steps: int = Field(default=20, ge=0)  # optimizer steps
    schedule: Schedule = "cosine"  # from there on: down to 0, straight down to 0, or as it is
    weight_decay: float = Field(default=0.05, ge=0)  # AdamW's, on matrices only
    grad_clip: float = Field(default=1.0, ge=0)  # global L2 norm; 0 turns clipping off
    patience: int = Field(default=12, ge=1)  # epochs without a better score on validation
    best_by: Literal["score", "loss", "last"] = "score"  # of validation; "last": the last epoch
    refit: bool = False  # then train anew on train and validation, until the best epoch
    label_smoothing: float = Field(default=0.05, ge=0, lt=1)  # of classes and labels
    huber: float = Field(default=0.0, ge=0)  # regression: deviations beyond which loss is straight
    class_weights: bool = False  # weigh classes by inverse frequency
    unimodal_weight: float = Field(default=0.5, ge=0)  # of the modalities' own heads; 0: none
    balance: (
        Literal["none", "ogm_ge", "mmpareto", "gradient_blending"]
        | Annotated[BalanceConfig, Field(discriminator="type")]
    ) = "none"  # a name, or a section [train.balance] with type and parameters
    imbalance: float = Field(default=5.0, gt=1)  # times between encoders' gradients: a warning
    modality_dropout: float = Field(default=0.25, ge=0, lt=1)  # per clip; never all
    modality_dropout_warmup: int = Field(default=0, ge=0)  # epochs in which it rises from 0
    ema: float = Field(default=0.95, ge=0, lt=1)  # decay of the weights' average; 0: no average
    crop_s: float = Field(default=8.0, ge=0)  # random crop in training; 0 takes whole clips
    views: bool = False  # draw one of the stored views of each train clip, anew in each epoch
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")  # where it trains
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # of products, convolutions
    log: tuple[str, ...] = Field(
        default=("tensorboard",), strict=False
    )  # who is told how it goes; wandb, mlflow, or plug-ins
    compile: bool = False  # by torch.compile: quicker steps after a minute or more of warm-up
    checkpoint_s: float = Field(default=30.0, ge=0)  # seconds between checkpoints; 0: each step
    threads: int = Field(default=2, ge=1)  # of the CPU; part of what makes numbers reproducible


class EvalConfig(Strict):
    """How the result is measured."""

    batch_size: int = Field(default=64, ge=1)  # clips
    windows: int = Field(default=0, ge=0)  # of train.crop_s each, averaged; 0: whole clips
    bootstrap: int = Field(default=2000, ge=100)  # resamples behind each interval
    resample: Literal["group", "clip"] = "group"  # what they draw; clips where there are no groups
    ece_bins: int = Field(default=15, ge=1, le=1000)  # of confidence, in the calibration error
    subsets: bool = True  # score every subset of the modalities, their worth and robustness
    missing_shares: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        default=(0.0, 0.25, 0.5, 0.75, 1.0), strict=False
    )  # of clips that lose a modality, in robustness curves


class RunConfig(Strict):
    """A run, complete: two of them compare with `diff`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")  # folder below runs/
    data: DataConfig = DataConfig()
    preprocessing: Preprocessing = Preprocessing()
    model: ModelConfig
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _together(self) -> "RunConfig":
        train = self.train
        kind = getattr(train.balance, "type", train.balance)
        if kind != "none" and len(self.model.encoders()) < 2:
            text = 'needs two encoders or more; add one, or set it to "none"'
            raise BadKeyError("train.balance", kind, text)
        if kind == "mmpareto" and train.compile:
            text = "goes back through the model twice; it needs train.compile = false"
            raise BadKeyError("train.balance", kind, text)
        if kind == "ogm_ge" and train.task != "single":
            text = 'compares classes; it needs train.task = "single"'
            raise BadKeyError("train.balance", kind, text)
        if kind == "mmpareto" and train.precision == "float16":
            text = 'needs a precision that is not "float16"'
            raise BadKeyError("train.balance", kind, text)
        if kind in ("mmpareto", "gradient_blending") and not train.unimodal_weight:
            raise BadKeyError("train.balance", kind, "needs train.unimodal_weight above 0")
        if kind == "gradient_blending" and train.refit:
            text = "weighs losses by validation; it needs train.refit = false"
            raise BadKeyError("train.balance", kind, text)
        if train.modality_dropout_warmup > train.epochs:
            text = f"expected no more than train.epochs = {train.epochs}"
            raise BadKeyError("train.modality_dropout_warmup", train.modality_dropout_warmup, text)
        if train.class_weights and train.task == "regression":
            raise BadKeyError("train.class_weights", True, "needs classes or labels")
        if train.huber and train.task != "regression":
            raise BadKeyError("train.huber", train.huber, 'needs train.task = "regression"')
        if self.eval.windows and not train.crop_s:
            raise BadKeyError("eval.windows", self.eval.windows, "needs train.crop_s above 0")
        return self


def load_run_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a TOML run configuration with `section.key=value` overrides.

    Raises:
        ConfigError: one line that names file, key, value and the nearest valid name.
    """
    document = read_toml(path, RunConfig, overrides)
    return validate(RunConfig, document, str(path), overrides)
