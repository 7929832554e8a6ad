"""Sections of a run configuration: the encoders, one class for each `type`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mmfuse.features.config import Strict
from mmfuse.features.config_faults import BadKeyError

Schedule = Literal["cosine", "linear", "constant"]
Layers = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)]


class EncoderConfig(Strict):
    """What the optimizer does with an encoder; left out, the same as with the rest of the model."""

    lr: float = Field(default=0.0, ge=0)  # peak learning rate of its own; 0 takes train.lr
    weight_decay: float | None = Field(default=None, ge=0)  # its own; left out: train.weight_decay
    schedule: Schedule | None = None  # its own; left out: train.schedule
    freeze_until_step: int = Field(default=0, ge=0)  # does not learn before; then warms up


class MelCNNConfig(EncoderConfig):
    """Convolutions over the `logmel` stream, or another of frames with bands."""

    type: Literal["mel_cnn"] = "mel_cnn"
    stream: str = "logmel"  # or one of an encoder that another package brings
    hidden_dim: int = Field(default=64, ge=8)  # channels of every layer
    stride: Literal[2, 4, 8, 16] = 8  # frames in one step of the result: 160 ms of 20 ms
    dropout: float = Field(default=0.2, ge=0, lt=1)  # share of activations dropped in training
    mask_bands: int = Field(default=16, ge=0)  # longest stretch of mel bands blanked in training
    mask_frames: int = Field(default=50, ge=0)  # longest stretch of frames blanked in training


class StoredConfig(EncoderConfig):
    """What encoders over a pretrained model's stored rows have in common."""

    hidden_dim: int = Field(default=64, ge=8)  # width
    layer_norm: bool = True  # each row to mean 0 and deviation 1 before all else
    transformer_layers: int = Field(default=0, ge=0, le=24)  # of attention, ours
    attention_heads: int = Field(default=4, ge=1)  # of each layer
    dropout: float = Field(default=0.2, ge=0, lt=1)  # share of activations dropped in training
    pretrained_model: str = ""  # the model behind the rows; "" takes what the store has


class Wav2Vec2Config(StoredConfig):
    """A model of the wav2vec2 family: its stored layers, or itself over the `waveform` stream."""

    type: Literal["wav2vec2"] = "wav2vec2"
    source: Literal["stored", "waveform"] = "stored"  # features, or fine-tuning
    layers: Literal["last", "all"] | Layers = "last"  # stored ones that are mixed
    stride: Literal[1, 2, 4, 8, 16] = 8  # frames in one step of the result: 160 ms of 20 ms
    random_weights: int | None = Field(default=None, ge=0)  # waveform: a seed instead of weights
    freeze: bool = True  # waveform: the model stays as it is
    unfreeze_at_step: int = Field(default=0, ge=0)  # waveform: but from this step on; 0 is never

    @model_validator(mode="after")
    def _together(self) -> "Wav2Vec2Config":
        if not isinstance(self.layers, str) and (
            not self.layers or list(self.layers) != sorted(set(self.layers))
        ):
            text = 'expected "last", "all", or rising numbers such as [0, 6, 12]'
            raise BadKeyError("layers", list(self.layers), text)
        if self.source == "waveform" and not self.pretrained_model:
            text = "needs pretrained_model, a folder or ID@REVISION; add it"
            raise BadKeyError("source", self.source, text)
        if self.source == "stored" and (not self.freeze or self.random_weights is not None):
            key, value = (
                ("freeze", self.freeze)
                if not self.freeze
                else ("random_weights", self.random_weights)
            )
            raise BadKeyError(key, value, 'needs source = "waveform"')
        if self.unfreeze_at_step and (self.source == "stored" or not self.freeze):
            text = 'needs source = "waveform" and freeze = true'
            raise BadKeyError("unfreeze_at_step", self.unfreeze_at_step, text)
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
    vocab_size: int | None = Field(default=None, ge=1)  # of the tokens; left out: the stream's
    hidden_dim: int = Field(default=64, ge=8)  # width
    layers: int = Field(default=1, ge=0, le=24)  # of attention
    attention_heads: int = Field(default=4, ge=1)  # of each layer
    stride: Literal[1, 2, 4, 8, 16] = 8  # events in one step of attention
    dropout: float = Field(default=0.2, ge=0, lt=1)  # share of activations dropped in training
    token_dropout: float = Field(default=0.1, ge=0, lt=1)  # share of events hidden in training
    transpose: int = Field(
        default=0, ge=0, le=12
    )  # semitones up or down, drawn per clip in training


