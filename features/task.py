"""Writing one task of a store from any process: its streams, its failures, and a lock on it.

The lock is a file that ends with its process. It also tells which clip is in hand, so that whoever
finds the process dead knows what killed it. Where a cluster takes a slow worker for a dead one and
starts its task elsewhere, the second waits here for the first, and then finds everything done.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmfuse.features import layout
from mmfuse.features.failures import Failure, FailureNotes
from mmfuse.features.spec import StreamSpec
from mmfuse.features.staging import Contents, Sealed, StagedStream

_COMMITTED = {"committed": True}


@dataclass(frozen=True, slots=True)
class Known:
    """What the store tells a task: shard rows and content by stream key, and earlier failures."""

    shard_rows: Mapping[str, int]
    contents: Mapping[str, Contents]
    failures: tuple[Failure, ...] = ()


class TaskLock:
    """The right to write a task, and a note of what is in hand.

    Use as a context manager; waits for whoever has it.
    """

    def __init__(self, root: Path, task: str) -> None:
        self._path = lock_path(root, task)
        self._descriptor = -1
        self.waited = False  # somebody else had it

    def __enter__(self) -> "TaskLock":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.waited = True
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _same_file(descriptor, self._path):
                self._descriptor = descriptor
                return self
            os.close(descriptor)

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def note(self, **what: Any) -> None:
        """Tell others what is in hand. It also shows that the process is alive."""
        data = json.dumps(what).encode()
        os.pwrite(self._descriptor, data, 0)
        os.ftruncate(self._descriptor, len(data))

    def touch(self) -> None:
        """Show that the process is alive."""
        os.utime(self._descriptor)

    def set_committed(self) -> None:
        """Say that the task's parts belong to the store now; nobody is to write them again."""
        self.note(**_COMMITTED)

    @property
    def is_committed(self) -> bool:
        """Whether the parts belong to the store."""
        return read_note(self._path) == _COMMITTED


class TaskWriter:
    """The streams and the failures of one task.

    Args:
        specs: of every stream that the task may write.
    """

    def __init__(self, root: Path, task: str, specs: Iterable[StreamSpec], known: Known) -> None:
        self.failures = FailureNotes(known.failures)
        self._streams = {
            spec.key: StagedStream(
                root, spec, task, known.shard_rows.get(spec.key), known.contents.get(spec.key)
            )
            for spec in specs
        }

    def __enter__(self) -> "TaskWriter":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._streams.values():
            stream.release()

    def stream(self, spec: StreamSpec) -> StagedStream:
        """Where entries of a stream go."""
        return self._streams[spec.key]

    def finish(self) -> dict[str, list[Sealed]]:
        """Close every part; what they are, by stream key."""
        return {key: stream.finish() for key, stream in self._streams.items()}


def lock_path(root: Path, task: str) -> Path:
    """Where the lock of a task lies."""
    return root / layout.META / f"task-{task}.lock"


def read_note(path: Path) -> dict[str, Any]:
    """What is in hand of the task with this lock; empty where nothing was noted."""
    try:
        note = json.loads(path.read_bytes() or b"{}")
    except (FileNotFoundError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def last_sign(path: Path) -> float | None:
    """When the holder of this lock last showed life, as `time.time()`; None before it began."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None


def held_tasks(root: Path) -> set[str]:
    """Names of the tasks that some process is at work on; nothing is changed."""
    paths = (root / layout.META).glob("task-*.lock")
    return {path.stem.removeprefix("task-") for path in paths if _is_held(path)}


def has_died(root: Path) -> bool:
    """Whether a process ended in the middle of a task, and not because it was asked to."""
    paths = (root / layout.META).glob("task-*.lock")
    return any(read_note(path) not in ({}, _COMMITTED) and not _is_held(path) for path in paths)


def clear_locks(root: Path) -> set[str]:
    """Remove the locks that nobody holds; names of the tasks that somebody does."""
    paths = (root / layout.META).glob("task-*.lock")
    return {path.stem.removeprefix("task-") for path in paths if not clear_lock(path)}


def clear_lock(path: Path) -> bool:
    """Remove a lock unless somebody holds it; whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _is_held(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(descriptor)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
