"""What is predicted of a clip: one class, any number of labels, or a number, as `train.task` says.

A task reads labels, turns what a model gives into answers, scores them, and says which score
chooses weights, runs and references; there, more is better. `tasks.py` has the tasks there are.

`truth` is (N,) class numbers, (N, C) of 0 and 1, or (N,) numbers. `said` is (N, K): probabilities
of classes or labels, or one number. `decided` is what scores look at: class numbers (N,), the
probabilities (N, C), or the numbers (N,).

Shapes: N clip, B batch, K output, C class or label.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mmfuse.trainer import calibration, resampling
from mmfuse.trainer.config import TrainConfig
from mmfuse.trainer.metrics import Difference, Interval
from mmfuse.trainer.objectives import Objective

Label = str | tuple[str, ...] | None
Array = NDArray[Any]
Scores = dict[str, float]
Groups = NDArray[Any] | None


class Named(NamedTuple):
    """A clip's id with its label."""

    id: str
    label: Label


class Task:
    """What all have in common; see the module."""

    name: ClassVar[str]
    select: ClassVar[str]  # the score that chooses
    loss: ClassVar[str]  # the score that decides between equals; less is better
    shown: ClassVar[tuple[str, ...]]  # scores with an interval
    also: ClassVar[tuple[str, ...]]  # and without
    probable: ClassVar[bool]  # answers are probabilities, which a temperature can mend
    right_or_wrong: ClassVar[bool] = False  # an answer is one of two, as McNemar's test asks
    limit: ClassVar[str]  # what a model of it can't do
    output: ClassVar[str] = "logits"  # what an exported program calls what it gives
    numbers: ClassVar[frozenset[str]] = frozenset()  # columns of tables that are not text
    classes: Sequence[str]  # names of outputs
    counts: Sequence[int]  # train clips of each

    @classmethod
    def learned(cls, labels: Sequence[Label], train_N: NDArray[np.bool_]) -> "Task":
        """What labels say: all of them of classes, those of train clips of the rest."""
        raise NotImplementedError

    @classmethod
    def refuse(cls, clips: Sequence[Named], where: str) -> None:
        """Say which label is none.

        Raises:
            ConfigError: it names clip, label and mend; `where` is the corpus.
        """
        raise NotImplementedError

    @classmethod
    def compared(cls, tables: Sequence[Mapping[str, Array]]) -> tuple["Task", Array, list[Array]]:
        """The task, the truth, and what each run decided, of tables of predictions as columns.

        Raises:
            KeyError: a table lacks a column.
        """
        raise NotImplementedError

    def unknown(self, labels: Sequence[Label]) -> Label:
        """The first label that a model of this task does not know; None if it knows all."""
        raise NotImplementedError

    @property
    def outputs(self) -> int:
        """Width of what the model gives."""
        return len(self.classes)

    @property
    def unit(self) -> float:
        """How much an output that is exported means something."""
        return 1.0

    def truth(self, labels: Sequence[Label]) -> Array:
        """Labels as arrays; -1 or NaN for none and for those that it does not know."""
        raise NotImplementedError

    def targets(self, truth_N: Array) -> Array:
        """What the loss compares with."""
        return truth_N

    def objective(self, config: TrainConfig, truth_N: Array) -> Objective:
        """The loss, weighed by the truth of train clips."""
        raise NotImplementedError

    def answer(self, logits_BK: Tensor) -> Tensor:
        """What is said, (B, K)."""
        raise NotImplementedError

    def exported(self, logits_BK: Tensor) -> Tensor:
        """What a program for others gives, (B, K)."""
        return logits_BK

    def guess(self) -> NDArray[np.float64]:
        """What is said of a clip of which nothing is seen, (K,)."""
        raise NotImplementedError

    def decide(self, said_NK: Array) -> Array:
        """What scores look at."""
        return said_NK

    def weighed(self, truth_N: Array, groups_N: Groups = None) -> resampling.Weighed:
        """A function of (decided, weights (R, N)) that gives the scores that are `shown`, (R,)."""
        raise NotImplementedError

    def scores(self, truth_N: Array, decided_N: Array) -> Scores:
        """Those that are `shown`; NaN for no clips."""
        if not len(truth_N):
            return dict.fromkeys(self.shown, math.nan)
        found = self.weighed(truth_N)(decided_N, np.ones((1, len(truth_N))))
        return {name: float(found[name][0]) for name in self.shown}

    def bootstrap(
        self, truth_N: Array, decided_N: Array, resamples: int, groups_N: Groups
    ) -> dict[str, Interval]:
        """The same with intervals."""
        draws = resampling.drawn(len(truth_N), resamples, groups_N=groups_N)
        whole, weighed = self.scores(truth_N, decided_N), self.weighed(truth_N, groups_N)
        return resampling.bootstrap(weighed, decided_N, whole, draws)

    def resampled(
        self, truth_N: Array, decided: Sequence[Array], resamples: int, groups_N: Groups
    ) -> Mapping[str, Sequence[Array]]:
        """Each score of each of several answers on the same draws, (R,)."""
        draws = resampling.drawn(len(truth_N), resamples, groups_N=groups_N)
        found = resampling.scores(self.weighed(truth_N, groups_N), decided, draws)
        return {name: [of[name] for of in found] for name in self.shown}

    def paired(
        self, truth_N: Array, decided_N: Array, other_N: Array, resamples: int, groups_N: Groups
    ) -> dict[str, Difference]:
        """Their differences from another's on the same clips."""
        draws = resampling.drawn(len(truth_N), resamples, groups_N=groups_N)
        whole = [self.scores(truth_N, said) for said in (decided_N, other_N)]
        weighed = self.weighed(truth_N, groups_N)
        return resampling.paired_bootstrap(weighed, decided_N, other_N, whole, draws)

    def plain(self, truth_N: Array, said_NK: Array) -> Scores:
        """Scores, and the loss where it is none of them."""
        found = self.scores(truth_N, self.decide(said_NK))
        return found if self.loss in found else {self.loss: self.nll(truth_N, said_NK), **found}

    def more(self, truth_N: Array, said_NK: Array, bins: int) -> dict[str, Any]:
        """What else a result says of a split."""
        raise NotImplementedError

    def flat(self, truth_N: Array, said_NK: Array) -> tuple[Array, Array]:
        """Decisions between classes: class numbers (D,) and rows of probabilities (D, C)."""
        return truth_N, said_NK

    def nll(self, truth_N: Array, said_NK: Array) -> float:
        """Negative log probability of the truth, mean over decisions, in nats."""
        return calibration.nll(*self.flat(truth_N, said_NK))

    def ece(self, truth_N: Array, said_NK: Array, bins: int) -> float:
        """Expected calibration error of decisions."""
        return calibration.ece(*self.flat(truth_N, said_NK), bins)

    def temperature(self, truth_N: Array, said_NK: Array) -> float:
        """The one with the least NLL."""
        return calibration.fit_temperature(*self.flat(truth_N, said_NK))

    def at_temperature(self, said_NK: Array, temperature: float) -> Array:
        """Probabilities as they are at another temperature."""
        return calibration.at_temperature(said_NK, temperature)

    def members(self, truth_N: Array) -> dict[str, NDArray[np.bool_]]:
        """Which clips have each class."""
        return {name: truth_N == c for c, name in enumerate(self.classes)}

    def label(self, truth: Any) -> Any:
        """A clip's truth as a table has it."""
        raise NotImplementedError

    def shown_label(self, label: Label) -> Any:
        """A label as a table has it, whether the model knows it or not."""
        return label

    def verdict(self, said_K: Array) -> dict[str, Any]:
        """`predicted` and what belongs to it, of one clip."""
        raise NotImplementedError

    def parts(self, said_K: Array) -> dict[str, float]:
        """The probability of each class, of one clip."""
        return {f"p:{name}": float(p) for name, p in zip(self.classes, said_K, strict=True)}

    def told(self) -> tuple[str, str]:
        """For people: what a model of it does, and what it was trained on."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """What `tasks.task_of` reads."""
        return {"name": self.name, **vars(self)}
