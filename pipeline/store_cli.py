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


def gc(
    store: StoreArgument,
    stream: Annotated[
        list[str] | None, typer.Option("--stream", help="Key of a stream to drop.")
    ] = None,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Remove what a run left that ended early, too.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be.")] = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Remove files that a store does not name, and streams to drop; mend documents for Zarr.

    Example: mmfeat gc demo/store.zarr --dry-run
    """
    with user_errors("mmfeat", verbose):
        from mmfuse.features.gc import collect
        from mmfuse.pipeline.upkeep import sweep

        swept = collect(store, stream or (), unfinished=unfinished, dry_run=dry_run)
        document, lines = sweep(swept)
        show(document, lines, as_json=as_json)


def merge(
    out: Annotated[Path, typer.Argument(help="Store to make, or to add to.")],
    stores: Annotated[list[Path], typer.Argument(help="Stores to take from.")],
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Make one store of several; shards are linked, no data is rewritten.

    Example: mmfeat merge demo/all.zarr demo/part-0.zarr demo/part-1.zarr
    """
    with user_errors("mmfeat", verbose):
        from mmfuse.features.combine import merge as merge_stores
        from mmfuse.pipeline.upkeep import combined

        document, lines = combined(merge_stores(out, stores))
        show(document, lines, as_json=as_json)


def subset(
    store: StoreArgument,
    out: Annotated[Path, typer.Argument(help="Store to make.")],
    ids: Annotated[
        Path | None, typer.Option("--ids", help="File with a clip id on each line.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="train, validation or test of --corpus.")
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option("--corpus", help="Manifest or folder that --split asks for.")
    ] = None,
    streams: Annotated[
        str | None, typer.Option("--streams", help="Names of streams, with commas between.")
    ] = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Make a store of some clips or streams of another; shards are linked, no data is rewritten.

    Example: mmfeat subset demo/store.zarr demo/train.zarr --split train --corpus demo/corpus
    """
    with user_errors("mmfeat", verbose):
        from mmfuse.features.combine import subset as subset_store
        from mmfuse.pipeline.upkeep import chosen_ids, chosen_keys, combined

        wanted = chosen_ids(ids, split, corpus)
        report = subset_store(store, out, wanted, chosen_keys(store, streams))
        document, lines = combined(report)
        show(document, lines, as_json=as_json)


def pull(
    source: Annotated[
        str, typer.Argument(help="s3://bucket/prefix, http(s)://..., or a folder: a store.")
    ],
    store: Annotated[Path, typer.Argument(help="Folder to fetch it into.")],
    stream: Annotated[
        list[str] | None, typer.Option("--stream", help="Name or key of a stream; else all.")
    ] = None,
    shards: Annotated[
        str | None, typer.Option("--shards", help="A-B: numbers of the shards of each stream.")
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, max=64, help="Ranges of 8 MiB fetched at once.")
    ] = 8,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Fetch a store from elsewhere, checked shard by shard; a pull that was killed goes on.

    Example: mmfeat pull s3://bucket/store.zarr demo/store.zarr --stream logmel
    """
    with user_errors("mmfeat", verbose):
        from mmfuse.features.pull import pull as pull_store
        from mmfuse.features.pull import read_numbers
        from mmfuse.pipeline.upkeep import pulled

        report = pull_store(source, store, stream or (), read_numbers(shards), workers)
        document, lines = pulled(report)
        show(document, lines, as_json=as_json)


def report(
    store: StoreArgument,
    corpus: Annotated[
        Path | None,
        typer.Option("--corpus", help="Where the corpus is. Default: as the store says."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Page to write.")] = Path("report.html"),
    clips: Annotated[int, typer.Option("--clips", min=0, help="Clips to draw.")] = 4,
    clip: Annotated[
        list[str] | None, typer.Option("--clip", help="Draw this clip first; repeat.")
    ] = None,
    alignment: Annotated[
        Path | None,
        typer.Option(
            "--alignment",
            help="Table of mmfeat align. Default: alignment.parquet here, if it fits.",
        ),
    ] = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write a page to look at: what a store holds, and some clips to see and hear.

    Example: mmfeat report demo/store.zarr --out demo/report.html
    """
    with user_errors("mmfeat", verbose):
        from mmfuse.features.page import size, write_page
        from mmfuse.pipeline.store_page import store_page

        found = store_page(store, corpus, alignment, clips, clip or ())
        written = write_page(out, found.html)
        lines = [*found.notes, f"{out}: {size(written)}, {len(found.clips)} clips drawn"]
        show(found.to_json(out, written), lines, as_json=as_json)


def export(
    store: StoreArgument,
    form: Annotated[
        str, typer.Option("--to", help="hf-parquet, webdataset, npy, safetensors or lhotse.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to make.")],
    streams: Annotated[
        str | None, typer.Option("--streams", help="Names of streams, with commas between.")
    ] = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write features for other libraries: values, seconds of rows, origins and specs.

    Example: mmfeat export demo/store.zarr --to webdataset --out demo/tars --streams logmel
    """
    with user_errors("mmfeat", verbose):
        from mmfuse.features.export import export as export_store
        from mmfuse.pipeline.upkeep import exported

        chosen = None if streams is None else [name.strip() for name in streams.split(",")]
        document, lines = exported(export_store(store, form, out, chosen))
        show(document, lines, as_json=as_json)


def _exit(code: int) -> None:
    if code:
        raise SystemExit(code)


COMMANDS: tuple[Callable[..., None], ...] = (verify, gc, merge, subset, pull, report, export)
