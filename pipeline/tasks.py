"""A task: some clips of a corpus, in whatever process they are made into entries.

A corpus is cut into tasks by the number of its clips alone; shards do not depend on workers. What
goes to a worker names clips and holds no bytes of theirs; what comes back names parts on disk, and
counts. A worker builds its encoders once and keeps them.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.abc import MetaPathFinder
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from blake3 import blake3

from mmfuse.features.clip import Clip, Estimate
from mmfuse.features.config import Preprocessing
from mmfuse.features.corpus import Corpus, open_corpus
from mmfuse.features.encoders import CPU, Compute
from mmfuse.features.errors import ClipError
from mmfuse.features.failures import Failure
from mmfuse.features.memory import keep_memory
from mmfuse.features.staging import Sealed
from mmfuse.features.task import Known, TaskLock, TaskWriter
from mmfuse.pipeline.ledger import Ledger
from mmfuse.pipeline.limits import memory_shared
from mmfuse.pipeline.makers import Maker, makers_of
from mmfuse.pipeline.progress import Progress
from mmfuse.pipeline.report import Report
from mmfuse.pipeline.views import Views
from mmfuse.pipeline.work import run_task

_SIGN_S = 1.0  # show no more often than this that the work goes on


@dataclass(frozen=True, slots=True)
class Setup:
    """What all tasks of a run have in common. `tokenizer` is the name of a file in the store."""

    root: Path
    preprocessing: Preprocessing
    compute: Compute = CPU
    tokenizer: str = ""
    corpus: Path = Path()
    columns: Mapping[str, str] = field(default_factory=dict)
    retry_failed: bool = False
    processes: int = 1  # that share a machine


@dataclass(frozen=True, slots=True)
class Task:
    """Clips `start` to `stop` of a corpus, counted from 0, and what the store knows of them.

    `clips` has them where the manifest can't be read from the middle. `one_by_one`, after a worker
    died, reads nothing ahead and notes what is in hand; pairs of (clip id, modality) that have
    killed workers are left out by `avoid`.
    """

    number: int
    name: str
    start: int
    stop: int
    clips: tuple[Clip, ...] | None
    estimates: Mapping[str, Estimate]
    known: Known
    one_by_one: bool = False
    avoid: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Result:
    """What a task has made: sealed parts by stream key, failures, counts."""

    parts: Mapping[str, Sequence[Sealed]] = field(default_factory=dict)
    added: Sequence[Failure] = ()
    cleared: Sequence[tuple[str, str, int]] = ()
    tally: Mapping[str, Any] = field(default_factory=dict)


def spans(count: int) -> Iterator[tuple[int, int]]:
    """Cut so many clips into tasks, each of which fills shards of its own: (start, stop).

    At least sixteen tasks once there are 1024 clips, so that many workers have something to do, and
    at most 1024 clips in a task.
    """
    number = max(-(-count // 1024), min(16, -(-count // 64)), 1)
    size = max(-(-count // number), 1)
    return ((start, min(start + size, count)) for start in range(0, count, size))


def plan_of(corpus: Corpus, count: int) -> str:
    """Short name of how a corpus is cut: other clips, another plan. Needs `corpus.check()`."""
    return blake3(f"{corpus.digest}|{count}".encode()).hexdigest()[:8]


def clips_of(corpus: Corpus, count: int) -> Iterator[tuple[int, int, list[str], list[Clip] | None]]:
    """The clips of each task: start, stop, ids, and the clips where the worker can't read them."""
    if corpus.by_number:
        ids = corpus.ids()
        for start, stop in spans(count):
            yield start, stop, list(islice(ids, stop - start)), None
        return
    clips = corpus.clips(0, count)
    for start, stop in spans(count):
        chunk = list(islice(clips, stop - start))
        yield start, stop, [clip.id for clip in chunk], chunk


