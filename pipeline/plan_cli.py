"""`mmfeat plan`: what a run would make, before anything is touched."""

from pathlib import Path
from typing import Annotated

import typer

from mmfuse.features.console import show, user_errors
from mmfuse.pipeline.options import (
    ColumnOption,
    CorpusOption,
    JsonOption,
    LimitOption,
    SetOption,
    StoreOption,
    VerboseOption,
    ViewsOption,
    WorkersOption,
    opened_corpus,
)


def plan(
    config: Annotated[Path | None, typer.Argument(help="Run configuration (TOML).")] = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="As of `mmfeat extract`; its stream alone.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Model of the encoder: FOLDER or ID@REVISION.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="last, all, mean, or numbers such as 0,6,12.")
    ] = None,
    random_weights: Annotated[
        int | None, typer.Option("--random-weights", help="Seed; the architecture without weights.")
    ] = None,
    corpus: CorpusOption = None,
    store: StoreOption = None,
    overrides: SetOption = None,
    column: ColumnOption = None,
    views: ViewsOption = None,
    workers: WorkersOption = 1,
    limit: LimitOption = None,
    by_content: Annotated[
        bool, typer.Option("--hash", help="Read every file to tell what has changed.")
    ] = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Forecast entries, bytes, tasks, time and disk of a run; nothing is written.

    Example: mmfeat plan configs/late.toml --workers 4
    """
    with user_errors("mmfeat", verbose):
        from mmfuse.features.config import load_feature_config, stage_config
        from mmfuse.features.encoders import TEXT_ENCODERS
        from mmfuse.features.errors import ConfigError
        from mmfuse.pipeline.plan import make_plan, plan_lines

        typed = {"model": model, "layers": layers, "random_weights": random_weights}
        given = {name: value for name, value in typed.items() if value is not None}
        if encoder is not None:
            section = "text" if encoder in TEXT_ENCODERS else "audio"
            name, _ = TEXT_ENCODERS.get(encoder, (encoder, ""))
            sections = {section: {"encoder": name, **given}}
            settings = stage_config(config, overrides or (), sections, views)
            command = ["mmfeat", "extract", "--encoder", encoder]
            command += ["--config", str(config)] if config else []
        elif config is None or given:
            raise ConfigError(
                "no configuration; write mmfeat plan CONFIG, or name an encoder with --encoder"
            )
        else:
            settings = load_feature_config(config, overrides or (), views)
            command = ["mmfeat", "run", str(config)]
        options = {**given, "corpus": corpus, "store": store, "views": views}
        for name, value in options.items():
            if value is not None:
                command += [f"--{name.replace('_', '-')}", str(value)]
        for flag, values in (("--set", overrides), ("--column", column)):
            command += [word for value in values or () for word in (flag, value)]
        target = store or settings.data.store
        if target is None:
            raise ConfigError("no store; name one with --store DIR, or set data.store in the file")
        opened = opened_corpus(corpus, settings, column)
        found = make_plan(
            opened, target, settings, limit=limit, workers=workers, by_content=by_content,
            command=command,
        )  # fmt: skip
        show(found.to_json(), plan_lines(found), as_json=as_json)
