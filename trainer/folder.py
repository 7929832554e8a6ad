"""The folder of a run, and what makes it finished.

resolved.toml        the whole configuration; running it again gives the same numbers
metrics.jsonl        one line an epoch, written as it goes
events.out.tfevents* the same for TensorBoard
model.safetensors    the best weights; what is needed to build the model stands in its header
predictions.parquet  id, split, label, predicted, and the probability of each class
checkpoint/          while the run is in the making: where it goes on after it was killed
refit/checkpoint/    the same of the second training, where there is one
result.json          scores; written last, by rename: a folder without it is no finished run
"""

import fcntl
import json
from pathlib import Path
from typing import IO, Any

from mmfuse.features.errors import ConfigError, LockedError
from mmfuse.features.layout import sync, write_durably
from mmfuse.trainer import checkpoint, event_file
from mmfuse.trainer.loggers import RunLogs

RESULT, METRICS, RESOLVED = "result.json", "metrics.jsonl", "resolved.toml"
PREDICTIONS, MODEL = "predictions.parquet", "model.safetensors"
FILES = (RESULT, RESOLVED, MODEL, PREDICTIONS, METRICS)  # metrics.jsonl is the lock, so it is last


def check_free(path: Path, *, overwrite: bool) -> None:
    """Say at once that a folder can't take a run, before any time is spent on it.

    Raises:
        ConfigError: it holds a finished run and `overwrite` is not given, or other things.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise ConfigError(f"{path} is a file; name a folder with --out DIR")
    if (path / RESULT).exists() and not overwrite:
        raise ConfigError(
            f"{path} holds a finished run; name another folder with --out DIR, or add --overwrite"
        )
    ours = {*FILES, f"{RESULT}.tmp", checkpoint.FOLDER, checkpoint.REFIT}
    names = {entry.name for entry in path.iterdir()}
    strangers = {name for name in names - ours if not name.startswith(event_file.PREFIX)}
    if strangers:
        raise ConfigError(
            f"{path} holds other things than a run ({min(strangers)}); name another folder with "
            "--out DIR"
        )


class RunFolder:
    """The one process that writes a run; what an earlier one left is removed, its result first.

    Checkpoints of an unfinished run stay, unless `overwrite` is given, until the run is finished.
    `logs` are told what is written.

    Raises:
        ConfigError: as `check_free`, or a logger can't begin.
        LockedError: another process trains into the same folder.
    """

    def __init__(self, path: Path, *, overwrite: bool = False, logs: RunLogs | None = None) -> None:
        check_free(path, overwrite=overwrite)
        self.path, self._logs, self._is_finished = path, logs, False
        path.mkdir(parents=True, exist_ok=True)
        self._metrics: IO[str] = (path / METRICS).open("a", encoding="utf-8")
        try:
            fcntl.flock(self._metrics, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._metrics.close()
            raise LockedError(
                f"another process is training into {path}; wait for it, or name another --out DIR"
            ) from None
        for name in (RESULT, f"{RESULT}.tmp", *FILES[1:-1]):
            (path / name).unlink(missing_ok=True)
        for file in path.glob(f"{event_file.PREFIX}*"):
            file.unlink()
        self._metrics.truncate(0)
        if overwrite:
            checkpoint.clear(path)

    def __enter__(self) -> "RunFolder":
        try:
            if self._logs:
                self._logs.open(self.path)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()
        if self._logs:
            self._logs.close(finished=self._is_finished)

    def record(self, record: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl; it is on its way to the disk at once."""
        self._metrics.write(json.dumps(record, allow_nan=False) + "\n")
        self._metrics.flush()
        if self._logs:
            self._logs.epoch(record)

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json, after everything else is on the disk."""
        for name in FILES[1:]:
            sync(self.path / name)
        text = json.dumps(result, indent=2, allow_nan=False) + "\n"
        write_durably(self.path / RESULT, text.encode())
        checkpoint.clear(self.path)
        self._is_finished = True
        if self._logs:
            self._logs.result(result)


def read_result(path: Path) -> dict[str, Any]:
    """result.json of a finished run.

    Raises:
        ConfigError: there is no run, or it is not finished.
    """
    file = path / RESULT
    if not file.is_file():
        what = "an unfinished run" if (path / METRICS).exists() else "no run"
        raise ConfigError(f"{path} holds {what}; train one with: mmtrain run CONFIG --out {path}")
    try:
        result = json.loads(file.read_bytes())
        if isinstance(result, dict) and {"name", "seed", "test", "modalities"} <= set(result):
            return result
    except ValueError:
        pass
    raise ConfigError(f"{file} is not what mmtrain wrote; train again with --overwrite")
