"""The tasks that `train.task` can name. Each is a class and a line in `TASKS`.

Shapes: N clip, B batch, K output, C class or label.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mmfuse.features.errors import ConfigError
from mmfuse.trainer import calibration, label_metrics, metrics, value_metrics
from mmfuse.trainer.config import TrainConfig
from mmfuse.trainer.metrics import Difference, Interval
from mmfuse.trainer.objectives import (
    BinaryCrossEntropy,
    CrossEntropy,
    Objective,
    SquaredError,
    class_weights,
    label_weights,
)
from mmfuse.trainer.resampling import Weighed
from mmfuse.trainer.task import Array, Groups, Label, Named, Scores, Task

SEPARATOR = "|"  # of labels in one string; alone, it is none of them


@dataclass(frozen=True)
class SingleLabel(Task):
    """One class a clip."""

    name = "single"
    select, loss = "macro_f1", "nll"
    shown, also = ("accuracy", "macro_f1"), ("auroc", "nll", "ece")
    probable = right_or_wrong = True
    limit = "It knows no other classes than these, and says one of them of anything."

    classes: list[str]
    counts: list[int]

    @classmethod
    def learned(cls, labels: Sequence[Label], train_N: NDArray[np.bool_]) -> "SingleLabel":
        classes = sorted({str(label) for label in labels})
        alone = cls(classes, [])
        counts = np.bincount(alone.truth(labels)[train_N], minlength=len(classes))
        return cls(classes, counts.tolist())

    @classmethod
    def refuse(cls, clips: Sequence[Named], where: str) -> None:
        for clip in clips:
            if isinstance(clip.label, tuple):
                raise ConfigError(
                    f"{where}: label of clip {clip.id!r} is a list, {list(clip.label)}; set "
                    'train.task = "multilabel", or give each clip one label'
                )

    @classmethod
    def compared(cls, tables: Sequence[Mapping[str, Array]]) -> tuple[Task, Array, list[Array]]:
        columns = [tables[0]["label"], *(table["predicted"] for table in tables)]
        names, numbers = np.unique(np.concatenate(columns).astype(str), return_inverse=True)
        truth_N, *decided = numbers.reshape(len(columns), -1).astype(np.int64)
        return cls(names.tolist(), []), truth_N, decided

    def unknown(self, labels: Sequence[Label]) -> Label:
        return next(iter(sorted({str(label) for label in labels} - set(self.classes))), None)

    def truth(self, labels: Sequence[Label]) -> Array:
        number = {name: c for c, name in enumerate(self.classes)}
        found = [number.get(one, -1) if isinstance(one, str) else -1 for one in labels]
        return np.array(found, np.int64)

    def objective(self, config: TrainConfig, truth_N: Array) -> Objective:
        weights_C = class_weights(truth_N, self.outputs) if config.class_weights else None
        return CrossEntropy(config.label_smoothing, weights_C)

    def answer(self, logits_BK: Tensor) -> Tensor:
        return logits_BK.softmax(dim=-1)

    def guess(self) -> NDArray[np.float64]:
        return np.asarray(np.eye(self.outputs)[int(np.argmax(self.counts))])

    def decide(self, said_NK: Array) -> Array:
        return np.asarray(said_NK.argmax(axis=1))

    def scores(self, truth_N: Array, decided_N: Array) -> Scores:
        return metrics.scores(truth_N, decided_N, self.outputs)

    def bootstrap(
        self, truth_N: Array, decided_N: Array, resamples: int, groups_N: Groups
    ) -> dict[str, Interval]:
        return metrics.bootstrap(truth_N, decided_N, self.outputs, resamples, groups_N=groups_N)

    def resampled(
        self, truth_N: Array, decided: Sequence[Array], resamples: int, groups_N: Groups
    ) -> Mapping[str, Sequence[Array]]:
        return metrics.resampled_scores(
            truth_N, list(decided), self.outputs, resamples, groups_N=groups_N
        )

    def paired(
        self, truth_N: Array, decided_N: Array, other_N: Array, resamples: int, groups_N: Groups
    ) -> dict[str, Difference]:
        return metrics.paired_bootstrap(
            truth_N, decided_N, other_N, self.outputs, resamples, groups_N=groups_N
        )

    def more(self, truth_N: Array, said_NK: Array, bins: int) -> dict[str, Any]:
        confusion = metrics.confusion(truth_N, self.decide(said_NK), self.outputs)
        return {
            "auroc": _finite(metrics.auroc(truth_N, said_NK)),
            "ece": self.ece(truth_N, said_NK, bins),
            "confusion": confusion.tolist(),
        }

    def label(self, truth: Any) -> Any:
        return self.classes[truth] if truth >= 0 else None

    def shown_label(self, label: Label) -> Any:
        return SEPARATOR.join(label) if isinstance(label, tuple) else label

    def verdict(self, said_K: Array) -> dict[str, Any]:
        best = int(np.nan_to_num(said_K, nan=-1).argmax())
        return {"predicted": self.classes[best], "probability": float(said_K[best])}

    def told(self) -> tuple[str, str]:
        return (
            f"tells {self.outputs} classes apart: {', '.join(self.classes)}",
            f"{sum(self.counts)} clips of {{corpus}}, by class: "
            + _counted(self.classes, self.counts),
        )


@dataclass(frozen=True)
class MultiLabel(Task):
    """Any number of labels a clip; `clips` are those of the train split."""

    name = "multilabel"
    select, loss = "macro_f1", "nll"
    shown, also = ("macro_f1", "micro_f1", "map"), ("auroc", "nll", "ece")
    probable = True
    limit = "It knows no other labels than these, and says something of anything."

    classes: list[str]
    counts: list[int]
    clips: int

    @classmethod
    def learned(cls, labels: Sequence[Label], train_N: NDArray[np.bool_]) -> "MultiLabel":
        alone = cls(sorted({name for label in labels for name in names_of(label) or ()}), [], 0)
        counts = np.nan_to_num(alone.truth(labels)[train_N]).sum(axis=0).astype(np.int64)
        return cls(alone.classes, counts.tolist(), int(train_N.sum()))

    @classmethod
    def refuse(cls, clips: Sequence[Named], where: str) -> None:
        for clip in clips:
            wrong = [one for one in clip.label or () if SEPARATOR in one]
            if isinstance(clip.label, tuple) and wrong:
                raise ConfigError(
                    f"{where}: label {wrong[0]!r} of clip {clip.id!r} holds {SEPARATOR!r}, which "
                    "stands between labels; give it another name"
                )

    @classmethod
    def compared(cls, tables: Sequence[Mapping[str, Array]]) -> tuple[Task, Array, list[Array]]:
        own = [name for name in tables[0] if name.startswith("p:")]
        task = cls([name.removeprefix("p:") for name in own], [], 0)
        decided = [np.stack([table[name] for name in own], axis=1) for table in tables]
        return task, task.truth(tables[0]["label"].tolist()), decided

    def unknown(self, labels: Sequence[Label]) -> Label:
        strange = {name for label in labels for name in names_of(label) or ()} - set(self.classes)
        return next(iter(sorted(strange)), None)

    def truth(self, labels: Sequence[Label]) -> Array:
        truth_NC = np.full((len(labels), self.outputs), np.nan)
        number = {name: c for c, name in enumerate(self.classes)}
        for n, label in enumerate(labels):
            names = names_of(label)
            if names is not None and set(names) <= number.keys():
                truth_NC[n] = 0
                truth_NC[n, [number[name] for name in names]] = 1
        return truth_NC

    def targets(self, truth_N: Array) -> Array:
        return truth_N.astype(np.float32)

    def objective(self, config: TrainConfig, truth_N: Array) -> Objective:
        weights_C = label_weights(truth_N) if config.class_weights else None
        return BinaryCrossEntropy(config.label_smoothing, weights_C)

    def answer(self, logits_BK: Tensor) -> Tensor:
        return logits_BK.sigmoid()

    def guess(self) -> NDArray[np.float64]:
        return np.array(self.counts) / max(1, self.clips)

    def weighed(self, truth_N: Array, groups_N: Groups = None) -> Weighed:
        return lambda decided_N, weights_RN: label_metrics.scores(
            truth_N, decided_N, weights_RN, drawn=groups_N is not None
        )

    def more(self, truth_N: Array, said_NK: Array, bins: int) -> dict[str, Any]:
        return {
            "auroc": _finite(label_metrics.auroc(truth_N, said_NK)),
            "ece": self.ece(truth_N, said_NK, bins),
        }

    def flat(self, truth_N: Array, said_NK: Array) -> tuple[Array, Array]:
        return truth_N.ravel().astype(np.int64), _pairs(said_NK)

    def at_temperature(self, said_NK: Array, temperature: float) -> Array:
        return calibration.at_temperature(_pairs(said_NK), temperature)[:, 1].reshape(said_NK.shape)

    def members(self, truth_N: Array) -> dict[str, NDArray[np.bool_]]:
        return {name: truth_N[:, c] > 0 for c, name in enumerate(self.classes)}

    def label(self, truth: Any) -> Any:
        return None if np.isnan(truth).any() else self._joined(truth > 0)

    def shown_label(self, label: Label) -> Any:
        names = names_of(label)
        return None if names is None else SEPARATOR.join(sorted(set(names))) or SEPARATOR

    def verdict(self, said_K: Array) -> dict[str, Any]:
        return {"predicted": self._joined(said_K >= label_metrics.HALF)}

    def _joined(self, has_C: Array) -> str:
        names = (name for name, has in zip(self.classes, has_C, strict=True) if has)
        return SEPARATOR.join(names) or SEPARATOR

    def told(self) -> tuple[str, str]:
        return (
            f"says which of {self.outputs} labels a clip has: {', '.join(self.classes)}",
            f"{self.clips} clips of {{corpus}}, of which have each label: "
            + _counted(self.classes, self.counts),
        )


def _counted(names: Sequence[str], counts: Sequence[int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))


@dataclass(frozen=True)
class Regression(Task):
    """A number a clip. A model works in deviations from the mean of the train split's `clips`."""

    name = "regression"
    select, loss = "r2", "rmse"
    shown, also = ("r2", "mae", "rmse", "pearson"), ("spearman",)
    probable = False
    limit = "It says a number of anything, in the range that it was trained on at best."
    output = "value"
    classes = counts = ()
    numbers = frozenset({"label", "predicted"})

    clips: int
    mean: float
    deviation: float
    low: float
    high: float

    @classmethod
    def learned(cls, labels: Sequence[Label], train_N: NDArray[np.bool_]) -> "Regression":
        truth_N = np.array([_number(label) for label in labels])[train_N]
        mean, deviation = float(truth_N.mean()), float(truth_N.std())
        return cls(len(truth_N), mean, deviation or 1.0, *map(float, (min(truth_N), max(truth_N))))

    @classmethod
    def refuse(cls, clips: Sequence[Named], where: str) -> None:
        for clip in clips:
            if math.isnan(_number(clip.label)):
                raise ConfigError(
                    f"{where}: label {clip.label!r} of clip {clip.id!r} is no number; "
                    'train.task = "regression" needs one for each clip'
                )

    @property
    def outputs(self) -> int:
        return 1

    @classmethod
    def compared(cls, tables: Sequence[Mapping[str, Array]]) -> tuple[Task, Array, list[Array]]:
        truth_N = tables[0]["label"]
        return cls(0, 0.0, 1.0, 0.0, 0.0), truth_N, [table["predicted"] for table in tables]

    def unknown(self, labels: Sequence[Label]) -> Label:
        return next((label for label in labels if math.isnan(_number(label))), None)

    def truth(self, labels: Sequence[Label]) -> Array:
        return np.array([_number(label) for label in labels], np.float64)

    def targets(self, truth_N: Array) -> Array:
        return ((truth_N - self.mean) / self.deviation).astype(np.float32)

    def objective(self, config: TrainConfig, truth_N: Array) -> Objective:
        return SquaredError(config.huber)

    def answer(self, logits_BK: Tensor) -> Tensor:
        return logits_BK * self.deviation + self.mean

    @property
    def unit(self) -> float:
        return self.deviation

    def exported(self, logits_BK: Tensor) -> Tensor:
        return self.answer(logits_BK)

    def guess(self) -> NDArray[np.float64]:
        return np.array([self.mean])

    def decide(self, said_NK: Array) -> Array:
        return said_NK[:, 0]

    def weighed(self, truth_N: Array, groups_N: Groups = None) -> Weighed:
        return lambda decided_N, weights_RN: value_metrics.scores(truth_N, decided_N, weights_RN)

    def more(self, truth_N: Array, said_NK: Array, bins: int) -> dict[str, Any]:
        return {"spearman": value_metrics.spearman(truth_N, self.decide(said_NK))}

    def members(self, truth_N: Array) -> dict[str, NDArray[np.bool_]]:
        return {}

    def label(self, truth: Any) -> Any:
        return None if math.isnan(truth) else float(truth)

    def shown_label(self, label: Label) -> Any:
        return self.label(_number(label))

    def verdict(self, said_K: Array) -> dict[str, Any]:
        return {"predicted": float(said_K[0])}

    def parts(self, said_K: Array) -> dict[str, float]:
        return {}

    def told(self) -> tuple[str, str]:
        return (
            "predicts a number",
            f"{self.clips} clips of {{corpus}}, with numbers from {self.low:g} to {self.high:g}, "
            f"{self.mean:g} in the mean, deviation {self.deviation:g}",
        )


