"""Tasks in processes of this machine: joblib's loky, one pool a worker, under a supervisor.

A pool of many breaks as a whole when one of its processes dies, and nobody can tell which task did
it. So each worker is a pool of its own: its first task is the one that runs, a second waits so that
the worker never does. When it dies, the first is lost, the second is innocent and starts in a new
process; all other workers go on.
"""

import contextlib
import ctypes
import importlib
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, Generic

from mmfuse.pipeline.executors import SILENT_S, Done, Failed, Lost, Outcomes, Result, Task

_LOOK_S = 0.5  # look for hung workers this often
_START_S = 60.0  # what a process may need more until its first sign of life
_PR_SET_PDEATHSIG = 1


class LocalExecutor:
    """So many workers, each with a process of its own that is replaced when it dies or hangs."""

    def __init__(self, workers: int, silent_s: float = SILENT_S) -> None:
        self.workers = self.per_machine = workers
        self._silent_s = silent_s
        self._ready: list[_Pool] = []

    def start(self) -> None:
        """Let processes start and import while the caller gets its tasks together."""
        self._ready += [_Pool() for _ in range(self.workers - len(self._ready))]

    def stop(self) -> None:
        """End processes that were started and never got work."""
        for pool in self._ready:
            pool.stop()
        self._ready.clear()

    def map_unordered(
        self,
        work: Callable[[Task], Result],
        tasks: Iterator[Task],
        max_in_flight: int,
        signs: Callable[[Task], float | None],
    ) -> Outcomes[Task, Result]:
        """Outcomes in the order in which they come; see `Executor`."""
        events: SimpleQueue[tuple[_Worker[Task], Future[Result]]] = SimpleQueue()
        workers = [_Worker[Task](work, events, self._ready) for _ in range(self.workers)]
        again: deque[Task] = deque()
        try:
            while True:
                while sum(len(worker) for worker in workers) < max_in_flight:
                    task = again.popleft() if again else next(tasks, None)
                    if task is None:
                        break
                    min(workers, key=len).submit(task)
                if not any(workers):
                    return
                try:
                    worker, future = events.get(timeout=_LOOK_S)
                except Empty:
                    for worker in workers:
                        worker.kill_if_silent(self._silent_s, signs)
                    continue
                if not worker.has(future):
                    continue  # of a process that is gone
                task = worker.take_first()
                why = worker.why_dead(future)
                error = future.exception()
                if why is not None:
                    again.extend(worker.bury())
                    yield Lost(task, why)
                elif error is not None:
                    yield Failed(task, error)
                else:
                    yield Done(task, future.result())
        finally:
            for worker in workers:
                worker.stop()


class _Pool:
    """One process of loky's, which begins to start."""

    def __init__(self) -> None:
        from joblib.externals.loky import ProcessPoolExecutor

        # one thread for NumPy: each worker has a core; a model's threads are set by its spec
        environment = {"OPENBLAS_NUM_THREADS": "1"}
        self._pool = ProcessPoolExecutor(
            1, initializer=_begin, initargs=(os.getpid(),), env=environment
        )
        self.pid: Future[int] = self._pool.submit(os.getpid)
        self.submit = self._pool.submit

    def stop(self) -> None:
        """End the process, whatever it does.

        What still waits is taken out first: loky forgets it, and then its thread fails to find it.
        """
        with contextlib.suppress(Empty):
            while True:
                self._pool._work_ids.get(block=False)
        self._pool.shutdown(wait=True, kill_workers=True)


class _Worker(Generic[Task]):
    """One process, and the tasks that it has: the first runs, the others wait.

    It is one of those that are `ready`, if there are any.
    """

    def __init__(
        self, work: Callable[[Task], Any], events: SimpleQueue[Any], ready: list[_Pool]
    ) -> None:
        self._work, self._events, self._ready = work, events, ready
        self._pool: _Pool | None = None
        self._queue: deque[tuple[Task, Future[Any]]] = deque()
        self._began_s = 0.0
        self._killed = ""

    def __len__(self) -> int:
        return len(self._queue)

    def submit(self, task: Task) -> None:
        """Give the process one task more."""
        if self._pool is None:
            self._pool, self._killed = self._ready.pop() if self._ready else _Pool(), ""
        if not self._queue:
            self._began_s = time.time()
        future = self._pool.submit(self._work, task)
        self._queue.append((task, future))
        future.add_done_callback(lambda future: self._events.put((self, future)))

    def has(self, future: Future[Any]) -> bool:
        """Whether this is the task that runs."""
        return bool(self._queue) and self._queue[0][1] is future

    def take_first(self) -> Task:
        """The task that ran; the next one's time begins."""
        self._began_s = time.time()
        return self._queue.popleft()[0]

    def why_dead(self, future: Future[Any]) -> str | None:
        """What became of the process; None if it lives."""
        from joblib.externals.loky.process_executor import BrokenProcessPool

        if not isinstance(future.exception(), BrokenProcessPool):
            return None
        return self._killed or "its process died (killed, out of memory, or a fault of a library)"

    def bury(self) -> list[Task]:
        """Give up the process; the tasks that were waiting."""
        waiting = [task for task, _ in self._queue]
        self._queue.clear()
        self.stop()
        return waiting

    def kill_if_silent(self, silent_s: float, signs: Callable[[Task], float | None]) -> None:
        """End the process if the task that runs shows no life; its end then comes as an event."""
        if not self._queue or self._killed or self._pool is None or not self._pool.pid.done():
            return
        last_s = max(signs(self._queue[0][0]) or 0.0, self._began_s)
        quiet_s = time.time() - last_s
        if quiet_s > silent_s + (_START_S if last_s == self._began_s else 0):
            self._killed = f"no sign of life for {quiet_s:.0f} s"
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pool.pid.result(), signal.SIGKILL)

    def stop(self) -> None:
        """End the process, whatever it does."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.stop()


def _begin(parent: int) -> None:
    """In a new process: leave Ctrl-C to the parent, do not outlive it, keep the model, import.

    loky takes a process that has grown by 300 MB for one that leaks, and replaces it.
    """
    from joblib.externals.loky import process_executor

    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    importlib.import_module("mmfuse.pipeline.tasks")


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
