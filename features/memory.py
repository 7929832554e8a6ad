"""Memory that is given back is kept for the next clip instead of going to the system and back.

The C library's allocator maps each large array anew, and the system fills it page by page with
zeros. An extraction asks for the same sizes again and again, clip after clip, and each of its large
arrays would cost hundreds of page faults.
"""

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt(3)
_KEPT_BYTES = 1 << 30
_LARGE_BYTES = 1 << 28  # larger arrays still come from the system, and go back to it


@cache
def keep_memory() -> None:
    """Do so in this process, from now on; nothing where the C library is not glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
    mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
