"""Keeping stores in order, as documents for `--json` and as lines for a person."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmfuse.features.assemble import Combined
from mmfuse.features.corpus import open_corpus
from mmfuse.features.errors import ConfigError
from mmfuse.features.export import Exported
from mmfuse.features.gc import Sweep
from mmfuse.features.pull import Pulled
from mmfuse.features.splits import SPLITS
from mmfuse.features.store import open_store
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


def sweep(swept: Sweep) -> View:
    """What was removed, written and left, a line each."""
    document = {"schema_version": SCHEMA_VERSION, **asdict(swept)}
    would = "would be " if swept.dry_run else ""
    lines = [f"{would}removed {path}" for path in swept.removed]
    lines += [f"{would}written anew {path}" for path in swept.written]
    lines += [f"left alone, not ours: {path}" for path in swept.strangers]
    if swept.unfinished:
        lines.append(
            f"left alone: {swept.unfinished} files of a run that ended early; the same command "
            "goes on with them, --unfinished removes them"
        )
    count = len(swept.removed)
    lines.append(f"{swept.store}: {count} files {would}removed, {swept.bytes / 1e6:.1f} MB")
    return document, lines


def combined(report: Combined) -> View:
    """What a store was made of."""
    document = {"schema_version": SCHEMA_VERSION, **asdict(report)}
    how = f"{report.linked} files linked, {report.copied} copied"
    lines = [
        f"{report.store}: {report.entries} entries added, {report.bytes / 1e6:.1f} MB ({how}); "
        f"{report.streams} streams"
    ]
    if report.duplicates:
        lines.append(f"  {report.duplicates} entries were in several stores, and are taken once")
    lines.append(f"root {report.root}")
    return document, lines


def pulled(report: Pulled) -> View:
    """What came from elsewhere."""
    document = {"schema_version": SCHEMA_VERSION, **asdict(report)}
    lines = [
        f"{report.store}: {report.fetched} files fetched, {report.bytes / 1e6:.1f} MB; "
        f"{report.kept} were here; {report.streams} streams, {report.shards} shards",
        f"root {report.root}",
    ]
    return document, lines


def exported(report: Exported) -> View:
    """What was written for others."""
    document = {"schema_version": SCHEMA_VERSION, **asdict(report)}
    lines = [
        f"{report.out}: {report.clips} clips as {report.form}, {report.files} files, "
        f"{report.bytes / 1e6:.1f} MB; streams {', '.join(report.streams)}"
    ]
    return document, lines


def chosen_ids(ids: Path | None, split: str | None, corpus: Path | None) -> set[str] | None:
    """Clips that the command line names; None where it names none, which means all.

    Raises:
        ConfigError: it names them in two ways, or in one that can't be.
    """
    if ids is not None and split is not None:
        raise ConfigError("--ids and --split say the same in two ways; leave one out")
    if ids is not None:
        try:
            return set(ids.read_text(encoding="utf-8").splitlines()) - {""}
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"can't read --ids {ids}: {error}") from None
    if split is None:
        return None
    if split not in SPLITS or corpus is None:
        raise ConfigError(
            f"--split {split}: it is train, validation or test, and needs the --corpus that says so"
        )
    clips = open_corpus(corpus).labels()
    return {clip.id for clip in clips if clip.split == SPLITS[split]}


def chosen_keys(store: Path, streams: str | None) -> list[str] | None:
    """Keys of the streams that the command line names; None where it names none."""
    if streams is None:
        return None
    opened = open_store(store)
    return [opened[name.strip()].key for name in streams.split(",")]
