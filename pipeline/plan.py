"""A forecast of a run, before anything is touched: entries, bytes, tasks, shards, time, disk.

Nothing is written and no model is loaded. What was estimated says from what.
"""

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from mmfuse.features import layout
from mmfuse.features.config import FeatureConfig
from mmfuse.features.corpus import Corpus
from mmfuse.features.errors import MissingError
from mmfuse.features.known import Known
from mmfuse.features.manifest import manifest_path, read_manifest
from mmfuse.features.spec import StreamSpec
from mmfuse.pipeline.expected import Expected, expected_streams
from mmfuse.pipeline.record import read_record
from mmfuse.pipeline.report import SCHEMA_VERSION
from mmfuse.pipeline.survey import Survey, look_into, survey
from mmfuse.pipeline.tasks import spans
from mmfuse.pipeline.views import Views

_SIDECAR_BYTES = 200  # an entry
MEASURED_BY = 200  # clips of the run that measures


@dataclass(slots=True)
class StreamPlan:
    """One stream: entries that are there and that are to be made, and what these take.

    `rows` and `bytes` are None where nothing tells how long an entry will be.
    """

    stream: str
    modality: str
    there: int
    to_make: int
    rows: int | None
    bytes: int | None
    shards: int | None
    rows_from: str
    speed: Mapping[str, Any] | None


