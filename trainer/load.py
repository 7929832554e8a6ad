"""From a run configuration to the dataset that it names, or to the command that makes it."""

import shlex
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from mmfuse.features.clip import Clip
from mmfuse.features.corpus import open_corpus
from mmfuse.features.errors import ConfigError, MissingError
from mmfuse.features.spec import StreamSpec
from mmfuse.features.store import FeatureStore, Stream, open_store
from mmfuse.trainer.config import RunConfig
from mmfuse.trainer.dataset import SPLITS, Dataset
from mmfuse.trainer.encoders import stream_names
from mmfuse.trainer.task import Named
from mmfuse.trainer.tasks import TASKS

# streams that some `mmfeat extract --encoder` makes; the others are there after any `mmfeat run`
MAKERS = {
    name: name
    for name in ("logmel", "waveform", "audio_statistics", "wav2vec2", "clap", "text_embedding")
}


def load_dataset(
    config: RunConfig, config_path: Path, overrides: Sequence[str] = ()
) -> tuple[Dataset, FeatureStore]:
    """The corpus and the streams that a run configuration names.

    Args:
        config: the configuration, overrides included.
        config_path: its file, for messages.
        overrides: what was typed with `--set`; those that concern features go into the `mmfeat`
            line of a message.

    Raises:
        ConfigError: no corpus or store is named, a split has no labelled clips, there is only one
            label or one that the task can't read, a modality has no section in `[preprocessing]`,
            or views are wanted of none.
        MissingError: the store or a stream is not there, was made with other settings, or holds
            none of the clips or none of their views; the message ends with the command that makes
            it.
    """
    data = config.data
    if data.corpus is None or data.store is None:
        key = "corpus" if data.corpus is None else "store"
        raise ConfigError(f"{config_path}: data.{key} is missing; add it, or --set data.{key}=PATH")
    for name in config.model.encoders():
        if getattr(config.preprocessing, name) is None:
            raise ConfigError(
                f"{config_path}: model.{name}_encoder needs [preprocessing.{name}]; add it, an "
                "empty one takes the defaults"
            )
    clips = _labelled(config)
    lines = {
        name: _mmfeat_line(config_path, config, overrides, name) for name in config.model.encoders()
    }
    if not data.store.exists():
        make = next(iter(lines.values()))
        raise MissingError(f"no feature store at {data.store}; make it with: {make}")
    store = open_store(data.store)
    streams = {
        name: _streams(store, encoder, getattr(config.preprocessing, name), lines[name])
        for name, encoder in config.model.encoders().items()
    }
    labels = [clip.label for clip in clips]
    splits = [clip.split or "" for clip in clips]
    dataset = Dataset(
        [clip.id for clip in clips],
        splits,
        labels,
        streams,
        [clip.group for clip in clips],
        _views(config, config_path, streams, lines),
        TASKS[config.train.task].learned(labels, np.array(splits) == "train"),
    )
    train = dataset.clips_of("train")
    for m, (name, stream) in enumerate(dataset.streams.items()):
        if not dataset.present_NM[train, m].any():
            raise MissingError(
                f"stream {stream.key} of {data.store} holds none of the {len(train)} train clips "
                f"of {data.corpus}; if they have {name}, make it with: {lines[name]}"
            )
    return dataset, store


def _labelled(config: RunConfig) -> list[Clip]:
    """All clips that have label and split, in the corpus' order."""
    corpus = config.data.corpus
    assert corpus is not None
    clips = [
        clip
        for clip in open_corpus(corpus, config.data.columns).labels()
        if clip.split in SPLITS and clip.label is not None
    ]
    for split in SPLITS:
        if not any(clip.split == split for clip in clips):
            raise ConfigError(
                f"corpus {corpus} has no labelled clips in split {split!r}; give every clip a "
                f"label and a split ({', '.join(SPLITS)})"
            )
    TASKS[config.train.task].refuse([Named(c.id, c.label) for c in clips], f"corpus {corpus}")
    labels = {clip.label for clip in clips if clip.split == "train"}
    if len(labels) < 2:
        raise ConfigError(
            f"corpus {corpus} has one label only in its train split, {labels.pop()!r}; there is "
            "nothing to tell apart"
        )
    if len({clip.id for clip in clips}) < len(clips):
        raise ConfigError(
            f"corpus {corpus} has ids that occur twice; `mmfeat scan --corpus {corpus}` shows them"
        )
    return clips


