"""Many runs of one configuration: seeds and a grid, side by side where they can be stacked.

Runs that differ only in what `_SIDE_BY_SIDE` names are trained as one array of models
(`stacked.py`); the others one after the other. Each leaves the folder of an ordinary run, and a
finished folder is not made again. While an array trains, its checkpoints are in the sweep's folder:

sweep.json     what came out
checkpoint/    the array in the making; a sweep that was killed goes on from there
sweep.lock     held by the process that writes here
"""

import json
import math
import time
import tomllib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmfuse.features.compiled import COMPILED
from mmfuse.features.errors import ConfigError
from mmfuse.features.layout import write_durably
from mmfuse.features.lock import held
from mmfuse.features.store import FeatureStore
from mmfuse.trainer import checkpoint, folder
from mmfuse.trainer.config import RunConfig, TrainConfig, load_run_config
from mmfuse.trainer.dataset import Dataset
from mmfuse.trainer.device import chosen
from mmfuse.trainer.folder import RunFolder, check_free
from mmfuse.trainer.fusion_base import PooledFusion
from mmfuse.trainer.load import load_dataset
from mmfuse.trainer.loggers import RunLogs
from mmfuse.trainer.loop import reproducible
from mmfuse.trainer.run import build_model, conclude, to_toml, train
from mmfuse.trainer.stacked import FORM, Trainer
from mmfuse.trainer.task import Task
from mmfuse.trainer.tasks import TASKS

SWEEP = "sweep.json"
_SIDE_BY_SIDE = {"seed", "lr", "weight_decay", "patience"}  # and every dropout of the model
_KNOWN = _SIDE_BY_SIDE | {
    "epochs", "batch_size", "best_by", "warmup_steps", "schedule", "grad_clip", "label_smoothing",
    "class_weights", "unimodal_weight", "modality_dropout", "ema", "crop_s", "imbalance",
    "checkpoint_s", "threads", "device", "log",
}  # fmt: skip
_MOST_BYTES = 2**31  # of streams that a stack holds in memory


@dataclass(slots=True)
class Point:
    """One run: what is set, where it goes, and why it is not stacked ("" if it is)."""

    settings: dict[str, Any]
    config: RunConfig
    out: Path
    why: str = ""
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def overrides(self) -> list[str]:
        """As `--set` takes them."""
        return [f"{key}={_toml(value)}" for key, value in self.settings.items()]


