"""Making features: every clip of a corpus through every maker, into a store.

What is there already, by hash of content and fingerprint of spec, is skipped before decoding. A
bad clip goes to the failures table and the run goes on; so does one that kills its worker, after
two have died of it. Whenever the process dies, the next run takes up where it was.
"""

import heapq
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from blake3 import blake3

from mmfuse.features import layout
from mmfuse.features.config import FeatureConfig, TextPreprocessing
from mmfuse.features.console import stopping_within
from mmfuse.features.corpus import Corpus
from mmfuse.features.encoders import CPU, Compute
from mmfuse.features.errors import ConfigError, WorkerError
from mmfuse.features.failures import Failure
from mmfuse.features.task import (
    Known,
    TaskLock,
    TaskWriter,
    clear_lock,
    clear_locks,
    last_sign,
    lock_path,
    read_note,
)
from mmfuse.features.writer import StoreWriter
from mmfuse.pipeline.executors import Done, Executor, Failed, InProcess, Lost, started
from mmfuse.pipeline.limits import memory_shared
from mmfuse.pipeline.makers import Maker, makers_of, text_params
from mmfuse.pipeline.progress import Progress
from mmfuse.pipeline.record import note_run
from mmfuse.pipeline.report import Report
from mmfuse.pipeline.tasks import (
    Result,
    Setup,
    Task,
    clips_of,
    do_task,
    plan_of,
    spans,
    spare_pandas,
)
from mmfuse.pipeline.views import Views

_AHEAD = 2  # tasks out for each worker: one runs, one waits
_DEATHS = 2  # of workers with a clip in hand, read one by one, after which it is left out
_STOP_S = 4.0  # after Ctrl-C or SIGTERM the process is gone by then
_HOPELESS = 8  # losses of one task after which the run stops
_TEXTS = 200_000  # that a tokenizer learns from, at most; of more, those with the smallest hashes


def make_features(
    corpus: Corpus,
    store: Path,
    config: FeatureConfig,
    progress: Progress,
    *,
    limit: int | None = None,
    retry_failed: bool = False,
    compute: Compute = CPU,
    executor: Executor | None = None,
    share: tuple[int, int] = (0, 1),
) -> Report:
    """Bring a store up to date with a corpus.

    Args:
        limit: only the first clips of the manifest.
        retry_failed: try clips again whose very content failed before.
        compute: where encoders run.
        executor: where tasks run; in this process, if left out.
        share: (i, n): only every n-th task, from the i-th on.

    Raises:
        ConfigError: the manifest is wrong, or the configuration asks for no stream, or for views
            that differ in nothing.
        LockedError: another process writes to the store.
        WorkerError: workers die before they have a clip in hand.
    """
    began = time.monotonic()
    spare_pandas()  # before the writer has pyarrow look for it
    Views.of(config.preprocessing)  # refuses views that differ in nothing
    with (
        memory_shared(1, compute.device),
        started(executor or InProcess()) as place,
        StoreWriter(store) as writer,
    ):
        count = corpus.check()
        count = count if limit is None else min(limit, count)
        report = Report(store=str(store))
        tokenizer = _tokenizer(config.preprocessing.text, corpus, store)
        makers = makers_of(config.preprocessing, store, tokenizer, compute)
        setup = Setup(
            store,
            config.preprocessing,
            compute,
            tokenizer,
            corpus.path,
            corpus.renamed,
            retry_failed,
            place.per_machine,
        )
        run = _Run(setup, corpus, count, share, writer, makers, report, progress)
        with stopping_within(_STOP_S):
            run(place)
        report.root = writer.finish()
        report.seconds = time.monotonic() - began
        note_run(store, corpus, config, makers, compute, report, place.workers)
    report.seconds = time.monotonic() - began
    return report


