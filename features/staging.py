"""What one task has made of one stream and no manifest names yet: parts and their journals.

An entry's bytes are appended to a part file, then one line goes to its journal. No lock and no
manifest is needed: any process may write its own task. A restart keeps every line whose bytes are
there and have the right crc32c, cuts the rest, and goes on. A full part is closed and the next one
begun; `finish` closes the last, and the one process that holds the store's lock makes shards of
them (`writer.py`).
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from blake3 import blake3
from crc32c import crc32c

from mmfuse.features import layout
from mmfuse.features.errors import ClipError
from mmfuse.features.index import Record
from mmfuse.features.spec import Entry, StreamSpec, all_finite

Contents = Mapping[tuple[str, int], bytes]
_SYNC_BYTES = 64 * 2**20
_WRITE_BYTES = 8 * 2**20  # the disk works on so much at a time while more is being made
_NAME = re.compile(r"task-(?P<task>[\w-]+)-(?P<number>\d+)\.(?:part|journal)")


@dataclass(slots=True)
class Part:
    """A run of entries on its way to become a shard; `crc32c` is that of the bytes so far."""

    path: Path
    journal: Path
    records: list[Record] = field(default_factory=list)
    rows: int = 0
    crc32c: int = 0
    sealed: bool = False


@dataclass(frozen=True, slots=True)
class Sealed:
    """A part that is whole, index and all, and synced: what a task reports instead of arrays."""

    path: Path
    journal: Path
    entries: int
    rows: int
    crc32c: int


class StagedStream:
    """Appends the entries of one task to one stream.

    Args:
        task: name of the task, letters, digits and hyphens; nobody else writes under it.
        known: content that the store holds of clips (and views) already.
    """

    def __init__(
        self,
        root: Path,
        spec: StreamSpec,
        task: str,
        shard_rows: int | None = None,
        known: Contents | None = None,
    ) -> None:
        self.spec = spec
        self._folder = root / layout.META / spec.key
        self._folder.mkdir(parents=True, exist_ok=True)
        self._task = task
        self._shard_rows = shard_rows or layout.shard_rows_of(spec)
        self._known = known or {}
        self._staged: dict[tuple[str, int], bytes] = {}
        self._parts: list[Part] = []
        self._next = 0
        self._files: tuple[IO[bytes], IO[bytes]] | None = None
        self._unsynced = self._unwritten = 0
        self._recover()

    def has(self, clip_id: str, content: bytes, view: int = 0) -> bool:
        """Whether this very content of the clip is in the store, or waits in a part."""
        key = (clip_id, view)
        return self._staged.get(key, self._known.get(key)) == content

    def contents(self) -> Contents:
        """Content of the clips (and views) whose entries wait in parts."""
        return self._staged

    def append(
        self, clip_id: str, content: bytes, entry: Entry, view: int = 0, augmentation: str = ""
    ) -> None:
        """Write one entry whole; `content` is the 32-byte hash of what it was made from.

        `augmentation` is what was drawn for the view, as JSON.

        Raises:
            ClipError: the values are not finite in the stream's dtype, or longer than a shard.
        """
        values = entry.values
        assert values.dtype == self.spec.dtype and values.shape[1:] == self.spec.item
        if values.dtype.kind == "f" and not all_finite(values):
            raise ClipError("non_finite", f"{self.spec.name} of {clip_id!r} has NaN or Inf")
        if len(values) > self._shard_rows:
            raise ClipError(
                "too_long",
                f"{self.spec.name} of {clip_id!r} has {len(values)} rows, a shard holds "
                f"{self._shard_rows}; cut the recording into shorter clips",
            )
        part = self._part_for(len(values))
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        windows = entry.windows or ((type(entry.origin_s)(0), len(values)),)
        record = Record(
            clip_id, content, view, part.rows, len(values), int(crc32c(data)),
            blake3(data).digest(), windows, entry.origin_s, entry.note, augmentation,
        )  # fmt: skip
        self._write(part, record, data)
        self._staged[clip_id, view] = content

    def finish(self) -> list[Sealed]:
        """Close every part; what they are, in order."""
        if self._parts:
            self._seal(self._parts[-1])
        return [
            Sealed(part.path, part.journal, len(part.records), part.rows, part.crc32c)
            for part in self._parts
        ]

    def discard(self) -> None:
        """Remove every part: the store holds all of it."""
        self.release()
        for part in self._parts:
            part.journal.unlink()
            part.path.unlink()
        self._parts = []

    def release(self) -> None:
        """Close files; what they hold is taken up by whoever opens the task next."""
        for file in self._files or ():
            file.close()
        self._files = None

    def _part_for(self, rows: int) -> Part:
        """The open part if it has room, else a new one behind it."""
        part = self._parts[-1] if self._parts else None
        if part is not None and part.rows + rows > self._shard_rows:
            self._seal(part)
            part = None
        if part is None:
            part = self._new_part(self._next)
            while part.path.exists():  # what lies behind a gap, and is not ours to go on with
                self._next += 1
                part = self._new_part(self._next)
            self._parts.append(part)
            self._next += 1
        if self._files is None:
            if part.sealed:
                part.path.chmod(0o644)
                os.truncate(part.path, part.rows * self.spec.row_bytes)
                part.crc32c, part.sealed = layout.file_crc(part.path), False
            # the part first: a journal always has its part beside it
            data = part.path.open("ab", buffering=0)
            self._files = (data, part.journal.open("ab", buffering=0))
        return part

    def _write(self, part: Part, record: Record, data: memoryview) -> None:
        assert self._files is not None
        _write_all(self._files[0], data)
        _write_all(self._files[1], _journal_line(record))
        part.records.append(record)
        part.rows += record.rows
        part.crc32c = int(crc32c(data, part.crc32c))
        self._unsynced += len(data)
        self._unwritten += len(data)
        if self._unwritten >= _WRITE_BYTES:
            _begin_writing(self._files[0], self._unwritten)
            self._unwritten = 0
        if self._unsynced >= _SYNC_BYTES:
            for file in self._files:
                os.fdatasync(file.fileno())
            self._unsynced = 0

    def _seal(self, part: Part) -> None:
        """Add padding and Zarr's index, and make part and journal survive a power loss."""
        if part.sealed:
            return
        if self._files is None:
            self._files = (part.path.open("ab", buffering=0), part.journal.open("ab", buffering=0))
        tail = self._tail(part.rows)
        _write_all(self._files[0], tail)
        for file in self._files:
            os.fsync(file.fileno())
        self.release()
        part.crc32c, part.sealed = int(crc32c(tail, part.crc32c)), True
        self._unsynced = self._unwritten = 0

    def _tail(self, rows: int) -> bytes:
        padding = bytes(-rows % layout.INNER_ROWS * self.spec.row_bytes)
        used = layout.used_inner(rows)
        return padding + layout.shard_index(used, self._shard_rows, self.spec.row_bytes)

    def _new_part(self, number: int) -> Part:
        stem = f"task-{self._task}-{number}"
        return Part(self._folder / f"{stem}.part", self._folder / f"{stem}.journal")

    def _recover(self) -> None:
        """Take up the parts that an earlier process left; all but the last are closed."""
        number = 0
        while (part := self._new_part(number)).journal.exists() or part.path.exists():
            number += 1
            self._take_up(part)
            if not part.records:
                part.journal.unlink()
                part.path.unlink()
                continue
            if self._parts:
                self._seal(self._parts[-1])
            self._parts.append(part)
            self._next = number

    def _take_up(self, part: Part) -> None:
        """Read a part against its journal and cut what does not fit; a whole one is left whole."""
        if not part.journal.exists() or not part.path.exists():
            part.path.touch()
            part.journal.touch()
        journal_bytes, lines = 0, part.journal.read_bytes().splitlines(keepends=True)
        with part.path.open("rb") as file:
            for line in lines:
                record = _parse_line(line)
                if record is None or record.start != part.rows:
                    break
                data = file.read(record.rows * self.spec.row_bytes)
                if len(data) != record.rows * self.spec.row_bytes or crc32c(data) != record.crc32c:
                    break
                part.records.append(record)
                self._staged[record.clip_id, record.view] = record.content
                part.rows += record.rows
                part.crc32c = int(crc32c(data, part.crc32c))
                journal_bytes += len(line)
            file.seek(part.rows * self.spec.row_bytes)
            tail = self._tail(part.rows)
            if len(part.records) == len(lines) > 0 and file.read(len(tail) + 1) == tail:
                part.crc32c, part.sealed = int(crc32c(tail, part.crc32c)), True
        if not part.sealed:
            part.path.chmod(0o644)
            os.truncate(part.path, part.rows * self.spec.row_bytes)
            os.truncate(part.journal, journal_bytes)


