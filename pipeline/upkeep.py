"""Keeping stores in order, as documents for `--json` and as lines for a person."""

import math
from dataclasses import asdict
from typing import Any

from mmfuse.features.errors import ConfigError
from mmfuse.features.verify import Verification
from mmfuse.pipeline.report import SCHEMA_VERSION

View = tuple[dict[str, Any], list[str]]


def read_share(text: str) -> float:
    """The share of data in `--read-data`: `all`, or a percentage.

    Raises:
        ConfigError: it is neither.
    """
    if text == "all":
        return 1.0
    try:
        percent = float(text.removesuffix("%"))
    except ValueError:
        percent = math.nan
    if not text.endswith("%") or not 0 <= percent <= 100:
        raise ConfigError(f"--read-data {text!r}: write a share such as 5%, or all")
    return percent / 100


def verification(report: Verification) -> View:
    """Faults first, then notes, then what was looked at."""
    document = {"schema_version": SCHEMA_VERSION, **asdict(report)}
    lines = [str(finding) for finding in report.findings]
    lines += [f"note: {note}" for note in report.notes]
    faults = len(report.findings)
    lines.append(
        f"{report.store}: {report.streams} streams, {report.shards} shards, {report.entries} "
        f"entries, of which {report.entries_read} were read ({report.bytes_read / 1e6:.1f} MB) "
        f"and {report.recomputed} made again: "
        + (f"{faults} fault{'s' if faults > 1 else ''}" if faults else "all is well")
    )
    return document, lines
