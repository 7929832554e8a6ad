"""The failures table: which clips could not be used, and why. Nothing is dropped silently.

The file says its own crc32c: eight hex digits in its metadata, taken with zeros in their place.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from crc32c import crc32c

from mmfuse.features.errors import StoreError
from mmfuse.features.layout import META, require_regular, write_durably

SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("stream", pa.string()),
        ("content", pa.binary(32)),
        ("view", pa.int32()),
    ]
)
_KEY, _OPEN = b"mmfuse_crc32c", b"00000000"
_MARK = _KEY + b"\x18\x08"  # as the footer holds it: the key, a field's header, a length


@dataclass(frozen=True, slots=True)
class Failure:
    """One clip that one stream could not be made of."""

    clip_id: str
    stage: str
    reason: str
    detail: str
    stream: str
    content: bytes
    view: int = 0


def read_failures(root: Path) -> pa.Table:
    """The table of a store; empty where it has none.

    Raises:
        StoreError: it is a link, or no such table.
    """
    path = root / META / "failures.parquet"
    if not path.is_symlink() and not path.exists():
        return SCHEMA.empty_table()
    require_regular(root, path)
    raw = path.read_bytes()
    if fault := seal_fault(raw):
        raise _damaged(path, fault)
    try:
        table = pq.read_table(pa.BufferReader(raw))
        if "view" not in table.column_names:  # as before there were views
            zeros = pa.array(np.zeros(len(table), np.int32))
            table = table.append_column(SCHEMA.field("view"), zeros)
        return table.cast(SCHEMA)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None


def seal_fault(raw: bytes, *, required: bool = False) -> str | None:
    """What is wrong with the bytes of a table; None if not a bit of them was changed.

    Tables from before they were sealed pass, unless `required`.
    """
    at = _digits(raw)
    if at is None:
        return "it has no checksum" if required else None
    zeroed = raw[:at] + _OPEN + raw[at + len(_OPEN) :]
    same = raw[at : at + len(_OPEN)] == b"%08x" % crc32c(zeroed)
    return None if same else "its checksum is another"


def table_bytes(table: pa.Table) -> bytes:
    """The table as a Parquet file with its own crc32c."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({_KEY: _OPEN}), sink)
    raw = sink.getvalue().to_pybytes()
    at = _digits(raw)
    assert at is not None
    return raw[:at] + b"%08x" % crc32c(raw) + raw[at + len(_OPEN) :]  # type: ignore[no-any-return]


def _digits(raw: bytes) -> int | None:
    """Where the digits begin; what follows them in a footer holds no text of ours."""
    at = raw.rfind(_MARK)
    return None if at < 0 else at + len(_MARK)


def _damaged(path: Path, fault: str) -> StoreError:
    return StoreError(f"{path} is damaged: {fault}; remove it, and failed clips are tried anew")


class FailureNotes:
    """Failures by clip, stream and view; what was added and taken away since they were known."""

    def __init__(self, failures: Iterable[Failure] = ()) -> None:
        self._rows = {(row.clip_id, row.stream, row.view): row for row in failures}
        self.added: list[Failure] = []
        self.cleared: list[tuple[str, str, int]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Failure]:
        return iter(self._rows.values())

    def get(self, clip_id: str, stream: str, content: bytes, view: int = 0) -> Failure | None:
        """The failure of this very content of the clip, if there was one."""
        row = self._rows.get((clip_id, stream, view))
        return row if row is not None and row.content == content else None

    def add(self, failure: Failure) -> None:
        """Note a failure; it replaces an older one of the same clip, stream and view."""
        self._rows[failure.clip_id, failure.stream, failure.view] = failure
        self.added.append(failure)

    def clear(self, clip_id: str, stream: str, view: int = 0) -> None:
        """Forget a failure: the clip was mended."""
        if self._rows.pop((clip_id, stream, view), None) is not None:
            self.cleared.append((clip_id, stream, view))


class Failures(FailureNotes):
    """The table of a store; `save` replaces the file as one step."""

    def __init__(self, root: Path) -> None:
        super().__init__(Failure(**row) for row in read_failures(root).to_pylist())
        self._path = root / META / "failures.parquet"
        self._of_clip: dict[str, list[Failure]] = {}
        for row in self:
            self._of_clip.setdefault(row.clip_id, []).append(row)

    def of(self, clip_ids: Iterable[str]) -> list[Failure]:
        """What was known of clips when the store was opened."""
        return [row for clip_id in clip_ids for row in self._of_clip.get(clip_id, ())]

    def merge(self, added: Iterable[Failure], cleared: Iterable[tuple[str, str, int]]) -> None:
        """What a task has noted elsewhere."""
        for clip_id, stream, view in cleared:
            self.clear(clip_id, stream, view)
        for failure in added:
            self.add(failure)

    def save(self) -> None:
        """Write the table if it changed, or was never written."""
        if not (self.added or self.cleared) and self._path.exists():
            return
        rows = sorted(self, key=lambda row: (row.clip_id, row.stream, row.view))
        table = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)
        write_durably(self._path, table_bytes(table))
        self.added, self.cleared = [], []
