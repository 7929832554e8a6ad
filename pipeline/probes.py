"""What a store needs of the file system below it, each done once in a folder of its own."""

import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from mmfuse.pipeline.findings import FAULT, NOTE, OK, Finding

ROOM_BYTES, ROOM_INODES = 2**30, 1000
_LOCAL = "put the store on a local disk, and copy it when it is finished"
_ROOM = "make room, or name another place with --store"


def examine_disk(store: Path) -> Iterator[Finding]:
    """Room, and what can be done, where a store lies or will lie; the folder goes again."""
    place = store.resolve()
    while not place.is_dir() and place != place.parent:
        place = place.parent
    status = os.statvfs(place)
    free, inodes = status.f_bavail * status.f_frsize, status.f_favail
    counted = status.f_files > 0  # some file systems make inodes as they need them
    scarce = free < ROOM_BYTES or (counted and inodes < ROOM_INODES)
    seen = (
        f"{free / 1e9:.1f} GB and {inodes if counted else 'any number of'} inodes free at {place}"
    )
    yield Finding("room", FAULT if scarce else OK, seen, _ROOM if scarce else "")
    try:
        folder = Path(tempfile.mkdtemp(prefix=".mmfeat-doctor-", dir=place))
    except OSError as error:
        mend = "give yourself the right to write there, or name another place with --store"
        yield Finding("write", FAULT, f"{place}: {error.strerror}", _ROOM if scarce else mend)
        return
    try:
        for name, probe, state, mend in _PROBES:
            try:
                probe(folder)
                yield Finding(name, OK, str(place))
            except OSError as error:
                # a disk that is full fails all of them, for one reason
                yield Finding(
                    name, state, f"{place}: {error.strerror or error}", _ROOM if scarce else mend
                )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _rename(folder: Path) -> None:
    """A file takes another's place, in one step."""
    for name in ("new", "old"):
        (folder / name).write_text(name)
    (folder / "new").replace(folder / "old")
    if (folder / "new").exists() or (folder / "old").read_text() != "new":
        raise OSError("a renamed file is not where it should be")


def _fsync(folder: Path) -> None:
    """A file and its folder go to disk."""
    with (folder / "synced").open("wb") as file:
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _map(folder: Path) -> None:
    """What was written is what the map shows."""
    data = bytes(range(256)) * 64
    (folder / "map").write_bytes(data)
    with (
        (folder / "map").open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as shown,
    ):
        if shown[:] != data:
            raise OSError("a map shows something else than what was written")


def _lock(folder: Path) -> None:
    """A file is locked, and then refused to the next one."""
    import fcntl

    with (folder / "lock").open("w") as first, (folder / "lock").open("w") as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
    raise OSError("two can hold one lock: two runs could write to one store")


def _link(folder: Path) -> None:
    """One file, two names."""
    (folder / "one").write_bytes(b"x")
    os.link(folder / "one", folder / "two")


_PROBES: tuple[tuple[str, Callable[[Path], None], str, str], ...] = (
    ("rename", _rename, FAULT, _LOCAL),
    ("fsync", _fsync, FAULT, _LOCAL),
    ("memory map", _map, FAULT, _LOCAL),
    ("lock", _lock, FAULT, _LOCAL),
    ("hard link", _link, NOTE, "nothing to do: mmfeat merge and mmfeat subset copy shards instead"),
)
