"""What `mmfeat doctor` says: findings, each with one mend where something is wrong."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmfuse.pipeline.report import SCHEMA_VERSION

OK, NOTE, FAULT = "ok", "note", "FAULT"
_IMPORT_S = 120


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: its state, what was seen, and what to type where something is wrong."""

    what: str
    state: str
    seen: str
    mend: str = ""


def view(findings: Sequence[Finding]) -> tuple[dict[str, Any], list[str]]:
    """The findings as a document and as lines."""
    faults = sum(finding.state == FAULT for finding in findings)
    width = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<5}  {finding.what:<{width}}  {finding.seen}")
        if finding.mend:
            lines.append(f"{'':7}{'':{width}}  mend: {finding.mend}")
    lines.append(f"{faults} fault{'s' * (faults != 1)}" if faults else "all is well")
    document = {
        "schema_version": SCHEMA_VERSION,
        "ok": not faults,
        "findings": [asdict(finding) for finding in findings],
    }
    return document, lines


def tried(code: str) -> tuple[list[str], str]:
    """(lines said, what went wrong) of a little program in a process of its own."""
    line = [sys.executable, "-W", "ignore", "-c", code]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=_IMPORT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return [], f"takes more than {_IMPORT_S} s"
    said = done.stdout.strip().splitlines()
    if done.returncode:
        errors = done.stderr.strip().splitlines()
        return said, errors[-1] if errors else f"the process died ({done.returncode})"
    return said, ""