@dataclass(slots=True)
class Plan:
    """The whole forecast. `seconds` is None where no run has told a speed."""

    corpus: str
    store: str
    clips: int
    has: dict[str, int]
    tasks: int
    audio_s: float | None
    audio_s_from: str
    by_content: bool
    workers: int
    measure: str
    streams: list[StreamPlan] = field(default_factory=list)
    seconds: float | None = None
    unmeasured: list[str] = field(default_factory=list)
    bytes: int = 0
    bytes_known: bool = True
    free_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """One object, for `--json`."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


def make_plan(
    corpus: Corpus,
    store: Path,
    config: FeatureConfig,
    *,
    limit: int | None = None,
    workers: int = 1,
    by_content: bool = False,
    command: Sequence[str] = ("mmfeat", "run", "CONFIG"),
) -> Plan:
    """Forecast what `make_features` would do with the same arguments.

    Args:
        by_content: read every file and compare hashes, rather than look for clip ids alone.
        command: that makes the features; with a small limit it measures their speed.

    Raises:
        ConfigError: the manifest or the configuration is wrong.
        MissingError: a model is not on this machine.
        StoreError: the store is damaged.
    """
    views = Views.of(config.preprocessing)
    expected = expected_streams(config.preprocessing)
    stored = read_manifest(store)["streams"] if manifest_path(store).exists() else {}
    keys = {one.name: _key_of(one, stored) for one in expected}
    known = {
        key: (one.modality, Known(store, key, stored[key]["shards"]))
        for one in expected if (key := keys[one.name]) is not None
    }  # fmt: skip
    count = len(corpus) if limit is None else min(limit, len(corpus))
    of_views = {m: views.count if views.touches(m) else 0 for m in ("audio", "midi", "text")}
    found = survey(corpus, count, of_views, views.splits, {} if by_content else known)
    unseen = any(keys[one.name] is None for one in expected if one.modality == "midi")
    look_into(corpus, found, config.preprocessing.midi if unseen else None)
    if by_content:
        from mmfuse.pipeline.contents import count_same

        found.there = count_same(corpus, count, views, known)
    audio_s, source = _seconds(found)
    tasks = sum(1 for _ in spans(count))
    measure = shlex.join([*command, "--limit", str(MEASURED_BY)])
    plan = Plan(
        str(corpus.path), str(store), count, found.has, tasks, audio_s, source, by_content,
        workers, measure,
    )  # fmt: skip
    record = _record(store)
    for one in expected:
        key = keys[one.name]
        plan.streams.append(_stream(one, key, stored, found, plan.tasks, record))
    _sum_up(plan, store)
    return plan


def _key_of(one: Expected, stored: Mapping[str, Any]) -> str | None:
    """The stream of the store that this one is; of several that may be it, the last."""
    specs = {key: StreamSpec.from_json(stream["spec"]) for key, stream in stored.items()}
    fitting = [key for key, spec in specs.items() if stored[key]["shards"] and one.is_it(key, spec)]
    return fitting[-1] if fitting else None


def _stream(
    one: Expected,
    key: str | None,
    stored: Mapping[str, Any],
    found: Survey,
    tasks: int,
    record: Mapping[str, Any],
) -> StreamPlan:
    there = found.there.get(key, 0) if key is not None else 0
    to_make = found.entries[one.modality] - there
    each, source = _rows_of_entry(one, stored.get(key) if key else None, found)
    rows = None if each is None else round(each * to_make)
    shards = None
    if rows is not None:
        spec = StreamSpec(one.name, one.modality, one.item, one.dtype)
        of_task = rows / max(tasks, 1)
        shards = tasks * -(-int(of_task + 1) // layout.shard_rows_of(spec)) if to_make else 0
    speed = record.get(key, {}).get("speed") if key else None
    return StreamPlan(
        key or one.name, one.modality, there, to_make, rows,
        None if rows is None else rows * one.row_bytes + to_make * _SIDECAR_BYTES,
        None if shards is None else min(shards, max(to_make, 0)), source, speed,
    )  # fmt: skip


def _rows_of_entry(
    one: Expected, stream: Mapping[str, Any] | None, found: Survey
) -> tuple[float | None, str]:
    """Rows of a mean entry, and from what that is known."""
    lengths = found.audio_s if one.modality == "audio" else found.characters
    if one.rows is not None and lengths and (one.modality == "audio" or stream is None):
        source = "durations" if one.modality == "audio" else "an assumption about the texts"
        return fmean(one.rows(length) for length in lengths), source
    if stream is not None:
        entries = sum(shard["entries"] for shard in stream["shards"])
        return sum(shard["rows"] for shard in stream["shards"]) / max(entries, 1), "the store"
    if found.rows.get(one.name):
        return fmean(found.rows[one.name]), f"{found.probed['midi']} files"
    return None, "nothing"


def _seconds(found: Survey) -> tuple[float | None, str]:
    """Seconds of audio of all clips, and from what that is known."""
    if not found.has["audio"]:
        return 0.0, "no audio"
    if not found.audio_s:
        return None, "no file could be read; a manifest column duration_s would tell"
    total = fmean(found.audio_s) * found.has["audio"]
    if found.from_column:
        return total, "the manifest's column duration_s"
    return total, f"the headers of {found.probed['audio']} of {found.has['audio']} files"


def _record(store: Path) -> Mapping[str, Any]:
    try:
        return read_record(store)
    except MissingError:
        return {}


def _sum_up(plan: Plan, store: Path) -> None:
    """Bytes and seconds of all streams; those that one run made are timed together."""
    runs: dict[str, float] = {}
    for stream in plan.streams:
        plan.bytes += stream.bytes or 0
        plan.bytes_known &= stream.bytes is not None
        if not stream.to_make:
            continue
        if stream.speed is None:
            plan.unmeasured.append(stream.stream)
            continue
        speed = stream.speed
        each_s = speed["seconds"] * speed["workers"] / speed["entries"]
        took = each_s * stream.to_make / plan.workers
        runs[speed["finished"]] = max(runs.get(speed["finished"], 0.0), took)
    if not plan.unmeasured:
        plan.seconds = round(sum(runs.values()), 3)
    there = store.absolute()
    while not there.exists():
        there = there.parent
    plan.free_bytes = shutil.disk_usage(there).free


def plan_lines(plan: Plan) -> list[str]:
    """The forecast, for a person."""
    has = ", ".join(f"{count} with {name}" for name, count in plan.has.items())
    hours = "an unknown time" if plan.audio_s is None else f"{plan.audio_s / 3600:.2f} h"
    lines = [
        f"{plan.clips} clips in {plan.corpus}: {has}",
        f"{hours} of audio, by {plan.audio_s_from}; {plan.tasks} tasks",
        f"{'stream':28} {'there':>9} {'to make':>9} {'rows':>12} {'MB':>11} {'shards':>7}  rows by",
    ]
    for s in plan.streams:
        rows, size, shards = (
            "?" if value is None else f"{value:.{digits}f}"
            for value, digits in (
                (s.rows, 0), (None if s.bytes is None else s.bytes / 1e6, 1), (s.shards, 0)
            )
        )  # fmt: skip
        lines.append(
            f"{s.stream:28} {s.there:>9} {s.to_make:>9} {rows:>12} {size:>11} {shards:>7}  "
            f"{s.rows_from}"
        )
    if not plan.by_content and any(s.there for s in plan.streams):
        lines.append(
            "there: by clip id; a file that has changed since is made anew, --hash reads all files "
            "to tell"
        )
    short = plan.bytes - plan.free_bytes
    least = "" if plan.bytes_known else "at least "
    lines.append(
        f"disk: {least}{plan.bytes / 1e6:.1f} MB needed, {plan.free_bytes / 1e6:.1f} MB free"
        + (f"; {short / 1e6:.1f} MB too few" if short > 0 else "")
    )
    return [*lines, _time_line(plan)]


def _time_line(plan: Plan) -> str:
    if plan.seconds is None:
        return f"time: not known for {', '.join(plan.unmeasured)}; this measures it: {plan.measure}"
    workers = f"{plan.workers} worker{'s' if plan.workers > 1 else ''}"
    return f"time: {plan.seconds:.0f} s with {workers}, at the speed of the last run here"
