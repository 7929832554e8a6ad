"""The command of `mmtrain` that lists fusions, and checks one."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmfuse.features.console import show, user_errors
from mmfuse.trainer.options import JsonOption, VerboseOption

if TYPE_CHECKING:
    from mmfuse.trainer.fusion_checks import Finding

_BROKEN = 4


def fusions(
    check: Annotated[
        str | None, typer.Option("--check", help="Name: does it keep its promise?")
    ] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", help="A key of [model.fusion], e.g. hidden_dim=32")
    ] = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """List the fusions, or check that what a clip lacks has no say in one.

    Example: mmtrain fusions --check gated
    """
    with user_errors("mmtrain", verbose):
        from mmfuse.features import plugins
        from mmfuse.trainer.fusion import FUSIONS

        if check is None:
            own = {name: (f.__doc__ or "").split("\n")[0] for name, f in FUSIONS.items()}
            offers = plugins.offers("fusion", own)
            width = max(len(offer.name) for offer in offers)
            lines = [f"{o.name:<{width}}  {o.about} ({o.package})" for o in offers]
            show({"fusions": [asdict(offer) for offer in offers]}, lines, as_json=as_json)
            return
        findings = _findings(check, options or ())
        lines = [
            f"{'ok  ' if f.ok else 'FAIL'} {f.check}" + (f" ({f.detail})" if f.detail else "")
            for f in findings
        ]
        broken = sum(not f.ok for f in findings)
        lines.append(f"{check}: {f'{broken} broken' if broken else 'kept'}")
        document = {"ok": not broken, "findings": [asdict(f) for f in findings]}
        show(document, lines, as_json=as_json)
        if broken:
            raise SystemExit(_BROKEN)


def _findings(name: str, options: "list[str] | tuple[()]") -> "list[Finding]":
    """What the kit finds about the fusion that a section of a configuration describes."""
    from mmfuse.features.config_file import read_overrides, validate
    from mmfuse.trainer.config import ModelConfig
    from mmfuse.trainer.fusion import build_fusion
    from mmfuse.trainer.fusion_checks import check_fusion

    section: dict[str, Any] = {"type": name, "hidden_dim": 16}
    read_overrides(section, options)
    document = {"text_encoder": {"type": "text"}, "fusion": section}
    config = validate(ModelConfig, document, "command line")
    return check_fusion(lambda dims: build_fusion(config.fusion, dims))
