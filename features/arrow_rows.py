"""Folders that `save_to_disk` of Hugging Face datasets writes: Arrow streams, mapped, never copied.

A batch is looked at where it lies, and a cell is copied when its row is read. Offsets are checked
before they are followed. Compressed batches and dictionaries, which `datasets` does not write, can
unpack to any size and are refused.
"""

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mmfuse.features.errors import ConfigError
from mmfuse.features.rows import BATCH_BYTES, BATCH_ROWS, Row, Rows, class_names

STATE = "state.json"
_MAX_STATE = 64 * 2**20


class ArrowRows(Rows):
    """One dataset, which is one split."""

    by_number = True

    def __init__(self, folder: Path) -> None:
        self._files = [_file_of(folder, name) for name in _names_of(folder)]
        schema = _schema_of(self._files[0])
        self.columns = set(schema.names)
        self._metadata = schema.metadata or {}

    def read(self, columns: list[str]) -> Iterator[Row]:
        """See `Rows.read`."""
        return self.span(columns, 0, None)

    def span(self, columns: list[str], start: int, stop: int | None) -> Iterator[Row]:
        """Rows of a stretch; what lies before is skipped batch by batch."""
        first = 0
        for batch in self._batches():
            if stop is not None and first >= stop:
                return
            last = first + len(batch)
            if last > start:
                begin, end = max(start - first, 0), len(batch)
                end = end if stop is None else min(end, stop - first)
                yield from _rows_of(_checked(batch, columns).slice(begin, end - begin))
            first = last

    def tables(self, columns: list[str], stop: int) -> Iterator[pa.Table]:
        """Of audio and MIDI only whether they are there."""
        for batch in self._batches():
            if stop <= 0:
                return
            chosen = _checked(batch.slice(0, stop), columns)
            stop -= len(chosen)
            yield pa.table({name: _there(chosen[name]) for name in columns})

    @cached_property
    def _count(self) -> int:
        return sum(len(batch) for batch in self._batches())

    def count(self) -> int:
        """See `Rows.count`."""
        return self._count

    def class_names(self, column: str) -> list[str] | None:
        """See `Rows.class_names`."""
        return class_names(self._metadata, column)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for file in self._files:
            yield from _batches_of(file)


def _names_of(folder: Path) -> list[str]:
    """Names of the data files, in order."""
    file = folder / STATE
    try:
        with file.open("rb") as opened:
            state = json.loads(opened.read(_MAX_STATE))
        names = [str(one["filename"]) for one in state["_data_files"]]
        indices = state.get("_indices_data_files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{file} is not what save_to_disk of Hugging Face datasets writes "
            f"({type(error).__name__}); save the dataset again"
        ) from None
    if indices:
        raise ConfigError(
            f"{file} chooses rows by a table of indices; save dataset.flatten_indices() instead"
        )
    if not names:
        raise ConfigError(f"{file} names no data files; save the dataset again")
    return names


def _file_of(folder: Path, name: str) -> Path:
    file = folder / name
    if Path(name).name != name or "\0" in name:
        raise ConfigError(f"{folder / STATE}: {name!r} is no name of a file in this folder")
    if file.is_symlink() or not file.is_file():
        raise ConfigError(
            f"{folder / STATE}: {name!r} is not there, or is a link; copy the folder whole"
        )
    return file


def _messages(file: Path) -> Iterator[pa.Message]:
    with _damage_of(file), pa.memory_map(str(file)) as source:
        yield from pa.ipc.MessageReader.open_stream(source)


@contextmanager
def _damage_of(file: Path) -> Iterator[None]:
    """What Arrow stumbles over becomes a ConfigError."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ConfigError(f"{file} is damaged: {error}") from None


def _schema_of(file: Path) -> pa.Schema:
    message = next(_messages(file), None)
    if message is None or message.type != "schema":
        raise ConfigError(f"{file} is no Arrow stream; save the dataset again")
    with _damage_of(file):
        schema = pa.ipc.read_schema(message)
        assert len(schema.names) == len(schema)  # decoded here, where damage is told
    return schema


def _batches_of(file: Path) -> Iterator[pa.RecordBatch]:
    schema: pa.Schema | None = None
    for message in _messages(file):
        if schema is None:
            schema = _schema_of(file)
        elif message.type != "record batch" or _is_compressed(message.metadata.to_pybytes()):
            raise ConfigError(
                f"{file} has a compressed batch or a dictionary; save the dataset with "
                "save_to_disk of Hugging Face datasets, which writes neither"
            )
        else:
            with _damage_of(file):
                batch = pa.ipc.read_record_batch(message, schema)
            yield batch


def _is_compressed(metadata: bytes) -> bool:
    """Whether the header of a record batch, a flatbuffer that Arrow has checked, has a codec.

    Source: Message.fbs of Arrow; field 2 of a Message is its RecordBatch, whose field 3 is that.
    """

    def field(table: int, number: int) -> int:
        """Where a field lies, 0 if it is not there."""
        vtable = table - struct.unpack_from("<i", metadata, table)[0]
        if 4 + 2 * number >= struct.unpack_from("<H", metadata, vtable)[0]:
            return 0
        offset = struct.unpack_from("<H", metadata, vtable + 4 + 2 * number)[0]
        return table + int(offset) if offset else 0

    message = struct.unpack_from("<I", metadata)[0]
    header = field(message, 2)
    return bool(field(header + struct.unpack_from("<I", metadata, header)[0], 3))


def _checked(batch: pa.RecordBatch, columns: list[str]) -> pa.RecordBatch:
    """Some columns of a batch, whose offsets lead nowhere else than into it."""
    chosen = batch.select(columns)
    for name, kind in zip(chosen.schema.names, chosen.schema.types, strict=True):
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        parts = [kind.value_type] if is_list else [kind]
        parts = [field.type for field in kind] if pa.types.is_struct(kind) else parts
        if not all(map(_is_simple, parts)):
            raise ConfigError(
                f"column {name!r} of the dataset holds {kind}; expected text, numbers, bytes, or "
                "audio as `datasets.Audio` stores it: name another with --column OURS=THEIRS"
            )
    try:
        chosen.validate(full=True)
    except pa.ArrowException as error:
        raise ConfigError(f"the dataset is damaged: {error}") from None
    return chosen


def _is_simple(kind: pa.DataType) -> bool:
    types = pa.types
    tests = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary,
             types.is_integer, types.is_floating, types.is_boolean, types.is_null)  # fmt: skip
    return any(test(kind) for test in tests)


def _rows_of(batch: pa.RecordBatch) -> Iterator[Row]:
    """Rows as dicts, so many at a time that they stay small."""
    at = 0
    while at < len(batch):
        size = BATCH_ROWS
        while size > 1 and batch.slice(at, size).nbytes > BATCH_BYTES:
            size //= 2
        yield from batch.slice(at, size).to_pylist()
        at += size


def _there(column: pa.Array) -> Any:
    if pa.types.is_struct(column.type) or pa.types.is_binary(column.type):
        return pc.if_else(column.is_valid(), True, None)
    return column
