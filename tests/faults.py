"""Work that goes wrong in worker processes, for the tests of the engine."""

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np

from mmfuse.features.config import FeatureConfig
from mmfuse.features.errors import ClipError
from mmfuse.pipeline import limits
from mmfuse.pipeline.executors import Done
from mmfuse.pipeline.makers import TextMaker

TEXT = FeatureConfig.model_validate({"preprocessing": {"text": {"vocab_size": 300}}})


def write_texts(path):
    """A manifest of 250 short texts: four tasks. Its path."""
    rng = np.random.default_rng(0)
    rows = [{"id": f"clip-{n}", "text": " ".join(f"word{w}" for w in rng.integers(0, 30, 6))}
            for n in range(250)]  # fmt: skip
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@dataclass(frozen=True)
class Fault:
    """Does the work, but one clip does something terrible when it is decoded.

    `times` is how often; marks in `folder` count over all processes.
    """

    clip_id: str
    kind: str
    folder: Path
    times: int = 10**9

    def __call__(self, do, task):
        good = TextMaker.decode

        def decode(maker, clip, loaded):
            if clip.id == self.clip_id and self._strikes():
                self._strike()
            return good(maker, clip, loaded)

        small = mock.patch.object(limits, "machine_bytes", lambda: 4 << 30)
        with mock.patch.object(TextMaker, "decode", decode), small:
            return do(task)

    def _strikes(self):
        for n in range(self.times):
            try:
                (self.folder / f"{self.kind}-{n}").touch(exist_ok=False)
            except FileExistsError:
                continue
            return True
        return False

    def _strike(self):
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "hang":
            time.sleep(1000)
        elif self.kind == "eat":
            held = [np.empty(1 << 25) for _ in range(100)]  # 25 GiB
            raise AssertionError(len(held))
        elif self.kind == "exception":
            raise RuntimeError("a fault of ours")
        raise ClipError("bad", "as bad clips are")

    @property
    def strikes(self):
        """How often it has struck."""
        return len(list(self.folder.glob(f"{self.kind}-*")))


@dataclass
class Faulty:
    """An executor whose work goes through a fault, and which may tell some outcomes twice."""

    inner: object
    fault: object = None
    twice: bool = False

    @property
    def workers(self):
        return self.inner.workers

    @property
    def per_machine(self):
        return self.inner.per_machine

    def start(self):
        self.inner.start()

    def stop(self):
        self.inner.stop()

    def map_unordered(self, work, tasks, max_in_flight, signs):
        if self.fault is not None:
            work = Through(self.fault, work)
        for outcome in self.inner.map_unordered(work, tasks, max_in_flight, signs):
            yield outcome
            if self.twice and isinstance(outcome, Done):
                yield outcome


@dataclass(frozen=True)
class Through:
    """One function through another."""

    fault: object
    work: object

    def __call__(self, task):
        return self.fault(self.work, task)


KEPT = []


def act(task):
    """A toy: what to do is said by the task."""
    name, _, argument = task.partition(" ")
    if name == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "sleep":
        time.sleep(float(argument))
    elif name == "grow":
        KEPT.append(bytes(int(argument)))
        KEPT[-1].count(1)
        time.sleep(1.1)
    elif name == "raise":
        raise ValueError(argument)
    return (task, os.getpid())
