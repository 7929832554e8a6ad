"""The encoders a configuration can name, and the streams that each reads.

An encoder is an `nn.Module` with `dim` and `forward(x, mask_BT, times_BT) -> Encoded`. Adding one
is a class, a section in `config.py`, and a line in `ENCODERS` and in `STREAMS`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from mmfuse.features.errors import ConfigError, StoreError
from mmfuse.features.spec import StreamSpec
from mmfuse.trainer.audio_encoders import MelCNNEncoder
from mmfuse.trainer.encoder_config import (
    EncoderConfig,
    EventBasedConfig,
    MelCNNConfig,
    MusicTransformerConfig,
    NgramBagConfig,
    PianoRollConfig,
    StatisticsConfig,
    StoredConfig,
    TextEncoderConfig,
    Wav2Vec2Config,
)
from mmfuse.trainer.fine_tuned import FineTunedEncoder, fine_tuned_source
from mmfuse.trainer.midi_embedding import readable
from mmfuse.trainer.midi_encoders import EventBasedEncoder
from mmfuse.trainer.music_transformer import MusicTransformer
from mmfuse.trainer.roll_encoder import PianoRollEncoder
from mmfuse.trainer.statistics_encoders import NgramBagEncoder, StatisticsEncoder
from mmfuse.trainer.stored_encoders import (
    CLAPEncoder,
    StoredEncoder,
    TextEmbeddingEncoder,
    Wav2Vec2Encoder,
)
from mmfuse.trainer.text_encoders import TextEncoder

_OPTIMIZER = ("type", "stream", "vocab_size", *EncoderConfig.model_fields)
_OTHERS = (
    *_OPTIMIZER, "source", "layers", "pretrained_model", "random_weights", "freeze",
    "unfreeze_at_step",
)  # fmt: skip


def _mel_cnn(config: MelCNNConfig, spec: StreamSpec) -> nn.Module:
    if spec.modality != "audio" or len(spec.item) != 1:
        raise ConfigError(
            f"model.audio_encoder.stream = {config.stream!r} has {spec.modality} rows of "
            f"{spec.item}; mel_cnn reads frames of audio with bands"
        )
    return MelCNNEncoder(bands=spec.item[0], **_arguments(config))


def _events(kind: type[nn.Module]) -> Callable[[Any, StreamSpec], nn.Module]:
    def build(config: EventBasedConfig | MusicTransformerConfig, spec: StreamSpec) -> nn.Module:
        vocabulary = _param(spec, "vocabulary")
        if not readable(spec):
            raise ConfigError(
                f"model.midi_encoder.type = {config.type!r} can't read {vocabulary['name']!r} "
                f"(stream {spec.key}), whose vocabulary does not say where pitches are; set "
                "preprocessing.midi.tokenization = 'midi_like' and make the stream anew with "
                "`mmfeat run`"
            )
        _check_vocabulary(config, spec, _size_of(vocabulary))
        return kind(spec=spec, **_arguments(config))

    return build


def _piano_roll(config: PianoRollConfig, spec: StreamSpec) -> nn.Module:
    return PianoRollEncoder(planes=spec.item[0], **_arguments(config))


def _text(config: TextEncoderConfig, spec: StreamSpec) -> nn.Module:
    size = _param(spec, "vocab_size")
    _check_vocabulary(config, spec, size)
    return TextEncoder(vocab_size=size, **_arguments(config))


def _statistics(config: StatisticsConfig, spec: StreamSpec) -> nn.Module:
    return StatisticsEncoder(size=spec.item[0], **_arguments(config))


def _ngram_bag(config: NgramBagConfig, spec: StreamSpec) -> nn.Module:
    return NgramBagEncoder(**_arguments(config))


def _stored(kind: type[StoredEncoder]) -> Callable[[Any, StreamSpec], nn.Module]:
    def build(config: StoredConfig, spec: StreamSpec) -> nn.Module:
        made = spec.params.get("model", "")
        if config.pretrained_model and made != config.pretrained_model:
            raise ConfigError(
                f"pretrained_model = {config.pretrained_model!r}, and stream {spec.key} is of "
                f"{made!r}; name that one, or make the stream anew with `mmfeat run`"
            )
        count = len(stream_names(config, spec))
        return kind(width=spec.item[0], count=count, **_arguments(config, _OTHERS))

    return build


def _wav2vec2(config: Wav2Vec2Config, spec: StreamSpec) -> nn.Module:
    if config.source == "stored":
        return _stored(Wav2Vec2Encoder)(config, spec)
    layers = config.layers if isinstance(config.layers, str) else ",".join(map(str, config.layers))
    model = fine_tuned_source(config.pretrained_model, layers, config.random_weights)
    rate_hz = _param(spec, "rate_hz")
    if rate_hz != model.rate_hz:
        raise ConfigError(
            f"model {config.pretrained_model} hears {model.rate_hz} Hz, and stream {spec.key} has "
            f"{rate_hz} Hz; set preprocessing.audio.rate_hz = {model.rate_hz} and make it anew "
            "with `mmfeat run`"
        )
    width, count = int(model.config.hidden_size), len(model.layers)
    head = Wav2Vec2Encoder(width=width, count=count, **_arguments(config, _OTHERS))
    return FineTunedEncoder(
        model, head, freeze=config.freeze, unfreeze_at_step=config.unfreeze_at_step
    )


ENCODERS: Mapping[str, Callable[[Any, StreamSpec], nn.Module]] = {
    "mel_cnn": _mel_cnn,
    "wav2vec2": _wav2vec2,
    "clap": _stored(CLAPEncoder),
    "event_based": _events(EventBasedEncoder),
    "music_transformer": _events(MusicTransformer),
    "piano_roll": _piano_roll,
    "text": _text,
    "text_embedding": _stored(TextEmbeddingEncoder),
    "audio_statistics": _statistics,
    "note_statistics": _statistics,
    "ngram_bag": _ngram_bag,
}
STREAMS: Mapping[str, str] = {
    "mel_cnn": "logmel",
    "wav2vec2": "wav2vec2",
    "clap": "clap",
    "event_based": "midi_tokens",
    "music_transformer": "midi_tokens",
    "piano_roll": "piano_roll",
    "text": "text_tokens",
    "text_embedding": "text_embedding",
    "audio_statistics": "audio_statistics",
    "note_statistics": "note_statistics",
    "ngram_bag": "text_tokens",
}


def build_encoder(config: Any, spec: StreamSpec) -> nn.Module:
    """The encoder that a section of the configuration describes, for a stream of that spec.

    Of several streams it is the spec of the first; they differ in the layer alone.

    Raises:
        ConfigError: the stream is written in a way that the encoder can't read, or by another
            model.
        StoreError: the spec lacks what the encoder has to know, e.g. the vocabulary's size.
        MissingError: a model to fine-tune is not on this machine.
    """
    return ENCODERS[config.type](config, spec)


def stream_names(config: Any, first: StreamSpec | None = None, seeded: bool = False) -> list[str]:
    """Names of the streams that an encoder reads.

    Args:
        config: the encoder's section.
        first: spec of the first of them; without it, only the first one's name is told, since how
            many "all" layers are stands in it.
        seeded: whether the pretrained model has random weights, where `first` does not tell.

    Raises:
        StoreError: the spec does not say how many layers there are.
    """
    base = getattr(config, "stream", STREAMS[config.type])
    if getattr(config, "source", "stored") == "waveform":
        return ["waveform"]
    if isinstance(config, StoredConfig) and (
        seeded if first is None else "random_weights" in first.params
    ):
        base += "_random"
    layers = getattr(config, "layers", "last") if isinstance(config, Wav2Vec2Config) else "last"
    if layers == "last":
        return [base]
    if layers == "all":
        count = 0 if first is None else int(_param(first, "architecture")["num_hidden_layers"])
        layers = tuple(range(count + 1))
    names = [f"{base}_layer{layer:02}" for layer in layers]
    return names[:1] if first is None else names


def _arguments(config: Any, without: tuple[str, ...] = _OPTIMIZER) -> dict[str, Any]:
    return {name: value for name, value in config.model_dump().items() if name not in without}


def _size_of(vocabulary: Mapping[str, Any]) -> int:
    return int(vocabulary.get("size") or sum(vocabulary.get("sizes", {}).values()))


def _check_vocabulary(config: Any, spec: StreamSpec, size: int) -> None:
    if config.vocab_size not in (None, size):
        raise ConfigError(
            f"model.{spec.modality}_encoder.vocab_size = {config.vocab_size}: stream {spec.key} "
            f"has {size} tokens; write that, or take it out"
        )


def _param(spec: StreamSpec, name: str) -> Any:
    if name not in spec.params:
        raise StoreError(
            f"stream {spec.key} does not say its {name}; make it anew with `mmfeat run`"
        )
    return spec.params[name]
