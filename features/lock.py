"""The lock of a store: one process changes it at a time. Readers need none.

The system releases it with the process, however that ends, so no lock is ever stale.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmfuse.features import layout
from mmfuse.features.errors import LockedError


@contextmanager
def store_lock(root: Path) -> Iterator[None]:
    """Hold the lock of the store at `root` while the block lasts.

    Raises:
        LockedError: another process holds it.
    """
    meta = root / layout.META
    meta.mkdir(parents=True, exist_ok=True)
    with (meta / "writer.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LockedError(
                f"another process is writing to {root}; wait for it, or name another --store"
            ) from None
        yield
