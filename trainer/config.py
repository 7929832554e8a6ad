"""The run configuration, whole: data, preprocessing, model, training, evaluation.

The same TOML serves `mmfeat run`, which reads `[data]` and `[preprocessing.*]` of it.
"""

import difflib
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from mmfuse.features.config import DataConfig, Preprocessing, Strict, read_toml, validate

MODALITIES = ("text", "audio", "midi")


Schedule = Literal["cosine", "linear", "constant"]


class EncoderConfig(Strict):
    """What the optimizer does with an encoder; left out, the same as with the rest of the model."""

    lr: float = Field(default=0.0, ge=0)  # peak learning rate of its own; 0 takes train.lr
    weight_decay: float | None = Field(default=None, ge=0)  # its own; left out: train.weight_decay
    schedule: Schedule | None = None  # its own; left out: train.schedule
    freeze_until_step: int = Field(default=0, ge=0)  # does not learn before; then warms up


class MelCNNConfig(EncoderConfig):
    """Convolutions over the `logmel` stream."""

    type: Literal["mel_cnn"] = "mel_cnn"
    hidden_dim: int = Field(default=64, ge=8)  # channels of every layer
    stride: Literal[2, 4, 8, 16] = 8  # frames in one step of the result: 160 ms of 20 ms
    dropout: float = Field(default=0.2, ge=0, lt=1)
    mask_bands: int = Field(default=16, ge=0)  # longest stretch of mel bands blanked in training
    mask_frames: int = Field(default=50, ge=0)  # longest stretch of frames blanked in training


class StoredConfig(EncoderConfig):
    """What encoders over a pretrained model's stored rows have in common."""

    hidden_dim: int = Field(default=64, ge=8)
    layer_norm: bool = True  # each row to mean 0 and deviation 1 before all else
    transformer_layers: int = Field(default=0, ge=0, le=24)  # of attention, ours
    attention_heads: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    pretrained_model: str = ""  # the model behind the rows; "" takes what the store has


class Wav2Vec2Config(StoredConfig):
    """A model of the wav2vec2 family: its stored layers, or itself over the `waveform` stream."""

    type: Literal["wav2vec2"] = "wav2vec2"
    source: Literal["stored", "waveform"] = "stored"  # features, or fine-tuning
    layers: Literal["last", "all"] | tuple[Annotated[int, Field(ge=0)], ...] = "last"
    stride: Literal[1, 2, 4, 8, 16] = 8  # frames in one step of the result: 160 ms of 20 ms
    random_weights: int | None = Field(default=None, ge=0)  # waveform: a seed instead of weights
    freeze: bool = True  # waveform: the model stays as it is
    unfreeze_at_step: int = Field(default=0, ge=0)  # waveform: but from this step on; 0 is never

    @model_validator(mode="after")
    def _together(self) -> "Wav2Vec2Config":
        if not isinstance(self.layers, str) and (
            not self.layers or list(self.layers) != sorted(set(self.layers))
        ):
            raise ValueError('layers are "last", "all", or rising numbers such as [0, 6, 12]')
        if self.source == "waveform" and not self.pretrained_model:
            raise ValueError('source = "waveform" needs pretrained_model, a folder or ID@REVISION')
        if self.source == "stored" and (not self.freeze or self.random_weights is not None):
            raise ValueError('freeze = false and random_weights need source = "waveform"')
        if self.unfreeze_at_step and (self.source == "stored" or not self.freeze):
            raise ValueError('unfreeze_at_step needs source = "waveform" and freeze = true')
        return self


class CLAPConfig(StoredConfig):
    """Over CLAP's embeddings of windows, the `clap` stream."""

    type: Literal["clap"] = "clap"
    stride: Literal[1, 2, 4, 8, 16] = 1  # windows in one step of the result


class TextEmbeddingConfig(StoredConfig):
    """Over a text model's embeddings, the `text_embedding` stream."""

    type: Literal["text_embedding"] = "text_embedding"
    stride: Literal[1, 2, 4, 8, 16] = 1  # tokens in one step of the result


class EventBasedConfig(EncoderConfig):
    """A transformer over the `midi_tokens` stream."""

    type: Literal["event_based"] = "event_based"
    hidden_dim: int = Field(default=64, ge=8)
    layers: int = Field(default=1, ge=0, le=24)  # of attention
    attention_heads: int = Field(default=4, ge=1)
    stride: Literal[1, 2, 4, 8, 16] = 8  # events in one step of attention
    dropout: float = Field(default=0.2, ge=0, lt=1)
    token_dropout: float = Field(default=0.1, ge=0, lt=1)  # share of events hidden in training
    transpose: int = Field(
        default=0, ge=0, le=12
    )  # semitones up or down, drawn per clip in training


