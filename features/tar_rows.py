"""WebDataset tars, read without webdataset: only headers, texts and JSON are read to make rows.

Files with one key, all that stands before the first dot of the name, are a sample if they follow
each other. Audio and MIDI stay in the tar as (offset, size) until a clip is made. Archives are not
to be trusted: links, devices, sparse files and paths out of the archive are refused, and no header
is read into memory that is larger than `_MAX_HEADER`.

Source: https://github.com/webdataset/webdataset, README and `tariterators.py`.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any

from mmfuse.features.errors import ConfigError
from mmfuse.features.parts import Member
from mmfuse.features.rows import AUDIO_SUFFIXES, MIDI_SUFFIXES, Row, Rows
from mmfuse.features.splits import split_in

_MAX_HEADER = 1 << 20  # bytes
_MAX_TEXT = 64 << 20  # bytes of a .txt, .json or .cls
_MAX_FILES = 100_000  # that a pattern may name
_LOOKED_AT = 100  # samples whose JSON keys become columns
_KINDS = {".txt": "text", ".json": "json", ".cls": "cls"}
_KINDS |= dict.fromkeys(AUDIO_SUFFIXES, "audio") | dict.fromkeys(MIDI_SUFFIXES, "midi")
_ELSEWHERE = {"audio", "audio_path", "midi", "midi_path"}  # JSON keys that mean nothing in a tar


def expand(pattern: Path) -> list[Path]:
    """Files of a pattern with braces, `x-{000..012}.tar` or `{a,b}.tar`, in order."""
    parts = re.split(r"\{([^{}]*)\}", str(pattern))
    choices = [[part] if i % 2 == 0 else _choices(part) for i, part in enumerate(parts)]
    return [Path("".join(one)) for one in islice(product(*choices), _MAX_FILES)]


def _choices(inside: str) -> list[str]:
    numbers = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", inside)
    if not numbers:
        return inside.split(",")
    first, last = numbers.groups()
    count = range(int(first), min(int(last), int(first) + _MAX_FILES) + 1)
    return [str(number).zfill(len(first)) for number in count]


class TarRows(Rows):
    """Samples of tars, one behind the other; a split comes from the JSON or from a tar's name.

    `.txt` is the text, `.cls` the class, and keys of `.json` are columns. The key is the id, unless
    the JSON has one.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self.columns = {"id", "audio", "midi"}
        for row in islice(self.read(["text"]), _LOOKED_AT):
            self.columns |= set(row)

    def read(self, columns: list[str]) -> Iterator[Row]:
        """See `Rows.read`."""
        for file in self._files:
            split = split_in(file.name)
            for key, members in _samples(file):
                row = _row_of(file, key, members, with_text="text" in columns)
                yield row if "split" in row or split is None else {**row, "split": split}

    def count(self) -> int:
        """See `Rows.count`."""
        return sum(1 for file in self._files for _ in _samples(file))


def _row_of(file: Path, key: str, members: dict[str, Member], *, with_text: bool) -> Row:
    row: Row = {"id": key}
    if "json" in members:
        try:
            told = json.loads(_text(file, key, members["json"]))
            row |= {name: value for name, value in told.items() if name not in _ELSEWHERE}
        except (ValueError, RecursionError, AttributeError):
            raise ConfigError(f"{file}, sample {key!r}: its .json is no JSON object") from None
    if "cls" in members:
        number = _text(file, key, members["cls"]).strip()
        row.setdefault("label_id", number)
    if with_text and "text" in members:
        row["text"] = _text(file, key, members["text"])
    return row | {name: members[name] for name in ("audio", "midi") if name in members}


def _text(file: Path, key: str, member: Member) -> str:
    if member.size > _MAX_TEXT:
        raise ConfigError(f"{file}, sample {key!r}: a text of {member.size} bytes is too long")
    try:
        with file.open("rb") as opened:
            opened.seek(member.offset)
            return opened.read(member.size).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}, sample {key!r}: no UTF-8 text: {error}") from None


def _samples(file: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """Key and members of each sample, by kind; samples without any that is known are left out."""
    key, members = "", dict[str, Member]()
    for name, member in _members(file):
        found = re.fullmatch(r"((?:.*/|)[^./][^./]*)\.([^/]*)", name)
        if found is None:
            continue
        if found[1] != key:
            if members:
                yield key, members
            key, members = found[1], {}
        kind = _KINDS.get(Path(name).suffix.lower())
        if kind in members:
            raise ConfigError(f"{file}, sample {key!r}: two files of {kind}; keep one")
        if kind is not None:
            members[kind] = member
    if members:
        yield key, members


def _members(file: Path) -> Iterator[tuple[str, Member]]:
    """Name and place of each file in an archive."""
    try:
        with file.open("rb") as raw:
            archive = tarfile.TarFile(fileobj=_Headers(raw))
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined] # else all stay in memory
                if info.isdir():
                    continue
                name = info.name.removeprefix("./")
                if not info.isreg() or info.issparse():
                    raise ConfigError(f"{file}: {name!r} is a link, a device or sparse, not a file")
                if name.startswith("/") or ".." in name.split("/") or "\0" in name:
                    raise ConfigError(f"{file}: {name!r} leads out of the archive")
                yield name, Member("", Path(), file.name, offset=info.offset_data, size=info.size)
            raw.seek(archive.offset)
            if raw.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"no header at byte {archive.offset}")
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        packed = "; unpack it first, a packed one can't be read from the middle"
        hint = packed if _is_packed(file) else ""
        raise ConfigError(f"{file} is no tar, or damaged: {error}{hint}") from None


class _Headers(io.RawIOBase):
    """A file of which nobody reads much at once, as `tarfile` might, to please a header."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return bytes(self._raw.read(size))

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._raw.seek(offset, whence))

    def tell(self) -> int:
        return int(self._raw.tell())


def _is_packed(file: Path) -> bool:
    try:
        with file.open("rb") as raw:
            return raw.read(4)[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5")
    except OSError:
        return False
