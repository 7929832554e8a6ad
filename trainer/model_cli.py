"""Commands of `mmtrain` about trained models: ask them, score them, take them elsewhere."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from mmfuse.features.console import printable, show, user_errors
from mmfuse.trainer.options import (
    AgainstOption,
    ColumnOption,
    CorpusOption,
    JsonOption,
    QuietOption,
    RunArgument,
    StoreOption,
    VerboseOption,
    columns_of,
)

_CLIP_FAILED = 3


def predict(
    run: RunArgument,
    corpus: CorpusOption = None,
    store: StoreOption = None,
    split: Annotated[str | None, typer.Option("--split", help="Only the clips of a split.")] = None,
    ids: Annotated[list[str] | None, typer.Option("--ids", help="Only this clip; repeat.")] = None,
    text: Annotated[str | None, typer.Option("--text", help="Text of a single clip.")] = None,
    audio: Annotated[Path | None, typer.Option("--audio", help="Its audio file.")] = None,
    midi: Annotated[Path | None, typer.Option("--midi", help="Its MIDI file.")] = None,
    keep: Annotated[
        Path | None, typer.Option("--keep", help="Store for features that are made; goes on in it.")
    ] = None,
    column: ColumnOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Table to write: .parquet, .csv or .jsonl.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Class probabilities of clips: of a store, or of raw files, whose features mmfeat then makes.

    A corpus without --store is raw. A clip whose audio, MIDI or text can't be used is a row with
    the reason, and the command exits with 3.

    Example: mmtrain predict runs/late --text "it seems joyful" --midi song.mid
    """
    with user_errors("mmtrain", verbose):
        from mmfuse.trainer import predictions
        from mmfuse.trainer.raw_clips import one_clip
        from mmfuse.trainer.summary import prediction_lines

        predictions.check_out(out)
        single = text is not None or audio is not None or midi is not None
        if single and (corpus or store or split or ids):
            raise typer.BadParameter("--text, --audio, --midi or a corpus, not both")
        clips = [one_clip(text, audio, midi)] if single else []
        asked = predictions.Asked(corpus, store, split, ids or (), columns_of(column), clips, keep)
        found = predictions.predict_clips(run, asked)
        if out is not None:
            predictions.write_table(out, found)
        if not quiet or as_json:
            show(found.to_json(run, out), prediction_lines(found, out), as_json=as_json)
        if found.failed:
            raise SystemExit(_CLIP_FAILED)


def evaluate(
    run: RunArgument,
    corpus: CorpusOption = None,
    store: StoreOption = None,
    split: Annotated[str, typer.Option("--split", help="Whose clips.")] = "test",
    column: ColumnOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Scores of a trained model on a labelled split, of its own corpus or another.

    Example: mmtrain eval runs/late --split validation
    """
    with user_errors("mmtrain", verbose):
        from mmfuse.trainer.rescore import score
        from mmfuse.trainer.summary import eval_lines

        result = score(run, corpus, store, split, columns_of(column))
        show(result, eval_lines(result), as_json=as_json)


def export(
    run: RunArgument,
    form: Annotated[
        str, typer.Option("--format", help="safetensors, torch-export or onnx.")
    ] = "safetensors",
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write. Default: RUN-FORMAT")
    ] = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write a trained model into a folder of its own, with a model card.

    A program is held against the model, for every subset of the modalities, before it is written.

    Example: mmtrain export runs/late --format onnx
    """
    with user_errors("mmtrain", verbose):
        from mmfuse.trainer.export import export as write

        result = write(run, form, out or run.with_name(f"{run.name}-{form}"))
        lines = [f"{result['out']}: {', '.join(result['files'])}"]
        if result["parity"] is not None:
            lines.append(f"outputs differ by {result['parity']:.1e} at most, over all subsets")
        lines.append(f"Next: mmtrain predict {result['out']} --corpus CORPUS")
        show(result, lines, as_json=as_json)


def sweep(
    config: Annotated[Path, typer.Argument(help="Run configuration (TOML).")],
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Seeds, from train.seed on.")] = 5,
    grid: Annotated[
        list[str] | None, typer.Option("--grid", help="Values of a key: train.lr=1e-3,3e-4")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override for all, e.g. train.epochs=10")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the runs. Default: runs/NAME-sweep")
    ] = None,
    queue: Annotated[
        bool, typer.Option("--queue", help="One run after the other, none side by side.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train a configuration with many seeds and settings, side by side where that can be.

    A run that is finished is not made again, and a sweep that was killed goes on where it was: give
    the same command again. Says which runs were not stacked, and why.

    Example: mmtrain sweep configs/late.toml --seeds 16 --grid train.lr=1e-3,3e-4
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with user_errors("mmtrain", verbose):
        from mmfuse.trainer.summary import sweep_lines
        from mmfuse.trainer.sweep import sweep as many

        say = (lambda text: None) if quiet or as_json else (lambda text: print(printable(text)))
        found = many(
            config,
            overrides or (),
            seeds,
            grid or (),
            out,
            stacked=not queue,
            report=say,
            warn=lambda text: print(printable(f"mmtrain: {text}"), file=sys.stderr),
        )
        if not quiet or as_json:
            show(found, sweep_lines(found), as_json=as_json)


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs, one or more.")],
    out: Annotated[Path, typer.Option("--out", help="Page to write.")] = Path("report.html"),
    against: AgainstOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write a page to look at: how runs were trained, what they are worth, how they compare.

    Example: mmtrain report runs/late runs/text_only --out runs.html
    """
    with user_errors("mmtrain", verbose):
        from mmfuse.features.page import size, write_page
        from mmfuse.trainer.run_page import run_page

        found = run_page(runs, against)
        written = write_page(out, found.html)
        lines = [*found.notes, f"{out}: {size(written)}, {len(found.runs)} runs"]
        show(found.to_json(out, written), lines, as_json=as_json)


COMMANDS: dict[str, Callable[..., None]] = {
    "predict": predict,
    "eval": evaluate,
    "export": export,
    "sweep": sweep,
    "report": report,
}
