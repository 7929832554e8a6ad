"""Sections of a run configuration: the fusions, one class for each `type`."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from mmfuse.features import plugins
from mmfuse.features.config import Strict


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


class PluginFusionConfig(Strict):
    """A fusion of an installed package."""

    type: str
    hidden_dim: int = Field(default=64, ge=8)
    options: dict[str, Any] = Field(default_factory=dict)  # the plug-in's own

    @model_validator(mode="before")
    @classmethod
    def _installed(cls, section: Any) -> Any:
        kind = section.get("type") if isinstance(section, dict) else getattr(section, "type", None)
        if fault := plugins.unknown("fusion", kind, _FUSION_SECTIONS):
            raise ValueError(fault)
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