def tasks_in(folder: Path) -> list[str]:
    """Names of the tasks whose parts or journals lie in a stream's folder, sorted."""
    found = (_NAME.fullmatch(path.name) for path in folder.glob("task-*"))
    return sorted({match["task"] for match in found if match})


def read_journal(path: Path) -> list[Record]:
    """The entries that a journal, or the claim that it became, tells of."""
    lines = path.read_bytes().splitlines(keepends=True)
    return [record for line in lines if (record := _parse_line(line))]


def _journal_line(record: Record) -> bytes:
    """A record as the journal holds it: crc32c, a space, JSON."""
    text = json.dumps(record.to_json(), separators=(",", ":")).encode()
    return b"%08x %s\n" % (crc32c(text), text)


def _parse_line(line: bytes) -> Record | None:
    """What `_journal_line` wrote; None where it is torn or changed."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % crc32c(text):
        return None
    return Record.from_json(json.loads(text))


def _begin_writing(file: IO[bytes], size: int) -> None:
    """Have the last `size` bytes written out and do not wait: a later sync finds little to do.

    Linux begins to write what is dirty when told that it is not needed. What is being written
    stays in memory.
    """
    if hasattr(os, "posix_fadvise"):
        end = os.fstat(file.fileno()).st_size
        os.posix_fadvise(file.fileno(), end - size, size, os.POSIX_FADV_DONTNEED)


def _write_all(file: IO[bytes], data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
