"""A store from elsewhere, made an ordinary one here: whole shards, checked before they are named.

The manifest is fetched first and judged as a local one is. Each file it names goes to a temporary
file, in ranges side by side, and gets its name when its size and crc32c are right; what is here
already is not fetched. What follows from the manifest is written, not fetched. The manifest comes
last, so a pull that was killed leaves no store, and the next one goes on.
"""

import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crc32c import crc32c

from mmfuse.features import derived, layout
from mmfuse.features.census import files_of, open_work
from mmfuse.features.errors import ConfigError, MissingError, StoreError
from mmfuse.features.failures import seal_fault
from mmfuse.features.index import read_sidecar, root_of, store_root_of
from mmfuse.features.int8 import with_scales
from mmfuse.features.lock import store_lock
from mmfuse.features.manifest import (
    MUTABLE,
    NAME,
    manifest_path,
    parse_manifest,
    read_manifest,
    write_manifest,
)
from mmfuse.features.remote import Source, open_source
from mmfuse.features.spec import StreamSpec

_RANGE_BYTES = 8 * 2**20
_MANIFEST = f"{layout.META}/{NAME}"


@dataclass(slots=True)
class Pulled:
    """What was fetched, and what was here already."""

    source: str
    store: str
    root: str = ""
    streams: int = 0
    shards: int = 0
    fetched: int = 0
    kept: int = 0
    bytes: int = 0


def pull(
    address: str,
    out: Path,
    streams: Collection[str] = (),
    shards: tuple[int, int] | None = None,
    workers: int = 8,
) -> Pulled:
    """Fetch a store, or some streams or shards of it, into `out`.

    What `out` holds already of the same store stays in it.

    Args:
        streams: names or keys; none means all.
        shards: first and last number of the shards of each stream; None means all.
        workers: ranges that are fetched at once, 8 MiB each.

    Raises:
        MissingError: there is no store at `address`, or no such stream in it.
        StoreError: it is unfinished or damaged, or `out` holds something else.
        LockedError: somebody writes to `out`.
    """
    source, report = open_source(address), Pulled(address, str(out))
    manifest = _remote_manifest(source, address)
    if out.exists() and not (out / layout.META).is_dir() and any(out.iterdir()):
        raise StoreError(f"{out} is not a feature store and not empty; name a new folder")
    with store_lock(out):
        _choose(manifest, _keys(manifest, streams, address), shards, _own_shards(out, manifest))
        with ThreadPoolExecutor(workers) as pool:
            try:
                for path, size, crc in _files(manifest):
                    _fetch(source, out, path, size, crc, pool, report)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        for name, crc in manifest.get("files", {}).items():
            _fetch_small(source, out, f"{layout.META}/{name}", crc, report)
        _commit(out, manifest, address)
    report.root, report.streams = manifest["root"], len(manifest["streams"])
    report.shards = sum(len(stream["shards"]) for stream in manifest["streams"].values())
    return report


def _remote_manifest(source: Source, address: str) -> dict[str, Any]:
    try:
        raw = _small(source, _MANIFEST)
    except StoreError as error:
        if " is missing from " in str(error):
            raise MissingError(f"no feature store at {address}: {error}") from None
        raise
    manifest = parse_manifest(raw, address)
    if manifest["root"] is None:
        raise StoreError(f"{address} is unfinished; let the run that makes it end first")
    manifest.pop("tombstones", None)
    return manifest


def _keys(manifest: dict[str, Any], names: Collection[str], address: str) -> set[str]:
    """Keys of the streams that are asked for by key or by name."""
    chosen = set()
    for name in names:
        found = {key for key in manifest["streams"] if name in (key, key.rpartition("-")[0])}
        if not found:
            held = ", ".join(sorted(manifest["streams"])) or "nothing"
            raise MissingError(f"{address} has no stream {name!r}; it holds: {held}")
        chosen |= found
    return set(with_scales(manifest, chosen) if names else manifest["streams"])


def _own_shards(out: Path, manifest: dict[str, Any]) -> dict[str, set[int]]:
    """Numbers of the shards that `out` holds, all of which the source must have.

    Raises:
        StoreError: `out` is another store, or somebody began to write to it.
    """
    if not manifest_path(out).exists():
        return {}
    own = read_manifest(out)
    if open_work(files_of(out), own):
        raise StoreError(f"{out} holds work of a run that ended early; give its command again")
    for key, stream in own["streams"].items():
        theirs = manifest["streams"].get(key, {"shards": []})["shards"]
        if not all(shard in theirs for shard in stream["shards"]):
            raise StoreError(f"{out} holds shards of {key} that the source has not; name another")
    return {key: {s["k"] for s in stream["shards"]} for key, stream in own["streams"].items()}


