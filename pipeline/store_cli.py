"""Commands of `mmfeat` that keep a store in order; `cli.py` puts them among the others."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from mmfuse.features.console import show, user_errors

StoreArgument = Annotated[Path, typer.Argument(help="Folder of the feature store.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Traceback of inner errors.")]


def verify(
    store: StoreArgument,
    read_data: Annotated[
        str, typer.Option("--read-data", help="Data to read: a share such as 5%, or all.")
    ] = "0%",
    seed: Annotated[int, typer.Option("--seed", help="Another seed, another share.")] = 0,
    again: Annotated[
        int, typer.Option("--recompute", min=0, help="Clips a stream to make again and compare.")
    ] = 0,
    corpus: Annotated[
        Path | None, typer.Option("--corpus", help="Where the corpus is, if it was moved.")
    ] = None,
    alignment: Annotated[
        Path | None, typer.Option("--alignment", help="Table of estimates, if one was used.")
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps: where models run.")
    ] = "auto",
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Tell whether a store is whole; exit with 4 and a line for each fault if it is not.

    Example: mmfeat verify demo/store.zarr --read-data all --recompute 20
    """
    with user_errors("mmfeat", verbose):
        from mmfuse.features.verify import verify_store
        from mmfuse.pipeline.upkeep import read_share, verification

        report = verify_store(store, read_share(read_data), seed)
        if again and not report.findings:
            from mmfuse.features.devices import choose
            from mmfuse.pipeline.recompute import recompute

            report.recomputed, report.findings = recompute(
                store, again, choose(device), corpus=corpus, alignment=alignment
            )
        document, lines = verification(report)
        show(document, lines, as_json=as_json)
        _exit(report.exit_code)


def _exit(code: int) -> None:
    if code:
        raise SystemExit(code)


COMMANDS: tuple[Callable[..., None], ...] = (verify,)
