"""Who else is told how a run goes: TensorBoard, Weights & Biases, MLflow, or what is installed.

`train.log` names them. A logger is made when its run begins and gets numbers by tag: `val/macro_f1`
of each epoch, `test/accuracy` at the end. One that fails says so once and is told no more; the run
goes on. Nothing of a logger is imported that is not asked for.
"""

import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from mmfuse.features.errors import ConfigError, MissingError, MMFuseError
from mmfuse.trainer.config import RunConfig
from mmfuse.trainer.event_file import EventFile

GROUP = "mmfuse.loggers"
_SCORED = ("val", "test")


class Logger(Protocol):
    """Told how one run goes; made by `factory(folder of the run, its configuration)`."""

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by tag, after so many optimizer steps."""

    def close(self, *, finished: bool) -> None:
        """The run is over, finished or not."""


Factory = Callable[[Path, RunConfig], Logger]


class TensorBoard:
    """An event file in the folder of the run: `tensorboard --logdir runs` shows all."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        from mmfuse.trainer.run import to_toml

        self._file = EventFile(folder)
        self._file.text("configuration", f"```toml\n{to_toml(config)}```")

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """See `Logger`."""
        self._file.scalars(values, step)

    def close(self, *, finished: bool) -> None:
        """See `Logger`."""
        self._file.close()


class WandB:
    """A run of Weights & Biases, in the project WANDB_PROJECT or "mmfuse"."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        wandb = import_module("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "mmfuse",
            name=config.name,
            config={**config.model_dump(mode="json"), "out": str(folder)},
            reinit="create_new",  # a sweep has several at once
        )

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """See `Logger`."""
        self._run.log(dict(values), step=step)

    def close(self, *, finished: bool) -> None:
        """See `Logger`."""
        self._run.finish(exit_code=0 if finished else 1)


class MLflow:
    """A run of MLflow, in the experiment MLFLOW_EXPERIMENT_NAME or "mmfuse"."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        mlflow = import_module("mlflow")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "mmfuse"
        self._client = mlflow.MlflowClient()
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        self._id = self._client.create_run(experiment, run_name=config.name).info.run_id
        for key, value in _flat(config.model_dump(mode="json")).items():
            self._client.log_param(self._id, key, value)
        self._client.set_tag(self._id, "out", str(folder))

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """See `Logger`."""
        for tag, value in values.items():
            self._client.log_metric(self._id, tag, value, step=step)

    def close(self, *, finished: bool) -> None:
        """See `Logger`."""
        self._client.set_terminated(self._id, "FINISHED" if finished else "FAILED")


LOGGERS: dict[str, Factory] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


def factories_of(names: tuple[str, ...]) -> dict[str, Factory]:
    """What makes each logger that a configuration names.

    Raises:
        ConfigError: there is none of a name.
        MissingError: its package is not installed.
    """
    found = {}
    for name in names:
        if name in LOGGERS:
            found[name] = LOGGERS[name]
            if name != "tensorboard":
                _require(name)
            continue
        points = {point.name: point for point in entry_points(group=GROUP)}
        if name not in points:
            raise ConfigError(
                f"train.log names {name!r}; choose from: {', '.join([*LOGGERS, *sorted(points)])}"
            )
        try:
            found[name] = points[name].load()
        except Exception as error:
            raise MissingError(
                f"the logger {name!r} of {points[name].value} can't be loaded: {error}"
            ) from None
    return found


def _require(package: str) -> None:
    try:
        import_module(package)
    except ImportError as error:
        raise MissingError(
            f"train.log names {package!r}, which can't be imported ({error}); type: "
            f"pip install 'mmfuse[{package}]', or take it out of train.log"
        ) from None


class RunLogs:
    """All loggers of one run.

    Args:
        config: of the run.
        warn: called with one line about a logger that fails.

    Raises:
        ConfigError, MissingError: as `factories_of`.
    """

    def __init__(self, config: RunConfig, warn: Callable[[str], None]) -> None:
        self._config, self._warn = config, warn
        self._factories = factories_of(config.train.log)
        self._open: dict[str, Logger] = {}

    def open(self, folder: Path) -> None:
        """The run begins. Raises ConfigError if a logger can't."""
        for name, factory in self._factories.items():
            try:
                self._open[name] = factory(folder, self._config)
            except MMFuseError:
                raise
            except Exception as error:
                raise ConfigError(
                    f"the logger {name!r} can't begin: {error}; mend it, or take it out of "
                    "train.log"
                ) from None

    def epoch(self, record: Mapping[str, Any]) -> None:
        """What metrics.jsonl has of an epoch."""
        told = {key: value for key, value in record.items() if key != "step"}
        self._tell({tag_of(key): value for key, value in _numbers(told).items()}, record["step"])

    def result(self, result: Mapping[str, Any]) -> None:
        """The scores of result.json, at the last step."""
        values = {
            f"best/{split}/{key}": value
            for split in _SCORED
            for key, value in _numbers(result.get(split) or {}).items()
        }
        self._tell(values, int(result["steps"]))

    def close(self, *, finished: bool) -> None:
        """The run is over."""
        for name, logger in self._open.items():
            self._try(name, partial(logger.close, finished=finished))
        self._open = {}

    def _tell(self, values: Mapping[str, float], step: int) -> None:
        for name, logger in [*self._open.items()]:
            if not self._try(name, partial(logger.numbers, values, step)):
                with suppress(Exception):
                    logger.close(finished=False)
                del self._open[name]

    def _try(self, name: str, do: Callable[[], None]) -> bool:
        try:
            do()
        except Exception as error:
            self._warn(f"the logger {name!r} fails and is told no more: {error}")
            return False
        return True


def tag_of(key: str) -> str:
    """A key of metrics.jsonl as a tag: `val_macro_f1` -> val/macro_f1, `head.text` -> head/text."""
    for split in ("train", "val"):
        if key.startswith(f"{split}_"):
            return f"{split}/{key.removeprefix(f'{split}_')}"
    return key.replace(".", "/") if "." in key else f"train/{key}"


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _flat(document: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = value
    return found
