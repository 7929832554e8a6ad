"""Commands of `mmfeat` that list what can be named in a configuration, and check it."""

from typing import Annotated, Any

import typer

from mmfuse.features.console import show, user_errors
from mmfuse.pipeline.options import DeviceOption, JsonOption, SetOption, VerboseOption

_CheckOption = Annotated[
    str | None, typer.Option("--check", help="Name: does it keep its promise?")
]
_BROKEN = 4


def encoders(
    check: _CheckOption = None,
    model: Annotated[str | None, typer.Option("--model", help="FOLDER or ID@REVISION.")] = None,
    random_weights: Annotated[
        int | None, typer.Option("--random-weights", help="Seed; the architecture without weights.")
    ] = None,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """List the encoders, or check that one of audio gives the same clip the same numbers.

    Example: mmfeat encoders --check logmel
    """
    with user_errors("mmfeat", verbose):
        from mmfuse.features.config import stage_config
        from mmfuse.features.devices import choose
        from mmfuse.pipeline import offered

        if check is None:
            _show(offered.listed("encoder"), as_json)
            return
        typed = {"encoder": check, "model": model, "random_weights": random_weights}
        audio = {name: value for name, value in typed.items() if value is not None}
        settings = stage_config(None, overrides or (), {"audio": audio})
        _show(offered.checked_encoder(settings, choose(device)), as_json)


def tokenizers(
    check: _CheckOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """List the ways to write notes as tokens, or check that one keeps its promise.

    Example: mmfeat tokenizers --check remi
    """
    with user_errors("mmfeat", verbose):
        from mmfuse.features.config import stage_config
        from mmfuse.pipeline import offered

        if check is None:
            _show(offered.listed("tokenizer"), as_json)
            return
        settings = stage_config(None, overrides or (), {"midi": {"tokenization": check}})
        _show(offered.checked_tokenizer(settings), as_json)


def augmentations(
    check: _CheckOption = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", help="An option of it, e.g. depth=0.5")
    ] = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """List what views can differ in, or check an augmentation of another package.

    Example: mmfeat augmentations
    """
    with user_errors("mmfeat", verbose):
        from mmfuse.features.config_file import read_overrides
        from mmfuse.pipeline import offered

        if check is None:
            _show(offered.listed("augmentation"), as_json)
            return
        given: dict[str, Any] = {}
        read_overrides(given, options or ())
        _show(offered.checked_augmentation(check, given), as_json)


def _show(view: tuple[dict[str, Any], list[str]], as_json: bool) -> None:
    document, lines = view
    show(document, lines, as_json=as_json)
    if not document.get("ok", True):
        raise SystemExit(_BROKEN)


COMMANDS = (encoders, tokenizers, augmentations)
