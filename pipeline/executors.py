"""Where tasks run: in this process, in processes of this machine, or on a cluster.

An executor promises this: each task that it takes comes back once, as done, failed (the work raised
an exception) or lost (its process died or gave no sign of life for too long); a task that kills its
process harms no other; and no more than `max_in_flight` tasks are out at a time, however slowly
outcomes are taken. What a task does, and what is done about a lost one, is the caller's business.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from mmfuse.features.errors import ConfigError

Task = TypeVar("Task")
Result = TypeVar("Result")
SILENT_S = 600.0  # a process without a sign of life for so long is taken for hung


@dataclass(frozen=True, slots=True)
class Done(Generic[Task, Result]):
    """The work returned."""

    task: Task
    result: Result


@dataclass(frozen=True, slots=True)
class Failed(Generic[Task]):
    """The work raised."""

    task: Task
    error: BaseException


@dataclass(frozen=True, slots=True)
class Lost(Generic[Task]):
    """The process that had the task is gone; `why` in words."""

    task: Task
    why: str


Outcomes = Generator[Done[Task, Result] | Failed[Task] | Lost[Task], None, None]


class Executor(Protocol):
    """Runs tasks."""

    @property
    def workers(self) -> int:
        """How many tasks run at a time."""

    @property
    def per_machine(self) -> int:
        """How many processes share this machine, or one of a cluster's, as far as is known."""

    def start(self) -> None:
        """Begin to start processes, for work that comes soon; `stop` ends them."""

    def stop(self) -> None:
        """End what `start` has begun, if nothing was mapped."""

    def map_unordered(
        self,
        work: Callable[[Task], Result],
        tasks: Iterator[Task],
        max_in_flight: int,
        signs: Callable[[Task], float | None],
    ) -> Outcomes[Task, Result]:
        """Outcomes in the order in which they come.

        Args:
            tasks: asked for one more whenever there is room, and after every outcome again even if
                it had none before: the taker of outcomes may add some.
            signs: the last sign of life of a task, as `time.time()`; None where it gave none.
        """


class InProcess:
    """One task after the other, here."""

    workers = per_machine = 1

    def start(self) -> None:
        """Nothing to start."""

    def stop(self) -> None:
        """Nothing to stop."""

    def map_unordered(
        self,
        work: Callable[[Task], Result],
        tasks: Iterator[Task],
        max_in_flight: int = 1,
        signs: Callable[[Task], float | None] = lambda task: None,
    ) -> Outcomes[Task, Result]:
        """Outcomes in the order of the tasks."""
        for task in tasks:
            try:
                outcome: Done[Task, Result] | Failed[Task] = Done(task, work(task))
            except Exception as error:
                outcome = Failed(task, error)
            yield outcome


@contextmanager
def started(executor: Executor) -> Iterator[Executor]:
    """An executor whose processes start while the block gets its tasks together."""
    executor.start()
    try:
        yield executor
    finally:
        executor.stop()


def executor_of(
    name: str = "local", workers: int = 1, scheduler: str | None = None, *, apart: bool = False
) -> Executor:
    """The executor that a command line asks for.

    Args:
        apart: even one worker is a process of its own, because the last one died at its work.

    Raises:
        ConfigError: no such executor, or a scheduler for one that has none.
        MissingError: Dask is not installed.
    """
    if name == "dask":
        from mmfuse.pipeline.cluster import DaskExecutor

        return DaskExecutor(workers, scheduler)
    if name != "local":
        raise ConfigError(f"no executor named {name!r}; choose from: local, dask")
    if scheduler is not None:
        raise ConfigError(
            f"--scheduler {scheduler} is for Dask; write --executor dask --scheduler {scheduler}"
        )
    if workers == 1 and not apart:
        return InProcess()
    from mmfuse.pipeline.local import LocalExecutor

    return LocalExecutor(workers)
