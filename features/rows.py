"""Rows of a manifest, whatever its format: Parquet, JSONL, CSV, or a folder of files.

`corpus_forms.py` tells which it is, and knows those of other libraries.
"""

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import accumulate, islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmfuse.features.clip import Source
from mmfuse.features.errors import ClipError, ConfigError

AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".oga", ".mp3", ".aiff", ".aif", ".w64", ".rf64"}
MIDI_SUFFIXES = {".mid", ".midi", ".smf", ".rmi"}
BATCH_ROWS = 256
BATCH_BYTES = 256 * 2**20  # a batch of Parquet takes no more, or is one row
_MAX_LINE = 64 * 2**20  # characters of a line of JSON
_DICTIONARY_PAGE = 2  # in Parquet's page headers
Row = dict[str, Any]


class Rows:
    """Rows of a manifest as dicts; one subclass a format."""

    columns: set[str]
    by_number = False  # whether `span` begins in the middle without reading what is before

    def read(self, columns: list[str]) -> Iterator[Row]:
        """All rows; formats that can, read no other columns than these."""
        raise NotImplementedError

    def span(self, columns: list[str], start: int, stop: int | None) -> Iterator[Row]:
        """Rows start, start + 1, ... before stop, counted from 0."""
        return islice(self.read(columns), start, stop)

    def tables(self, columns: list[str], stop: int) -> Iterator[pa.Table]:
        """The first rows, many at a time; formats that can, make no dicts of them."""
        rows = self.span(columns, 0, stop)
        while chunk := list(islice(rows, 1 << 16)):
            yield pa.table({name: [_plain(row.get(name)) for row in chunk] for name in columns})

    def count(self) -> int:
        """Number of rows."""
        return sum(1 for _ in self.read([]))

    def class_names(self, column: str) -> list[str] | None:
        """Names behind the class numbers of a column, where the format keeps them."""
        return None


class ParquetRows(Rows):
    """Files with the same columns, one behind the other."""

    by_number = True

    def __init__(self, files: list[Path]) -> None:
        self._files = files
        try:
            schemas = [pq.read_schema(file) for file in files]
            self._counts = [pq.read_metadata(file).num_rows for file in files]
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(f"{files[0]} is no Parquet file: {error}") from None
        self.columns = set(schemas[0].names)
        self._metadata = schemas[0].metadata or {}

    def read(self, columns: list[str]) -> Iterator[Row]:
        """See `Rows.read`."""
        return self.span(columns, 0, None)

    def span(self, columns: list[str], start: int, stop: int | None) -> Iterator[Row]:
        """Rows of a stretch; of each file only the row groups that hold some are read."""
        first = 0
        for file, count in zip(self._files, self._counts, strict=True):
            last = first + count if stop is None else min(first + count, stop)
            if max(first, start) < last:
                yield from _parquet_span(file, columns, max(start - first, 0), last - first)
            first += count

    def tables(self, columns: list[str], stop: int) -> Iterator[pa.Table]:
        """No bytes are read: of a struct the path alone, plain bytes are taken to be everywhere."""
        for file in self._files:
            with pq.ParquetFile(file) as parquet:
                named = {field.name: field.type for field in parquet.schema_arrow}
                leaves = {name: _leaf(name, named[name]) for name in columns}
                unread = [name for name, leaf in leaves.items() if leaf is None]
                batches = parquet.iter_batches(1 << 16, columns=[*filter(None, leaves.values())])
                while stop > 0 and (batch := _next_batch(batches, file)) is not None:
                    table = pa.Table.from_batches([batch.slice(0, stop)])
                    for name in unread:
                        table = table.append_column(name, pa.repeat(True, len(table)))
                    yield table.select(columns)
                    stop -= len(batch)

    @property
    def is_hugging_face(self) -> bool:
        """Whether Hugging Face datasets wrote the schema."""
        return b"huggingface" in self._metadata

    def count(self) -> int:
        """See `Rows.count`."""
        return int(sum(self._counts))

    def class_names(self, column: str) -> list[str] | None:
        """Names of a `ClassLabel`, as Hugging Face datasets writes them into the schema."""
        return class_names(self._metadata, column)


