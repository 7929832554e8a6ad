"""From a run configuration to the dataset that it names, or to the command that makes it."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmfuse.features.corpus import open_corpus
from mmfuse.features.errors import ConfigError, MissingError
from mmfuse.features.spec import StreamSpec
from mmfuse.features.store import FeatureStore, Stream, open_store
from mmfuse.trainer.config import RunConfig
from mmfuse.trainer.dataset import SPLITS, Dataset
from mmfuse.trainer.encoders import STREAMS


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
            label, or a modality has no section in `[preprocessing]`.
        MissingError: the store or a stream is not there, was made with other settings, or holds
            none of the clips; the message ends with the command that makes it.
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
    rows = _labelled(config)
    make = _mmfeat_line(config_path, config, overrides)
    if not data.store.exists():
        raise MissingError(f"no feature store at {data.store}; make it with: {make}")
    store = open_store(data.store)
    streams = {
        name: _matching(store, STREAMS[encoder.type], getattr(config.preprocessing, name), make)
        for name, encoder in config.model.encoders().items()
    }
    ids, splits, labels, groups = zip(*rows, strict=True)
    dataset = Dataset(ids, splits, labels, streams, groups)
    train = dataset.clips_of("train")
    for m, (name, stream) in enumerate(streams.items()):
        if not dataset.present_NM[train, m].any():
            raise MissingError(
                f"stream {stream.key} of {data.store} holds none of the {len(train)} train clips "
                f"of {data.corpus}; if they have {name}, make it with: {make}"
            )
    return dataset, store


def _labelled(config: RunConfig) -> list[tuple[str, str, str, str | None]]:
    """(id, split, label, group) of all clips that have label and split, in the corpus' order."""
    corpus = config.data.corpus
    assert corpus is not None
    table = open_corpus(corpus, config.data.columns).labels().to_pydict()
    rows = [
        (clip_id, split, label, group)
        for clip_id, split, label, group in zip(
            *(table[name] for name in ("id", "split", "label", "group")), strict=True
        )
        if split in SPLITS and label is not None
    ]
    for split in SPLITS:
        if not any(row[1] == split for row in rows):
            raise ConfigError(
                f"corpus {corpus} has no labelled clips in split {split!r}; give every clip a "
                f"label and a split ({', '.join(SPLITS)})"
            )
    labels = {label for _, split, label, _ in rows if split == "train"}
    if len(labels) < 2:
        raise ConfigError(
            f"corpus {corpus} has one label only in its train split, {labels.pop()!r}; there is "
            "nothing to tell apart"
        )
    if len({row[0] for row in rows}) < len(rows):
        raise ConfigError(
            f"corpus {corpus} has ids that occur twice; `mmfeat scan --corpus {corpus}` shows them"
        )
    return rows


def _mmfeat_line(path: Path, config: RunConfig, overrides: Sequence[str]) -> str:
    """The command that makes the streams of a run."""
    words = ["mmfeat", "run", str(path)]
    words += ["--corpus", str(config.data.corpus), "--store", str(config.data.store)]
    for override in overrides:
        if override.strip().startswith(("preprocessing.", "data.columns")):
            words += ["--set", override]
    return shlex.join(words)


def _matching(store: FeatureStore, name: str, section: Any, make: str) -> Stream:
    """The stream of that name made as the section of `[preprocessing]` says.

    Only what both state is compared.
    """
    wanted = section.model_dump()
    specs = {key: spec for key, spec in store.specs().items() if spec.name == name}
    if not specs:
        raise MissingError(f"store {store.path} has no stream {name!r}; make it with: {make}")
    fitting, differing = [], ""
    for key, spec in specs.items():
        stated = _stated(spec)
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
    """Plain parameters of a spec by name, and the name of its vocabulary if it has one."""
    plain = {k: v for k, v in spec.params.items() if isinstance(v, bool | int | float | str)}
    if "vocabulary" in spec.params:
        plain["tokenization"] = spec.params["vocabulary"]["name"]
    return plain