def do_task(
    setup: Setup,
    task: Task,
    makers: Sequence[Maker] | None = None,
    report: Report | None = None,
    progress: Progress | None = None,
) -> Result:
    """Bring the clips of a task up to date.

    Args:
        makers: those of this process; built and kept where there are none.
        report: counts go here as they come; left out, they go into the result.
        progress: shown a clip at a time.
    """
    keep_memory()
    spare_pandas()
    makers = _makers_of(setup) if makers is None else makers
    views = Views.of(setup.preprocessing)
    counts = report or Report()
    bounded = memory_shared(setup.processes, setup.compute.device)
    with TaskLock(setup.root, task.name) as lock, bounded:
        if lock.is_committed:
            return Result()
        if report is None:
            counts.sign = _Sign(lock)
        specs = [spec for maker in makers for spec in maker.specs]
        with _at_work(lock), TaskWriter(setup.root, task.name, specs, task.known) as writer:
            ledger = Ledger(writer, counts, retry_failed=setup.retry_failed)
            shown = progress or Progress(quiet=True)
            readers = max(min((os.cpu_count() or 1) // setup.processes, 4), 1)
            how: dict[str, Any] = {"batch": setup.compute.batch, "readers": readers, "views": views}
            alone = task.one_by_one
            if not alone:
                try:
                    run_task(_clips(setup, task), makers, ledger, counts, shown, **how)
                except MemoryError:
                    alone = True
            if alone:
                _one_by_one(setup, task, makers, ledger, counts, lock, views)
            parts = writer.finish()
            notes = writer.failures
    tally = counts.tally() if report is None else {}
    return Result(parts, notes.added, notes.cleared, tally)


@contextmanager
def _at_work(lock: TaskLock) -> Iterator[None]:
    """Note in a lock that its process is at work; the note stays if the process just ends."""
    lock.note(at_work=True)
    try:
        yield
    finally:
        lock.note()


@cache
def spare_pandas() -> None:
    """Keep pyarrow from importing pandas, which it looks for once and which takes half a second."""
    if "pandas" not in sys.modules:
        sys.meta_path.insert(0, _NoPandas)
        try:
            pa.array([""])
        finally:
            sys.meta_path.remove(_NoPandas)


class _NoPandas(MetaPathFinder):
    @staticmethod
    def find_spec(name: str, *_: Any) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


def _one_by_one(
    setup: Setup,
    task: Task,
    makers: Sequence[Maker],
    ledger: Ledger,
    report: Report,
    lock: TaskLock,
    views: Views,
) -> None:
    quiet = Progress(quiet=True)
    for clip in _clips(setup, task):
        for maker in makers:
            if (clip.id, maker.modality) in task.avoid:
                continue
            lock.note(clip=clip.id, modality=maker.modality, content="")
            try:
                loaded = maker.load(clip)
            except ClipError:
                loaded = None  # it is told below
            if loaded is not None:
                content = loaded.content.hex()
                lock.note(clip=clip.id, modality=maker.modality, content=content)
            run_task([clip], [maker], ledger, report, quiet, views=views)


def _clips(setup: Setup, task: Task) -> Iterator[Clip]:
    if task.clips is not None:
        return iter(task.clips)
    corpus = open_corpus(setup.corpus, setup.columns, task.estimates)
    return corpus.clips(task.start, task.stop)


class _Sign:
    """Touches a lock now and then."""

    def __init__(self, lock: TaskLock) -> None:
        self._lock, self._next_s = lock, 0.0

    def __call__(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + _SIGN_S
            self._lock.touch()


_KEPT: dict[str, list[Maker]] = {}  # of this process: one run's makers, with their models


def _makers_of(setup: Setup) -> list[Maker]:
    wanted = setup.preprocessing.model_dump_json()
    key = f"{setup.root}|{setup.tokenizer}|{setup.compute}|{wanted}"
    if key not in _KEPT:
        _KEPT.clear()
        _KEPT[key] = makers_of(setup.preprocessing, setup.root, setup.tokenizer, setup.compute)
    return _KEPT[key]
