"""One task's clips through the makers: one after the other while that is quick, else by threads.

    readers (threads)            main thread                     writer (thread)
    load, skip, decode  ──────>  encode, in the clips' order ──> append, note failures

Between them lie bounded queues, so memory does not grow with the corpus and the encoder waits for
nothing that can be had earlier. Clips that take less time than Python needs to hand itself from one
thread to another (`sys.getswitchinterval`) are done from start to end in the main thread: threads
would wait for one another longer than they work. Entries are written in the order of the clips,
whatever was encoded together: a store's files depend on none of this.
"""

import re
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from threading import BoundedSemaphore
from typing import Any

import numpy as np

from mmfuse.features.clip import Clip
from mmfuse.features.console import signals_held
from mmfuse.features.errors import ClipError
from mmfuse.features.spec import Array
from mmfuse.pipeline.ledger import Job, Ledger
from mmfuse.pipeline.makers import Loaded, Maker
from mmfuse.pipeline.progress import Progress
from mmfuse.pipeline.report import Report
from mmfuse.pipeline.views import NO_VIEWS, Views, content_of

_AHEAD = 8  # clips decoded before their turn, at most; fewer where they have views
_BEHIND = 8  # clips encoded and not yet written, at most
_TRIAL = 17  # clips whose median time says whether threads pay
_OUT_OF_MEMORY = "out_of_memory"
_NO_MEMORY = re.compile("out of memory|allocate memory")  # as torch says of a card, of the machine


