"""The `mmfeat` command: from a corpus of text, audio and MIDI to a feature store.

Nothing heavy is imported before a command runs: `mmfeat --help` answers at once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmfuse.features.console import show, user_errors
from mmfuse.pipeline import plugin_cli, store_cli
from mmfuse.pipeline.options import (
    AlignmentOption,
    BatchOption,
    ColumnOption,
    ConfigOption,
    CorpusOption,
    DeviceOption,
    ExecutorOption,
    JsonOption,
    LimitOption,
    QuietOption,
    RetryOption,
    SchedulerOption,
    SetOption,
    ShardOption,
    StoreOption,
    VerboseOption,
    ViewsOption,
    WorkersOption,
    opened_corpus,
    placed,
)
from mmfuse.pipeline.plan_cli import plan

if TYPE_CHECKING:
    from mmfuse.features.config import FeatureConfig

app = typer.Typer(
    name="mmfeat",
    help="Features of text, audio and MIDI, on one exact clock, computed once.",
    epilog="First steps: mmfeat sample demo/corpus, then mmfeat run configs/late.toml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="Run configuration (TOML).")],
    corpus: CorpusOption = None,
    store: StoreOption = None,
    overrides: SetOption = None,
    column: ColumnOption = None,
    alignment: AlignmentOption = None,
    device: DeviceOption = "auto",
    batch: BatchOption = None,
    views: ViewsOption = None,
    workers: WorkersOption = 1,
    executor: ExecutorOption = "local",
    scheduler: SchedulerOption = None,
    shard: ShardOption = None,
    limit: LimitOption = None,
    retry_failed: RetryOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Make every stream that CONFIG asks for.

    Example: mmfeat run configs/late.toml --corpus demo/corpus --store demo/store.zarr
    """
    with user_errors("mmfeat", verbose):
        from mmfuse.features.config import load_feature_config
        from mmfuse.features.devices import choose

        settings = load_feature_config(config, overrides or (), views)
        how = {"limit": limit, "retry_failed": retry_failed, "compute": choose(device, batch)}
        where = (workers, executor, scheduler, shard)
        _make(settings, corpus, store, column, alignment, where, as_json, quiet, **how)


