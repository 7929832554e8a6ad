"""Making what tasks staged part of a store, so that nothing is lost whatever kills the process.

Entries are written into parts by any number of processes (`staging.py`). The one that holds the
lock gives finished parts their shard numbers, in the order in which it is handed them: the journal
is renamed to a claim on the number, the part to its place as a shard, the sidecar is written, and
`_mm/manifest.json` is replaced: that rename is the only commit point. Then the claim goes. Who next
opens the store takes back claims on shards that no manifest names; their parts are committed anew.
"""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from crc32c import crc32c

from mmfuse.features import layout
from mmfuse.features.derived import documents, group_bytes, offsets
from mmfuse.features.errors import StoreError
from mmfuse.features.failures import Failures
from mmfuse.features.index import read_sidecar, root_of, sidecar_bytes, store_root_of
from mmfuse.features.known import Known
from mmfuse.features.lock import store_lock
from mmfuse.features.manifest import (
    manifest_path,
    new_manifest,
    read_manifest,
    write_manifest,
)
from mmfuse.features.spec import Entry, StreamSpec
from mmfuse.features.staging import Sealed, StagedStream, read_journal, tasks_in

_OWN = "own"  # task of entries that are appended through `StoreWriter.stream`
_COMMIT_S, _COMMIT_SHARE = 1.0, 0.05  # wait so long between commits; spend no more of the time


