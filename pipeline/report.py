"""What a run did, in numbers a person can act on."""

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

SCHEMA_VERSION = 1
_COUNTS = ("made", "already", "failed", "failed_before", "audio_s", "stage_s")
STAGES = ("read", "decode", "wait", "encode", "write")


def peak_rss_bytes() -> int:
    """The most memory that this process has had."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(slots=True)
class Report:
    """Counts of one run. `failed` counts clips by (stage, reason), earlier failures included."""

    clips: int = 0
    made: Counter[str] = field(default_factory=Counter)
    already: Counter[str] = field(default_factory=Counter)
    failed: Counter[tuple[str, str]] = field(default_factory=Counter)
    failed_before: int = 0
    audio_s: float = 0.0
    seconds: float = 0.0
    root: str | None = None
    store: str = ""
    stage_s: Counter[str] = field(default_factory=Counter)  # seconds of work, over all threads
    peak_rss_bytes: int = 0  # of the largest worker
    lock: threading.Lock = field(default_factory=threading.Lock)
    sign: Callable[[], None] | None = None  # is called as each stage ends: the work goes on

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; several threads may be in it at once."""
        began = time.perf_counter()
        try:
            yield
        finally:
            with self.lock:
                self.stage_s[name] += time.perf_counter() - began  # type: ignore[assignment]
            if self.sign is not None:
                self.sign()

    def tally(self) -> dict[str, Any]:
        """The counts, for `add`: what can be sent to another process."""
        return {
            **{name: getattr(self, name) for name in _COUNTS},
            "peak_rss_bytes": peak_rss_bytes(),
        }

    def add(self, tally: Mapping[str, Any]) -> None:
        """Count in what was done elsewhere."""
        with self.lock:
            for name in _COUNTS:
                setattr(self, name, getattr(self, name) + tally[name])
            self.peak_rss_bytes = max(self.peak_rss_bytes, tally["peak_rss_bytes"])

    @property
    def exit_code(self) -> int:
        """0, or 3 where some clips could not be used."""
        return 3 if self.failed else 0

    def to_json(self) -> dict[str, Any]:
        """One object, for `--json`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "store": self.store,
            "root": self.root,
            "clips": self.clips,
            "made": dict(sorted(self.made.items())),
            "already": dict(sorted(self.already.items())),
            "failed": [
                {"stage": stage, "reason": reason, "clips": count}
                for (stage, reason), count in sorted(self.failed.items())
            ],
            "audio_hours": round(self.audio_s / 3600, 6),
            "seconds": round(self.seconds, 3),
            "stage_s": {name: round(self.stage_s[name], 3) for name in STAGES},
        }

    def lines(self) -> list[str]:
        """The summary, a line a fact."""
        lines = [f"{self.clips} clips, {self.seconds:.1f} s"]
        if self.audio_s:
            speed = self.audio_s / self.seconds
            lines[0] += f", {self.audio_s / 3600:.2f} h of audio decoded ({speed:.0f} x real time)"
        lines += [
            f"  {stream}: {self.made[stream]} made, {self.already[stream]} already there"
            for stream in sorted(self.made | self.already)
        ]
        if self.stage_s["encode"]:
            parts = (f"{name} {self.stage_s[name]:.1f} s" for name in STAGES)
            share = self.stage_s["encode"] / self.seconds
            lines.append(f"  {', '.join(parts)}; the encoder was at work {share:.0%} of the time")
        if self.failed:
            reasons = ", ".join(f"{s}: {r} {n}" for (s, r), n in sorted(self.failed.items()))
            lines.append(f"  failed clips: {sum(self.failed.values())} ({reasons})")
            lines.append(f"  why: mmfeat inspect {self.store} --failures")
        if self.failed_before:
            lines.append(
                f"  {self.failed_before} of these failed in an earlier run; --retry-failed tries "
                "them again"
            )
        lines.append(f"root {self.root}")
        return lines