TASKS: Mapping[str, type[Task]] = {
    task.name: task for task in (SingleLabel, MultiLabel, Regression)
}


TITLES = {
    "accuracy": "accuracy", "macro_f1": "macro-F1", "micro_f1": "micro-F1", "map": "mAP",
    "auroc": "AUROC", "nll": "NLL", "ece": "ECE", "r2": "R2", "mae": "MAE", "rmse": "RMSE",
    "pearson": "Pearson", "spearman": "Spearman",
}  # fmt: skip


def task_of(document: Mapping[str, Any]) -> Task:
    """The task that `to_json` told of."""
    rest = {key: value for key, value in document.items() if key != "name"}
    return TASKS[document["name"]](**rest)


def names_of(label: Label) -> tuple[str, ...] | None:
    """The labels of a list, or of a string with separators; None if there is no label at all."""
    if isinstance(label, str):
        parts = (part.strip() for part in label.split(SEPARATOR))
        return tuple(part for part in parts if part)
    return label


def _number(label: Label) -> float:
    """A finite number; NaN if it is none."""
    try:
        value = float(label) if isinstance(label, str) else math.nan
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _pairs(p_NC: Array) -> Array:
    """Each label of each clip as a choice between not having and having it, (N * C, 2)."""
    p = p_NC.ravel()
    return np.stack([1 - p, p], axis=1)


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value
