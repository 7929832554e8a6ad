"""From one clip's bytes to its entries: one maker a modality, each a short chain of stages.

    audio:  read -> decode -> (augment) -> resample -> windows -> encoder
    MIDI:   read -> parse -> align -> notes -> (augment) -> tokens, piano roll
    text:   tokenize -> encoder, if one is chosen

A maker says which streams it makes before anything heavy is imported, so that a run that has
nothing to do ends as soon as it has compared hashes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from blake3 import blake3

from mmfuse.features import layout, midi_tokens, note_statistics, notes, piano_roll
from mmfuse.features.augment import VIEW_0, Draw, augment_audio, augment_notes
from mmfuse.features.clip import Clip
from mmfuse.features.config import (
    AudioPreprocessing,
    MidiPreprocessing,
    Preprocessing,
    TextPreprocessing,
)
from mmfuse.features.encoders import CPU, Compute, Outputs, build_encoder, cut, join
from mmfuse.features.errors import ConfigError
from mmfuse.features.origins import align, audio_origin, needs_files
from mmfuse.features.spec import Array, Entry, StreamSpec
from mmfuse.features.text import TextParams, text_tokens_spec
from mmfuse.features.timecode import AudioOrigin

if TYPE_CHECKING:
    from mmfuse.features.audio import Audio
    from mmfuse.features.text_models import Tokens


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a maker needs of a clip: its bytes, and the hash of all that view 0 depends on.

    MIDI needs to know, too, when the audio says that it begins, or why that can't be read.
    """

    data: bytes
    content: bytes
    audio: AudioOrigin | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A clip's modality, ready to be encoded.

    `items` are what goes through an encoder: windows of samples, or the tokens of a text. Items of
    one shape may go together. `rest` is whatever `join` needs, `audio_s` the seconds decoded.
    """

    items: tuple[Array, ...] = ()
    rest: Any = None
    audio_s: float = 0.0


class Maker(Protocol):
    """Makes all streams of one modality, in steps that may run at different places.

    `load`, `decode` and `prepare` run in threads, ahead; `encode` takes items of one shape, of any
    clips, in the one thread that has the model; `join` puts a clip's results together.
    """

    modality: str
    specs: tuple[StreamSpec, ...]

    def load(self, clip: Clip) -> Loaded | None:
        """The modality's bytes, None where the clip has none."""

    def decode(self, clip: Clip, loaded: Loaded) -> Any:
        """What all views are made from. Raises ClipError where the bytes are no good."""

    def prepare(self, decoded: Any, drawn: Draw) -> Prepared:
        """One view of it, all but encoded. Raises ClipError where there is none."""

    def encode(self, items: Array) -> Outputs:
        """(B, ...) items of one shape -> (B, ...) by stream name."""

    def join(self, prepared: Prepared, outputs: Sequence[Outputs]) -> dict[str, Entry]:
        """Entries by stream name, from what came out for each item."""


def load_audio(clip: Clip) -> Loaded | None:
    """See `AudioMaker.load`."""
    if clip.audio is None:
        return None
    data = clip.audio.read()
    return Loaded(data, blake3(data).digest())


def load_midi(clip: Clip) -> Loaded | None:
    """See `MidiMaker.load`."""
    if clip.midi is None:
        return None
    data = clip.midi.read()
    if not needs_files(clip):
        told = align(clip)
        return Loaded(data, blake3(data + f"|{told.offset_s}|{told.note}".encode()).digest())
    audio, note = (None, "") if clip.origins.audio else audio_origin(clip)
    place = f"|{clip.origins}|{clip.estimate}|{audio}|{note}"
    if clip.audio is not None and clip.audio.start_s:
        place += f"|{clip.audio.start_s}"
    return Loaded(data, blake3(data + place.encode()).digest(), audio, note)


def load_text(clip: Clip) -> Loaded | None:
    """See `TextMaker.load`."""
    if clip.text is None:
        return None
    data = clip.text.encode("utf-8", errors="surrogatepass")
    return Loaded(data, blake3(data).digest())


class AudioMaker:
    """Frames of an audio encoder."""

    modality = "audio"

    def __init__(self, config: AudioPreprocessing, compute: Compute = CPU) -> None:
        self._encoder = build_encoder(config, compute)
        self.specs = self._encoder.specs

    def load(self, clip: Clip) -> Loaded | None:
        """The file as it is; its hash is the entry's content."""
        return load_audio(clip)

    def decode(self, clip: Clip, loaded: Loaded) -> "Audio":
        """Samples at the file's own rate."""
        from mmfuse.features.audio import read_audio

        return read_audio(loaded.data)

    def prepare(self, decoded: "Audio", drawn: Draw) -> Prepared:
        """Augment, resample, cut into windows."""
        audio = decoded if drawn == VIEW_0 else augment_audio(decoded, drawn)
        windows = cut(self._encoder, audio)
        return Prepared(tuple(w.samples_N for w in windows), windows, audio.duration_s)

    def encode(self, items: Array) -> Outputs:
        """Windows of one length through the encoder."""
        return self._encoder.encode(items)

    def join(self, prepared: Prepared, outputs: Sequence[Outputs]) -> dict[str, Entry]:
        """The frames of all windows as one entry a stream."""
        return join(self._encoder, prepared.rest, outputs)


class _Direct:
    """Makers whose `prepare` has done everything."""

    def encode(self, items: Array) -> Outputs:
        """Nothing is left to encode."""
        raise AssertionError

    def join(self, prepared: Prepared, outputs: Sequence[Outputs]) -> dict[str, Entry]:
        """The entries that `prepare` made."""
        return dict(prepared.rest)


