"""The `mmtrain` command: from a feature store to a tested model, and to a comparison of models.

Nothing heavy is imported before a command runs: `mmtrain --help` answers at once.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from mmfuse.features.console import INTERRUPTED, show, user_errors
from mmfuse.trainer.fusion_cli import fusions
from mmfuse.trainer.model_cli import COMMANDS
from mmfuse.trainer.options import AgainstOption, JsonOption, QuietOption, VerboseOption

app = typer.Typer(
    name="mmtrain",
    help="Fusion models of text, audio and MIDI, trained from a feature store.",
    epilog="First steps: mmfeat run configs/late.toml, then mmtrain run configs/late.toml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="Run configuration (TOML).")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override, e.g. train.seed=1")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the run. Default: runs/NAME")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a run, finished or not.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train and test the model that CONFIG describes.

    Ctrl-C ends training early, tests the best weights so far, and exits with 130. A run that was
    killed goes on where it was: give the same command again.

    Example: mmtrain run configs/late.toml --set train.seed=1 --out runs/late-1
    """
    # two threads that spin while they wait for each other stand still where others use the cores
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with user_errors("mmtrain", verbose):
        from mmfuse.trainer.progress import Progress

        follower = os.environ.get("RANK", "0") != "0"
        with Progress(quiet=quiet or follower) as progress:
            from mmfuse.trainer.run import train

            result = train(
                config,
                overrides or (),
                out,
                overwrite=overwrite,
                report=progress.epoch,
                warn=progress.warn,
            )
        if not result:  # a process of torchrun that is not the first
            return
        if not quiet or as_json:
            from mmfuse.trainer.summary import run_lines

            show(result, run_lines(result), as_json=as_json)
        if result["interrupted"]:
            raise SystemExit(INTERRUPTED)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs, two or more.")],
    against: AgainstOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Put finished runs side by side on their common test clips.

    Differences from the reference are paired: the same clips are drawn for both.

    Example: mmtrain compare runs/late runs/text_only runs/midi_only
    """
    with user_errors("mmtrain", verbose):
        from mmfuse.trainer.compare import compare as compare_runs
        from mmfuse.trainer.summary import compare_lines

        comparison = compare_runs(runs, against)
        show(comparison, compare_lines(comparison), as_json=as_json)


@app.command()
def schema(verbose: VerboseOption = False) -> None:
    """JSON Schema of a run configuration, which editors take for completion and checks.

    `configs/schema.json` is this; the line `#:schema ./schema.json` at the top of a TOML file
    beside it names it. Fusions of installed packages are in what is printed.

    Example: mmtrain schema
    """
    with user_errors("mmtrain", verbose):
        import json

        from mmfuse.trainer.config_schema import run_schema

        print(json.dumps(run_schema(), indent=2))


app.command()(fusions)
for name, command in COMMANDS.items():
    app.command(name)(command)


def main() -> None:
    """Run the command."""
    app()