class _Run:
    """Tasks out, results in, and commits in the order of the corpus. An iterator of tasks."""

    def __init__(
        self,
        setup: Setup,
        corpus: Corpus,
        count: int,
        share: tuple[int, int],
        writer: StoreWriter,
        makers: Sequence[Maker],
        report: Report,
        progress: Progress,
    ) -> None:
        self._setup, self._corpus, self._writer, self._makers = setup, corpus, writer, makers
        self._report, self._progress = report, progress
        self._specs = [spec for maker in makers for spec in maker.specs]
        self._plan = plan_of(corpus, count)
        self._tasks = self._cut(count, share)
        self._again: deque[Task] = deque()
        self._out: dict[int, tuple[Task, Result] | None] = {}  # by number, in the corpus' order
        self._losses: Counter[int] = Counter()
        self._deaths: Counter[tuple[str, str]] = Counter()
        report.clips = sum(stop - start for start, stop in islice(spans(count), *share_of(share)))

    def __iter__(self) -> Iterator[Task]:
        return self

    def __next__(self) -> Task:
        return self._again.popleft() if self._again else next(self._tasks)

    def __call__(self, executor: Executor) -> None:
        """Run every task."""
        busy = clear_locks(self._setup.root)
        for spec in self._specs:
            self._writer.open(spec, self._plan, busy)
        self._progress.start(self._report.clips)
        work = partial(do_task, self._setup)
        here = isinstance(executor, InProcess)
        if here:
            work = partial(work, makers=self._makers, report=self._report, progress=self._progress)
        outcomes = executor.map_unordered(work, self, _AHEAD * executor.workers, self._sign)
        try:
            with closing(outcomes):
                for outcome in outcomes:
                    match outcome:
                        case Done(task, result):
                            self._take(task, result, shown=here)
                        case Failed(_, error):
                            raise error
                        case Lost(task, why):
                            self._again.append(self._after_loss(task, why))
            self._writer.flush()
        finally:
            clear_locks(self._setup.root)

    def _cut(self, count: int, share: tuple[int, int]) -> Iterator[Task]:
        estimates = self._corpus.estimates
        every = enumerate(clips_of(self._corpus, count))
        for number, (start, stop, ids, clips) in islice(every, *share_of(share)):
            known = Known(
                {spec.key: self._writer.shard_rows(spec) for spec in self._specs},
                {spec.key: self._writer.known(spec, ids) for spec in self._specs},
                tuple(self._writer.failures.of(ids)),
            )
            self._out[number] = None
            yield Task(
                number,
                f"{self._plan}-{number:06d}",
                start,
                stop,
                None if clips is None else tuple(clips),
                {i: estimates[i] for i in ids if i in estimates} if clips is None else {},
                known,
            )

    def _sign(self, task: Task) -> float | None:
        return last_sign(lock_path(self._setup.root, task.name))

    def _take(self, task: Task, result: Result, *, shown: bool) -> None:
        """Accept a task's result, once, and hand to the store what has its turn."""
        if self._out.get(task.number, ()) is not None:
            return  # it was run twice, and the other was here first
        with TaskLock(self._setup.root, task.name) as lock:
            if lock.waited:  # for the other, which may have gone on with the same parts
                with TaskWriter(self._setup.root, task.name, self._specs, task.known) as again:
                    result = replace(result, parts=again.finish())
            lock.set_committed()
        self._out[task.number] = (task, result)
        if not shown:
            self._report.add(result.tally)
            self._progress.advance(self._report, task.stop - task.start)
        while self._out and (first := next(iter(self._out.values()))) is not None:
            task, result = first
            del self._out[task.number]
            self._writer.failures.merge(result.added, result.cleared)
            for spec in self._specs:
                self._writer.take(spec, result.parts.get(spec.key, ()))

    def _after_loss(self, task: Task, why: str) -> Task:
        """What to do instead of a task whose process is gone."""
        path = lock_path(self._setup.root, task.name)
        begun, note = path.exists(), read_note(path)
        clear_lock(path)
        self._losses[task.number] += 1
        if "clip" in note:
            del self._losses[task.number]
            clip = (str(note["clip"]), str(note["modality"]))
            self._deaths[clip] += 1
            if self._deaths[clip] >= _DEATHS and clip not in task.avoid:
                self._leave_out(*clip, bytes.fromhex(note["content"]) or bytes(32), why)
                return replace(task, avoid=task.avoid | {clip})
        elif self._losses[task.number] == _HOPELESS:
            raise WorkerError(
                f"{_HOPELESS} workers were lost before they had a clip in hand, the last because "
                f"{why}; try fewer --workers if memory is short"
            )
        return replace(task, one_by_one=task.one_by_one or begun)

    def _leave_out(self, clip_id: str, modality: str, content: bytes, why: str) -> None:
        """Quarantine: a clip that kills workers is a failed clip."""
        detail = f"{_DEATHS} workers were lost with this clip in hand, the last because {why}"
        specs = [
            spec for maker in self._makers if maker.modality == modality for spec in maker.specs
        ]
        for spec in specs:
            failure = Failure(clip_id, modality, "killed_worker", detail, spec.key, content)
            self._writer.failures.add(failure)
        self._report.failed[modality, "killed_worker"] += 1


def share_of(share: tuple[int, int]) -> tuple[int, None, int]:
    """Arguments of a slice for every n-th, from the i-th on."""
    return share[0], None, share[1]


def build_makers(
    config: FeatureConfig, corpus: Corpus, store: Path, compute: Compute = CPU
) -> list[Maker]:
    """One maker for each modality that a configuration asks for.

    Raises:
        ConfigError: it asks for none, or an encoder refuses its settings.
    """
    tokenizer = _tokenizer(config.preprocessing.text, corpus, store)
    return makers_of(config.preprocessing, store, tokenizer, compute)


def _tokenizer(config: TextPreprocessing | None, corpus: Corpus, store: Path) -> str:
    """The store's tokenizer for these very training texts, trained where there is none yet; or a
    copy of the one that the configuration names. Of very many texts a sample is enough.

    The name of its file; empty where there is nothing to tokenize.
    """
    if config is None or config.encoder != "bpe":
        return ""
    if config.tokenizer:
        return _given_tokenizer(config, store)
    texts = sorted(heapq.nsmallest(_TEXTS, corpus.texts("train"), key=_lot))
    if not texts:
        return ""
    key = f"{text_params(config)}|" + "\0".join(texts)
    name = f"tokenizer-{blake3(key.encode('utf-8', errors='replace')).hexdigest()[:16]}.json"
    path = store / layout.META / name
    if not path.exists():
        from mmfuse.features.text import train_bpe

        trained = train_bpe(texts, config.vocab_size)
        layout.write_durably(path, trained.encode())
    layout.require_regular(store, path)
    return name


def _lot(text: str) -> bytes:
    return blake3(text.encode("utf-8", errors="replace")).digest()


def _given_tokenizer(config: TextPreprocessing, store: Path) -> str:
    try:
        tokenizer_json = Path(config.tokenizer).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"preprocessing.text.tokenizer = {config.tokenizer!r}: can't be read "
            f"({getattr(error, 'strerror', None) or error}); it is a file such as "
            f"STORE/{layout.META}/tokenizer-0123456789abcdef.json"
        ) from None
    digest = blake3(tokenizer_json.encode()).hexdigest()
    path = store / layout.META / f"tokenizer-{digest[:16]}.json"
    if not path.exists():
        from mmfuse.features.text import TextTokenizer

        TextTokenizer(text_params(config), tokenizer_json)  # refuses what is none
        layout.write_durably(path, tokenizer_json.encode())
    layout.require_regular(store, path)
    return path.name
