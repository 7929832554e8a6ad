"""Features of clips that have none yet, made by the code that made those of training.

That code is `mmfeat` itself, run as a program: imports between the two go through `features` only.
"""

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w

from mmfuse.features.clip import Clip, Source
from mmfuse.features.corpus import Corpus
from mmfuse.features.errors import (
    ClipError,
    ConfigError,
    LockedError,
    MissingError,
    MMFuseError,
    StoreError,
)
from mmfuse.trainer.load import mmfeat_words
from mmfuse.trainer.saved import Saved

_ERRORS: Mapping[int, type[MMFuseError]] = {
    error.exit_code: error for error in (ConfigError, StoreError, LockedError, MissingError)
}
_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "text")]
    + [(name, pa.binary()) for name in ("audio", "midi")]
    + [
        (name, pa.string())
        for name in (
            "smpte_rate", "audio_smpte_start", "midi_smpte_start", "audio_start_s", "midi_start_s",
        )
    ]
)  # fmt: skip
Reasons = dict[str, dict[str, str]]  # clip id -> modality -> why it could not be used


@dataclass(frozen=True, slots=True)
class Made:
    """What was run: the command lines, and how long they took together."""

    commands: list[str]
    seconds: float


def make_features(
    saved: Saved, corpus: Path, columns: Mapping[str, str], store: Path, work: Path
) -> Made:
    """Bring a store up to date with a corpus in the streams that a model reads.

    Args:
        saved: the model; its run says how features are made, and it brings its tokenizer.
        corpus: manifest or folder.
        columns: our column name -> the manifest's, where they differ.
        store: folder of the store.
        work: a folder for the configuration that `mmfeat` is given.

    Raises:
        MissingError: there is no `mmfeat`, or what it needs is not there.
        ConfigError, StoreError, LockedError: as `mmfeat` says.
    """
    began = time.monotonic()
    config = work / "features.toml"
    config.write_text(tomli_w.dumps(_document(saved, columns, work)), encoding="utf-8")
    where = ["--corpus", str(corpus), "--store", str(store)]
    lines = {tuple(mmfeat_words(config, saved.config, name, where)): None for name in saved.specs}
    commands = []
    for words in lines:
        commands.append(shlex.join(["mmfeat", *words]))
        _run([_program(), *words, "--json"])
    return Made(commands, time.monotonic() - began)


def _document(saved: Saved, columns: Mapping[str, str], work: Path) -> dict[str, Any]:
    """The features of a configuration, in the modalities that the model reads."""
    dumped = saved.config.preprocessing.model_dump(mode="json", exclude_none=True)
    sections = {name: dict(dumped[name]) for name in saved.specs}
    for section in sections.values():
        section.pop("augmentations", None)  # of views, which are for training
    if saved.specs.keys() & {"text"} and saved.specs["text"].name == "text_tokens":
        if saved.tokenizer is None:
            raise ConfigError(
                f"{saved.path} lacks the tokenizer of its training, so that text can't become the "
                "same tokens; train again where the store is, or name a --store that has the clips"
            )
        file = work / "tokenizer.json"
        file.write_text(saved.tokenizer, encoding="utf-8")
        sections["text"]["tokenizer"] = str(file)
    return {"data": {"columns": dict(columns)}, "preprocessing": sections}


def _program() -> str:
    """`mmfeat` of this very installation, or else the one on the path."""
    beside = Path(sys.executable).with_name("mmfeat")
    found = str(beside) if beside.is_file() else shutil.which("mmfeat")
    if found is None:
        raise MissingError("there is no mmfeat beside mmtrain; install again: pip install mmfuse")
    return found


def _run(words: Sequence[str]) -> None:
    """Run `mmfeat`; that clips failed (3) is no error here."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode in (0, ClipError.exit_code):
        return
    said = [line for line in done.stderr.splitlines() if line.startswith("mmfeat: ")]
    text = said[-1].removeprefix("mmfeat: ") if said else done.stderr.strip()[-300:]
    error = _ERRORS.get(done.returncode, MMFuseError)(f"features: {text}")
    raise error


def write_selection(path: Path, clips: Sequence[Clip]) -> Reasons:
    """Write a manifest of some clips with their bytes inside; why some have none."""
    reasons: Reasons = {}
    with pq.ParquetWriter(path, _SCHEMA) as writer:
        for clip in clips:
            row: dict[str, Any] = {
                "id": clip.id,
                "text": clip.text,
                "smpte_rate": clip.origins.rate,
                "audio_smpte_start": clip.origins.audio_smpte,
                "midi_smpte_start": clip.origins.midi_smpte,
                "audio_start_s": clip.origins.audio_start_s,
                "midi_start_s": clip.origins.midi_start_s,
            }
            for name, source in (("audio", clip.audio), ("midi", clip.midi)):
                try:
                    row[name] = None if source is None else source.read()
                except ClipError as error:
                    reasons.setdefault(clip.id, {})[name] = f"{error.reason}: {error}"
            writer.write_table(pa.Table.from_pylist([row], schema=_SCHEMA))
    return reasons


def one_clip(text: str | None, audio: Path | None, midi: Path | None) -> Clip:
    """A clip of what was given.

    Raises:
        ConfigError: nothing was given, or there is no such file.
    """
    sources: dict[str, Source] = {}
    for name, path in (("audio", audio), ("midi", midi)):
        if path is not None and not path.is_file():
            raise ConfigError(f"--{name} {path}: there is no such file")
        if path is not None:
            sources[name] = Source(f"--{name}", path.parent, path.name)
    if not (text and text.strip()) and audio is None and midi is None:
        raise ConfigError("--text is empty; give a text, --audio FILE or --midi FILE")
    name = next((path.stem for path in (audio, midi) if path is not None), "text")
    return Clip(name, text, sources.get("audio"), sources.get("midi"))


def chosen(corpus: Corpus, split: str | None, ids: Sequence[str]) -> list[Clip]:
    """The clips of a split, or of some ids in the order of the corpus, or all.

    Raises:
        ConfigError: an id is not there, twice, or nothing is left.
    """
    wanted = set(ids)
    clips = [
        clip
        for clip in corpus.clips()
        if (split is None or clip.split == split) and (not wanted or clip.id in wanted)
    ]
    here = {clip.id for clip in clips}
    if absent := [one for one in ids if one not in here]:
        where = f" in split {split!r}" if split else ""
        raise ConfigError(f"corpus {corpus.path} has no clip {absent[0]!r}{where}")
    if not clips:
        what = f"clips in split {split!r}" if split else "clips"
        raise ConfigError(f"corpus {corpus.path} has no {what}; leave --split out for all of it")
    if len(here) < len(clips):
        raise ConfigError(
            f"corpus {corpus.path} has ids that occur twice; `mmfeat scan --corpus {corpus.path}` "
            "shows them"
        )
    return clips
