"""Options that several commands of `mmfeat` share, with what they mean in common."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mmfuse.features.config import FeatureConfig
    from mmfuse.features.corpus import Corpus

CorpusOption = Annotated[
    Path | None, typer.Option("--corpus", help="Manifest (.parquet, .jsonl, .csv) or folder.")
]
StoreOption = Annotated[Path | None, typer.Option("--store", help="Folder of the feature store.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="Run configuration (TOML).")]
ColumnOption = Annotated[
    list[str] | None, typer.Option("--column", help="OURS=THEIRS: another name of a column.")
]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N clips.")]
RetryOption = Annotated[bool, typer.Option("--retry-failed", help="Try failed clips again.")]
DeviceOption = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps: where models run.")
]
BatchOption = Annotated[
    int | None, typer.Option("--batch", min=1, help="Windows that go to a card together, at most.")
]
ViewsOption = Annotated[
    int | None, typer.Option("--views", min=0, help="Augmented views of each train clip.")
]
AlignmentOption = Annotated[
    Path | None, typer.Option("--alignment", help="Table of mmfeat align --refine: estimates.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Traceback of inner errors.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override, e.g. preprocessing.midi.roll_fps=25")
]
WorkersOption = Annotated[int, typer.Option("--workers", min=1, help="Worker processes.")]
ExecutorOption = Annotated[
    str, typer.Option("--executor", help="Where workers run: local (this machine) or dask.")
]
SchedulerOption = Annotated[
    str | None, typer.Option("--scheduler", help="Dask cluster that runs, e.g. tcp://host:8786")
]
ShardOption = Annotated[
    str | None, typer.Option("--shard", help="I/N: the I-th of N equal parts, from 0; for arrays.")
]


def opened_corpus(
    path: Path | None,
    settings: "FeatureConfig | None",
    column: list[str] | None,
    alignment: Path | None = None,
) -> "Corpus":
    """The corpus that the command line or else the configuration names."""
    from mmfuse.features.corpus import open_corpus
    from mmfuse.features.errors import ConfigError

    columns = dict(settings.data.columns) if settings else {}
    for pair in column or ():
        ours, equals, theirs = pair.partition("=")
        if not equals:
            raise ConfigError(f"--column {pair!r} is no mapping; write --column id=utterance_id")
        columns[ours] = theirs
    target = path or (settings.data.corpus if settings else None)
    if target is None:
        raise ConfigError("no corpus; name one with --corpus PATH, or set data.corpus in the file")
    if alignment is None:
        return open_corpus(target, columns)
    from mmfuse.pipeline.align import read_estimates

    return open_corpus(target, columns, read_estimates(alignment))


def placed(
    store: Path, workers: int, executor: str, scheduler: str | None, shard: str | None
) -> tuple[Path, dict[str, Any]]:
    """Where work goes: the store to write, and what `make_features` takes.

    Raises:
        ConfigError: options that do not go together.
        MissingError: an executor that is not installed.
    """
    from mmfuse.features.task import has_died
    from mmfuse.pipeline.executors import executor_of

    i, n = (0, 1) if shard is None else read_shard(shard)
    own = store if shard is None else store.with_name(f"{store.name}.{i}-of-{n}")
    chosen = executor_of(executor, workers, scheduler, apart=has_died(own))
    return own, {"executor": chosen, "share": (i, n)}


def read_shard(text: str) -> tuple[int, int]:
    """I and N of "I/N".

    Raises:
        ConfigError: it is no such thing.
    """
    from mmfuse.features.errors import ConfigError

    i, slash, n = text.partition("/")
    if slash and i.isdecimal() and n.isdecimal() and int(i) < int(n):
        return int(i), int(n)
    raise ConfigError(f"--shard {text!r}: write I/N with I from 0 to N - 1, such as --shard 0/8")
