"""One task's clips through the makers: one after the other while that is quick, else by threads.

    readers (threads)            main thread                     writer (thread)
    load, skip, decode  ──────>  encode, in the clips' order ──> append, note failures

Between them lie bounded queues, so memory does not grow with the corpus and the encoder waits for
nothing that can be had earlier. Clips that take less time than Python needs to hand itself from one
thread to another (`sys.getswitchinterval`) are done from start to end in the main thread: threads
would wait for one another longer than they work. Entries are written in the order of the clips,
whatever was encoded together: a store's files depend on none of this.
"""

import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from threading import BoundedSemaphore
from typing import Any

import numpy as np

from mmfuse.features.augment import VIEW_0, Draw
from mmfuse.features.clip import Clip
from mmfuse.features.console import signals_held
from mmfuse.features.encoders import Outputs
from mmfuse.features.errors import ClipError
from mmfuse.features.failures import Failure
from mmfuse.features.spec import Array, Entry, StreamSpec
from mmfuse.features.task import TaskWriter
from mmfuse.pipeline.makers import Loaded, Maker, Prepared
from mmfuse.pipeline.progress import Progress
from mmfuse.pipeline.report import Report
from mmfuse.pipeline.views import NO_VIEWS, Views, content_of

_AHEAD = 8  # clips decoded before their turn, at most; fewer where they have views
_BEHIND = 8  # clips encoded and not yet written, at most
_TRIAL = 17  # clips whose median time says whether threads pay
_NO_CONTENT = bytes(32)


@dataclass(slots=True)
class Job:
    """One modality of one view of a clip: what is wanted of it, and how far it is."""

    clip: Clip
    maker: Maker
    view: int = 0
    drawn: Draw = VIEW_0
    content: bytes = _NO_CONTENT
    todo: Sequence[StreamSpec] | None = ()
    prepared: Prepared | None = None
    error: ClipError | None = None
    outputs: list[Outputs] = field(default_factory=list)


class Ledger:
    """What is known of entries and failures, and where new ones go. One thread writes."""

    def __init__(self, writer: TaskWriter, report: Report, *, retry_failed: bool) -> None:
        self._writer, self._report, self._retry = writer, report, retry_failed
        self._empty: set[str] = set()

    def wanted(self, job: Job) -> Sequence[StreamSpec] | None:
        """Streams that lack this very content of the clip; None where it failed before."""
        has = {s.key: self._has(job, s) for s in job.maker.specs}
        todo = [spec for spec in job.maker.specs if not has[spec.key]]
        with self._report.lock:
            self._report.already.update(s.name for s in job.maker.specs if has[s.key])
            if self._retry:
                return todo
            failures = self._writer.failures
            known = (failures.get(job.clip.id, s.key, job.content, job.view) for s in todo)
            before = next(filter(None, known), None)
            if before is not None:
                self._report.failed[before.stage, before.reason] += 1
                self._report.failed_before += 1
                return None
        return todo

    def append(self, job: Job, entries: dict[str, Entry]) -> None:
        """Write what was wanted of a clip."""
        augmentation = job.drawn.to_json() if job.view else ""
        for spec in job.todo or ():
            self._writer.stream(spec).append(
                job.clip.id, job.content, entries[spec.name], job.view, augmentation
            )
            self._writer.failures.clear(job.clip.id, spec.key, job.view)
            with self._report.lock:
                self._report.made[spec.name] += 1

    def fail(self, job: Job, error: ClipError) -> None:
        """Note why a clip could not be used; what it has already stays."""
        with self._report.lock:
            self._report.failed[job.maker.modality, error.reason] += 1
        for spec in job.maker.specs:
            if not self._has(job, spec):
                clip_id, modality = job.clip.id, job.maker.modality
                self._writer.failures.add(
                    Failure(
                        clip_id, modality, error.reason, str(error), spec.key, job.content, job.view
                    )
                )

    def _has(self, job: Job, spec: StreamSpec) -> bool:
        return self._writer.stream(spec).has(job.clip.id, job.content, job.view)

    def note_empty(self, clip: Clip) -> None:
        """A clip without text, audio and MIDI can be no mistake of the files, so it is told."""
        if clip.text is None and clip.audio is None and clip.midi is None:
            detail = "no text, no audio and no MIDI; fill one or drop the row"
            failure = Failure(clip.id, "manifest", "no_modality", detail, "", _NO_CONTENT)
            self._writer.failures.add(failure)
            with self._report.lock:
                self._report.failed["manifest", "no_modality"] += clip.id not in self._empty
            self._empty.add(clip.id)
        else:
            self._writer.failures.clear(clip.id, "")


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
    """
    source = iter(clips)
    encode = _Encoding(batch, report)
    prepare = partial(_prepare, makers=makers, ledger=ledger, report=report, views=views)
    write = partial(_write, ledger=ledger, report=report, progress=progress)
    if batch == 1:
        _in_turn(source, prepare, encode, write)
    with ExitStack() as stack:
        writer = stack.enter_context(_Writer(write))
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
                job.error = error
            if (job.error and decoded is None) or (job.todo is None and view == 0):
                break  # no view of it can be better
    return jobs


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
            except RuntimeError as error:
                if "out of memory" not in str(error):
                    raise
                if len(together) == 1:
                    job.error = ClipError(
                        "out_of_memory",
                        f"one window of shape {items.shape[1:]} is more than the device holds; "
                        "set a shorter preprocessing.audio.duration_s, or --device cpu",
                    )
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


def _write(jobs: list[Job], ledger: Ledger, report: Report, progress: Progress) -> None:
    """A clip's entries to their parts, or its failure to the table."""
    with report.stage("write"):
        ledger.note_empty(jobs[0].clip)
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
