"""What both commands say to a person: errors as one line, text that can't play with the terminal.

Nothing heavy is imported here; every `--help` goes through this module.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mmfuse.features.errors import MMFuseError

INTERNAL, INTERRUPTED, TERMINATED = 1, 130, 143
_AGAIN = "to go on, give the same command again"
_DEADLINES: list[Callable[[int], None]] = []  # to be told of signals that are held


@contextmanager
def user_errors(program: str, verbose: bool = False) -> Iterator[None]:
    """Turn an error into one line on stderr and an exit code; with `verbose`, a traceback too.

    A person's mistake ends with the error's own code, Ctrl-C with 130, SIGTERM with 143, and
    whatever we did not foresee with 1.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
        sys.stdout.flush()
    except MMFuseError as error:
        _stop(program, str(error), error.exit_code, verbose)
    except KeyboardInterrupt:
        _stop(
            program,
            "interrupted; to go on, give the same command again",
            INTERRUPTED,
            False,
        )
    except _Terminated:
        _stop(
            program,
            "terminated; to go on, give the same command again",
            TERMINATED,
            False,
        )
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        named = f": {error.filename}" if error.filename is not None else ""
        _stop(program, f"{error.strerror or error}{named}", INTERNAL, verbose)
    except MemoryError:
        text = "not enough memory: something in the input is far larger than it should be"
        _stop(program, text, INTERNAL, verbose)
    except Exception as error:
        text = f"{type(error).__name__}: {error} (a fault of {program}; -v shows where)"
        _stop(program, text, INTERNAL, verbose)


@contextmanager
def signals_held() -> Iterator[list[int]]:
    """Keep Ctrl-C and SIGTERM waiting until the block is done; a second one ends the process.

    What is yielded holds the signal that came: a loop may look, and be done sooner.

    Libraries that call back into Python from C swallow an exception that a signal raises there, and
    take it for a bad file. The time of `stopping_within` begins with the signal all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    caught: list[int] = []

    def hold(number: int, frame: object) -> None:
        if caught:
            os._exit(128 + number)
        caught.append(number)
        for begin in _DEADLINES:
            begin(number)

    before = {number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])


@contextmanager
def stopping_within(seconds: float) -> Iterator[None]:
    """End the process that long after Ctrl-C or SIGTERM even if a thread or a library holds it.

    For work that loses nothing however it ends.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    timers: list[threading.Timer] = []

    def begin(number: int) -> None:
        if not timers:
            timers.append(threading.Timer(seconds, _end, (number,)))
            timers[0].daemon = True
            timers[0].start()

    def stop(number: int, frame: FrameType | None) -> None:
        begin(number)
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, stop)
    _DEADLINES.append(begin)
    try:
        yield
    finally:
        _DEADLINES.remove(begin)
        for number, handler in before.items():
            signal.signal(number, handler)


def show(document: Mapping[str, Any], lines: Iterable[str], *, as_json: bool) -> None:
    """Print a result on stdout: one JSON object, or lines for a person."""
    if as_json:
        print(json.dumps(document, allow_nan=False))
    else:
        for line in lines:
            print(printable(line))


def printable(text: str) -> str:
    """Text with everything escaped that is not printable: no id or path moves the cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _end(number: int) -> None:
    print(f"stopped at once; {_AGAIN}", file=sys.stderr, flush=True)
    os._exit(128 + number)


class _Terminated(BaseException):
    """SIGTERM came."""


def _terminate(number: int, frame: object) -> None:
    raise _Terminated


def _stop(program: str, text: str, code: int, verbose: bool) -> None:
    if verbose:
        import traceback

        traceback.print_exc()
    print(printable(f"{program}: {text}"), file=sys.stderr)
    raise SystemExit(code) from None
