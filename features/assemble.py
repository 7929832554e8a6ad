"""A new store, or more shards of one, from files that other stores hold."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from crc32c import crc32c
from numpy.typing import NDArray

from mmfuse.features import derived, layout
from mmfuse.features.census import files_of, open_work, placed
from mmfuse.features.errors import StoreError
from mmfuse.features.failures import Failure, Failures
from mmfuse.features.index import read_sidecar, root_of, store_root_of, table_bytes
from mmfuse.features.manifest import IMMUTABLE, write_manifest
from mmfuse.features.spec import StreamSpec


@dataclass(slots=True)
class Combined:
    """What a new store is made of."""

    store: str
    root: str = ""
    streams: int = 0
    entries: int = 0
    duplicates: int = 0
    linked: int = 0
    copied: int = 0
    bytes: int = 0


class Assembly:
    """Places files below `out`; `commit` makes them a store. The caller holds the lock.

    A shard is claimed before it is placed, so that what a killed assembly left is known for what it
    is; the next one removes it first.
    """

    def __init__(self, out: Path, manifest: dict[str, Any]) -> None:
        self.out, self.manifest = out, manifest
        self.combined = Combined(str(out))
        self._placed: dict[str, list[dict[str, Any]]] = {}
        self._failures: list[pa.Table] = []
        self._claims: list[Path] = []
        self._made: dict[str, Any] | None = None
        for key, number in placed(files_of(out)):
            self._clear(key, number)
        if open_work(files_of(out), manifest):
            raise StoreError(
                f"{out} holds work of a run that ended early; give its mmfeat command again, or "
                "remove the work with mmfeat gc --unfinished"
            )

    def begin(self, key: str, stream: Mapping[str, Any], source: Path) -> None:
        """Make room for a stream, or see that the one that is there is the same."""
        there = self.manifest["streams"].setdefault(
            key, {**stream, "shards": [], "root": None} if source != self.out else stream
        )
        for name in ("fingerprint", "shard_rows"):
            if there[name] != stream[name]:
                raise StoreError(
                    f"stream {key} of {source} has {name} {stream[name]}, not {there[name]} as the "
                    "others; make one of them anew"
                )

    def add(
        self,
        source: Path,
        key: str,
        shard: Mapping[str, Any],
        table: pa.Table,
        keep: NDArray[np.bool_],
    ) -> None:
        """Place a shard with the entries that are kept, under its own number if that is free."""
        if not keep.any():
            return
        stream = self.manifest["streams"][key]
        taken = {other["k"] for other in stream["shards"]}
        number = shard["k"] if shard["k"] not in taken else max(taken) + 1
        claim = self.out / layout.META / key / f"claim-{number}"
        claim.parent.mkdir(parents=True, exist_ok=True)
        claim.touch()
        self._claims.append(claim)
        item = StreamSpec.from_json(stream["spec"]).item
        old = layout.shard_path(source, key, shard["k"], item)
        layout.require_regular(source, old, shard["bytes"])
        self._place(old, layout.shard_path(self.out, key, number, item), shard["crc32c"])
        sidecar = layout.sidecar_path(self.out, key, number)
        line = {**shard, "k": number}
        if keep.all():
            own = layout.sidecar_path(source, key, shard["k"])
            self._place(own, sidecar, shard["sidecar_crc32c"])
        else:
            data = table_bytes(table.filter(pa.array(keep)).combine_chunks())
            layout.write_durably(sidecar, data)
            line |= {
                "entries": int(keep.sum()),
                "sidecar_bytes": len(data),
                "sidecar_crc32c": int(crc32c(data)),
            }
        stream["shards"] = sorted([*stream["shards"], line], key=lambda other: int(other["k"]))
        stream["root"] = None
        self.combined.entries += int(keep.sum())
        self.combined.bytes += shard["bytes"]

    def add_files(self, source: Path, files: Mapping[str, int | None], failures: pa.Table) -> None:
        """Take tokenizers, failures, and how streams were made along; the first word counts."""
        self._failures.append(failures)
        for name, crc in files.items():
            target = self.out / layout.META / name
            path = source / layout.META / name
            if name == "run.json":
                raw = layout.read_bytes(source, path)
                if fault := layout.seal_fault(raw):
                    raise StoreError(f"{path} is damaged: {fault}; mmfeat verify tells more")
                self._made = layout.parse_json(path, raw).get("streams", {}) | (self._made or {})
            elif IMMUTABLE.fullmatch(name) and source != self.out:
                data = layout.read_bytes(source, path)
                if crc32c(data) != crc or (target.exists() and target.read_bytes() != data):
                    raise StoreError(f"{name} of {source} is damaged, or not that of {self.out}")
                layout.write_durably(target, data)

    def commit(self) -> Combined:
        """Write what follows, then the manifest: from here on there is a store."""
        streams = self.manifest["streams"]
        for key, stream in streams.items():
            sidecars = [
                read_sidecar(layout.sidecar_path(self.out, key, shard["k"]), shard["entries"])
                for shard in stream["shards"]
            ]
            stream["root"] = root_of(stream["fingerprint"], sidecars)
            files = derived.documents(key, stream) | derived.offsets(key, stream, sidecars)
            for path, data in files.items():
                layout.write_durably(self.out / path, data)
        layout.write_durably(self.out / "zarr.json", derived.group_bytes())
        self._save_failures()
        self._save_run()
        self.manifest["root"] = store_root_of([stream["root"] for stream in streams.values()])
        write_manifest(self.out, self.manifest)
        for claim in self._claims:
            claim.unlink()
        self.combined.root, self.combined.streams = self.manifest["root"], len(streams)
        return self.combined

    def _save_failures(self) -> None:
        """The first word on a clip and stream counts; one that has an entry did not fail."""
        failures = Failures(self.out)
        known = {(failure.clip_id, failure.stream) for failure in failures}
        for table in self._failures:
            for row in table.to_pylist():
                if (row["clip_id"], row["stream"]) not in known:
                    known.add((row["clip_id"], row["stream"]))
                    failures.add(Failure(**row))
        for key, stream in self.manifest["streams"].items():
            failed = {failure.clip_id for failure in failures if failure.stream == key}
            for shard in stream["shards"] if failed else ():
                path = layout.sidecar_path(self.out, key, shard["k"])
                for clip_id in read_sidecar(path, shard["entries"])["clip_id"].to_pylist():
                    if clip_id in failed:
                        failures.clear(clip_id, key)
        failures.save()

    def _save_run(self) -> None:
        if self._made is not None:
            made = {k: how for k, how in self._made.items() if k in self.manifest["streams"]}
            path = self.out / layout.META / "run.json"
            layout.write_durably(path, layout.to_sealed_json({"streams": made}))

    def _place(self, source: Path, target: Path, crc: int) -> None:
        """Link a file, or copy it where that is not possible."""
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
            self.combined.linked += 1
        except OSError:
            temporary = target.with_name(target.name + ".tmp")
            shutil.copyfile(source, temporary)
            if layout.file_crc(temporary) != crc:
                temporary.unlink()
                raise StoreError(f"{source} is damaged; mmfeat verify tells more") from None
            temporary.chmod(0o444)
            layout.sync(temporary)
            temporary.replace(target)
            self.combined.copied += 1
        layout.sync(target.parent)

    def _clear(self, key: str, number: int) -> None:
        """Remove what a killed assembly placed under a number; the store's own shards stay."""
        stream = self.manifest["streams"].get(key, {"shards": []})
        if number not in {shard["k"] for shard in stream["shards"]}:
            layout.sidecar_path(self.out, key, number).unlink(missing_ok=True)
            shard = self.out / key / "values" / "c" / str(number)
            for path in [shard, *shard.rglob("*")]:
                if not path.is_dir():
                    path.unlink(missing_ok=True)
        (self.out / layout.META / key / f"claim-{number}").unlink()
