"""Splits: what they are called, in cells and in names of files, and manifests of one each."""

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from mmfuse.features.errors import ConfigError
from mmfuse.features.rows import Row, Rows

SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation",
          "val": "validation", "dev": "validation", "test": "test"}  # fmt: skip


def split_in(name: str) -> str | None:
    """The one split that a name has among its words: `train-00000-of-00002`, `cuts_dev.jsonl`."""
    words = re.split(r"[^a-z]+", name.lower())
    found = {SPLITS[word] for word in words if word in SPLITS}
    return found.pop() if len(found) == 1 else None


class SplitRows(Rows):
    """Rows of several manifests one behind the other, each with the split that its name told.

    Their own `split` and `id` win. Where they have no `id`, it is the name of the part and the
    number of the row in it, from 0.
    """

    def __init__(self, parts: Sequence[tuple[str, Rows]]) -> None:
        self._parts = [(name, split_in(name), rows) for name, rows in parts]
        self.columns = set.intersection(*(rows.columns for _, rows in parts))
        self._own = frozenset(self.columns)
        self.columns |= {"id"}
        if any(split for _, split, _ in self._parts):
            self.columns.add("split")
        self.by_number = all(rows.by_number for _, rows in parts)

    def read(self, columns: list[str]) -> Iterator[Row]:
        """See `Rows.read`."""
        return self.span(columns, 0, None)

    def span(self, columns: list[str], start: int, stop: int | None) -> Iterator[Row]:
        """See `Rows.span`."""
        own, first = [name for name in columns if name in self._own], 0
        for name, split, rows in self._parts:
            last = first + rows.count()
            if stop is not None:
                last = min(last, stop)
            begin = max(start - first, 0)
            if first + begin < last:
                for number, row in enumerate(rows.span(own, begin, last - first), start=begin):
                    yield {**_added(name, split, number), **row}
            first += rows.count()

    def tables(self, columns: list[str], stop: int) -> Iterator[pa.Table]:
        """See `Rows.tables`."""
        own = [name for name in columns if name in self._own]
        for name, split, rows in self._parts:
            number = 0
            for table in rows.tables(own or sorted(self._own)[:1], stop):
                extra = [_added(name, split, number + i) for i in range(len(table))]
                for added in [c for c in columns if c not in own]:
                    values = pa.array([row.get(added) for row in extra], pa.string())
                    table = table.append_column(added, values)  # noqa: PLW2901
                number, stop = number + len(table), stop - len(table)
                yield table.select(columns)

    def count(self) -> int:
        """See `Rows.count`."""
        return sum(rows.count() for _, _, rows in self._parts)

    def class_names(self, column: str) -> list[str] | None:
        """See `Rows.class_names`."""
        found: list[Any] = [rows.class_names(column) for _, _, rows in self._parts]
        if any(names != found[0] for names in found):
            raise ConfigError(
                f"the numbers in column {column!r} mean other classes in {self._parts[0][0]} than "
                "in other splits; give them the same ClassLabel"
            )
        return found[0]  # type: ignore[no-any-return]


def _added(name: str, split: str | None, number: int) -> dict[str, str | None]:
    return {"id": f"{name}-{number}" if name else str(number), "split": split}


def first_rows(rows: Iterator[Row], count: int) -> set[str]:
    """Keys of the first rows."""
    return set().union(*islice(rows, count))
