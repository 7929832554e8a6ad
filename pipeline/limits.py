"""How much memory a process may take, so that one hostile file can't take the machine.

A process gets its share of nine tenths of the memory that there is, by the machine or by its
control group. What asks for more gets a MemoryError, which fails the clip in hand, where otherwise
the system would kill some process of its choice. On Linux only; elsewhere there is no limit.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SHARE = 0.9
_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_bytes() -> int:
    """Memory of this machine, or of the part of it that this process was given."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in _CGROUPS:
        with suppress(OSError, ValueError):  # "max": no limit
            found.append(int(Path(name).read_text()))
    return min(found)


@contextmanager
def memory_shared(processes: int, device: str = "cpu") -> Iterator[None]:
    """Within the block this process has no more than its share of memory, of so many processes.

    Private memory that can be written is counted (RLIMIT_DATA), and no mapped file. There is no
    limit where the encoder has another `device`: what a card's driver sets aside would count.
    """
    if sys.platform != "linux" or device != "cpu":
        yield
        return
    import resource

    before, most = resource.getrlimit(resource.RLIMIT_DATA)
    share = int(_SHARE * machine_bytes() / processes)
    wanted = min([share, *(n for n in (before, most) if n != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, most))
