"""Options that several commands of `mmtrain` share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object, last on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Traceback of inner errors.")]
RunArgument = Annotated[Path, typer.Argument(help="Folder of a finished run, or of an export.")]
CorpusOption = Annotated[
    Path | None, typer.Option("--corpus", help="Manifest or folder. Default: the run's own.")
]
StoreOption = Annotated[
    Path | None, typer.Option("--store", help="Store with the corpus' features.")
]
AgainstOption = Annotated[
    Path | None,
    typer.Option("--against", help="Reference. Default: the best run of one modality."),
]
ColumnOption = Annotated[
    list[str] | None, typer.Option("--column", help="OURS=THEIRS: another name of a column.")
]


def columns_of(column: Sequence[str] | None) -> dict[str, str]:
    """Our column name -> the manifest's, of `--column` options.

    Raises:
        ConfigError: one is no mapping.
    """
    from mmfuse.features.errors import ConfigError

    columns = {}
    for pair in column or ():
        ours, equals, theirs = pair.partition("=")
        if not equals:
            raise ConfigError(f"--column {pair!r} is no mapping; write --column id=utterance_id")
        columns[ours] = theirs
    return columns
