"""How fast MIDI bytes become notes: our reader beside pretty_midi and symusic, as ratios.

    python tests/benchmarks/midi_reader.py [FOLDER] [--pairs 7] [--json]

All read the same bytes, in memory and warm, in one process. A pair is one pass of ours and one of a
peer over all files; what is reported is the median over pairs of the ratio of times. Ours gives
notes in ticks and seconds with bars, beats and controls; pretty_midi its objects; symusic its score
in seconds and the NumPy arrays of each track's notes. Without FOLDER, the MIDI of the lieder8
corpus is read if it lies beside the project, and generated files of the same kind otherwise. Files
that a peer refuses (SMPTE division) are left out for all and counted.
"""

import argparse
import io
import json
import platform
import statistics
import struct
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmfuse.features.midi_file import read_midi

LIEDER8 = Path(__file__).parents[3] / "shared" / "data" / "lieder8" / "midi"
TARGETS = {"pretty_midi": 60.0, "symusic": 0.5}  # times as fast as the peer

Read = Callable[[bytes], Any]


def ours(data: bytes) -> Any:
    """Everything that `read_midi` gives."""
    return read_midi(data).sequences[0].notes


def with_pretty_midi(data: bytes) -> Any:
    """Its objects."""
    import pretty_midi

    return pretty_midi.PrettyMIDI(io.BytesIO(data))


def with_symusic(data: bytes) -> Any:
    """Its score in seconds, and arrays of each track's notes."""
    import symusic

    score = symusic.Score.from_midi(data, ttype="second")
    return [track.notes.numpy() for track in score.tracks]


PEERS: dict[str, Read] = {"pretty_midi": with_pretty_midi, "symusic": with_symusic}


def generated(files: int = 200, notes: int = 85) -> list[bytes]:
    """A track of tempos and two of notes, as in lieder8."""

    def event(gap: int, *message: int) -> bytes:
        return bytes([0x80 | gap >> 7, gap & 0x7F, *message])

    def track(*events: bytes) -> bytes:
        body = b"".join(events) + event(0, 0xFF, 0x2F, 0)
        return b"MTrk" + struct.pack(">I", len(body)) + body

    rng = np.random.default_rng(0)
    made = []
    for _ in range(files):
        tempos = rng.integers(400_000, 600_000, 3).tolist()
        tracks = [track(*(event(960, 0xFF, 0x51, 3, *us.to_bytes(3, "big")) for us in tempos))]
        for channel in (0, 1):
            rows = rng.integers([0, 60, 40, 30], [300, 900, 90, 120], (notes, 4)).tolist()
            tracks.append(
                track(
                    *(
                        event(gap, 0x90 | channel, pitch, velocity)
                        + event(length, 0x80 | channel, pitch, 64)
                        for gap, length, pitch, velocity in rows
                    )
                )
            )
        made.append(b"MThd" + struct.pack(">IHHH", 6, 1, 3, 480) + b"".join(tracks))
    return made


def readable(files: Sequence[bytes]) -> list[bytes]:
    """Those that every peer reads."""
    found = []
    for data in files:
        try:
            for read in PEERS.values():
                read(data)
        except (ValueError, RuntimeError):
            continue
        found.append(data)
    return found


def passed(read: Read, files: Sequence[bytes]) -> float:
    """Seconds of one pass."""
    began = time.perf_counter()
    for data in files:
        read(data)
    return time.perf_counter() - began


def measure(files: Sequence[bytes], pairs: int) -> dict[str, Any]:
    """Times and ratios."""
    warnings.simplefilter("ignore")  # pretty_midi warns of tempo changes outside track 0
    kept = readable(files)
    passed(ours, kept)
    ratios: dict[str, list[float]] = {peer: [] for peer in PEERS}
    microseconds: dict[str, list[float]] = {peer: [] for peer in ("mmfuse", *PEERS)}
    for _ in range(pairs):
        for peer, read in PEERS.items():
            mine, theirs = passed(ours, kept), passed(read, kept)
            ratios[peer].append(theirs / mine)
            microseconds["mmfuse"].append(mine * 1e6 / len(kept))
            microseconds[peer].append(theirs * 1e6 / len(kept))
    return {
        "files": len(kept),
        "left_out": len(files) - len(kept),
        "bytes_a_file": round(statistics.mean(map(len, kept))),
        "notes_a_file": round(statistics.mean(len(ours(data)) for data in kept)),
        "pairs": pairs,
        "microseconds_a_file": {k: round(statistics.median(v), 1) for k, v in microseconds.items()},
        "speed_against": {peer: round(statistics.median(r), 2) for peer, r in ratios.items()},
        "lowest_and_highest": {
            peer: [round(min(r), 2), round(max(r), 2)] for peer, r in ratios.items()
        },
        "targets": TARGETS,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=LIEDER8)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    files = [path.read_bytes() for path in sorted(options.folder.glob("*.mid"))]
    if not files:
        print(f"no MIDI in {options.folder}: files are generated instead", file=sys.stderr)
        files = generated()
    found = measure(files, options.pairs)
    found["machine"] = f"{platform.machine()}, Python {platform.python_version()}"
    if options.json:
        print(json.dumps(found))
        return
    print(
        f"{found['files']} files of {found['bytes_a_file']} bytes and {found['notes_a_file']} "
        f"notes, {found['left_out']} left out; medians of {found['pairs']} pairs"
    )
    print(f"{'reader':<14}{'us a file':>10}{'mmfuse is':>16}{'from - to':>16}{'target':>10}")
    print(f"{'mmfuse':<14}{found['microseconds_a_file']['mmfuse']:>10}")
    for peer, ratio in found["speed_against"].items():
        low, high = found["lowest_and_highest"][peer]
        print(
            f"{peer:<14}{found['microseconds_a_file'][peer]:>10}{ratio:>12.2f} x it"
            f"{low:>9.2f} -{high:>5.2f}{TARGETS[peer]:>8} x"
        )


if __name__ == "__main__":
    main()