def run_task(
    clips: Iterable[Clip],
    makers: Sequence[Maker],
    ledger: Ledger,
    report: Report,
    progress: Progress,
    *,
    batch: int = 1,
    readers: int = 1,
    views: Views = NO_VIEWS,
) -> None:
    """Bring a store up to date with some clips.

    Args:
        views: which are made beside view 0.
        batch: items of one shape that go through an encoder together, at most.
        readers: threads that read and decode ahead.

    Raises:
        MemoryError: several clips at a time are too much; one by one they may not be.
    """
    source = iter(clips)
    encode = _Encoding(batch, report)
    prepare = partial(_prepare, makers=makers, ledger=ledger, report=report, views=views)
    write = partial(_write, ledger=ledger, report=report, progress=progress)
    if batch == 1:
        _in_turn(source, prepare, encode, write)
    with ExitStack() as stack:
        writer = stack.enter_context(_Writer(partial(write, alone=False)))
        pool = stack.enter_context(_threads(readers))
        waiting = _read_ahead(source, prepare, report, pool, max(_AHEAD // (1 + views.count), 2))
        ahead: deque[list[Job]] = deque()
        while True:
            ahead.extend(islice(waiting, max(batch - len(ahead), 1)))
            if not ahead:
                break
            others = [job for jobs in ahead for job in jobs]
            for job in ahead[0]:
                encode(job, others)
            writer(ahead.popleft())


def _in_turn(
    source: Iterator[Clip],
    prepare: Callable[[Clip], list[Job]],
    encode: "_Encoding",
    write: Callable[[list[Job]], None],
) -> None:
    """Clips from start to end, one after the other, until they turn out to take long."""
    took_s: deque[float] = deque(maxlen=_TRIAL)
    with signals_held() as caught:
        for clip in source:
            began = time.perf_counter()
            jobs = prepare(clip)
            for job in jobs:
                encode(job, jobs)
            write(jobs)
            took_s.append(time.perf_counter() - began)
            is_long = statistics.median(took_s) > sys.getswitchinterval()
            if caught or (is_long and len(took_s) == _TRIAL):
                return


def _read_ahead(
    clips: Iterable[Clip],
    prepare: Callable[[Clip], list[Job]],
    report: Report,
    readers: ThreadPoolExecutor,
    most: int,
) -> Iterator[list[Job]]:
    """The jobs of each clip, in order, loaded and decoded by threads a few clips ahead."""
    source = iter(clips)
    futures: deque[Future[list[Job]]] = deque()
    while True:
        for clip in islice(source, most - len(futures)):
            futures.append(readers.submit(prepare, clip))
        if not futures:
            return
        with report.stage("wait"):
            jobs = futures[0].result()
        futures.popleft()
        yield jobs


def _prepare(
    clip: Clip, makers: Sequence[Maker], ledger: Ledger, report: Report, views: Views
) -> list[Job]:
    """The jobs of all modalities and views of a clip; bytes are read and decoded once."""
    with report.stage("read"):
        draws = views.draws(clip)
    jobs = []
    for maker in makers:
        decoded: Any = None
        loaded: Loaded | None = None
        for view, drawn in enumerate(draws if views.touches(maker.modality) else draws[:1]):
            job = Job(clip, maker, view, drawn.of(maker.modality))
            jobs.append(job)
            try:
                with report.stage("read"):
                    loaded = maker.load(clip) if loaded is None else loaded
                    if loaded is None:
                        break
                    job.content = content_of(loaded.content, job.drawn)
                    job.todo = ledger.wanted(job)
                if job.todo:
                    with report.stage("decode"):
                        decoded = maker.decode(clip, loaded) if decoded is None else decoded
                        job.prepared = maker.prepare(decoded, job.drawn)
            except ClipError as error:
                job.error, job.is_short = error, error.reason == _OUT_OF_MEMORY
            except MemoryError:
                job.error, job.is_short = _too_much(f"the {maker.modality} of this clip"), True
            if (job.error and decoded is None) or (job.todo is None and view == 0):
                break  # no view of it can be better
    return jobs


def _too_much(what: str) -> ClipError:
    return ClipError(
        _OUT_OF_MEMORY,
        f"{what} is more than the device or this process may hold; set a shorter "
        "preprocessing.audio.duration_s, fewer --workers, or --device cpu",
    )


class _Encoding:
    """Jobs through their encoders, as many items of one shape at once as memory holds."""

    def __init__(self, batch: int, report: Report) -> None:
        self._batch, self._report = batch, report

    def __call__(self, job: Job, others: Sequence[Job]) -> None:
        """Encode what is left of a job, with items of its shapes that come later beside it."""
        while job.error is None and job.prepared and len(job.outputs) < len(job.prepared.items):
            together = self._alike(job, others)
            items = np.stack([item for _, item in together])
            try:
                with self._report.stage("encode"):
                    found = job.maker.encode(items)
            except (RuntimeError, MemoryError) as error:
                if isinstance(error, RuntimeError) and not _NO_MEMORY.search(str(error)):
                    raise
                if len(together) == 1:
                    job.error = _too_much(f"one window of shape {items.shape[1:]}")
                    job.is_short = isinstance(error, MemoryError)
                self._batch = max(len(together) // 2, 1)
                continue
            for row, (owner, _) in enumerate(together):
                owner.outputs.append({name: values[row] for name, values in found.items()})

    def _alike(self, job: Job, others: Sequence[Job]) -> list[tuple[Job, Array]]:
        """The next items of the job's next shape: its own first, then those of later clips."""
        assert job.prepared is not None
        shape = job.prepared.items[len(job.outputs)].shape
        found: list[tuple[Job, Array]] = []
        for other in others:
            if other.maker is not job.maker or other.prepared is None or other.error:
                continue
            for item in other.prepared.items[len(other.outputs) :]:
                if item.shape != shape or len(found) == self._batch:
                    break
                found.append((other, item))
        return found


def _write(
    jobs: list[Job], ledger: Ledger, report: Report, progress: Progress, *, alone: bool = True
) -> None:
    """A clip's entries to their parts, or its failure to the table.

    Raises:
        MemoryError: there was too little for the clip, but it was not `alone`.
    """
    with report.stage("write"):
        ledger.note_empty(jobs[0].clip)
        if not alone and any(job.is_short for job in jobs):
            raise MemoryError
        for job in jobs:
            _finish(job, ledger, report)
    progress.advance(report)


def _finish(job: Job, ledger: Ledger, report: Report) -> None:
    try:
        if job.error is not None:
            raise job.error
        if job.prepared is not None:
            ledger.append(job, job.maker.join(job.prepared, job.outputs))
            with report.lock:
                report.audio_s += job.prepared.audio_s
    except ClipError as error:
        ledger.fail(job, error)


class _Writer:
    """Finished clips to `write`, one after the other, in a thread; a few may wait."""

    def __init__(self, write: Callable[[list[Job]], None]) -> None:
        self._write = write
        self._pool = ThreadPoolExecutor(1, "writer")
        self._room = BoundedSemaphore(_BEHIND)
        self._last: Future[None] | None = None

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(wait=True)
        if kind is None and self._last is not None:
            self._last.result()

    def __call__(self, jobs: list[Job]) -> None:
        """Hand over a clip's jobs; waits while too many wait.

        Raises:
            OSError: an earlier clip could not be written; nothing after it is.
        """
        self._room.acquire()
        before, self._last = self._last, self._pool.submit(self._behind, jobs, self._last)
        if before is not None and before.done():
            before.result()

    def _behind(self, jobs: list[Job], before: Future[None] | None) -> None:
        try:
            if before is not None:
                before.result()
            self._write(jobs)
        finally:
            self._room.release()


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that, when a run is stopped, finish what is in hand and begin nothing."""
    pool = ThreadPoolExecutor(count, "reader")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