class StoreWriter:
    """The one process that commits to a store; holds its lock until `close`.

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
        self._lock = ExitStack()
        self._lock.enter_context(store_lock(root))
        self._is_open = True
        try:
            self.manifest: dict[str, Any] = (
                read_manifest(root) if manifest_path(root).exists() else new_manifest()
            )
            self.failures = Failures(root)
            self._undo_claims()
        except BaseException:
            self._lock.close()
            raise
        self._specs: dict[str, StreamSpec] = {}
        self._streams: dict[str, StreamWriter] = {}
        self._known: dict[str, Known] = {}
        self._next_shard: dict[str, int] = {}
        self._pending: list[tuple[StreamSpec, Sealed]] = []
        self._next_commit = 0.0

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(finish=kind is None)

    def open(self, spec: StreamSpec, plan: str = _OWN, busy: Collection[str] = frozenset()) -> None:
        """Get a stream ready for tasks whose names begin with `plan`.

        What tasks of other plans have left behind (the corpus has changed since) is committed, but
        for those that somebody is `busy` with.

        Raises:
            StoreError: another stream of this store has the same short name.
        """
        known = self.manifest["streams"].get(spec.key)
        if known is not None and known["fingerprint"] != spec.fingerprint:
            raise StoreError(f"two specs of {spec.name} share the short name {spec.key}")
        self._specs[spec.key] = spec
        folder = self.root / layout.META / spec.key
        folder.mkdir(parents=True, exist_ok=True)
        for task in tasks_in(folder):
            if not task.startswith(plan) and task not in busy:
                self._adopt(spec, task)
        self.flush()

    def stage(self, spec: StreamSpec, task: str) -> StagedStream:
        """A task's part of a stream, for use in this process."""
        return StagedStream(self.root, spec, task, self.shard_rows(spec))

    def shard_rows(self, spec: StreamSpec) -> int:
        """Rows of a full shard of a stream."""
        document = self.manifest["streams"].get(spec.key)
        return int(document["shard_rows"]) if document else layout.shard_rows_of(spec)

    def known(self, spec: StreamSpec, clip_ids: Iterable[str]) -> dict[tuple[str, int], bytes]:
        """Content of the clips (and views) of these that the stream holds."""
        if spec.key not in self._known:
            document = self.manifest["streams"].get(spec.key)
            shards = document["shards"] if document else ()
            self._known[spec.key] = Known(self.root, spec.key, shards)
        return self._known[spec.key].of(list(clip_ids))

    def take(self, spec: StreamSpec, parts: Sequence[Sealed]) -> None:
        """Accept the finished parts of a task; they become shards in the order of the calls.

        They are committed now and then, so that this costs little of a long run's time.
        """
        self._pending += [(spec, part) for part in parts]
        if self._pending and time.monotonic() >= self._next_commit:
            self.flush()

    def flush(self) -> None:
        """Commit what was taken. The rename of the manifest in here is the commit point."""
        self.failures.save()
        if not self._pending:
            return
        began = time.monotonic()
        claimed = [(spec, part, self._claim(spec, part)) for spec, part in self._pending]
        for spec in {spec.key: spec for spec, _, _ in claimed}.values():
            layout.sync(self.root / layout.META / spec.key)
        for spec, part, (k, claim) in claimed:
            self._publish(spec, part, k, claim)
        for spec in {spec.key: spec for spec, _, _ in claimed}.values():
            layout.sync(self.root / spec.key / "values" / "c")
            self._write_files(documents(spec.key, self.manifest["streams"][spec.key]))
        self.manifest["root"] = None
        self._replace_manifest()
        for _, _, (_, claim) in claimed:
            claim.unlink()
        self._pending = []
        took = time.monotonic() - began
        self._next_commit = time.monotonic() + max(_COMMIT_S, took / _COMMIT_SHARE)

    def finish(self) -> str | None:
        """Write roots and derived files of what is committed; the root of the store."""
        self.flush()
        self._finish()
        root: str | None = self.manifest["root"]
        return root

    def stream(self, spec: StreamSpec) -> "StreamWriter":
        """A writer of one stream that commits by itself, for programs that make no tasks."""
        if spec.key not in self._streams:
            self.open(spec)
            self._streams[spec.key] = StreamWriter(self, spec)
        return self._streams[spec.key]

    def close(self, *, finish: bool = True) -> None:
        """Release the store; with `finish`, commit what is open, write roots and derived files."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            if finish:
                for stream in self._streams.values():
                    stream.seal()
                self.finish()
            self.failures.save()
        finally:
            for stream in self._streams.values():
                stream.release()
            self._lock.close()

    def _finish(self) -> None:
        dirty = False
        for key, spec in self._specs.items():
            document = self.manifest["streams"].get(key)
            if document is not None and document["root"] is None:
                sidecars = [
                    read_sidecar(layout.sidecar_path(self.root, key, shard["k"]), shard["entries"])
                    for shard in document["shards"]
                ]
                self._write_files(offsets(key, document, sidecars))
                document["root"] = root_of(spec.fingerprint, sidecars)
                dirty = True
        roots = [stream["root"] for stream in self.manifest["streams"].values()]
        if (dirty or self.manifest["root"] is None) and None not in roots:
            self.manifest["root"] = store_root_of(roots)
            self._replace_manifest()

    def _adopt(self, spec: StreamSpec, task: str) -> None:
        """Commit what a task of another plan staged, but for what is in the store as it is."""
        staged = self.stage(spec, task)
        contents = staged.contents()
        stored = self.known(spec, (clip_id for clip_id, _ in contents))
        if contents.items() <= stored.items():
            staged.discard()
        else:
            self._pending += [(spec, part) for part in staged.finish()]

    def _claim(self, spec: StreamSpec, part: Sealed) -> tuple[int, Path]:
        """The next shard number, with the journal renamed to a claim on it."""
        document = self._document(spec)
        if spec.key not in self._next_shard:
            self._next_shard[spec.key] = max((s["k"] for s in document["shards"]), default=-1) + 1
        k = self._next_shard[spec.key]
        self._next_shard[spec.key] += 1
        claim = part.journal.with_suffix(f".claim-{k}")
        part.journal.replace(claim)
        return k, claim

    def _publish(self, spec: StreamSpec, part: Sealed, k: int, claim: Path) -> None:
        """Put a part in its place, and its sidecar beside it; no manifest names them yet."""
        document = self._document(spec)
        final = layout.shard_path(self.root, spec.key, k, spec.item)
        final.parent.mkdir(parents=True, exist_ok=True)
        part.path.chmod(0o444)
        part.path.replace(final)
        layout.sync(final.parent)
        records = read_journal(claim)
        assert len(records) == part.entries
        sidecar = sidecar_bytes(records)
        layout.write_durably(layout.sidecar_path(self.root, spec.key, k), sidecar)
        document["shards"].append(
            {
                "k": k,
                "entries": part.entries,
                "rows": part.rows,
                "bytes": layout.shard_file_bytes(part.rows, document["shard_rows"], spec.row_bytes),
                "crc32c": part.crc32c,
                "sidecar_bytes": len(sidecar),
                "sidecar_crc32c": int(crc32c(sidecar)),
            }
        )
        document["root"] = None

    def _document(self, spec: StreamSpec) -> dict[str, Any]:
        """The manifest's part about a stream, begun where it has none."""
        new = {
            "spec": spec.to_json(),
            "fingerprint": spec.fingerprint,
            "shard_rows": layout.shard_rows_of(spec),
            "inner_rows": layout.INNER_ROWS,
            "shards": [],
        }
        document: dict[str, Any] = self.manifest["streams"].setdefault(spec.key, new)
        return document

    def _undo_claims(self) -> None:
        """Finish or take back what a commit that was cut short has left.

        The shard of a claim that no manifest names becomes a part again, then the claim a journal.
        """
        for claim in sorted((self.root / layout.META).glob("*/task-*.claim-*")):
            key, k = claim.parent.name, int(claim.suffix.rpartition("-")[2])
            document = self.manifest["streams"].get(key, {"shards": []})
            if any(shard["k"] == k for shard in document["shards"]):
                claim.unlink()
                continue
            shard = self.root / key / "values" / "c" / str(k)
            while shard.is_dir():
                shard = shard / "0"
            part = claim.with_suffix(".part")
            if shard.exists() and not part.exists():
                shard.replace(part)
                layout.sync(claim.parent)
            claim.replace(claim.with_suffix(".journal"))

    def _write_files(self, files: Mapping[str, bytes]) -> None:
        for path, data in files.items():
            layout.write_durably(self.root / path, data)

    def _replace_manifest(self) -> None:
        group = self.root / "zarr.json"
        if not group.exists():
            layout.write_durably(group, group_bytes())
        write_manifest(self.root, self.manifest)


