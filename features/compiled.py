"""Loops over numbers and arrays, compiled by numba and cached on disk.

Importing this imports numba, so modules that use it are imported when they are first needed. The
cache lies beside the module (in `__pycache__`), or in the user's cache folder where that can't be
written; `NUMBA_CACHE_DIR` names another. Where compiling is off (`NUMBA_DISABLE_JIT=1`), and, with
a warning, where numba does not run or has nowhere to keep its cache, the same functions run as
plain Python: compiling takes seconds, more than it saves if every process has to.
"""

import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])

try:
    from numba import njit

    COMPILED = hasattr(njit(cache=True)(lambda: None), "py_func")
except (ImportError, OSError, RuntimeError) as error:
    COMPILED = False
    warnings.warn(
        f"MIDI is read by plain Python, some 50 times slower: {error}; "
        "let NUMBA_CACHE_DIR name a folder that can be written",
        RuntimeWarning,
        stacklevel=2,
    )


def compiled(function: Function) -> Function:
    """Decorate a function that is called from Python."""
    return cast(Function, njit(cache=True)(function)) if COMPILED else function


def inner(function: Function) -> Function:
    """Decorate a function that only compiled ones call; it becomes part of them."""
    return cast(Function, njit(function)) if COMPILED else function


def elementwise(function: Function) -> Function:
    """Decorate arithmetic on many numbers: a division by zero is infinite, and ends nothing.

    Loops then need no branches and become vector instructions.
    """
    return cast(Function, njit(cache=True, error_model="numpy")(function)) if COMPILED else function