def sweep(
    path: Path,
    overrides: Sequence[str],
    seeds: int,
    grid: Sequence[str],
    out: Path | None,
    *,
    stacked: bool = True,
    report: Callable[[str], None] = lambda text: None,
    warn: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Train every point of a grid with every seed; go on where a killed sweep stood.

    Args:
        path: run configuration (TOML).
        overrides: `section.key=value` texts for all.
        seeds: so many, from the configuration's own on.
        grid: `section.key=value,value,...` texts.
        out: folder of the sweep; runs/<name>-sweep where it is left out.
        stacked: train side by side what can be.
        report: called with a line whenever something is done.
        warn: called with what is not as it should be, one line each.

    Returns:
        What sweep.json holds: `points` (a row for each setting: mean, spread, best by validation),
        `best`, `runs`, how many were `stacked`, and why others were `queued`.

    Raises:
        ConfigError: a grid that is none, an unfinished sweep of something else in the folder, or
            what `run` refuses.
        LockedError: another process writes into the folder.
    """
    began = time.monotonic()
    points = _points(path, overrides, seeds, grid, out)
    root = points[0].out.parent
    root.mkdir(parents=True, exist_ok=True)
    fault = f"another process sweeps into {root}; wait for it, or name another --out DIR"
    with held(root / "sweep.lock", fault):
        kept = sum(_finished(point) for point in points)
        groups: dict[str, list[Point]] = {}
        for point in points:
            groups.setdefault(_alike(point.config), []).append(point)
        for group in groups.values():
            if not all(point.result for point in group):
                _run_group(path, overrides, group, stacked, report, warn)
        summary = _summary(points, root, time.monotonic() - began) | {"kept": kept}
        write_durably(root / SWEEP, (json.dumps(summary, indent=2) + "\n").encode())
    return summary


def _points(
    path: Path, overrides: Sequence[str], seeds: int, grid: Sequence[str], out: Path | None
) -> list[Point]:
    base = load_run_config(path, overrides)
    root = out or Path("runs") / f"{base.name}-sweep"
    axes = dict(_axis(text) for text in grid)
    if len(axes) < len(grid):
        raise ConfigError("--grid names a key twice; give all its values in one: key=1,2,3")
    if "train.seed" not in axes:
        axes["train.seed"] = list(range(base.train.seed, base.train.seed + seeds))
    points = []
    for values in product(*axes.values()):
        settings = dict(zip(axes, values, strict=True))
        name = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in settings.items())
        point = Point(settings, base, root / name.replace("/", "_"))
        point.config = load_run_config(path, [*overrides, *point.overrides])
        points.append(point)
    if len({point.out for point in points}) < len(points):
        raise ConfigError("--grid names the same value twice")
    return points


def _axis(text: str) -> tuple[str, list[Any]]:
    key, equals, values = text.partition("=")
    if not equals or not key.strip() or not values.strip():
        raise ConfigError(f"--grid {text!r} is no grid; write --grid train.lr=1e-3,3e-4")
    try:
        return key.strip(), tomllib.loads(f"v = [{values}]")["v"]
    except tomllib.TOMLDecodeError:
        return key.strip(), [value.strip() for value in values.split(",")]


def _toml(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value


def _finished(point: Point) -> bool:
    """Whether the folder holds this very run, finished."""
    if not (point.out / folder.RESULT).is_file():
        return False
    if (point.out / folder.RESOLVED).read_text(encoding="utf-8") != to_toml(point.config):
        raise ConfigError(f"{point.out} holds another run; name another folder with --out DIR")
    point.result = folder.read_result(point.out)
    return True


def _alike(config: RunConfig) -> str:
    """The same text for configurations that can stand side by side."""
    document = config.model_dump(mode="json")
    for key in _SIDE_BY_SIDE:
        del document["train"][key]
    for section in document["model"].values():
        if section:
            section.pop("dropout", None)
    return json.dumps(document, sort_keys=True)


def _identity(group: Sequence[Point], data: Dataset, store: FeatureStore) -> dict[str, Any]:
    """What makes a sweep the same sweep: what its runs share, and in what each is different."""
    shared = checkpoint.identity_of(group[0].config, data, store)
    for key in _SIDE_BY_SIDE:
        del shared["train"][key]
    for section in shared["model"].values():
        if section:
            section.pop("dropout", None)
    shared["form"] = FORM  # those of single runs have their own
    return shared | {"runs": {point.out.name: _different(point.config) for point in group}}


def _different(config: RunConfig) -> dict[str, Any]:
    sections = {**config.model.encoders(), "fusion": config.model.fusion}
    dropouts = {f"{name}.dropout": getattr(of, "dropout", None) for name, of in sections.items()}
    return {key: getattr(config.train, key) for key in sorted(_SIDE_BY_SIDE)} | dropouts


def _run_group(
    path: Path,
    overrides: Sequence[str],
    group: list[Point],
    stacked: bool,
    report: Callable[[str], None],
    warn: Callable[[str], None],
) -> None:
    """Train those of a group that are not finished."""
    todo = [point for point in group if not point.result]
    one = todo[0].config
    root = todo[0].out.parent
    alone = len(todo) == 1 and not (root / checkpoint.FOLDER).is_dir()
    why = "as asked" if not stacked else "it stands alone" if alone else ""
    if not why:
        data, store = load_dataset(one, path, overrides)
        why = obstacle(one, data)
    if not why:
        try:
            _run_stacked(todo, group, data, store, warn)
            report(f"{len(todo)} runs trained side by side")
            checkpoint.clear(root)
            return
        except (NotImplementedError, RuntimeError) as error:  # what vmap can't take
            why = f"torch can't stack it: {str(error).strip().splitlines()[0][:160]}"
    for point in todo:
        point.why = why
        point.result = train(path, [*overrides, *point.overrides], point.out)
        report(f"{point.out} trained by itself ({why})")
    checkpoint.clear(root)


def obstacle(config: RunConfig, data: Dataset) -> str:
    """Why models of a configuration can't be trained side by side; "" if they can."""
    device = chosen(config.train.device)
    if device.type != "cpu":
        return f"train.device is {device}, and models are stacked on the processor only"
    if not COMPILED:
        return "numba does not run here"
    defaults = TrainConfig()
    for key in sorted(set(TrainConfig.model_fields) - _KNOWN):
        if getattr(config.train, key) != getattr(defaults, key):
            return f"train.{key} is not stacked"
    if config.eval.windows:
        return "eval.windows is not stacked"
    for name, encoder in config.model.encoders().items():
        if getattr(encoder, "source", "stored") == "waveform":
            return f"model.{name}_encoder trains a pretrained model along"
        if getattr(encoder, "freeze_until_step", 0):
            return f"model.{name}_encoder.freeze_until_step holds a part of the model"
        if encoder.type == "piano_roll" and encoder.transpose:
            return f"model.{name}_encoder.transpose moves each roll by itself"
    ragged = [
        name
        for name, rows_N in data.rows.items()
        if len(np.unique(rows_N[rows_N > 0])) > 1
        or (config.train.crop_s and data.streams[name].spec.timing.kind != "none")
    ]
    with reproducible(0, config.train.threads):
        pooled = isinstance(build_model(config, data).fusion, PooledFusion)
    if ragged and not pooled:
        return f"model.fusion.type = {config.model.fusion.type!r} joins {ragged[0]} of any length"
    size = sum(
        int(data.rows[name].sum()) * stream.spec.row_bytes * len(data.layers[name])
        for name, stream in data.streams.items()
    )
    return f"its streams have {size / 2**30:.1f} GiB" if size > _MOST_BYTES else ""


def _run_stacked(
    todo: list[Point],
    group: list[Point],
    data: Dataset,
    store: FeatureStore,
    warn: Callable[[str], None],
) -> None:
    began, one, root = time.monotonic(), todo[0].config, todo[0].out.parent
    for point in todo:
        check_free(point.out, overwrite=False)
    identity = _identity(group, data, store)
    checkpoint.refuse_another(root, identity, "sweep", "or name another folder with --out DIR")
    checkpoints = checkpoint.Checkpoints(root, identity, one.train.checkpoint_s, warn)
    found = checkpoints.load()
    # it may have runs that are finished meanwhile, and is of no use if one to do is not in it
    names = {point.out.name for point in todo}
    if found and names <= set(found[1]["runs"]):
        names = set(found[1]["runs"])
    else:
        found = None
    group = [point for point in group if point.out.name in names]
    with ExitStack() as stack, reproducible(0, one.train.threads):
        models, states = [], []
        for point in group:
            torch.manual_seed(point.config.train.seed)
            models.append(build_model(point.config, data))
            states.append(torch.get_rng_state())
        trainer = Trainer(models, states, data, [point.config.train for point in group])
        if found:
            trainer.unpack(*found)
        fits = trainer.fit(checkpoints, [point.out.name for point in group])
        share = (time.monotonic() - began) / len(group)
        for point, model, fitted in zip(group, models, fits, strict=True):
            if point not in todo:
                continue
            logs = RunLogs(point.config, warn)
            run = stack.enter_context(RunFolder(point.out, overwrite=True, logs=logs))
            toml = to_toml(point.config)
            (point.out / folder.RESOLVED).write_text(toml, encoding="utf-8")
            for record in fitted.records:
                run.record(record)
            point.result = conclude(
                run, model, data, store, point.config, fitted, time.monotonic() - share
            )


def _summary(points: Sequence[Point], root: Path, seconds: float) -> dict[str, Any]:
    rows: dict[str, list[Point]] = {}
    for point in points:
        own = {key: value for key, value in point.settings.items() if key != "train.seed"}
        rows.setdefault(json.dumps(own), []).append(point)
    best = max(points, key=_merit)
    return {
        "out": str(root),
        "seconds": round(seconds, 3),
        "score": _task(best).select,
        "points": [_row(json.loads(key), several) for key, several in rows.items()],
        "best": {"run": str(best.out), "settings": best.settings, **_scores(best)},
        "runs": [
            {"run": str(point.out), "settings": point.settings, **_scores(point)}
            for point in points
        ],
        "stacked": sum(not point.why for point in points),
        "queued": {
            point.why: sum(p.why == point.why for p in points) for point in points if point.why
        },
    }


def _merit(point: Point) -> tuple[float, float]:
    task, val = _task(point), point.result["val"]
    return val[task.select], -val[task.loss]


def _task(point: Point) -> type[Task]:
    return TASKS[point.config.train.task]


def _scores(point: Point) -> dict[str, float]:
    return {split: point.result[split][_task(point).select] for split in ("val", "test")}


def _row(settings: dict[str, Any], points: Sequence[Point]) -> dict[str, Any]:
    """Mean and spread over seeds, and the seed that validates best."""
    row: dict[str, Any] = {"settings": settings, "runs": len(points)}
    for split in ("val", "test"):
        values = [_scores(point)[split] for point in points]
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        row[split] = {"mean": float(np.mean(values)), "sd": None if math.isnan(sd) else sd}
    best = max(points, key=_merit)
    return row | {"best": str(best.out), "best_test": _scores(best)["test"]}