@app.command()
def tokenize(
    corpus: CorpusOption = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    column: ColumnOption = None,
    alignment: AlignmentOption = None,
    views: ViewsOption = None,
    workers: WorkersOption = 1,
    executor: ExecutorOption = "local",
    scheduler: SchedulerOption = None,
    shard: ShardOption = None,
    limit: LimitOption = None,
    retry_failed: RetryOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Notes, event tokens and piano rolls of MIDI; subword tokens of text.

    Example: mmfeat tokenize --corpus demo/corpus --store demo/store.zarr
    """
    with user_errors("mmfeat", verbose):
        from mmfuse.features.config import stage_config

        settings = stage_config(config, overrides or (), {"midi": {}, "text": {}}, views)
        how = {"limit": limit, "retry_failed": retry_failed}
        where = (workers, executor, scheduler, shard)
        _make(settings, corpus, store, column, alignment, where, as_json, quiet, **how)


@app.command()
def extract(
    encoder: Annotated[
        str, typer.Option("--encoder", help="By name; `mmfeat encoders` lists them.")
    ] = "logmel",
    model: Annotated[
        str | None, typer.Option("--model", help="Model of the encoder: FOLDER or ID@REVISION.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="last, all, mean, or numbers such as 0,6,12.")
    ] = None,
    random_weights: Annotated[
        int | None, typer.Option("--random-weights", help="Seed; the architecture without weights.")
    ] = None,
    pooling: Annotated[str | None, typer.Option(help="Of text: none, mean or cls.")] = None,
    backend: Annotated[
        str | None, typer.Option("--backend", help="torch, or onnxruntime: faster on a CPU.")
    ] = None,
    corpus: CorpusOption = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    column: ColumnOption = None,
    device: DeviceOption = "auto",
    batch: BatchOption = None,
    views: ViewsOption = None,
    workers: WorkersOption = 1,
    executor: ExecutorOption = "local",
    scheduler: SchedulerOption = None,
    shard: ShardOption = None,
    limit: LimitOption = None,
    retry_failed: RetryOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Frames of a frozen encoder of audio, or vectors of one of text.

    Example: mmfeat extract --encoder logmel --corpus demo/corpus --store demo/store.zarr
    """
    with user_errors("mmfeat", verbose):
        from mmfuse.features.config import stage_config
        from mmfuse.features.devices import choose
        from mmfuse.features.encoders import TEXT_ENCODERS

        typed = {"model": model, "layers": layers, "pooling": pooling, "backend": backend}
        given: dict[str, Any] = {name: v for name, v in typed.items() if v is not None}
        given |= {} if random_weights is None else {"random_weights": random_weights}
        section = "text" if encoder in TEXT_ENCODERS else "audio"
        name, _ = TEXT_ENCODERS.get(encoder, (encoder, ""))
        sections = {section: {"encoder": name, **given}}
        settings = stage_config(config, overrides or (), sections, views)
        how = {"limit": limit, "retry_failed": retry_failed, "compute": choose(device, batch)}
        where = (workers, executor, scheduler, shard)
        _make(settings, corpus, store, column, None, where, as_json, quiet, **how)


@app.command()
def scan(
    corpus: CorpusOption = None,
    column: ColumnOption = None,
    limit: LimitOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Read every clip of a corpus, decode it, and tell what is there and what is wrong.

    Example: mmfeat scan --corpus demo/corpus
    """
    with user_errors("mmfeat", verbose):
        from mmfuse.pipeline.progress import Progress
        from mmfuse.pipeline.scan import scan_corpus

        with Progress(quiet=quiet or as_json) as progress:
            found = scan_corpus(opened_corpus(corpus, None, column), progress, limit=limit)
        show(found.to_json(), found.lines(), as_json=as_json)
        _exit(found.exit_code)


@app.command()
def align(
    corpus: CorpusOption = None,
    out: Annotated[Path, typer.Option("--out", help="Table to write.")] = Path("alignment.parquet"),
    max_lag_ms: Annotated[
        float | None, typer.Option("--max-lag-ms", min=0, help="Exit with 4 if a clip is beyond.")
    ] = None,
    search_s: Annotated[
        float, typer.Option("--search-s", min=0.01, max=600, help="Lags up to this are tried.")
    ] = 1.0,
    refine: Annotated[
        bool, typer.Option("--refine", help="Estimate offsets of clips without time origins.")
    ] = False,
    warped: Annotated[
        bool, typer.Option("--dtw", help="Follow drift by dynamic time warping, too.")
    ] = False,
    column: ColumnOption = None,
    limit: LimitOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Measure how far recordings and their MIDI are apart.

    Example: mmfeat align --corpus demo/corpus --max-lag-ms 30
    """
    with user_errors("mmfeat", verbose):
        from mmfuse.pipeline.align import align_corpus, write_alignment
        from mmfuse.pipeline.progress import Progress

        opened = opened_corpus(corpus, None, column)
        with Progress(quiet=quiet or as_json) as progress:
            found = align_corpus(
                opened,
                progress,
                max_lag_s=None if max_lag_ms is None else max_lag_ms / 1000,
                search_s=search_s,
                refine=refine,
                warped=warped,
                limit=limit,
            )
        write_alignment(out, found)
        if not quiet or as_json:
            show(found.to_json(), [*found.lines(), f"table {out}"], as_json=as_json)
        _exit(found.exit_code)


@app.command()
def inspect(
    store: Annotated[Path, typer.Argument(help="Folder of the feature store.")],
    clip: Annotated[str | None, typer.Option("--clip", help="Entries of one clip.")] = None,
    failures: Annotated[bool, typer.Option("--failures", help="The failures table.")] = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Tell what a store holds.

    Example: mmfeat inspect demo/store.zarr --clip s0001
    """
    with user_errors("mmfeat", verbose):
        from mmfuse.features.store import open_store
        from mmfuse.pipeline import inspect as view

        opened = open_store(store)
        if failures:
            document, lines = view.failures(opened)
        elif clip is not None:
            document, lines = view.clip(opened, clip)
        else:
            document, lines = view.overview(opened)
        show(document, lines, as_json=as_json)


@app.command()
def doctor(
    store: Annotated[Path, typer.Option("--store", help="Where a store is, or will be.")] = Path(),
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Look for what is wrong with this installation, and name the mend.

    Example: mmfeat doctor --store demo/store.zarr
    """
    with user_errors("mmfeat", verbose):
        from mmfuse.pipeline.doctor import examine
        from mmfuse.pipeline.findings import view

        document, lines = view(examine(store))
        show(document, lines, as_json=as_json)
        _exit(0 if document["ok"] else 6)


@app.command()
def sample(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    clips: Annotated[int, typer.Option("--clips", help="Number of clips.")] = 240,
    seed: Annotated[int, typer.Option("--seed", help="Another seed, another corpus.")] = 0,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write a small synthesized corpus whose best reachable scores are known.

    Example: mmfeat sample demo/corpus
    """
    with user_errors("mmfeat", verbose):
        from mmfuse.pipeline.sample import write_sample

        report = write_sample(out, clips, seed)
        show(report.to_json(), report.summary().splitlines(), as_json=as_json)


COMMANDS: tuple[Callable[..., None], ...] = (
    plan,
    *plugin_cli.COMMANDS,
    *store_cli.COMMANDS,
)
for command in COMMANDS:
    app.command()(command)


def _make(
    settings: "FeatureConfig",
    corpus: Path | None,
    store: Path | None,
    column: list[str] | None,
    alignment: Path | None,
    where: tuple[int, str, str | None, str | None],
    as_json: bool,
    quiet: bool,
    **how: Any,
) -> None:
    """Make features, `where` as `placed` takes it; `how` goes to `make_features` as it is."""
    from mmfuse.features.errors import ConfigError
    from mmfuse.pipeline.progress import Progress
    from mmfuse.pipeline.run import make_features

    target = store or settings.data.store
    if target is None:
        raise ConfigError("no store; name one with --store DIR, or set data.store in the file")
    corpus = corpus or settings.data.corpus
    if where[1] == "dask":  # workers elsewhere have another working directory
        target, corpus = target.absolute(), corpus and corpus.absolute()
    opened = opened_corpus(corpus, settings, column, alignment)
    own, place = placed(target, *where)
    with Progress(quiet=quiet or as_json) as progress:
        report = make_features(opened, own, settings, progress, **how, **place)
    if not quiet or as_json:
        parts = f"{target}.*-of-{own.name.rpartition('-')[2]}"
        hint = [] if own == target else [f"when all parts are done: mmfeat merge {target} {parts}"]
        show(report.to_json(), [*report.lines(), *hint], as_json=as_json)
    _exit(report.exit_code)


def _exit(code: int) -> None:
    if code:
        raise SystemExit(code)


def main() -> None:
    """Run the command."""
    app()