class MusicTransformerConfig(EncoderConfig):
    """Relative attention over the `midi_tokens` stream."""

    type: Literal["music_transformer"] = "music_transformer"
    hidden_dim: int = Field(default=64, ge=8)
    layers: int = Field(default=1, ge=0, le=24)  # of relative attention
    attention_heads: int = Field(default=4, ge=1)
    stride: Literal[1, 2, 4, 8, 16] = 2  # events in one step of attention
    reach: int = Field(default=64, ge=1, le=4096)  # steps either way whose distance is told apart
    bar_reach: int = Field(default=8, ge=1, le=256)  # bars either way
    dropout: float = Field(default=0.3, ge=0, lt=1)
    token_dropout: float = Field(default=0.2, ge=0, lt=1)  # share of events hidden in training
    transpose: int = Field(default=6, ge=0, le=12)  # semitones up or down in training


class PianoRollConfig(EncoderConfig):
    """Convolutions over the `piano_roll` stream."""

    type: Literal["piano_roll"] = "piano_roll"
    hidden_dim: int = Field(default=64, ge=8)
    channels: int = Field(default=16, ge=1, le=512)  # of the first convolution; then twice as many
    stride: Literal[4, 8, 16, 32] = 8  # frames in one step of the result
    dropout: float = Field(default=0.2, ge=0, lt=1)
    transpose: int = Field(default=0, ge=0, le=12)  # semitones up or down in training


class TextEncoderConfig(EncoderConfig):
    """A small transformer and a bag of subwords over the `text_tokens` stream."""

    type: Literal["text"] = "text"
    hidden_dim: int = Field(default=64, ge=8)
    layers: int = Field(default=1, ge=0, le=24)
    attention_heads: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    token_dropout: float = Field(default=0.1, ge=0, lt=1)  # share of tokens hidden in training


AudioEncoderConfig = Annotated[
    MelCNNConfig | Wav2Vec2Config | CLAPConfig, Field(discriminator="type")
]
MidiEncoderConfig = Annotated[
    EventBasedConfig | MusicTransformerConfig | PianoRollConfig, Field(discriminator="type")
]
AnyTextEncoderConfig = Annotated[
    TextEncoderConfig | TextEmbeddingConfig, Field(discriminator="type")
]


class LateFusionConfig(Strict):
    """Pooled vectors side by side."""

    type: Literal["late"] = "late"
    hidden_dim: int = Field(default=64, ge=8)  # of each modality's vector
    dropout: float = Field(default=0.4, ge=0, lt=1)
    interaction: bool = True  # an MLP over all vectors; without it, a sum of unimodal logits


class EarlyFusionConfig(Strict):
    """One joint transformer over all streams."""

    type: Literal["early"] = "early"
    hidden_dim: int = Field(default=64, ge=8)
    layers: int = Field(default=1, ge=1, le=24)
    attention_heads: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.4, ge=0, lt=1)


class CrossModalFusionConfig(Strict):
    """One modality asks the others by attention."""

    type: Literal["cross_modal"] = "cross_modal"
    hidden_dim: int = Field(default=64, ge=8)
    layers: int = Field(default=1, ge=1, le=24)  # of cross attention into each other modality
    attention_heads: int = Field(default=4, ge=1)
    query: Literal["text", "audio", "midi"] = "text"  # who asks; the first there is, if not this
    questions: int = Field(default=4, ge=1, le=256)  # learned steps that ask beside it
    dropout: float = Field(default=0.4, ge=0, lt=1)


class GatedFusionConfig(Strict):
    """Pooled vectors weighed by gates."""

    type: Literal["gated"] = "gated"
    hidden_dim: int = Field(default=64, ge=8)
    gate: Literal["softmax", "gmu"] = "softmax"  # a weight a modality, or one a dimension
    dropout: float = Field(default=0.4, ge=0, lt=1)


class LowRankFusionConfig(Strict):
    """Products of all modalities' vectors, by a tensor of low rank."""

    type: Literal["low_rank"] = "low_rank"
    hidden_dim: int = Field(default=64, ge=8)
    rank: int = Field(default=4, ge=1, le=256)
    dropout: float = Field(default=0.4, ge=0, lt=1)


class BottleneckFusionConfig(Strict):
    """A transformer a modality; they meet in a few shared steps."""

    type: Literal["bottleneck"] = "bottleneck"
    hidden_dim: int = Field(default=64, ge=8)
    layers: int = Field(default=2, ge=1, le=24)
    attention_heads: int = Field(default=4, ge=1)
    bottlenecks: int = Field(default=4, ge=1, le=256)  # shared steps
    dropout: float = Field(default=0.4, ge=0, lt=1)


def fusion_plugins() -> dict[str, EntryPoint]:
    """Entry points of the group `mmfuse.fusions`, by name; nothing of them is imported."""
    return {point.name: point for point in entry_points(group="mmfuse.fusions")}


