"""The fusions a configuration can name. Each is a class and a line in `FUSIONS`, or a plug-in.

A plug-in is an entry point of the kind "fusion" (`features/plugins.py`): its name is the `type` to
write in `[model.fusion]`, its object a subclass of `MultimodalFusion` that is called with the
encoders' widths, `hidden_dim`, and whatever else `[model.fusion.options]` holds.
"""

from collections.abc import Callable, Mapping
from typing import Any

from mmfuse.features import plugins
from mmfuse.features.errors import ConfigError
from mmfuse.trainer.fusion_attention import BottleneckFusion, CrossModalAttention, EarlyFusion
from mmfuse.trainer.fusion_base import MultimodalFusion
from mmfuse.trainer.fusion_config import PluginFusionConfig
from mmfuse.trainer.fusion_pooled import GatedFusion, LateFusion, LowRankFusion

FUSIONS: Mapping[str, Callable[..., MultimodalFusion]] = {
    "bottleneck": BottleneckFusion,
    "cross_modal": CrossModalAttention,
    "early": EarlyFusion,
    "gated": GatedFusion,
    "late": LateFusion,
    "low_rank": LowRankFusion,
}


def build_fusion(config: Any, dims: Mapping[str, int]) -> MultimodalFusion:
    """The fusion that `[model.fusion]` describes, over encoders of these widths.

    Raises:
        ConfigError: a plug-in does not take its options.
    """
    if not isinstance(config, PluginFusionConfig):
        options = {name: value for name, value in config.model_dump().items() if name != "type"}
        return FUSIONS[config.type](dims, **options)
    plugin = plugins.load("fusion", config.type, FUSIONS)
    try:
        fusion = plugin(dims, hidden_dim=config.hidden_dim, **config.options)
    except TypeError as error:
        raise ConfigError(
            f"fusion {config.type!r} does not take model.fusion.options = {config.options}: {error}"
        ) from None
    if not isinstance(fusion, MultimodalFusion):
        raise ConfigError(
            f"the plug-in {config.type!r} gives {type(fusion).__name__}, no MultimodalFusion of "
            "mmfuse.trainer.fusion_base"
        )
    return fusion
