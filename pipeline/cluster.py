"""Tasks on Dask Distributed: a cluster that runs already, or one that is started here.

Tasks go through `Client.submit`, a bounded number at a time. The scheduler gives up a task whose
workers died (at once in a cluster of our own, after four deaths by default elsewhere): it is lost
here, and whoever took it decides. A worker takes one task at a time, however many threads it has,
because an encoder and its number of threads belong to a whole process.

The store's folder must be the same path on every worker, on a file system with locks.
"""

import contextlib
import itertools
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Generic

from mmfuse.features.errors import ConfigError, MissingError, WorkerError
from mmfuse.pipeline.executors import SILENT_S, Done, Failed, Lost, Outcomes, Result, Task

_LOOK_S = 0.5  # look for hung workers this often
_CONNECT_S = 20
_EMPTY_S = 60
_TURN = threading.Lock()


class DaskExecutor:
    """Workers of a Dask cluster.

    Args:
        workers: processes of a cluster of our own; elsewhere, workers to count on if fewer are
            there at the start.
        scheduler: address such as tcp://host:8786; None starts a cluster on this machine.

    Raises:
        MissingError: Dask is not installed.
    """

    def __init__(
        self, workers: int, scheduler: str | None = None, silent_s: float = SILENT_S
    ) -> None:
        try:
            import distributed  # noqa: F401
        except ImportError:
            raise MissingError(
                "--executor dask needs Dask; install it: pip install 'mmfuse[dask]'"
            ) from None
        self.workers, self._scheduler, self._silent_s = workers, scheduler, silent_s
        self.per_machine = workers if scheduler is None else 1
        self._there_s = time.monotonic()  # when there were workers, for the last time

    def start(self) -> None:
        """A cluster starts when work is there: it may be elsewhere, and busy."""

    def stop(self) -> None:
        """Nothing was started."""

    def map_unordered(
        self,
        work: Callable[[Task], Result],
        tasks: Iterator[Task],
        max_in_flight: int,
        signs: Callable[[Task], float | None],
    ) -> Outcomes[Task, Result]:
        """Outcomes in the order in which they come; see `Executor`."""
        with self._client() as client:
            room = max(max_in_flight, 2 * len(client.scheduler_info(n_workers=-1)["workers"]))
            out: dict[str, _Sent[Task]] = {}
            events: SimpleQueue[str] = SimpleQueue()
            self._there_s = time.monotonic()
            names = (f"mmfuse-{uuid.uuid4().hex}-{n}" for n in itertools.count())
            while True:
                while len(out) < room and (task := next(tasks, None)) is not None:
                    name = next(names)
                    future = client.submit(_in_turn, work, task, key=name, pure=False, retries=0)
                    out[name] = _Sent(task, future, time.time())
                    future.add_done_callback(lambda done: events.put(done.key))
                if not out:
                    return
                try:
                    name = events.get(timeout=_LOOK_S)
                except Empty:
                    self._look_for_workers(client)
                    yield from self._end_hung(client, out, signs)
                    continue
                if name in out:
                    yield _outcome(out.pop(name))

    @contextlib.contextmanager
    def _client(self) -> Iterator[Any]:
        import dask
        from distributed import Client, LocalCluster

        with contextlib.ExitStack() as stack:
            if self._scheduler is None:
                stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": 0}))
                cluster = LocalCluster(
                    n_workers=self.workers, threads_per_worker=1, processes=True,
                    dashboard_address=":0", memory_limit=0, silence_logs=logging.CRITICAL,
                )  # fmt: skip
                address = stack.enter_context(cluster)
            else:
                address = self._scheduler
            try:
                client = Client(address, timeout=_CONNECT_S, set_as_default=False)
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"no Dask scheduler at {self._scheduler}: {error}; start one with: dask "
                    "scheduler, and name its address, e.g. --scheduler tcp://host:8786"
                ) from None
            yield stack.enter_context(client)

    def _look_for_workers(self, client: Any) -> None:
        """A cluster of our own that has lost all its workers for long will have none again."""
        now_s = time.monotonic()
        if self._scheduler is not None or client.scheduler_info(n_workers=-1)["workers"]:
            self._there_s = now_s
        elif now_s - self._there_s > _EMPTY_S:
            raise WorkerError(
                f"the Dask workers ended, and none came back within {_EMPTY_S} s; try fewer "
                "--workers if memory is short, or --executor local"
            )

    def _end_hung(
        self, client: Any, out: dict[str, "_Sent[Task]"], signs: Callable[[Task], float | None]
    ) -> Iterator[Lost[Task]]:
        """Give up tasks that began and then fell silent, and end their workers."""
        now_s = time.time()
        for name, sent in list(out.items()):
            last_s = signs(sent.task)
            if last_s is None or last_s < sent.at_s or now_s - last_s <= self._silent_s:
                continue
            where = [w for w, names in client.processing().items() if name in names]
            del out[name]
            sent.future.cancel(force=True)  # or the scheduler would start it elsewhere
            client.run(_end, workers=where, wait=False, on_error="ignore")
            _wait_until_gone(client, set(where))
            yield Lost(sent.task, f"no sign of life for {now_s - last_s:.0f} s")


@dataclass(slots=True)
class _Sent(Generic[Task]):
    """A task that is out."""

    task: Task
    future: Any
    at_s: float


def _outcome(sent: "_Sent[Task]") -> Done[Task, Any] | Failed[Task] | Lost[Task]:
    from distributed import KilledWorker

    if sent.future.status == "finished":
        return Done(sent.task, sent.future.result())
    if sent.future.status != "error":
        return Lost(sent.task, f"the scheduler says {sent.future.status}")
    error = sent.future.exception()
    if isinstance(error, KilledWorker):
        return Lost(sent.task, "its process died (killed, out of memory, or a fault of a library)")
    return Failed(sent.task, error)


def _wait_until_gone(client: Any, workers: set[str]) -> None:
    """Until the scheduler has noticed; it would give the next task to a worker that ends."""
    until_s = time.monotonic() + _CONNECT_S
    while workers & client.scheduler_info(n_workers=-1)["workers"].keys():
        if time.monotonic() > until_s:
            return
        time.sleep(0.05)


async def _end() -> None:
    """End a worker, whatever its other threads do; its nanny starts another."""
    os.kill(os.getpid(), signal.SIGKILL)


def _in_turn(work: Callable[[Task], Result], task: Task) -> Result:
    with _TURN:
        return work(task)