class PluginFusionConfig(Strict):
    """A fusion of an installed package."""

    type: str
    hidden_dim: int = Field(default=64, ge=8)
    options: dict[str, Any] = Field(default_factory=dict)  # the plug-in's own

    @model_validator(mode="before")
    @classmethod
    def _installed(cls, section: Any) -> Any:
        kind = section.get("type") if isinstance(section, dict) else getattr(section, "type", None)
        known = [*_FUSION_SECTIONS, *sorted(fusion_plugins())]
        if kind not in known:
            near = difflib.get_close_matches(str(kind), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from: {', '.join(known)}"
            raise ValueError(f"no fusion has type {kind!r}; {hint}")
        return section


_FUSION_SECTIONS = ("bottleneck", "cross_modal", "early", "gated", "late", "low_rank")


def _fusion_section(section: Any) -> str:
    kind = section.get("type") if isinstance(section, dict) else getattr(section, "type", None)
    return kind if kind in _FUSION_SECTIONS else "plugin"


FusionConfig = Annotated[
    Annotated[BottleneckFusionConfig, Tag("bottleneck")]
    | Annotated[CrossModalFusionConfig, Tag("cross_modal")]
    | Annotated[EarlyFusionConfig, Tag("early")]
    | Annotated[GatedFusionConfig, Tag("gated")]
    | Annotated[LateFusionConfig, Tag("late")]
    | Annotated[LowRankFusionConfig, Tag("low_rank")]
    | Annotated[PluginFusionConfig, Tag("plugin")],
    Discriminator(_fusion_section),
]


class ModelConfig(Strict):
    """One encoder a modality, and how they meet. A modality without a section is not used."""

    audio_encoder: AudioEncoderConfig | None = None
    midi_encoder: MidiEncoderConfig | None = None
    text_encoder: AnyTextEncoderConfig | None = None
    fusion: FusionConfig = LateFusionConfig()

    @model_validator(mode="after")
    def _possible(self) -> "ModelConfig":
        if not self.encoders():
            raise ValueError("no encoder; add [model.text_encoder], audio_encoder or midi_encoder")
        for section in (*self.encoders().values(), self.fusion):
            heads = getattr(section, "attention_heads", 1)
            if section.hidden_dim % heads or section.hidden_dim % 2:
                raise ValueError(
                    f"hidden_dim {section.hidden_dim} must be even and a multiple of "
                    f"attention_heads {heads}"
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
    first_epoch: int = Field(default=1, ge=1)
    last_epoch: int = Field(default=0, ge=0)  # 0: to the end


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

    seed: int = Field(default=0, ge=0)
    epochs: int = Field(default=30, ge=1)  # at most; early stopping may end sooner
    batch_size: int = Field(default=32, ge=1)  # clips
    accumulate: int = Field(default=1, ge=1)  # batches in one optimizer step
    lr: float = Field(default=2e-3, gt=0)  # peak, after warm-up
    warmup_steps: int = Field(default=20, ge=0)  # optimizer steps
    schedule: Schedule = "cosine"  # from there on: down to 0, straight down to 0, or as it is
    weight_decay: float = Field(default=0.05, ge=0)  # AdamW's, on matrices only
    grad_clip: float = Field(default=1.0, ge=0)  # global L2 norm; 0 turns clipping off
    patience: int = Field(default=12, ge=1)  # epochs without a better validation macro-F1
    label_smoothing: float = Field(default=0.05, ge=0, lt=1)
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
    precision: Literal["float32", "bfloat16"] = "float32"  # of products and convolutions
    checkpoint_s: float = Field(default=30.0, ge=0)  # seconds between checkpoints; 0: each step
    threads: int = Field(default=2, ge=1)  # of the CPU; part of what makes numbers reproducible


class EvalConfig(Strict):
    """How the result is measured."""

    batch_size: int = Field(default=64, ge=1)  # clips
    bootstrap: int = Field(default=2000, ge=100)  # resamples behind each interval
    resample: Literal["group", "clip"] = "group"  # what they draw; clips where there are no groups
    ece_bins: int = Field(default=15, ge=1, le=1000)  # of confidence, in the calibration error
    subsets: bool = True  # score every subset of the modalities, their worth and robustness
    missing_shares: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.0, 0.25, 0.5, 0.75, 1.0)


class RunConfig(Strict):
    """A run, complete: two of them compare with `diff`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")  # folder below runs/
    data: DataConfig = DataConfig()
    preprocessing: Preprocessing = Preprocessing()
    model: ModelConfig
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _balance(self) -> "RunConfig":
        kind = getattr(self.train.balance, "type", self.train.balance)
        if kind != "none" and len(self.model.encoders()) < 2:
            raise ValueError(f'train.balance = "{kind}" needs two encoders or more')
        if kind in ("mmpareto", "gradient_blending") and not self.train.unimodal_weight:
            raise ValueError(f'train.balance = "{kind}" needs train.unimodal_weight above 0')
        return self


def load_run_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a TOML run configuration with `section.key=value` overrides.

    Raises:
        ConfigError: one line that names file, key, value and the nearest valid name.
    """
    return validate(RunConfig, read_toml(path, overrides), str(path))
