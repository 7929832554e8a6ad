"""A progress bar on stderr: clips, hours of audio, speed, what was there already, time left."""

import time
from collections import Counter
from types import TracebackType
from typing import Protocol


class Counts(Protocol):
    """What a run has counted so far."""

    audio_s: float
    already: Counter[str]
    failed: Counter[tuple[str, str]]


class Progress:
    """Shows how far a run is, where a person watches; says nothing into a file or with --quiet."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet, self._shown = quiet, 0.0
        self._bar: "rich.progress.Progress | None" = None  # type: ignore[name-defined]  # noqa: F821, UP037

    def __enter__(self) -> "Progress":
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        if not self._quiet and console.is_terminal:
            self._bar = Bar(
                TextColumn("clips"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, clips: int) -> None:
        """The number of clips is known."""
        self._began = time.monotonic()
        if self._bar is not None:
            self._task = self._bar.add_task("", total=clips)

    def advance(self, counts: Counts, clips: int = 1) -> None:
        """One clip more is done, or a few."""
        if self._bar is None:
            return
        hours = counts.audio_s / 3600
        speed = counts.audio_s / max(time.monotonic() - self._began, 1e-9)
        already = max(counts.already.values(), default=0)
        failed = f", [red]{sum(counts.failed.values())} failed[/red]" if counts.failed else ""
        self._bar.update(
            self._task,
            advance=clips,
            description=f"{hours:.2f} h of audio, {speed:.0f} x, {already} already there{failed}",
        )
