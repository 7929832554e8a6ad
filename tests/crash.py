"""Processes that die after a chosen file operation, or whenever the dice say, and go on.

    python tests/crash.py operations ACTION FOLDER [STEP]   after every operation, torn writes too
    python tests/crash.py kills N FOLDER                    after N random SIGKILLs

Every attempt is a fork of this process. After each death the store that is left must be without
fault and hold only right entries; then the same action is done again without harm, and every file
of the store must be what it is after an undisturbed run, to the byte. Prints one JSON object.

What is counted: every write, fsync, rename, link, unlink, truncate, chmod, mkdir, rmdir below the
store, and every file that is opened for writing there, whichever module does it.
"""

import builtins
import io
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmfuse.features import gc as features_gc
from mmfuse.features.combine import merge, subset
from mmfuse.features.config import FeatureConfig
from mmfuse.features.corpus import open_corpus
from mmfuse.features.manifest import manifest_path
from mmfuse.features.store import open_store
from mmfuse.features.verify import verify_store
from mmfuse.pipeline.progress import Progress
from mmfuse.pipeline.run import make_features

DIED, DIED_WRITING = 9, 10
STORE = "trial.zarr"
PASSING = {"writer.lock", "run.json"}  # what does not count, and times and speeds
OPERATIONS = ("fsync", "fdatasync", "replace", "rename", "link", "unlink", "remove", "mkdir",
              "rmdir", "chmod", "truncate", "ftruncate")  # fmt: skip
STREAMS: dict[str, Any] = {"midi": {}, "text": {}}
ALL_STREAMS = {**STREAMS, "audio": {}}


