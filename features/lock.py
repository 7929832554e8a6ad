"""Locks: one process at a time changes a store, or a folder of runs. Readers need none.

The system releases it with the process, however that ends, so no lock is ever stale.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmfuse.features import layout
from mmfuse.features.errors import LockedError


@contextmanager
def held(file: Path, fault: str) -> Iterator[None]:
    """Hold a lock, which a file stands for, while the block lasts.

    Raises:
        LockedError: another process holds it; `fault` is what to say of that.
    """
    with file.open("w") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LockedError(fault) from None
        yield


@contextmanager
def store_lock(root: Path) -> Iterator[None]:
    """Hold the lock of the store at `root` while the block lasts.

    Raises:
        LockedError: another process holds it.
    """
    meta = root / layout.META
    meta.mkdir(parents=True, exist_ok=True)
    fault = f"another process is writing to {root}; wait for it, or name another --store"
    with held(meta / "writer.lock", fault):
        yield
