"""How fast notes become tokens and rolls: our REMI beside miditok's, our roll beside pretty_midi's.

    python tests/benchmarks/midi_tokens.py [FOLDER] [--rounds 7] [--json]

Each library parses every file first, which is not timed. Then ours and theirs take turns on it in
one process, each with a call that warms up and three that are timed; per file the median over
rounds counts, and what is reported is the median over files of the ratio of speeds.

Each counts the tokens that it writes itself. Both have 12 positions a quarter, durations to 16
quarters and 32 velocities; miditok writes a sequence for each track, with TimeSig, ours is one for
all. "and notes" adds to our time what makes the rows of the notes stream from a parsed file. Rolls
have 50 frames a second: ours has three planes, or velocity alone, theirs is one plane of sums.

Without FOLDER it is lieder8's MIDI beside the project, or else files made here. Files that a
library refuses (SMPTE division) are left out and counted.
"""

import argparse
import io
import json
import platform
import statistics
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pretty_midi
from miditok import REMI, TokenizerConfig
from symusic import Score

from mmfuse.features.midi_file import read_midi
from mmfuse.features.midi_tokens import tokens_entry
from mmfuse.features.notes import notes_entry
from mmfuse.features.piano_roll import PianoRollParams, roll_entry
from mmfuse.features.remi import Remi

LIEDER8 = Path(__file__).resolve().parents[3] / "shared" / "data" / "lieder8" / "midi"
FPS = 50
CALLS = 3  # timed together
OURS = Remi(max_events=10**6)
PEER = REMI(TokenizerConfig(beat_res={(0, 16): 12}, num_velocities=32))
ROLLS = {"roll", "roll of velocity", "pretty_midi"}
PAIRS = (
    ("remi", "miditok"),
    ("remi and notes", "miditok"),
    ("roll", "pretty_midi"),
    ("roll of velocity", "pretty_midi"),
)


def generated(count: int = 200) -> list[bytes]:
    """Files of two tracks, 20 bars and about 320 notes each."""
    rng = np.random.default_rng(0)
    return [_file(rng) for _ in range(count)]


def _file(rng: np.random.Generator) -> bytes:
    tracks = []
    for channel in range(2):
        events = []
        for on in np.sort(rng.integers(0, 20 * 1920, 160)).tolist():
            pitch, length = int(rng.integers(36, 90)), int(rng.integers(60, 960))
            events.append((on, bytes([0x90 | channel, pitch, int(rng.integers(30, 110))])))
            events.append((on + length, bytes([0x80 | channel, pitch, 0])))
        body, now = b"", 0
        for tick, event in sorted(events):
            delta, now = tick - now, tick
            body += bytes([0x80 | delta >> 14, 0x80 | delta >> 7 & 0x7F, delta & 0x7F]) + event
        body += b"\0\xff\x2f\0"
        tracks.append(b"MTrk" + struct.pack(">I", len(body)) + body)
    return b"MThd" + struct.pack(">IHHH", 6, 1, 2, 480) + b"".join(tracks)


def tasks(data: bytes) -> dict[str, Callable[[], int]]:
    """By name, what is timed on one file; each call returns how many tokens, or rolls, it made.

    Raises:
        ValueError, RuntimeError, EOFError, IndexError: a library refuses the file.
    """
    midi = read_midi(data)
    score, pretty = Score.from_midi(data), pretty_midi.PrettyMIDI(io.BytesIO(data))
    values = notes_entry(midi).values

    def theirs() -> int:
        encoded = PEER.encode(score)
        return sum(len(part) for part in (encoded if isinstance(encoded, list) else [encoded]))

    def roll(params: PianoRollParams) -> int:
        return len(roll_entry(values, params).values) > 0

    return {
        "remi": lambda: len(tokens_entry(values, OURS).values),
        "miditok": theirs,
        "remi and notes": lambda: len(tokens_entry(notes_entry(midi).values, OURS).values),
        "roll": lambda: roll(PianoRollParams(FPS)),
        "pretty_midi": lambda: len(pretty.get_piano_roll(fs=FPS)) > 0,
        "roll of velocity": lambda: roll(PianoRollParams(FPS, planes=("velocity",))),
    }


def speeds(calls: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Tokens or rolls per second of each call: in each round, three calls behind one that warms."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    made = {}
    for _ in range(rounds):
        for name, call in calls.items():
            made[name] = call()
            began = time.perf_counter()
            for _ in range(CALLS):
                call()
            seconds[name].append((time.perf_counter() - began) / CALLS)
    return {name: made[name] / statistics.median(taken) for name, taken in seconds.items()}


def measure(files: Sequence[bytes], rounds: int) -> dict[str, Any]:
    """Median speeds, and median ratios, over the files that every library reads."""
    found: list[dict[str, float]] = []
    for data in files:
        try:
            calls = tasks(data)
        except (ValueError, RuntimeError, EOFError, IndexError):
            continue
        found.append(speeds(calls, rounds))
    return {
        "files": len(found),
        "left_out": len(files) - len(found),
        "per_second": {
            name: round(statistics.median(one[name] for one in found)) for name in found[0]
        },
        "speed_against": {
            f"{ours} / {peer}": round(statistics.median(one[ours] / one[peer] for one in found), 2)
            for ours, peer in PAIRS
        },
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    folder = options.folder or LIEDER8
    files = [path.read_bytes() for path in sorted(folder.glob("*.mid"))]
    found = {"corpus": folder.parent.name if files else "generated"}
    found |= measure(files or generated(), options.rounds)
    found["machine"] = f"{platform.machine()}, Python {platform.python_version()}"
    if options.json:
        print(json.dumps(found))
        return
    if not files:
        print(f"no MIDI in {folder}: measured on files made here")
    print(f"{found['files']} files of {found['corpus']}, {found['left_out']} left out")
    for name, speed in found["per_second"].items():
        unit = "rolls" if name in ROLLS else "tokens"
        print(f"{name:<34}{speed:>12,} {unit}/s")
    for pair, ratio in found["speed_against"].items():
        print(f"{pair:<34}{ratio:>12.2f} x")


if __name__ == "__main__":
    main()