def _views(
    config: RunConfig, path: Path, streams: Mapping[str, Sequence[Stream]], lines: Mapping[str, str]
) -> int:
    """How many views training draws from."""
    if not config.train.views:
        return 0
    wanted = config.preprocessing.views
    if not wanted:
        raise ConfigError(
            f"{path}: train.views draws among preprocessing.views = 0; set it to the number of "
            "views of each clip"
        )
    if not any((one.views > 0).any() for several in streams.values() for one in several):
        keys = ", ".join(several[0].key for several in streams.values())
        make = lines.get("audio") or lines.get("midi") or lines["text"]
        raise MissingError(f"the store has no views in {keys}; make them with: {make}")
    return wanted


def _mmfeat_line(path: Path, config: RunConfig, overrides: Sequence[str], modality: str) -> str:
    """The command that makes the streams that a modality's encoder reads."""
    rest = ["--corpus", str(config.data.corpus), "--store", str(config.data.store)]
    for override in overrides:
        if override.strip().startswith(("preprocessing.", "data.columns")):
            rest += ["--set", override]
    return shlex.join(["mmfeat", *mmfeat_words(path, config, modality, rest)])


def mmfeat_words(path: Path, config: RunConfig, modality: str, rest: Sequence[str]) -> list[str]:
    """What to tell `mmfeat` to make what a modality's encoder reads; `rest` says where and more."""
    encoder = config.model.encoders()[modality]
    section = getattr(config.preprocessing, modality)
    maker = MAKERS.get(stream_names(encoder)[0].partition("_layer")[0])
    words = ["run", str(path)]
    if not _describes(section, maker):
        words = ["extract", "--encoder", str(maker), "--config", str(path)]
        if getattr(encoder, "source", "") == "stored" and getattr(encoder, "pretrained_model", ""):
            words += ["--model", encoder.pretrained_model]
    words += rest
    wanted, made = _layers(encoder), getattr(section, "layers", "last")
    if wanted is not None and made not in (wanted, "all"):
        words += ["--set", f'preprocessing.audio.layers="{wanted}"']
    if encoder.type == "note_statistics" and not section.statistics:
        words += ["--set", "preprocessing.midi.statistics=true"]
    return words


def _layers(encoder: Any) -> str | None:
    """Stored layers that an encoder wants, as `mmfeat --layers` takes them; None: no matter."""
    if encoder.type != "wav2vec2" or encoder.source == "waveform":
        return None
    return encoder.layers if isinstance(encoder.layers, str) else ",".join(map(str, encoder.layers))


def _describes(section: Any, maker: str | None) -> bool:
    """Whether a section of `[preprocessing]` is about the stream of that `mmfeat --encoder`."""
    return maker is None or getattr(section, "encoder", None) == maker


def _streams(store: FeatureStore, encoder: Any, section: Any, make: str) -> list[Stream]:
    """All streams that an encoder reads, the first one's spec deciding which the others are."""
    seeded = getattr(section, "random_weights", None) is not None
    name = stream_names(encoder, seeded=seeded)[0]
    return _with_layers(store, encoder, _matching(store, name, section, make), make)


def _with_layers(store: FeatureStore, encoder: Any, first: Stream, make: str) -> list[Stream]:
    """All streams that an encoder reads beside the first, which were made as that one was."""
    names = stream_names(encoder, first.spec)
    return [first, *(_matching(store, name, None, make, first.spec) for name in names[1:])]


