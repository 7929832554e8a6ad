"""From one clip's bytes to its entries: one maker a modality, each a short chain of stages.

    audio:  read -> decode -> resample -> log-mel
    MIDI:   read -> parse -> align -> notes -> tokens, piano roll
    text:   tokenize

A maker says which streams it makes before anything heavy is imported, so that a run that has
nothing to do ends as soon as it has compared hashes.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from blake3 import blake3

from mmfuse.features import midi_tokens, notes, piano_roll
from mmfuse.features.clip import Clip
from mmfuse.features.config import AudioPreprocessing, MidiPreprocessing, TextPreprocessing
from mmfuse.features.errors import MissingError
from mmfuse.features.logmel import LogMelParams, logmel_spec
from mmfuse.features.origins import align, audio_origin, needs_files
from mmfuse.features.spec import Entry, StreamSpec
from mmfuse.features.text import TextParams, text_tokens_spec
from mmfuse.features.timecode import AudioOrigin
from mmfuse.features.waveform import Waveform, WaveformParams
from mmfuse.features.windows import Windows

if TYPE_CHECKING:
    from mmfuse.features.audio import Audio


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a maker needs of a clip: its bytes, and the hash of all that its entries depend on.

    MIDI needs to know, too, when the audio says that it begins, or why that can't be read.
    """

    data: bytes
    content: bytes
    audio: AudioOrigin | None = None
    note: str = ""


class Maker(Protocol):
    """Makes all streams of one modality."""

    modality: str
    specs: tuple[StreamSpec, ...]

    def load(self, clip: Clip) -> Loaded | None:
        """The modality's bytes, None where the clip has none."""

    def make(self, clip: Clip, loaded: Loaded) -> dict[str, Entry]:
        """Entries by stream name. Raises ClipError where the bytes are no good."""


class AudioEncoder(Protocol):
    """A frozen encoder of audio: its specs at once, frames by stream name when called."""

    specs: tuple[StreamSpec, ...]

    def __call__(self, audio: "Audio") -> dict[str, Entry]:
        """Frames of one clip."""


class _LogMel:
    """Log-mel frames; torch is loaded with the first clip."""

    def __init__(self, config: AudioPreprocessing) -> None:
        self._params = LogMelParams(
            rate_hz=config.rate_hz,
            n_fft=config.n_fft,
            hop=config.hop,
            n_mels=config.n_mels,
            f_min_hz=config.f_min_hz,
            f_max_hz=config.f_max_hz,
        )
        self.specs: tuple[StreamSpec, ...] = (logmel_spec(self._params),)

    @cached_property
    def _encode(self) -> Callable[["Audio"], Entry]:
        import torch

        try:
            import torchaudio  # noqa: F401
        except (ImportError, OSError, RuntimeError) as error:
            raise MissingError(
                f"torchaudio does not load beside torch {torch.__version__}: {error} Install "
                "versions that belong together: pip install --upgrade mmfuse torchaudio"
            ) from None
        from mmfuse.features.logmel import LogMel

        torch.set_num_threads(1)  # the plan of the spec: sums are split the same way everywhere
        return LogMel(self._params)

    def __call__(self, audio: "Audio") -> dict[str, Entry]:
        return {"logmel": self._encode(audio)}


class _Waveform:
    def __init__(self, config: AudioPreprocessing) -> None:
        self._encode = Waveform(WaveformParams(config.rate_hz))
        self.specs: tuple[StreamSpec, ...] = (self._encode.spec,)

    def __call__(self, audio: "Audio") -> dict[str, Entry]:
        return {"waveform": self._encode(audio)}


def _wav2vec2(config: AudioPreprocessing) -> AudioEncoder:
    from mmfuse.features.wav2vec2 import Wav2vec2, Wav2vec2Params

    duration_s = Fraction(str(config.duration_s))
    hop_s = duration_s if config.hop_s is None else Fraction(str(config.hop_s))
    windows = Windows(duration_s, hop_s, config.tail)
    return Wav2vec2(
        Wav2vec2Params(config.model, windows, config.layers, config.random_weights, config.threads)
    )


ENCODERS: dict[str, Callable[[AudioPreprocessing], AudioEncoder]] = {
    "logmel": _LogMel,
    "waveform": _Waveform,
    "wav2vec2": _wav2vec2,
}


