"""The run configuration, as far as features go: where the corpus is and how streams are made.

One TOML file serves both tools: `mmfeat run` reads `[data]` and `[preprocessing.*]` of it, and
`mmtrain run` reads the same two sections and its own. Unknown keys are refused with the nearest
valid name (`config_file.py`), so that a slip of the pen never becomes a default.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mmfuse.features import plugins
from mmfuse.features.config_faults import BadKeyError, names_of
from mmfuse.features.config_file import read_overrides, read_toml, validate

TOKENIZATIONS = ("midi_like", "remi", "compound")  # ours


class Strict(BaseModel):
    """A section of a configuration: frozen, typed as TOML is, and no key that it does not know.

    The comment beside a field is its description in the JSON Schema (`config_schema.py`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _once(cls, section: Any) -> Any:
        for name, field in cls.model_fields.items() if isinstance(section, Mapping) else ():
            given = [other for other in names_of(name, field) if other in section]
            if len(given) > 1:
                text = f"is {given[0]} under another name, which is also given; take one out"
                raise BadKeyError(given[1], section[given[1]], text)
        return section


# TOML has no paths and no tuples: text and lists become them
Location = Annotated[Path, Field(strict=False)]
Range = Annotated[tuple[float, float], Field(strict=False)]


class DataConfig(Strict):
    """Where the corpus and the feature store are."""

    corpus: Location | None = None  # manifest (Parquet, JSONL, CSV) or folder
    store: Location | None = None  # folder of the feature store
    columns: dict[str, str] = Field(default_factory=dict)  # our column name -> the manifest's


class JointAugmentations(Strict):
    """What moves audio and MIDI together; it may stand in the section of either."""

    time_stretch: Range | None = None  # how many times as long, from and to, in hundredths
    pitch_shift: int = Field(default=0, ge=0, le=12)  # semitones, up or down at most

    @field_validator("time_stretch")
    @classmethod
    def _moderate(cls, value: Range | None) -> Range | None:
        return _range_within(value, 0.5, 2)


class AudioAugmentations(JointAugmentations):
    """What else differs in the audio of a view."""

    noise_snr_db: Range | None = None  # white noise this much below the clip, from and to
    gain_db: Range | None = None  # louder or softer by so much, from and to
    plugins: dict[str, dict[str, Any]] = Field(default_factory=dict)  # of packages: their options

    @field_validator("noise_snr_db", "gain_db")
    @classmethod
    def _audible(cls, value: Range | None) -> Range | None:
        return _range_within(value, -60, 120)


class MidiAugmentations(JointAugmentations):
    """What else differs in the notes of a view."""

    velocity: int = Field(default=0, ge=0, le=126)  # each note's varies by up to it
    quantize: int = Field(default=0, ge=0, le=96)  # steps a quarter; 0: not at all
    quantize_strength: Range = (0.0, 1.0)  # from and to; 1 puts onsets onto the grid
    jitter_s: float = Field(default=0.0, ge=0, le=0.1)  # each note moves by up to it
    plugins: dict[str, dict[str, Any]] = Field(default_factory=dict)  # of packages: their options

    @field_validator("quantize_strength")
    @classmethod
    def _share(cls, value: Range) -> Range | None:
        return _range_within(value, 0, 1)


class Augmentations(AudioAugmentations, MidiAugmentations):
    """What the views of a clip differ in, in all modalities."""


def _range_within(value: Range | None, least: float, most: float) -> Range | None:
    if value is not None and not least <= value[0] <= value[1] <= most:
        raise ValueError(f"expected [from, to] with {least} <= from <= to <= {most}")
    return value


class AudioPreprocessing(Strict):
    """How audio becomes a stream."""

    encoder: str = "logmel"  # `mmfeat encoders` lists them
    rate_hz: int = Field(
        16000, ge=4000, le=192000, validation_alias=AliasChoices("rate_hz", "sample_rate")
    )  # of logmel and waveform; models have their own
    n_fft: int = Field(1024, ge=64, le=65536)  # samples in a frame
    hop: int = Field(320, ge=1)  # samples; 320 at 16 kHz is 20 ms
    n_mels: int = Field(80, ge=1, le=512)  # bands
    f_min_hz: float = Field(0.0, ge=0)  # lower end of the lowest band
    f_max_hz: float = Field(8000.0, gt=0)  # upper end of the highest; at most half the rate
    dtype: Literal["float16", "int8"] = "float16"  # of frames on disk; waveform stays int16
    model: str = ""  # folder, or hub id with @revision
    layers: str = "last"  # last, all, mean, or numbers such as 0,6,12
    random_weights: int | None = Field(None, ge=0)  # seed of an architecture without its weights
    duration_s: float | None = Field(
        None, gt=0, validation_alias=AliasChoices("duration_s", "duration")
    )  # seconds of the windows that a model sees; left out, its own
    hop_s: float | None = Field(None, gt=0)  # from window to window; their length, if left out
    tail: Literal["short", "drop", "pad"] = "short"  # what becomes of the last window
    overlap: Literal["keep", "average"] = "keep"  # of frames that stand in several windows
    threads: int = Field(2, ge=1)  # of the model; their number shows in the last bits
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # in which a model computes
    backend: Literal["torch", "onnxruntime"] = "torch"  # what runs it; onnxruntime: CPU only
    options: dict[str, Any] = Field(default_factory=dict)  # of encoders that other packages bring
    augmentations: AudioAugmentations | None = None  # of the views


class MidiPreprocessing(Strict):
    """How MIDI becomes notes, event tokens and a piano roll."""

    tokenization: str = "midi_like"  # `mmfeat tokenizers` lists them
    velocity_bins: int = Field(32, ge=1, le=127)  # steps of loudness
    max_events: int = Field(4096, ge=16)  # tokens a clip; more are cut and counted
    positions_per_quarter: int = Field(12, ge=1, le=96)  # grid of remi and compound
    programs: bool = False  # remi and compound say each note's program
    tempos: bool = False  # remi and compound say the tempo
    roll_fps: int = Field(50, ge=1, le=1000)  # frames a second of the piano roll
    roll_planes: tuple[Literal["onset", "sustain", "velocity", "drums"], ...] = Field(
        ("onset", "sustain", "velocity"), min_length=1, strict=False
    )  # of the roll
    options: dict[str, Any] = Field(default_factory=dict)  # of tokenizers that packages bring
    statistics: bool = False  # one row more, which describes all notes of a clip
    augmentations: MidiAugmentations | None = None  # of the views

    @field_validator("tokenization")
    @classmethod
    def _is_there(cls, value: str) -> str:
        if fault := plugins.unknown("tokenizer", value, TOKENIZATIONS):
            raise ValueError(fault)
        return value

    @field_validator("positions_per_quarter", "programs", "tempos")
    @classmethod
    def _is_used(cls, value: int, info: ValidationInfo) -> int:
        default = cls.model_fields[str(info.field_name)].default
        if info.data.get("tokenization") == "midi_like" and value != default:
            raise ValueError(
                'midi_like has no use for it; set tokenization = "remi" or "compound", or take it '
                "out"
            )
        return value


class TextPreprocessing(Strict):
    """How text becomes tokens or vectors.

    `bpe` is byte-level BPE trained on the corpus' train split and needs no model. `transformer` is
    a frozen encoder of text, `clap` the text branch of a CLAP checkpoint.
    """

    encoder: Literal["bpe", "transformer", "clap"] = "bpe"  # what reads the text
    vocab_size: int = Field(2000, ge=257, le=65000)  # of bpe; 257 are single bytes
    max_tokens: int = Field(1024, ge=1)  # a clip; more are cut and counted
    tokenizer: str = ""  # of bpe: file of one that was trained before, instead of training one
    model: str = ""  # folder, or hub id with @revision
    pooling: Literal["none", "mean", "cls"] = "mean"  # of transformer: a row a token, or one row
    random_weights: int | None = Field(None, ge=0)  # seed of an architecture without its weights
    threads: int = Field(2, ge=1)  # of the model; their number shows in the last bits

    @field_validator("tokenizer")
    @classmethod
    def _is_bpe(cls, value: str, info: ValidationInfo) -> str:
        if value and info.data.get("encoder") != "bpe":
            raise ValueError('a model has its own; set encoder = "bpe", or take it out')
        return value

    @field_validator("model", "pooling", "random_weights", "threads")
    @classmethod
    def _is_used(cls, value: Any, info: ValidationInfo) -> Any:
        encoder = info.data.get("encoder")
        unused = encoder == "bpe" or (encoder == "clap" and info.field_name == "pooling")
        if unused and value != cls.model_fields[str(info.field_name)].default:
            raise ValueError(
                f'{encoder} has no use for it; set encoder = "transformer", or take it out'
            )
        return value


class Preprocessing(Strict):
    """One section a modality; what has no section is not made.

    Views are augmented variants of a clip: `augmentations` of audio and MIDI say how they differ.
    """

    views: int = Field(default=0, ge=0, le=1000)  # of each clip, beside the clip as it is
    view_splits: tuple[str, ...] = Field(default=("train",), strict=False)  # whose clips have them
    view_seed: int = Field(default=0, ge=0)  # another seed, other views
    audio: AudioPreprocessing | None = None
    midi: MidiPreprocessing | None = None
    text: TextPreprocessing | None = None

    def augmentations(self) -> Augmentations:
        """What views differ in, over all modalities."""
        merged: dict[str, Any] = {"plugins": {}}
        for section in (self.audio, self.midi):
            if section is not None and section.augmentations is not None:
                said = section.augmentations.model_dump()
                said["plugins"] = merged["plugins"] | said["plugins"]
                merged |= {key: value for key, value in said.items() if key not in merged or value}
        return Augmentations(**merged)

    def joint(self) -> dict[str, Any]:
        """What moves audio and MIDI together, whichever section says it."""
        policy = self.augmentations()
        return {key: v for key in JointAugmentations.model_fields if (v := getattr(policy, key))}

    @model_validator(mode="after")
    def _agree(self) -> "Preprocessing":
        audio, midi = (
            None if section is None else section.augmentations
            for section in (self.audio, self.midi)
        )
        for key in JointAugmentations.model_fields:
            values = getattr(audio, key, None), getattr(midi, key, None)
            if all(values) and values[0] != values[1]:
                raise BadKeyError(
                    f"midi.augmentations.{key}",
                    values[1],
                    f"moves audio and MIDI together, and audio.augmentations.{key} is {values[0]}; "
                    "take one out",
                )
        return self


class FeatureConfig(Strict):
    """What `mmfeat` needs to know."""

    ELSEWHERE: ClassVar = ("name", "model", "train", "eval")  # the trainer's
    data: DataConfig = DataConfig()
    preprocessing: Preprocessing = Preprocessing()


def load_feature_config(
    path: Path, overrides: Sequence[str] = (), views: int | None = None
) -> FeatureConfig:
    """What a run configuration says about features; the trainer's sections are left alone.

    `views` is the number that was typed, which wins over the file's.
    """
    typed = [*overrides, *_typed_views(views)]
    document = read_toml(path, FeatureConfig, typed)
    own = {key: value for key, value in document.items() if key not in FeatureConfig.ELSEWHERE}
    return validate(FeatureConfig, own, str(path), typed)


def stage_config(
    path: Path | None,
    overrides: Sequence[str],
    sections: Mapping[str, Mapping[str, Any]],
    views: int | None = None,
) -> FeatureConfig:
    """Settings of a single stage: the configuration's sections where it has them, else defaults.

    Args:
        path: a run configuration, or None.
        overrides: `section.key=value` texts.
        sections: those of `[preprocessing]` that the stage makes, with what was typed.
        views: the number that was typed.
    """
    if path is None:
        document: dict[str, Any] = {
            "preprocessing": {key: {**own} for key, own in sections.items()}
        }
        read_overrides(document, [*overrides, *_typed_views(views)], FeatureConfig)
        return validate(FeatureConfig, document, "command line")
    settings = load_feature_config(path, overrides, views)
    given = settings.preprocessing.model_dump(exclude_none=True)
    chosen = {name: {**given.get(name, {}), **own} for name, own in sections.items()}
    joint = settings.preprocessing.joint()
    for name in {"audio", "midi"} & set(sections) if joint else ():
        chosen[name]["augmentations"] = {**chosen[name].get("augmentations", {}), **joint}
    chosen |= {name: given[name] for name in ("views", "view_splits", "view_seed")}
    document = {"data": settings.data.model_dump(), "preprocessing": chosen}
    return validate(FeatureConfig, document, str(path))


def _typed_views(views: int | None) -> list[str]:
    return [] if views is None else [f"preprocessing.views={views}"]