def streams_like(
    store: FeatureStore, config: RunConfig, specs: Mapping[str, StreamSpec]
) -> dict[str, list[Stream]]:
    """The streams of a store that were made exactly as those that a model was trained on.

    One that the store lacks is an empty stream: no clip has that modality.

    Raises:
        MissingError: the store has a stream of that name, made otherwise.
    """
    found = {}
    for name, encoder in config.model.encoders().items():
        spec, has = specs[name], store.specs()
        if spec.key not in has:
            others = [other for other in has.values() if other.name == spec.name]
            if others:
                raise MissingError(
                    f"store {store.path} has {others[0].key} and the model was trained on "
                    f"{spec.key}: {_difference(spec, others[0])}; make the stream with the run's "
                    f"own [preprocessing.{name}], or train on this one"
                )
            found[name] = [Stream.empty(store.path, spec)] * len(stream_names(encoder, spec))
            continue
        found[name] = _with_layers(store, encoder, store[spec.key], "mmfeat")
    return found


def _difference(ours: StreamSpec, theirs: StreamSpec) -> str:
    """The first thing in which two specs differ."""
    one, other = ours.to_json(), theirs.to_json()
    for mine, its in ((one["params"], other["params"]), (one, other)):
        for key in sorted(mine.keys() | its.keys()):
            if mine.get(key) != its.get(key) and key != "params":
                return f"{key} is {its.get(key)!r}, was {mine.get(key)!r}"
    return "they differ"


def _matching(
    store: FeatureStore, name: str, section: Any, make: str, first: StreamSpec | None = None
) -> Stream:
    """The stream of that name made as the section of `[preprocessing]` says, and as `first` was.

    Only what both state is compared; nothing, where the section is about another encoder.
    """
    described = _describes(section, MAKERS.get(name.partition("_layer")[0].removesuffix("_random")))
    wanted = section.model_dump(exclude_none=True) if described else {}
    if "duration_s" in wanted:
        wanted.setdefault("hop_s", wanted["duration_s"])
    if first is not None:
        wanted = {k: v for k, v in first.params.items() if k != "layer"} | {"dtype": first.dtype}
    specs = {key: spec for key, spec in store.specs().items() if spec.name == name}
    if not specs:
        raise MissingError(f"store {store.path} has no stream {name!r}; make it with: {make}")
    fitting, differing = [], ""
    for key, spec in specs.items():
        stated = _stated(spec) if first is None else {**spec.params, "dtype": spec.dtype}
        others = [k for k, v in wanted.items() if k in stated and stated[k] != v]
        if others:
            k = others[0]
            differing = f"{k} = {stated[k]!r}, the configuration says {wanted[k]!r}"
        else:
            fitting.append(key)
    if not fitting:
        raise MissingError(
            f"store {store.path} holds {name} with {differing}; make it with: {make}"
        )
    if len(fitting) > 1:
        raise MissingError(
            f"store {store.path} holds {len(fitting)} streams {name!r} that fit the configuration "
            f"({', '.join(fitting)}); give the corpus a store of its own: the same command with "
            f"another --store: {make}"
        )
    return store[fitting[0]]


def _stated(spec: StreamSpec) -> dict[str, Any]:
    """Parameters of a spec under the names that `[preprocessing]` has for them."""
    plain: dict[str, Any] = {
        k: v for k, v in spec.params.items() if isinstance(v, bool | int | float | str)
    }
    if spec.dtype in ("float16", "int8"):  # samples and tokens have no choice
        plain["dtype"] = spec.dtype
    if "vocabulary" in spec.params:
        plain["tokenization"] = spec.params["vocabulary"]["name"]
    if spec.name.startswith("wav2vec2"):
        windows = spec.params["windows"]
        plain |= {key: float(Fraction(windows[key])) for key in ("duration_s", "hop_s")}
        plain["tail"] = windows["tail"]
    if spec.name == "piano_roll":
        plain["roll_fps"] = spec.params.get("fps")
        plain["roll_planes"] = tuple(spec.params.get("planes", ()))
    return plain
