"""The failures table: which clips could not be used, and why. Nothing is dropped silently."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

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
    ]
)


@dataclass(frozen=True, slots=True)
class Failure:
    """One clip that one stream could not be made of."""

    clip_id: str
    stage: str
    reason: str
    detail: str
    stream: str
    content: bytes


def read_failures(root: Path) -> pa.Table:
    """The table of a store; empty where it has none.

    Raises:
        StoreError: it is a link, or no such table.
    """
    path = root / META / "failures.parquet"
    if not path.is_symlink() and not path.exists():
        return SCHEMA.empty_table()
    require_regular(root, path)
    try:
        return pq.read_table(path, schema=SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(
            f"{path} is damaged: {error}; remove it, and failed clips are tried anew"
        ) from None


class Failures:
    """The table of a store, keyed by clip and stream; `save` replaces the file as one step."""

    def __init__(self, root: Path) -> None:
        self._path = root / META / "failures.parquet"
        self._rows: dict[tuple[str, str], Failure] = {}
        self._dirty = False
        for row in read_failures(root).to_pylist():
            self._rows[row["clip_id"], row["stream"]] = Failure(**row)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Failure]:
        return iter(self._rows.values())

    def get(self, clip_id: str, stream: str, content: bytes) -> Failure | None:
        """The failure of this very content of the clip, if there was one."""
        row = self._rows.get((clip_id, stream))
        return row if row is not None and row.content == content else None

    def add(self, failure: Failure) -> None:
        """Note a failure; it replaces an older one of the same clip and stream."""
        self._rows[failure.clip_id, failure.stream] = failure
        self._dirty = True

    def clear(self, clip_id: str, stream: str) -> None:
        """Forget a failure: the clip was mended."""
        self._dirty |= self._rows.pop((clip_id, stream), None) is not None

    def save(self) -> None:
        """Write the table if it changed."""
        if not self._dirty:
            return
        rows = sorted(self._rows.values(), key=lambda row: (row.clip_id, row.stream))
        table = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        write_durably(self._path, sink.getvalue().to_pybytes())
        self._dirty = False
