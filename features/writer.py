"""Adding entries to a store, so that nothing is lost whatever kills the process.

An entry's bytes are appended to a part file, then one line goes to a journal. A full or finished
part is sealed (Zarr's index behind the data, fsync, rename to its place), its sidecar is written,
and `_mm/manifest.json` is replaced: that rename is the only commit point. A restart keeps every
journal line whose bytes are there and have the right crc32c, cuts the rest, and goes on.
"""

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from blake3 import blake3
from crc32c import crc32c

from mmfuse.features import layout
from mmfuse.features.errors import ClipError, LockedError, StoreError
from mmfuse.features.failures import Failures
from mmfuse.features.index import Record, read_sidecar, root_of, sidecar_bytes, store_root_of
from mmfuse.features.spec import Entry, StreamSpec

_SYNC_BYTES = 64 * 2**20
_EMPTY = json.dumps({"format": layout.FORMAT_VERSION, "version": 0, "streams": {}, "root": None})


class StoreWriter:
    """The one process that writes a store; holds its lock until `close`.

    Use as a context manager. `root` is made when it is not there.

    Raises:
        LockedError: another process holds the lock.
        StoreError: `root` is something else than a store of this version.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        meta = root / layout.META
        if root.exists() and not meta.is_dir() and any(root.iterdir()):
            raise StoreError(
                f"{root} is not a feature store and not empty; name a new folder with --store"
            )
        meta.mkdir(parents=True, exist_ok=True)
        self._lock = (meta / "writer.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise LockedError(
                f"another process is writing to {root}; wait for it, or name another --store"
            ) from None
        self._manifest_path = meta / "manifest.json"
        try:
            self.manifest: dict[str, Any] = (
                read_manifest(root) if self._manifest_path.exists() else json.loads(_EMPTY)
            )
            self.failures = Failures(root)
        except BaseException:
            self._lock.close()
            raise
        self._streams: dict[str, StreamWriter] = {}

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(finish=kind is None)

    def stream(self, spec: StreamSpec) -> "StreamWriter":
        """The writer of one stream; work that an earlier process left behind is taken up."""
        if spec.key not in self._streams:
            known = self.manifest["streams"].get(spec.key)
            if known is not None and known["fingerprint"] != spec.fingerprint:
                raise StoreError(f"two specs of {spec.name} share the short name {spec.key}")
            self._streams[spec.key] = StreamWriter(self, spec)
        return self._streams[spec.key]

    def commit(self, key: str, stream: dict[str, Any]) -> None:
        """Make a stream's new shard visible. The rename in here is the commit point."""
        self.manifest["streams"][key] = {**stream, "root": None}
        self.manifest["root"] = None
        self._replace_manifest()

    def close(self, *, finish: bool = True) -> None:
        """Release the store; with `finish`, seal what is open and write roots and derived files."""
        if self._lock.closed:
            return
        try:
            if finish:
                for stream in self._streams.values():
                    stream.seal()
            self.failures.save()
            if finish:
                self._finish()
        finally:
            for stream in self._streams.values():
                stream.release()
            self._lock.close()

    def _finish(self) -> None:
        dirty = False
        for key, stream in self._streams.items():
            document = self.manifest["streams"].get(key)
            if document is not None and document["root"] is None:
                stream.write_derived(document)
                document["root"] = stream.root()
                dirty = True
        roots = [stream["root"] for stream in self.manifest["streams"].values()]
        if (dirty or self.manifest["root"] is None) and None not in roots:
            self.manifest["root"] = store_root_of(roots)
            self._replace_manifest()

    def _replace_manifest(self) -> None:
        group = self.root / "zarr.json"
        if not group.exists():
            layout.write_durably(group, layout.to_json(layout.group_document()))
        self.manifest["version"] += 1
        layout.write_durably(self._manifest_path, layout.to_json(self.manifest))


