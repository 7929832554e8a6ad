"""Sections of a run configuration: the fusions, one class for each `type`."""

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Discriminator, Field, Tag, model_validator

from mmfuse.features import plugins
from mmfuse.features.config import Strict
from mmfuse.features.config_faults import BadKeyError

_NAMES = AliasChoices("type", "strategy")


class LateFusionConfig(Strict):
    """Pooled vectors side by side."""

    type: Literal["late"] = Field(default="late", validation_alias=_NAMES)
    hidden_dim: int = Field(default=64, ge=8)  # of each modality's vector
    dropout: float = Field(default=0.4, ge=0, lt=1)  # share of activations dropped in training
    normalise: bool = True  # each vector to mean 0 and deviation 1
    interaction: bool = True  # an MLP over all vectors; without it, a sum of unimodal logits


class EarlyFusionConfig(Strict):
    """One joint transformer over all streams."""

    type: Literal["early"] = Field(default="early", validation_alias=_NAMES)
    hidden_dim: int = Field(default=64, ge=8)  # width
    layers: int = Field(default=1, ge=1, le=24)  # of attention
    attention_heads: int = Field(default=4, ge=1)  # of each layer
    dropout: float = Field(default=0.4, ge=0, lt=1)  # share of activations dropped in training


class CrossModalFusionConfig(Strict):
    """One modality asks the others by attention."""

    type: Literal["cross_modal"] = Field(default="cross_modal", validation_alias=_NAMES)
    hidden_dim: int = Field(default=64, ge=8)  # width
    layers: int = Field(default=1, ge=1, le=24)  # of cross attention into each other modality
    attention_heads: int = Field(default=4, ge=1)  # of each layer
    query: Literal["text", "audio", "midi"] = "text"  # who asks; the first there is, if not this
    questions: int = Field(default=4, ge=1, le=256)  # learned steps that ask beside it
    dropout: float = Field(default=0.4, ge=0, lt=1)  # share of activations dropped in training


class GatedFusionConfig(Strict):
    """Pooled vectors weighed by gates."""

    type: Literal["gated"] = Field(default="gated", validation_alias=_NAMES)
    hidden_dim: int = Field(default=64, ge=8)  # width
    gate: Literal["softmax", "gmu"] = "softmax"  # a weight a modality, or one a dimension
    dropout: float = Field(default=0.4, ge=0, lt=1)  # share of activations dropped in training


class LowRankFusionConfig(Strict):
    """Products of all modalities' vectors, by a tensor of low rank."""

    type: Literal["low_rank"] = Field(default="low_rank", validation_alias=_NAMES)
    hidden_dim: int = Field(default=64, ge=8)  # width
    rank: int = Field(default=4, ge=1, le=256)  # terms of the sum
    dropout: float = Field(default=0.4, ge=0, lt=1)  # share of activations dropped in training


class BottleneckFusionConfig(Strict):
    """A transformer a modality; they meet in a few shared steps."""

    type: Literal["bottleneck"] = Field(default="bottleneck", validation_alias=_NAMES)
    hidden_dim: int = Field(default=64, ge=8)  # width
    layers: int = Field(default=2, ge=1, le=24)  # of attention
    attention_heads: int = Field(default=4, ge=1)  # of each layer
    bottlenecks: int = Field(default=4, ge=1, le=256)  # shared steps
    dropout: float = Field(default=0.4, ge=0, lt=1)  # share of activations dropped in training


class PluginFusionConfig(Strict):
    """A fusion of an installed package."""

    type: str = Field(validation_alias=_NAMES)
    hidden_dim: int = Field(default=64, ge=8)  # width
    options: dict[str, Any] = Field(default_factory=dict)  # the plug-in's own

    @model_validator(mode="before")
    @classmethod
    def _installed(cls, section: Any) -> Any:
        key, kind = _kind(section)
        if kind is None and isinstance(section, dict):
            known = [*FUSIONS, *plugins.installed("fusion", FUSIONS)]
            raise ValueError(f"type is missing; choose from: {', '.join(known)}")
        if kind is not None and (fault := plugins.unknown("fusion", kind, FUSIONS)):
            raise BadKeyError(key, kind, fault)
        return section


FUSIONS = ("bottleneck", "cross_modal", "early", "gated", "late", "low_rank")


def _kind(section: Any) -> tuple[str, Any]:
    """Which fusion a section is about, after the name of the key that says so."""
    if not isinstance(section, dict):
        return "type", getattr(section, "type", None)
    key = next((name for name in _NAMES.choices if name in section), "type")
    return str(key), section.get(key)


def _fusion_section(section: Any) -> str:
    _, kind = _kind(section)
    return kind if isinstance(kind, str) and kind in FUSIONS else "plugin"


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
