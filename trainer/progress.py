"""A line on stderr while a run trains: epochs, loss, validation score, the best so far."""

import math
import sys
from types import TracebackType
from typing import TYPE_CHECKING

from mmfuse.features.console import printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from mmfuse.trainer.config import RunConfig
    from mmfuse.trainer.state import Record


class Progress:
    """Shows how far training is, where a person watches; says nothing into a file or if quiet."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet, self._best = quiet, -math.inf
        self._bar: Bar | None = None

    def __enter__(self) -> "Progress":
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        if not self._quiet and console.is_terminal:
            self._bar = Bar(
                TextColumn("epoch"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("reading", total=None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def epoch(self, config: "RunConfig", record: "Record") -> None:
        """One epoch more is done."""
        if self._bar is None:
            return
        from mmfuse.trainer.tasks import TASKS, TITLES

        select = TASKS[config.train.task].select
        said = "train and validation"
        if (score := record.get(f"val_{select}")) is not None:
            self._best = max(self._best, score)
            said = f"validation {TITLES[select]} {score:.3f}, best {self._best:.3f}"
        self._bar.update(
            self._task,
            total=config.train.epochs,
            completed=record["epoch"],
            description=f"loss {record['train_loss']:.3f}, {said}",
        )

    def warn(self, text: str) -> None:
        """A line that a person should see, above the bar."""
        if not self._quiet:
            print(printable(f"mmtrain: {text}"), file=sys.stderr)