def _choose(
    manifest: dict[str, Any],
    keys: Collection[str],
    shards: tuple[int, int] | None,
    own: dict[str, set[int]],
) -> None:
    """Leave in the manifest what is asked for, and what is here; a cut stream has no root."""
    for key, stream in manifest["streams"].items():
        every = stream["shards"]
        stream["shards"] = [
            shard
            for shard in every
            if shard["k"] in own.get(key, ())
            or (key in keys and (shards is None or shards[0] <= shard["k"] <= shards[1]))
        ]
        if stream["shards"] != every:
            stream["root"] = None
    kept = {key for key in manifest["streams"] if key in keys or key in own}
    manifest["streams"] = {k: s for k, s in manifest["streams"].items() if k in kept}


def _files(manifest: dict[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Path, size and crc32c of every sidecar and shard."""
    here = Path()
    for key, stream in manifest["streams"].items():
        item = StreamSpec.from_json(stream["spec"]).item
        for shard in stream["shards"]:
            sidecar = layout.sidecar_path(here, key, shard["k"]).as_posix()
            yield sidecar, shard["sidecar_bytes"], shard["sidecar_crc32c"]
            path = layout.shard_path(here, key, shard["k"], item).as_posix()
            yield path, shard["bytes"], shard["crc32c"]


def _fetch(
    source: Source,
    out: Path,
    path: str,
    size: int,
    crc: int,
    pool: ThreadPoolExecutor,
    report: Pulled,
) -> None:
    """Fetch a file unless it is here; it gets its name once it is seen to be right."""
    target = out / path
    if _is_here(out, target, size, crc):
        report.kept += 1
        return
    found = source.size(path)
    if found != size:
        raise StoreError(f"{path} has {found} bytes at {report.source}, its manifest says {size}")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        list(pool.map(_range(source, path, size, descriptor), range(0, size, _RANGE_BYTES)))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if layout.file_crc(temporary) != crc:
        temporary.unlink()
        raise StoreError(
            f"{path} of {report.source} is damaged: its checksum is another; mmfeat verify there "
            "tells more"
        )
    if "/values/c/" in path:
        temporary.chmod(0o444)
    temporary.replace(target)
    layout.sync(target.parent)
    report.fetched += 1
    report.bytes += size


def _range(source: Source, path: str, size: int, descriptor: int) -> Callable[[int], None]:
    def fetch(start: int) -> None:
        stop = min(start + _RANGE_BYTES, size)
        data = memoryview(source.read(path, start, stop))
        if data.nbytes != stop - start:
            raise StoreError(f"{path}: {data.nbytes} bytes came, {stop - start} were asked for")
        while data.nbytes:
            written = os.pwrite(descriptor, data, start)
            data, start = data[written:], start + written

    return fetch


def _is_here(out: Path, target: Path, size: int, crc: int) -> bool:
    try:
        layout.require_regular(out, target, size)
    except StoreError:
        return False
    return layout.file_crc(target) == crc


def _small(source: Source, path: str) -> bytes:
    """A whole file of bounded size."""
    size = source.size(path)
    if size > layout.MAX_JSON_BYTES:
        raise StoreError(f"{path} has {size} bytes; refusing more than {layout.MAX_JSON_BYTES}")
    return bytes(source.read(path, 0, size)) if size else b""


def _fetch_small(source: Source, out: Path, path: str, crc: int | None, report: Pulled) -> None:
    """Fetch a file that lies beside the manifest; it carries its checksum or the manifest does."""
    raw = _small(source, path)
    if path.rpartition("/")[2] not in MUTABLE:
        fault = None if crc32c(raw) == crc else "its checksum is another"
    else:
        table = path.endswith(".parquet")
        fault = seal_fault(raw, required=True) if table else layout.seal_fault(raw)
    if fault:
        raise StoreError(f"{path} of {report.source} is damaged: {fault}")
    layout.write_durably(out / path, raw)
    report.fetched += 1
    report.bytes += len(raw)


def _commit(out: Path, manifest: dict[str, Any], address: str) -> None:
    """See that the entries are those of the roots; write what follows, then the manifest."""
    for key, stream in manifest["streams"].items():
        said = stream["root"]
        sidecars = [
            read_sidecar(layout.sidecar_path(out, key, shard["k"]), shard["entries"])
            for shard in stream["shards"]
        ]
        stream["root"] = root_of(stream["fingerprint"], sidecars)
        if said not in (None, stream["root"]):
            raise StoreError(f"{address}: the root of {key} is not that of its entries")
        files = derived.documents(key, stream) | derived.offsets(key, stream, sidecars)
        for path, data in files.items():
            layout.write_durably(out / path, data)
    layout.write_durably(out / "zarr.json", derived.group_bytes())
    roots = [stream["root"] for stream in manifest["streams"].values()]
    manifest["root"] = store_root_of(roots)
    write_manifest(out, manifest)


def read_numbers(text: str | None) -> tuple[int, int] | None:
    """First and last of `A-B`, or of `A`.

    Raises:
        ConfigError: it is no such thing.
    """
    if text is None:
        return None
    first, _, last = text.partition("-")
    last = last or first
    if first.isdecimal() and last.isdecimal() and int(first) <= int(last):
        return int(first), int(last)
    raise ConfigError(f"--shards {text!r}: write A-B, such as --shards 0-3")
