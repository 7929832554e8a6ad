"""A corpus: a manifest of clips, read lazily, and the folder below which its files lie.

Manifests are Parquet (one file or a folder of shards, bytes inside or paths), JSONL, CSV, or just
a folder of files with matching stems. Parquet is read by row group and only in the columns asked
for, so that ten million rows never stand in memory. Rows count from 1 in messages.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from blake3 import blake3

from mmfuse.features.clip import Clip, Estimate, Origins, Source
from mmfuse.features.corpus_forms import open_rows
from mmfuse.features.errors import ConfigError
from mmfuse.features.rows import Row, Rows
from mmfuse.features.splits import SPLITS

COLUMNS = ("id", "text", "label", "label_id", "split", "group", "audio_path", "audio", "midi_path",
           "midi", "smpte_rate", "audio_smpte_start", "midi_smpte_start", "audio_start_s",
           "midi_start_s", "duration_s")  # fmt: skip
_MAX_ID = 1024  # characters
_MODALITIES = ("text", "audio", "audio_path", "midi", "midi_path")


def open_corpus(
    path: Path | str,
    columns: Mapping[str, str] | None = None,
    estimates: Mapping[str, Estimate] | None = None,
) -> "Corpus":
    """Open a manifest (Parquet, JSONL, CSV), a dataset of another library, or a folder.

    Args:
        path: what is there decides how it is read, see `corpus_forms.py`.
        columns: our column name -> the manifest's, where they differ.
        estimates: offsets of clips whose time origins are unknown, by clip id.

    Raises:
        ConfigError: nothing there that can be read, or columns are missing.
    """
    root, rows = open_rows(Path(path))
    return Corpus(Path(path), root, rows, dict(columns or {}), estimates or {})


class Corpus:
    """The clips of a manifest, in its order."""

    def __init__(
        self,
        path: Path,
        root: Path,
        rows: Rows,
        columns: dict[str, str],
        estimates: Mapping[str, Estimate],
    ) -> None:
        self.path, self.root, self.renamed, self._rows = path, root, columns, rows
        self._below = os.path.normpath(root.absolute()).rstrip(os.sep) + os.sep
        self.estimates, self.has_estimates = estimates, bool(estimates)
        self.digest = ""  # of all ids in their order; `check` tells
        unknown = sorted(set(columns) - set(COLUMNS))
        if unknown:
            raise ConfigError(
                f"column mapping names {unknown[0]!r}, which mmfuse does not know; it knows: "
                f"{', '.join(COLUMNS)}"
            )
        self._theirs = {ours: columns.get(ours, ours) for ours in COLUMNS}
        present = rows.columns
        absent = [theirs for ours, theirs in columns.items() if theirs not in present]
        if absent:
            raise self._column_error(absent[0])
        self._theirs = {o: t for o, t in self._theirs.items() if t in present}
        if "id" not in self._theirs:
            raise self._column_error("id")
        if not any(name in self._theirs for name in _MODALITIES):
            raise self._column_error("text, audio_path, audio, midi_path or midi")

    def __len__(self) -> int:
        return self._rows.count()

    @property
    def by_number(self) -> bool:
        """Whether clips in the middle can be read without those before them."""
        return self._rows.by_number

    def clips(self, start: int = 0, stop: int | None = None) -> Iterator[Clip]:
        """Clips, lazily; with `start` and `stop`, counted from 0, those of a stretch.

        Raises:
            ConfigError: a row is wrong in itself (see `check`).
        """
        for number, row in enumerate(self._select(COLUMNS, start, stop), start=start + 1):
            yield self._clip(number, row)

    def ids(self) -> Iterator[str]:
        """The ids of all clips, lazily."""
        return (str(row["id"]) for row in self._select(("id",)))

    def texts(self, split: str) -> Iterator[str]:
        """Texts of a split, lazily; of all clips where the manifest has no splits."""
        return (
            str(row["text"])
            for row in self._select(("text", "split"))
            if row.get("text") and SPLITS.get(str(row.get("split") or split)) == split
        )

    @property
    def columns(self) -> set[str]:
        """Our names of the columns that the manifest has."""
        return set(self._theirs)

    def tables(self, names: Sequence[str], stop: int) -> Iterator[pa.Table]:
        """Those of some columns that the manifest has, under our names, many clips at a time."""
        ours = [name for name in names if name in self._theirs]
        for table in self._rows.tables([self._theirs[name] for name in ours], stop):
            yield table.rename_columns(ours)

    def labels(self) -> list[Clip]:
        """Every clip with its id, label, split and group alone."""
        names = ("id", "label", "label_id", "split", "group")
        return [self._clip(number, row) for number, row in enumerate(self._select(names), start=1)]

    def check(self) -> int:
        """Read ids, splits and paths of the whole manifest; the number of clips.

        Raises:
            ConfigError: an id is empty or there twice, a split is unknown, a path holds NUL or
                leads out of the corpus' folder, or not one of the first hundred files exists. The
                message names row, column and mend.
        """
        ids: list[pa.Array] = []
        batch: list[str] = []
        hasher = blake3()
        files = found = 0
        names = ("id", "text", "split", "audio_path", "midi_path", "label", "label_id")
        for number, row in enumerate(self._select(names), start=1):
            clip = self._clip(number, row)
            batch.append(clip.id)
            hasher.update(clip.id.encode(errors="surrogatepass") + b"\0")
            for source in (clip.audio, clip.midi):
                if source is not None and files < 100:
                    files += 1
                    found += (self.root / str(source.path)).is_file()
            if len(batch) == 65536:
                ids.append(pa.array(batch))
                batch = []
                if pc.count_distinct(ids[-1]).as_py() < 65536:  # soon told of a file of copies
                    self._raise_duplicate(pa.chunked_array(ids))
        every = pa.chunked_array([*ids, pa.array(batch, pa.string())])
        if pc.count_distinct(every).as_py() != len(every):
            self._raise_duplicate(every)
        if files and not found:
            column = "audio_path" if "audio_path" in self._theirs else "midi_path"
            raise ConfigError(
                f"{self.path}, row 1, column {column}: not one of the first {files} files is "
                f"there; paths are looked up below {self.root}: move the manifest beside its files"
            )
        self.digest = hasher.hexdigest()
        return len(every)

    def _select(
        self, names: Sequence[str], start: int = 0, stop: int | None = None
    ) -> Iterator[Row]:
        theirs = {ours: self._theirs[ours] for ours in names if ours in self._theirs}
        for row in self._rows.span(list(theirs.values()), start, stop):
            yield {ours: row.get(name) for ours, name in theirs.items()}

    def _clip(self, number: int, row: Row) -> Clip:
        where = f"{self.path}, row {number}"
        clip_id = row.get("id")
        if clip_id is None or str(clip_id) == "" or "\0" in str(clip_id):
            raise ConfigError(f"{where}, column {self._theirs['id']}: no id; give it a unique one")
        if len(str(clip_id)) > _MAX_ID:
            raise ConfigError(
                f"{where}, column {self._theirs['id']}: an id of {len(str(clip_id))} characters; "
                f"up to {_MAX_ID} are read"
            )
        split = row.get("split")
        if split is not None and str(split) != "" and str(split).lower() not in SPLITS:
            raise ConfigError(
                f"{where}, column {self._theirs['split']}: unknown split {split!r}; write train, "
                "validation or test"
            )
        audio = self._source(number, row, "audio")
        midi = self._source(number, row, "midi")
        text = row.get("text")
        text = str(text) if text is not None and str(text).strip() else None
        return Clip(
            id=str(clip_id),
            text=text,
            audio=audio,
            midi=midi,
            label=self._label(where, row),
            split=SPLITS[str(split).lower()] if split else None,
            group=_string(row.get("group")),
            origins=Origins(
                _string(row.get("smpte_rate")),
                _string(row.get("audio_smpte_start")),
                _string(row.get("midi_smpte_start")),
                _string(row.get("audio_start_s")),
                _string(row.get("midi_start_s")),
            ),
            estimate=self.estimates.get(str(clip_id)),
        )

    def _label(self, where: str, row: Row) -> str | tuple[str, ...] | None:
        value = row.get("label")
        value = row.get("label_id") if value is None else value
        names = self._rows.class_names(self._theirs.get("label", ""))
        if not isinstance(value, list):
            return _named(value, names)
        found = [_named(one, names) for one in value]
        if None in found:
            raise ConfigError(
                f"{where}, column {self._theirs.get('label', 'label_id')}: the list {value} holds "
                "an empty label; take it out"
            )
        return tuple(map(str, found))

    def _source(self, number: int, row: Row, modality: str) -> Source | None:
        """Bytes inside (a struct {bytes, path}, or plain), or a path below the root, or a part."""
        inside = row.get(modality)
        path, data = row.get(f"{modality}_path"), None
        column = self._theirs.get(f"{modality}_path", modality)
        part = path or inside
        if isinstance(part, Source):
            inside, path = None, part.path
        if isinstance(inside, bytes):
            data = inside
        elif isinstance(inside, Mapping):
            data, path = inside.get("bytes"), path or inside.get("path")
        elif inside:
            path = path or inside
        where = f"{self.path}, row {number}, column {column}"
        if data:
            return Source(where, self.root, None, data)
        if not path:
            return None
        path = str(path)
        if "\0" in path:
            raise ConfigError(f"{where}: the path {path!r} holds a NUL byte; remove it")
        absolute = path if path.startswith(os.sep) else self._below + path
        if not (os.path.normpath(absolute) + os.sep).startswith(self._below):
            raise ConfigError(
                f"{where}: {path!r} leads out of the corpus folder {self.root}; put the file "
                "below it and give the path from there"
            )
        if isinstance(part, Source):
            return replace(part, where=where, root=self.root)
        return Source(where, self.root, path)

    def _column_error(self, name: str) -> ConfigError:
        return ConfigError(
            f"{self.path} has no column {name}; it has: {', '.join(sorted(self._rows.columns))}. "
            "Name the right one with --column OURS=THEIRS"
        )

    def _raise_duplicate(self, ids: pa.ChunkedArray) -> None:
        seen: dict[str, int] = {}
        for number, clip_id in enumerate(ids.to_pylist(), start=1):
            if clip_id in seen:
                raise ConfigError(
                    f"{self.path}, row {number}, column {self._theirs['id']}: id {clip_id!r} is "
                    f"there already in row {seen[clip_id]}; ids must be unique"
                )
            seen[clip_id] = number


def _named(value: Any, names: Sequence[str] | None) -> str | None:
    """A label, by its name where it is a number that has one."""
    if names and isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return _string(value)


def _string(value: Any) -> str | None:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    return repr(value) if isinstance(value, float) else str(value)
