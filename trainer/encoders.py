"""The encoders a configuration can name, and the stream that each reads.

An encoder is an `nn.Module` with `dim` and `forward(x, mask_BT, times_BT) -> Encoded`. Adding one
is a class, a section in `config.py` and a line in `ENCODERS`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from mmfuse.features.errors import ConfigError, StoreError
from mmfuse.features.spec import StreamSpec
from mmfuse.trainer.audio_encoders import MelCNNEncoder
from mmfuse.trainer.config import EventBasedConfig, MelCNNConfig, TextEncoderConfig
from mmfuse.trainer.midi_encoders import READABLE, EventBasedEncoder
from mmfuse.trainer.text_encoders import TextEncoder


def _mel_cnn(config: MelCNNConfig, spec: StreamSpec) -> nn.Module:
    return MelCNNEncoder(bands=spec.item[0], **_arguments(config))


def _event_based(config: EventBasedConfig, spec: StreamSpec) -> nn.Module:
    vocabulary = _param(spec, "vocabulary")
    if vocabulary["name"] not in READABLE:
        raise ConfigError(
            f"model.midi_encoder.type = 'event_based' reads {' and '.join(READABLE)}, and stream "
            f"{spec.key} is {vocabulary['name']}; set preprocessing.midi.tokenization = "
            f"{READABLE[0]!r} and make the stream anew with `mmfeat run`"
        )
    field = spec.fields.index("token")
    return EventBasedEncoder(vocabulary, token_field=field, **_arguments(config))


def _text(config: TextEncoderConfig, spec: StreamSpec) -> nn.Module:
    return TextEncoder(vocab_size=_param(spec, "vocab_size"), **_arguments(config))


ENCODERS: Mapping[str, Callable[[Any, StreamSpec], nn.Module]] = {
    "mel_cnn": _mel_cnn,
    "event_based": _event_based,
    "text": _text,
}
STREAMS: Mapping[str, str] = {
    "mel_cnn": "logmel",
    "event_based": "midi_tokens",
    "text": "text_tokens",
}


def build_encoder(config: Any, spec: StreamSpec) -> nn.Module:
    """The encoder that a section of the configuration describes, for a stream of that spec.

    Raises:
        ConfigError: the stream is written in a way that the encoder can't read.
        StoreError: the spec lacks what the encoder has to know, e.g. the vocabulary's size.
    """
    return ENCODERS[config.type](config, spec)


def _arguments(config: Any) -> dict[str, Any]:
    return {name: value for name, value in config.model_dump().items() if name != "type"}


def _param(spec: StreamSpec, name: str) -> Any:
    if name not in spec.params:
        raise StoreError(
            f"stream {spec.key} does not say its {name}; make it anew with `mmfeat run`"
        )
    return spec.params[name]