class MidiMaker(_Direct):
    """Notes on the clip's clock, and what is derived from them."""

    modality = "midi"

    def __init__(self, config: MidiPreprocessing) -> None:
        self._tokens = midi_tokens.build_tokenization(config)
        self._roll = piano_roll.PianoRollParams(fps=config.roll_fps, planes=config.roll_planes)
        self.specs: tuple[StreamSpec, ...] = (
            notes.notes_spec(),
            midi_tokens.midi_tokens_spec(self._tokens),
            piano_roll.piano_roll_spec(self._roll),
        )
        self._statistics = config.statistics
        if self._statistics:
            self.specs += (note_statistics.note_statistics_spec(),)

    def load(self, clip: Clip) -> Loaded | None:
        """The file; all that places it on the clip's clock is part of the content.

        FF 54 lies in the file itself; of the audio no more than headers are read, and these only
        where the manifest leaves the audio's start open.
        """
        return load_midi(clip)

    def decode(self, clip: Clip, loaded: Loaded) -> Entry:
        """Parse and align: the `notes` entry."""
        from mmfuse.features.midi_file import read_midi

        midi = read_midi(loaded.data)
        aligned = align(clip, loaded.audio, midi.start) if needs_files(clip) else align(clip)
        entry = notes.notes_entry(midi, aligned.offset_s)
        note = _join(entry.note, aligned.note, loaded.note)
        return replace(entry, note=note)

    def prepare(self, decoded: Entry, drawn: Draw) -> Prepared:
        """Augment, derive tokens and roll."""
        entry = replace(decoded, values=augment_notes(decoded.values, drawn))
        entries = {
            "notes": entry,
            "midi_tokens": midi_tokens.tokens_entry(entry.values, self._tokens),
            "piano_roll": piano_roll.roll_entry(entry.values, self._roll),
        }
        if self._statistics:
            entries["note_statistics"] = note_statistics.statistics_entry(entry.values)
        return Prepared(rest=entries)


class _Text:
    """Makers of text: their bytes are the manifest's cell."""

    modality = "text"

    def load(self, clip: Clip) -> Loaded | None:
        """The text as UTF-8; what can't be encoded is reported by `decode`."""
        return load_text(clip)


class TextMaker(_Text, _Direct):
    """Subword tokens by a tokenizer that belongs to the store."""

    def __init__(self, config: TextPreprocessing, tokenizer_json: str) -> None:
        self._params, self._json = text_params(config), tokenizer_json
        self.specs: tuple[StreamSpec, ...] = (text_tokens_spec(self._params, tokenizer_json),)

    @cached_property
    def _tokenize(self) -> Callable[[str], Entry]:
        from mmfuse.features.text import TextTokenizer

        return TextTokenizer(self._params, self._json)

    def decode(self, clip: Clip, loaded: Loaded) -> Entry:
        """Tokenize."""
        assert clip.text is not None
        return self._tokenize(clip.text)

    def prepare(self, decoded: Entry, drawn: Draw) -> Prepared:
        """The tokens; a text has no views but view 0."""
        return Prepared(rest={"text_tokens": decoded})


class TextModelMaker(_Text):
    """Vectors of a frozen encoder of text."""

    def __init__(self, config: TextPreprocessing, compute: Compute = CPU) -> None:
        from mmfuse.features.text_models import TextModel, TextModelParams

        assert config.encoder != "bpe"
        names = {field.name for field in fields(TextModelParams)}
        self._model = TextModel(TextModelParams(**config.model_dump(include=names)), compute)
        self.specs: tuple[StreamSpec, ...] = (self._model.spec,)

    def decode(self, clip: Clip, loaded: Loaded) -> "Tokens":
        """Tokenize."""
        assert clip.text is not None
        return self._model.tokens(clip.text)

    def prepare(self, decoded: "Tokens", drawn: Draw) -> Prepared:
        """Texts of one number of tokens may go together; a text has no views but view 0."""
        return Prepared((decoded.ids_T,) if len(decoded.ids_T) else (), decoded)

    def encode(self, items: Array) -> Outputs:
        """Texts of one number of tokens through the model."""
        return {self._model.spec.name: self._model.encode(items)}

    def join(self, prepared: Prepared, outputs: Sequence[Outputs]) -> dict[str, Entry]:
        """The rows of a text."""
        name = self._model.spec.name
        values = outputs[0][name] if outputs else None
        return {name: self._model.entry(prepared.rest, values)}


def makers_of(
    config: Preprocessing, store: Path, tokenizer: str = "", compute: Compute = CPU
) -> list[Maker]:
    """A maker for each modality that a configuration has a section for.

    Args:
        tokenizer: name of its file in the store; without it, text is left out.

    Raises:
        ConfigError: it asks for no stream.
    """
    makers: list[Maker] = []
    if config.audio is not None:
        makers.append(AudioMaker(config.audio, compute))
    if config.midi is not None:
        makers.append(MidiMaker(config.midi))
    if config.text is not None and config.text.encoder != "bpe":
        makers.append(TextModelMaker(config.text, compute))
    elif config.text is not None and tokenizer:
        path = store / layout.META / tokenizer
        layout.require_regular(store, path)
        makers.append(TextMaker(config.text, path.read_text(encoding="utf-8")))
    if not makers:
        raise ConfigError(
            "the configuration asks for no stream; add a section such as [preprocessing.audio]"
        )
    return makers


def text_params(config: TextPreprocessing) -> TextParams:
    """The tokenizer's part of a configuration."""
    return TextParams(vocab_size=config.vocab_size, max_tokens=config.max_tokens)


def _join(*notes_: str) -> str:
    return "; ".join(note for note in notes_ if note)