def die_after(number: int, *, torn: bool) -> None:
    """Let this process end right after its file operation `number`; `torn` halves a write."""
    left = number

    def tick(code: int = DIED) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os._exit(code)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            if isinstance(args[0], int) or STORE in str(args[0]):
                tick()
            return result

        return call

    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            if left == 1 and torn:
                super().write(memoryview(data).cast("B")[: len(memoryview(data).cast("B")) // 2])
                os._exit(DIED_WRITING)
            size = super().write(data)
            tick(DIED_WRITING)
            return size

    plain_open, plain_os_open = io.open, os.open

    def counted_open(
        file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **more: Any
    ) -> Any:
        if not set(mode) & set("wax+") or STORE not in str(file):
            return plain_open(file, mode, buffering, *rest, **more)
        raw = Raw(file, mode.replace("b", ""))
        tick()
        return raw if buffering == 0 else io.BufferedWriter(raw)

    def counted_os_open(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        descriptor = plain_os_open(path, flags, *rest, **more)
        if flags & os.O_CREAT and STORE in str(path):
            tick()
        return descriptor

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    os.open = counted_os_open
    io.open = builtins.open = counted_open  # type: ignore[assignment]


def in_child(action: Callable[[], None], before: Callable[[], None] = lambda: None) -> int:
    """Exit status of a fork that does something; minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        try:
            before()
            action()
            sys.stderr.flush()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def files_of(store: Path) -> dict[str, bytes]:
    return {f.relative_to(store).as_posix(): f.read_bytes() for f in sorted(store.rglob("*"))
            if f.is_file() and f.name not in PASSING}  # fmt: skip


def entries_of(store: Path) -> dict[tuple[str, str], bytes]:
    opened = open_store(store)
    return {(key, clip_id): opened[key][clip_id].tobytes()
            for key in opened.specs() for clip_id in opened[key].ids}  # fmt: skip


class Trial:
    """An action on the store `store`, begun from a copy of `start`, or from nothing."""

    def __init__(self, folder: Path, action: Callable[[Path], None], start: Path | None) -> None:
        self.store, self._action, self._start = folder / STORE, action, start
        self.reset()
        assert in_child(self.act) == 0
        self.files, self.entries = files_of(self.store), entries_of(self.store)
        self.known = self.entries if start is None else self.entries | entries_of(start)
        self.reset()

    def act(self) -> None:
        self._action(self.store)

    def reset(self) -> None:
        shutil.rmtree(self.store, ignore_errors=True)
        if self._start is not None:
            shutil.copytree(self._start, self.store)

    def check_what_is_left(self) -> None:
        """Nothing that is committed is wrong; nothing that the action keeps is lost."""
        if manifest_path(self.store).exists():
            assert verify_store(self.store, 1.0).findings == []
            left = entries_of(self.store)
            assert left.items() <= self.known.items()
            if self._start is not None:
                kept = self.entries.items() & entries_of(self._start).items()
                assert kept <= left.items()

    def check_the_end(self) -> None:
        """The store is the one of an undisturbed run."""
        files = files_of(self.store)
        names = files.keys() ^ self.files.keys()
        assert not names, names
        changed = [name for name in files if files[name] != self.files[name]]
        assert not changed, changed


def after_every_operation(trial: Trial, step: int) -> dict[str, int]:
    """With a step above 1, not after every operation but after one in so many."""
    number, deaths, torn_deaths = 1 - step, 0, 0
    while True:
        number += step
        torn = False
        while True:
            trial.reset()
            status = in_child(trial.act, lambda: die_after(number, torn=torn))  # noqa: B023
            if status == 0:
                return {"operations": number, "deaths": deaths, "torn": torn_deaths}
            assert status in (DIED, DIED_WRITING), (number, status)
            deaths += 1
            torn_deaths += torn
            try:
                trial.check_what_is_left()
                assert in_child(trial.act) == 0
                trial.check_the_end()
            except BaseException:
                print(f"after operation {number}, torn: {torn}", file=sys.stderr)
                raise
            if torn or status != DIED_WRITING:
                break
            torn = True


def after_random_kills(trial: Trial, kills: int) -> dict[str, int]:
    began = time.monotonic()
    assert in_child(trial.act) == 0
    whole_s = time.monotonic() - began
    trial.reset()
    dice, done, runs = random.Random(5), 0, 0
    while done < kills:
        pid = os.fork()
        if pid == 0:
            trial.act()
            os._exit(0)
        time.sleep(dice.uniform(0, whole_s / 2))
        os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status == -signal.SIGKILL:
            done += 1
            trial.check_what_is_left()
        else:
            assert status == 0, status
            runs += 1
            trial.check_the_end()
            trial.reset()
    assert in_child(trial.act) == 0
    trial.check_the_end()
    return {"kills": done, "runs": runs + 1}


def extract(corpus: Path, streams: dict[str, Any]) -> Callable[[Path], None]:
    config = FeatureConfig.model_validate({"preprocessing": streams})

    def action(store: Path) -> None:
        make_features(open_corpus(corpus), store, config, Progress(quiet=True))

    return action


def main(what: str, which: str, place: str, step: str = "1") -> None:
    folder = Path(place)
    corpus = folder / "corpus"  # made by the test
    warm = folder / "warm.zarr"  # what this run compiles and loads, the forks inherit
    shutil.rmtree(warm, ignore_errors=True)
    extract(corpus, ALL_STREAMS)(warm)
    if what == "kills":
        trial = Trial(folder, extract(corpus, ALL_STREAMS), None)
        print(json.dumps(after_random_kills(trial, int(which))))
        return
    parts = [folder / "part-0.zarr", folder / "part-1.zarr"]
    if which != "extract":
        halves = (corpus, folder / "corpus-1")
        for part, half in zip(parts, halves, strict=True):
            assert in_child(lambda: extract(half, STREAMS)(part)) == 0  # noqa: B023

    def sweep(store: Path) -> None:
        opened = open_store(store)
        keys = [key for key in opened.keys() if key.startswith("piano_roll")]  # noqa: SIM118
        features_gc.collect(store, keys)

    def cut(store: Path) -> None:
        if manifest_path(store).exists():
            features_gc.collect(store)  # claims of shards that are committed
        else:
            subset(parts[0], store, open_store(parts[0])["text_tokens"].ids[:2])

    actions: dict[str, tuple[Callable[[Path], None], Path | None]] = {
        "extract": (extract(corpus, STREAMS), None),
        "merge": (lambda store: merge(store, parts) and None, None),
        "merge-into": (lambda store: merge(store, parts[1:]) and None, parts[0]),
        "subset": (cut, None),
        "gc": (sweep, parts[0]),
    }
    print(json.dumps(after_every_operation(Trial(folder, *actions[which]), int(step))))


if __name__ == "__main__":
    main(*sys.argv[1:])