class MusicTransformerConfig(EncoderConfig):
    """Relative attention over the `midi_tokens` stream."""

    type: Literal["music_transformer"] = "music_transformer"
    vocab_size: int | None = Field(default=None, ge=1)  # of the tokens; left out: the stream's
    hidden_dim: int = Field(default=64, ge=8)  # width
    layers: int = Field(default=1, ge=0, le=24)  # of relative attention
    attention_heads: int = Field(default=4, ge=1)  # of each layer
    stride: Literal[1, 2, 4, 8, 16] = 2  # events in one step of attention
    reach: int = Field(default=64, ge=1, le=4096)  # steps either way whose distance is told apart
    bar_reach: int = Field(default=8, ge=1, le=256)  # bars either way
    dropout: float = Field(default=0.3, ge=0, lt=1)  # share of activations dropped in training
    token_dropout: float = Field(default=0.2, ge=0, lt=1)  # share of events hidden in training
    transpose: int = Field(default=6, ge=0, le=12)  # semitones up or down in training


class PianoRollConfig(EncoderConfig):
    """Convolutions over the `piano_roll` stream."""

    type: Literal["piano_roll"] = "piano_roll"
    hidden_dim: int = Field(default=64, ge=8)  # width
    channels: int = Field(default=16, ge=1, le=512)  # of the first convolution; then twice as many
    stride: Literal[4, 8, 16, 32] = 8  # frames in one step of the result
    dropout: float = Field(default=0.2, ge=0, lt=1)  # share of activations dropped in training
    transpose: int = Field(default=0, ge=0, le=12)  # semitones up or down in training


class TextEncoderConfig(EncoderConfig):
    """A small transformer and a bag of subwords over the `text_tokens` stream."""

    type: Literal["text"] = "text"
    vocab_size: int | None = Field(default=None, ge=1)  # of the tokens; left out: the stream's
    hidden_dim: int = Field(default=64, ge=8)  # width
    layers: int = Field(default=1, ge=0, le=24)  # of attention
    attention_heads: int = Field(default=4, ge=1)  # of each layer
    dropout: float = Field(default=0.2, ge=0, lt=1)  # share of activations dropped in training
    token_dropout: float = Field(default=0.1, ge=0, lt=1)  # share of tokens hidden in training


class StatisticsConfig(EncoderConfig):
    """What encoders over rows of descriptors have in common."""

    hidden_dim: int = Field(default=64, ge=8)  # width
    dropout: float = Field(default=0.5, ge=0, lt=1)  # share of descriptors hidden in training


class AudioStatisticsConfig(StatisticsConfig):
    """A linear map of the `audio_statistics` stream."""

    type: Literal["audio_statistics"] = "audio_statistics"


class NoteStatisticsConfig(StatisticsConfig):
    """A linear map of the `note_statistics` stream."""

    type: Literal["note_statistics"] = "note_statistics"


class NgramBagConfig(StatisticsConfig):
    """A weighted bag of n-grams of the `text_tokens` stream."""

    type: Literal["ngram_bag"] = "ngram_bag"
    ngrams: tuple[Annotated[int, Field(ge=1, le=8)], Annotated[int, Field(ge=1, le=8)]] = Field(
        default=(1, 4), strict=False
    )  # lengths from and to
    buckets: int = Field(default=4096, ge=64, le=1 << 22)  # n-grams are hashed into so many

    @model_validator(mode="after")
    def _rising(self) -> "NgramBagConfig":
        if self.ngrams[0] > self.ngrams[1]:
            raise ValueError("ngrams are the shortest and the longest length, such as [1, 4]")
        return self


AudioEncoderConfig = Annotated[
    MelCNNConfig | Wav2Vec2Config | CLAPConfig | AudioStatisticsConfig, Field(discriminator="type")
]
MidiEncoderConfig = Annotated[
    EventBasedConfig | MusicTransformerConfig | PianoRollConfig | NoteStatisticsConfig,
    Field(discriminator="type"),
]
AnyTextEncoderConfig = Annotated[
    TextEncoderConfig | TextEmbeddingConfig | NgramBagConfig, Field(discriminator="type")
]