class AudioMaker:
    """Frames of an audio encoder."""

    modality = "audio"

    def __init__(self, config: AudioPreprocessing) -> None:
        self._encode = ENCODERS[config.encoder](config)
        self.specs = self._encode.specs

    def load(self, clip: Clip) -> Loaded | None:
        """The file as it is; its hash is the entry's content."""
        if clip.audio is None:
            return None
        data = clip.audio.read()
        return Loaded(data, blake3(data).digest())

    def make(self, clip: Clip, loaded: Loaded) -> dict[str, Entry]:
        """Decode and encode."""
        from mmfuse.features.audio import read_audio

        return self._encode(read_audio(loaded.data))


class MidiMaker:
    """Notes on the clip's clock, and what is derived from them."""

    modality = "midi"

    def __init__(self, config: MidiPreprocessing) -> None:
        self._tokens = tokenization(config)
        self._roll = piano_roll.PianoRollParams(fps=config.roll_fps, planes=config.roll_planes)
        self.specs: tuple[StreamSpec, ...] = (
            notes.notes_spec(),
            midi_tokens.midi_tokens_spec(self._tokens),
            piano_roll.piano_roll_spec(self._roll),
        )

    def load(self, clip: Clip) -> Loaded | None:
        """The file; all that places it on the clip's clock is part of the content.

        FF 54 lies in the file itself; of the audio no more than headers are read, and these only
        where the manifest leaves the audio's start open.
        """
        if clip.midi is None:
            return None
        data = clip.midi.read()
        if not needs_files(clip):
            told = align(clip)
            return Loaded(data, blake3(data + f"|{told.offset_s}|{told.note}".encode()).digest())
        audio, note = (None, "") if clip.origins.audio else audio_origin(clip)
        place = f"|{clip.origins}|{clip.estimate}|{audio}|{note}"
        return Loaded(data, blake3(data + place.encode()).digest(), audio, note)

    def make(self, clip: Clip, loaded: Loaded) -> dict[str, Entry]:
        """Parse, align, derive."""
        from mmfuse.features.midi_file import read_midi

        midi = read_midi(loaded.data)
        aligned = align(clip, loaded.audio, midi.start) if needs_files(clip) else align(clip)
        entry = notes.notes_entry(midi, aligned.offset_s)
        note = _join(entry.note, aligned.note, loaded.note)
        entry = Entry(entry.values, entry.origin_s, entry.windows, note)
        return {
            "notes": entry,
            "midi_tokens": midi_tokens.tokens_entry(entry.values, self._tokens),
            "piano_roll": piano_roll.roll_entry(entry.values, self._roll),
        }


def tokenization(config: MidiPreprocessing) -> midi_tokens.Tokenization:
    """The way of writing notes down that a configuration names, with what it says of it."""
    chosen = midi_tokens.TOKENIZATIONS[config.tokenization]
    names = {field.name for field in fields(chosen)}
    return chosen(**config.model_dump(include=names))


class TextMaker:
    """Subword tokens by a tokenizer that belongs to the store."""

    modality = "text"

    def __init__(self, config: TextPreprocessing, tokenizer_json: str) -> None:
        self._params, self._json = text_params(config), tokenizer_json
        self.specs: tuple[StreamSpec, ...] = (text_tokens_spec(self._params, tokenizer_json),)

    @cached_property
    def _tokenize(self) -> Callable[[str], Entry]:
        from mmfuse.features.text import TextTokenizer

        return TextTokenizer(self._params, self._json)

    def load(self, clip: Clip) -> Loaded | None:
        """The text as UTF-8; what can't be encoded is reported by `make`."""
        if clip.text is None:
            return None
        data = clip.text.encode("utf-8", errors="surrogatepass")
        return Loaded(data, blake3(data).digest())

    def make(self, clip: Clip, loaded: Loaded) -> dict[str, Entry]:
        """Tokenize."""
        assert clip.text is not None
        return {"text_tokens": self._tokenize(clip.text)}


def text_params(config: TextPreprocessing) -> TextParams:
    """The tokenizer's part of a configuration."""
    return TextParams(vocab_size=config.vocab_size, max_tokens=config.max_tokens)


def _join(*notes_: str) -> str:
    return "; ".join(note for note in notes_ if note)