class JsonRows(Rows):
    """A JSON object on each line."""

    def __init__(self, files: list[Path]) -> None:
        self._file = files[0]
        self.columns = set()
        for row in self.read([]):
            self.columns |= set(row)

    def read(self, columns: list[str]) -> Iterator[Row]:
        """See `Rows.read`."""
        return (row for _, row in read_jsonl(self._file))


class CsvRows(Rows):
    """A header line, and a clip on each line."""

    def __init__(self, files: list[Path]) -> None:
        self._file = files[0]
        with _text_of(self._file) as lines:
            self.columns = set(next(csv.reader(lines), []))

    def read(self, columns: list[str]) -> Iterator[Row]:
        """See `Rows.read`."""
        with _text_of(self._file) as lines:
            for row in csv.DictReader(lines):
                yield {key: value or None for key, value in row.items() if key is not None}


class FolderRows(Rows):
    """Files with matching stems: `a/x.wav`, `a/x.mid` and `a/x.txt` are the clip `a/x`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        clips: dict[str, Row] = {}
        for file in sorted(folder.rglob("*")):
            suffix = file.suffix.lower()
            kind = (
                "audio_path" if suffix in AUDIO_SUFFIXES
                else "midi_path" if suffix in MIDI_SUFFIXES
                else "text_path" if suffix == ".txt" else None
            )  # fmt: skip
            if kind is None or not file.is_file():
                continue
            relative = file.relative_to(folder)
            stem = relative.with_suffix("").as_posix()
            row = clips.setdefault(stem, {"id": stem})
            if kind in row:
                raise ConfigError(
                    f"{folder}: {relative} and {row[kind]} would be one clip {stem!r}; rename one, "
                    "or write a manifest"
                )
            row[kind] = relative.as_posix()
        self._clips = [row for row in clips.values() if set(row) & {"audio_path", "midi_path"}]
        if not self._clips:
            raise ConfigError(
                f"{folder} holds no manifest and no audio or MIDI files; name a manifest "
                "(.parquet, .jsonl, .csv) or a folder of clips"
            )
        self.columns = {"id", "text", "audio_path", "midi_path"}

    def read(self, columns: list[str]) -> Iterator[Row]:
        """See `Rows.read`."""
        for row in self._clips:
            text = None
            if "text" in columns and "text_path" in row:
                text = self._text(row["text_path"])
            yield {**row, "text": text}

    def _text(self, path: str) -> str:
        source = Source(str(self._folder), self._folder, path)
        try:
            with source.open() as file:
                return file.read(_MAX_LINE).decode("utf-8", errors="replace")
        except (ClipError, OSError) as error:
            raise ConfigError(f"text of a clip: {error}") from None


def read_jsonl(file: Path) -> Iterator[tuple[int, Row]]:
    """Number of each line that is not empty, from 1, and the object on it; `.gz` is unpacked.

    Raises:
        ConfigError: a line is too long, or no JSON object.
    """
    with _text_of(file) as lines:
        for number, line in enumerate(iter(partial(lines.readline, _MAX_LINE), ""), start=1):
            if len(line) == _MAX_LINE:
                raise ConfigError(
                    f"{file}, line {number}: longer than {_MAX_LINE} characters; put "
                    "audio and MIDI into files of their own"
                )
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{file}, line {number}: not JSON: {error}") from None
            if not isinstance(row, dict):
                raise ConfigError(f"{file}, line {number}: expected a JSON object")
            yield number, row


def class_names(metadata: Mapping[bytes, bytes], column: str) -> list[str] | None:
    """Names of a `ClassLabel` in a schema that Hugging Face datasets wrote; None: it is none."""
    return _class_names(metadata.get(b"huggingface", b""), column)


@lru_cache(64)
def _class_names(huggingface: bytes, column: str) -> list[str] | None:
    try:
        features = json.loads(huggingface)["info"]["features"]
        column_type = features[column]
        if isinstance(column_type, list):  # how datasets wrote lists before its version 4
            (column_type,) = column_type
        return [str(name) for name in column_type.get("feature", column_type)["names"]]
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _plain(value: Any) -> Any:
    return value.path if isinstance(value, Source) else value


@contextmanager
def _text_of(file: Path) -> Iterator[IO[str]]:
    """A text manifest, open. What its reader stumbles over becomes a ConfigError."""
    opened = gzip.open if file.suffix == ".gz" else open
    try:
        with opened(file, "rt", newline="", encoding="utf-8-sig") as lines:
            yield lines
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ConfigError(f"{file} is damaged, or no gzip file: {error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 ({error}); save it as UTF-8") from None
    except csv.Error as error:
        raise ConfigError(f"{file} is not CSV: {error}") from None


def _parquet_span(file: Path, columns: list[str], start: int, stop: int) -> Iterator[Row]:
    """Rows of one file."""
    with pq.ParquetFile(file) as parquet:
        sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        ends = list(accumulate(sizes))
        groups = [
            i for i, (size, end) in enumerate(zip(sizes, ends, strict=True))
            if end > start and end - size < stop
        ]  # fmt: skip
        if not groups:
            return
        row = ends[groups[0]] - sizes[groups[0]]
        size = min(_safe_rows(file, parquet.metadata.row_group(i), columns) for i in groups)
        batches = parquet.iter_batches(batch_size=size, columns=columns, row_groups=groups)
        while row < stop and (batch := _next_batch(batches, file)) is not None:
            skip = max(start - row, 0)
            yield from batch.slice(skip, stop - row - skip).to_pylist()
            row += len(batch)


def _safe_rows(file: Path, group: Any, columns: list[str]) -> int:
    """Rows to unpack at once, so that they stay small even if each held the largest cell.

    A dictionary's cell may come back in every row, and so may a prefix of another cell; nothing
    else can be larger than the page that it is unpacked from. What a dictionary takes is read from
    the header of its page, as the decoder will read it.
    """
    largest = 1
    with file.open("rb") as raw:
        for column in map(group.column, range(group.num_columns)):
            if column.path_in_schema.partition(".")[0] not in columns:
                continue
            if column.physical_type != "BYTE_ARRAY":
                continue
            raw.seek(min(column.dictionary_page_offset or sys.maxsize, column.data_page_offset))
            largest = max(largest, _dictionary_bytes(raw.read(16)))
            if "DELTA_BYTE_ARRAY" in column.encodings:
                largest = max(largest, column.total_uncompressed_size)
    return max(min(BATCH_BYTES // largest, BATCH_ROWS), 1)


def _dictionary_bytes(header: bytes) -> int:
    """Unpacked size of a dictionary page, 0 for other pages; Thrift's compact protocol."""
    numbers, at = [], 0
    for _ in ("type", "uncompressed_page_size"):
        if header[at : at + 1] != b"\x15":  # the next field, of 32 bits
            return BATCH_BYTES
        value = shift = 0
        while True:
            at += 1
            byte = header[at] if at < len(header) else 0
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        at += 1
        numbers.append(value >> 1)  # zigzag; neither is negative
    return numbers[1] if numbers[0] == _DICTIONARY_PAGE else 0


def _leaf(name: str, kind: pa.DataType) -> str | None:
    """What to read of a column to know where it is filled; None where it is bytes and no more."""
    if pa.types.is_struct(kind):
        return f"{name}.path" if kind.get_field_index("path") >= 0 else None
    return None if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else name


def _next_batch(batches: Iterator[pa.RecordBatch], file: Path) -> pa.RecordBatch | None:
    try:
        return next(batches, None)
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise ConfigError(f"{file} is damaged: {error}") from None