class StreamWriter:
    """Appends entries to one stream, one shard after the other."""

    def __init__(self, store: StoreWriter, spec: StreamSpec) -> None:
        self.store, self.spec = store, spec
        self._folder = store.root / layout.META / spec.key
        self._folder.mkdir(parents=True, exist_ok=True)
        document = store.manifest["streams"].get(spec.key)
        self._shards: list[dict[str, Any]] = list(document["shards"]) if document else []
        self._shard_rows = document["shard_rows"] if document else layout.shard_rows_of(spec)
        self._contents: dict[tuple[str, int], bytes] = {}
        for shard in self._shards:
            table = read_sidecar(
                layout.sidecar_path(store.root, spec.key, shard["k"]), shard["entries"]
            )
            columns = (table[name].to_pylist() for name in ("clip_id", "view", "content"))
            self._contents |= {(i, v): c for i, v, c in zip(*columns, strict=True)}
        self._records: list[Record] = []
        self._rows = 0
        self._unsynced = 0
        self._shard = max((shard["k"] for shard in self._shards), default=-1) + 1
        self._part: IO[bytes] | None = None
        self._journal: IO[bytes] | None = None
        self._recover()

    def has(self, clip_id: str, content: bytes, view: int = 0) -> bool:
        """Whether this very content of the clip is in the stream, sealed or journalled."""
        return self._contents.get((clip_id, view)) == content

    def append(self, clip_id: str, content: bytes, entry: Entry, view: int = 0) -> None:
        """Write one entry whole; `content` is the 32-byte hash of what it was made from.

        Raises:
            ClipError: the values are not finite in the stream's dtype, or longer than a shard.
        """
        values = entry.values
        assert values.dtype == self.spec.dtype and values.shape[1:] == self.spec.item
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ClipError("non_finite", f"{self.spec.name} of {clip_id!r} has NaN or Inf")
        if len(values) > self._shard_rows:
            raise ClipError(
                "too_long",
                f"{self.spec.name} of {clip_id!r} has {len(values)} rows, a shard holds "
                f"{self._shard_rows}; cut the recording into shorter clips",
            )
        if self._rows + len(values) > self._shard_rows:
            self.seal()
        data = np.ascontiguousarray(values).tobytes()
        windows = entry.windows or ((type(entry.origin_s)(0), len(values)),)
        record = Record(
            clip_id, content, view, self._rows, len(values), int(crc32c(data)),
            blake3(data).digest(), windows, entry.origin_s, entry.note,
        )  # fmt: skip
        self._write(record, data)
        self._contents[clip_id, view] = content

    def seal(self, only_with: Iterable[str] | None = None) -> None:
        """Close the open shard and commit it; with `only_with`, only if it holds such a clip."""
        if not self._records or self._part is None or self._journal is None:
            return
        if only_with is not None and {r.clip_id for r in self._records}.isdisjoint(only_with):
            return
        padding = -self._rows % layout.INNER_ROWS * self.spec.row_bytes
        index = layout.shard_index(
            layout.used_inner(self._rows), self._shard_rows, self.spec.row_bytes
        )
        self._part.write(bytes(padding) + index)
        self._part.flush()
        os.fsync(self._part.fileno())
        os.fsync(self._journal.fileno())
        self.release()
        final = layout.shard_path(self.store.root, self.spec.key, self._shard, self.spec.item)
        final.parent.mkdir(parents=True, exist_ok=True)
        self._path("part").chmod(0o444)
        self._path("part").replace(final)
        layout.sync(final.parent)
        sidecar = sidecar_bytes(self._records)
        layout.write_durably(
            layout.sidecar_path(self.store.root, self.spec.key, self._shard), sidecar
        )
        self._shards.append(
            {
                "k": self._shard,
                "entries": len(self._records),
                "rows": self._rows,
                "bytes": final.stat().st_size,
                "crc32c": _file_crc(final),
                "sidecar_bytes": len(sidecar),
                "sidecar_crc32c": int(crc32c(sidecar)),
            }
        )
        self._write_array_document()
        self.store.commit(self.spec.key, self._document())
        self._path("journal").unlink()
        self._records, self._rows, self._shard = [], 0, self._shard + 1

    def release(self) -> None:
        """Close files; what they hold is taken up by the next writer."""
        for file in (self._part, self._journal):
            if file is not None:
                file.close()
        self._part = self._journal = None

    def root(self) -> str:
        """The stream's root; see `index.root_of`."""
        live: dict[tuple[str, int], tuple[bytes, bytes]] = {}
        for shard in self._shards:
            path = layout.sidecar_path(self.store.root, self.spec.key, shard["k"])
            table = read_sidecar(path, shard["entries"])
            names = ("clip_id", "view", "content", "digest")
            for clip_id, view, content, digest in zip(
                *(table[name].to_pylist() for name in names), strict=True
            ):
                live[clip_id, view] = (content, digest)
        entries = [(i, v, content, digest) for (i, v), (content, digest) in live.items()]
        return root_of(self.spec.fingerprint, entries)

    def write_derived(self, document: dict[str, Any]) -> None:
        """Write `starts` and `lengths` (global rows, in shard order) for other Zarr readers."""
        starts, lengths = [], []
        for shard in document["shards"]:
            path = layout.sidecar_path(self.store.root, self.spec.key, shard["k"])
            table = read_sidecar(path, shard["entries"])
            starts.append(table["start"].to_numpy() + shard["k"] * self._shard_rows)
            lengths.append(table["rows"].to_numpy())
        for name, parts in (("starts", starts), ("lengths", lengths)):
            array = np.concatenate(parts).astype("<i8")
            folder = self.store.root / self.spec.key / name
            layout.write_durably(folder / "c" / "0", array.tobytes())
            array_json = layout.array_document(len(array), (), "int64", len(array), sharded=False)
            layout.write_durably(folder / "zarr.json", layout.to_json(array_json))

    def _document(self) -> dict[str, Any]:
        return {
            "spec": self.spec.to_json(),
            "fingerprint": self.spec.fingerprint,
            "shard_rows": self._shard_rows,
            "inner_rows": layout.INNER_ROWS,
            "shards": self._shards,
        }

    def _write_array_document(self) -> None:
        folder = self.store.root / self.spec.key
        rows = (max(shard["k"] for shard in self._shards) + 1) * self._shard_rows
        array = layout.array_document(
            rows, self.spec.item, self.spec.dtype, self._shard_rows, sharded=True
        )
        group = {**layout.group_document(), "attributes": {"mmfuse": self.spec.to_json()}}
        layout.write_durably(folder / "zarr.json", layout.to_json(group))
        layout.write_durably(folder / "values" / "zarr.json", layout.to_json(array))

    def _path(self, kind: str) -> Path:
        return self._folder / f"{kind}-{self._shard}"

    def _write(self, record: Record, data: bytes) -> None:
        if self._part is None or self._journal is None:
            self._part = self._path("part").open("ab", buffering=0)
            self._journal = self._path("journal").open("ab", buffering=0)
        _write_all(self._part, data)
        _write_all(self._journal, _journal_line(record))
        self._records.append(record)
        self._rows += record.rows
        self._unsynced += len(data)
        if self._unsynced >= _SYNC_BYTES:
            os.fdatasync(self._part.fileno())
            os.fdatasync(self._journal.fileno())
            self._unsynced = 0

    def _recover(self) -> None:
        """Take up the shard that was being written when the last process ended.

        A sealed shard that no manifest names is one whose commit was cut short: it becomes a part
        again and is sealed by the caller in its time.
        """
        for stale in self._folder.glob("journal-*"):
            if int(stale.name.split("-")[1]) < self._shard:
                stale.unlink()
        part, journal = self._path("part"), self._path("journal")
        if not journal.exists():
            part.unlink(missing_ok=True)
            return
        sealed = layout.shard_path(self.store.root, self.spec.key, self._shard, self.spec.item)
        if not part.exists() and sealed.exists():
            sealed.replace(part)
        part.touch()
        part.chmod(0o644)
        journal_bytes = 0
        with part.open("rb") as file:
            for line in journal.read_bytes().splitlines(keepends=True):
                record = _parse_journal_line(line)
                if record is None or record.start != self._rows:
                    break
                data = file.read(record.rows * self.spec.row_bytes)
                if len(data) != record.rows * self.spec.row_bytes or crc32c(data) != record.crc32c:
                    break
                self._records.append(record)
                self._contents[record.clip_id, record.view] = record.content
                self._rows += record.rows
                journal_bytes += len(line)
        os.truncate(part, self._rows * self.spec.row_bytes)
        os.truncate(journal, journal_bytes)
        if self._records:
            self._part, self._journal = (
                part.open("ab", buffering=0),
                journal.open("ab", buffering=0),
            )


def read_manifest(root: Path) -> dict[str, Any]:
    """The store's manifest.

    Raises:
        StoreError: damaged, or written by a newer version.
    """
    document = layout.read_json(root, root / layout.META / "manifest.json")
    if not isinstance(document, dict) or not isinstance(document.get("streams"), dict):
        raise StoreError(f"the manifest of {root} is damaged")
    if document.get("format") != layout.FORMAT_VERSION:
        raise StoreError(
            f"{root} has store format {document.get('format')!r}, this mmfuse reads format "
            f"{layout.FORMAT_VERSION}; upgrade with: pip install -U mmfuse"
        )
    return document


def _journal_line(record: Record) -> bytes:
    text = json.dumps(record.to_json(), separators=(",", ":")).encode()
    return b"%08x %s\n" % (crc32c(text), text)


def _parse_journal_line(line: bytes) -> Record | None:
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % crc32c(text):
        return None
    return Record.from_json(json.loads(text))


def _write_all(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _file_crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(2**22):
            crc = int(crc32c(block, crc))
    return crc