class StreamWriter:
    """Appends entries to one stream and commits them, one shard after the other."""

    def __init__(self, store: StoreWriter, spec: StreamSpec) -> None:
        self._store, self.spec = store, spec
        self._staged = store.stage(spec, _OWN)
        self._sealed: dict[tuple[str, int], bytes] = {}

    def has(self, clip_id: str, content: bytes, view: int = 0) -> bool:
        """Whether this very content of the clip is in the stream, sealed or journalled."""
        key = (clip_id, view)
        for contents in (self._staged.contents(), self._sealed):
            if key in contents:
                return contents[key] == content
        return self._store.known(self.spec, [clip_id]).get(key) == content

    def append(
        self, clip_id: str, content: bytes, entry: Entry, view: int = 0, augmentation: str = ""
    ) -> None:
        """Write one entry whole; `content` is the 32-byte hash of what it was made from.

        `augmentation` is what was drawn for the view, as JSON.

        Raises:
            ClipError: the values are not finite in the stream's dtype, or longer than a shard.
        """
        self._staged.append(clip_id, content, entry, view, augmentation)

    def seal(self) -> None:
        """Commit what was appended."""
        self._sealed |= self._staged.contents()
        self._store.take(self.spec, self._staged.finish())
        self._store.flush()
        self._staged = self._store.stage(self.spec, _OWN)

    def release(self) -> None:
        """Close files; what they hold is taken up by the next writer."""
        self._staged.release()
