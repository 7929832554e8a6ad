"""The sample corpus: small, synthesized, and said to be so; its best reachable score is known.

What is planted stands in `planting.py`; this module writes the files, the manifest and what a
reader has to know about them.
"""

import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmfuse.features.errors import ConfigError
from mmfuse.pipeline.compose import Performance, compose
from mmfuse.pipeline.containers import SUFFIXES, audio_bytes, midi_bytes
from mmfuse.pipeline.planting import (
    FACTORS,
    LABELS,
    MODALITIES,
    NOTES,
    SOUND,
    TEXT,
    Origins,
    Plan,
    origins_of,
    plan_clips,
)
from mmfuse.pipeline.synth import RELEASE_S, Tone, level, render
from mmfuse.pipeline.words import README, sentence

SOURCE = "synthesized by mmfeat sample"

_VERSION = 1  # of the bytes written: raise it whenever they change
_CONTAINERS = ("flac", "ogg", "wav", "flac", "bwf")
_HZ, _HZ_SHARES = (16000, 22050, 44100, 48000), (0.46, 0.4, 0.08, 0.06)
_COLUMNS = {"text": "text", "audio": "audio_path", "midi": "midi_path"}


_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "text", "label", "split", "group")),
        *((name, pa.string()) for name in ("audio_path", "midi_path", "smpte_rate")),
        *((name, pa.string()) for name in ("audio_smpte_start", "midi_smpte_start")),
        ("audio_minus_midi_s", pa.float64()),
        ("audio_duration_s", pa.float64()),
        ("source", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class SampleReport:
    """What was written. `best_accuracy[rows][modalities]`, e.g. `["test"]["text+audio"]`."""

    out: Path
    clips: int
    seed: int
    labels: dict[str, int]
    splits: dict[str, int]
    best_accuracy: dict[str, dict[str, float]]
    audio_s: float
    total_bytes: int

    def summary(self) -> str:
        """One line for a person."""
        best = self.best_accuracy["test"]
        single = max(best[name] for name in MODALITIES)
        return (
            f"{self.clips} synthesized clips in {self.out}: {self.audio_s / 60:.1f} min of audio, "
            f"{self.total_bytes / 1e6:.1f} MB; best reachable test accuracy "
            f"{best['text+audio+midi']:.3f}, from one modality {single:.3f}"
        )

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON."""
        return {
            "out": str(self.out),
            "clips": self.clips,
            "seed": self.seed,
            "labels": self.labels,
            "splits": self.splits,
            "best_accuracy": self.best_accuracy,
            "audio_s": self.audio_s,
            "total_bytes": self.total_bytes,
        }


def write_sample(out: Path, clips: int = 240, seed: int = 0) -> SampleReport:
    """Write the sample corpus: files, manifest.parquet (last), sample.json and README.md.

    Args:
        out: a folder that is new, empty, or holds this very sample; nothing in it is deleted.
        clips: how many, at least 16.
        seed: which corpus, at least 0; the same (clips, seed) gives the same bytes.
    Raises:
        ConfigError: too few clips, a negative seed, or a folder that holds something else.
    """
    plans = plan_clips(clips, seed)
    about = _about(plans, clips, seed)
    _claim(out, about)
    # sample.json comes first: it marks the folder as ours, should we be interrupted
    total = _write(out / "sample.json", (json.dumps(about, indent=2) + "\n").encode())
    total += _write(out / "README.md", README.format(**_for_readme(about)).encode())
    for folder in ("audio", "midi"):
        (out / folder).mkdir(exist_ok=True)
    rows = []
    for plan in plans:
        row, files = make_clip(plan)
        total += sum(_write(out / path, data) for path, data in files.items())
        rows.append(row)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), buffer, compression="zstd")
    total += _write(out / "manifest.parquet", buffer.getvalue())
    audio_s = sum(row["audio_duration_s"] or 0.0 for row in rows)
    return SampleReport(
        out, clips, seed, about["labels"], about["splits"], about["best_accuracy"], audio_s, total
    )


def best_accuracy(rows: Iterable[Mapping[str, Any]], modalities: Sequence[str]) -> float:
    """Accuracy that the best possible model expects on manifest rows, by construction.

    A factor is known where a modality that carries it is both used and there; each unknown one
    halves the chance. On few rows a lucky guesser may score above it.

    Args:
        rows: with `text`, `audio_path` and `midi_path`; null or empty means missing.
        modalities: those the model sees, of `MODALITIES`.
    Raises:
        ConfigError: an unknown modality, or no rows.
    """
    unknown = set(modalities) - set(MODALITIES)
    if unknown:
        raise ConfigError(f"no modality {min(unknown)!r}; choose from: {', '.join(MODALITIES)}")
    chances = [
        0.5 ** sum(not any(row[_COLUMNS[name]] for name in set(seen) & set(modalities))
                   for seen in FACTORS.values())
        for row in rows
    ]  # fmt: skip
    if not chances:
        raise ConfigError("no rows: best_accuracy wants rows of a sample's manifest")
    return sum(chances) / len(chances)


def make_clip(plan: Plan) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A clip's manifest row, and its files by relative path."""
    origins = origins_of(plan)
    performance = perform(plan, origins)
    row: dict[str, Any] = dict.fromkeys(_SCHEMA.names)
    row |= {"id": plan.id, "label": plan.label, "split": plan.split, "group": plan.id}
    row |= {"smpte_rate": origins.audio.rate.name, "source": SOURCE}
    files: dict[str, bytes] = {}
    if "text" not in plan.missing:
        row["text"] = sentence(plan.mood, plan.rng(TEXT))
    if "midi" not in plan.missing:
        row["midi_path"] = f"midi/{plan.id}.mid"
        row["midi_smpte_start"] = origins.midi.label
        files[row["midi_path"]] = midi_bytes(
            performance, origins.midi if origins.in_midi_file else None
        )
    if "audio" not in plan.missing:
        container = _CONTAINERS[plan.index % len(_CONTAINERS)]
        samples, rate_hz = sound(plan, performance, origins.audio_minus_midi_s)
        row["audio_path"] = f"audio/{plan.id}{SUFFIXES[container]}"
        row["audio_smpte_start"] = origins.audio.label
        row["audio_duration_s"] = len(samples) / rate_hz
        files[row["audio_path"]] = audio_bytes(samples, rate_hz, container, origins.audio)
    if not plan.missing & {"audio", "midi"}:
        row["audio_minus_midi_s"] = float(origins.audio_minus_midi_s)
    return row, files


def perform(plan: Plan, origins: Origins) -> Performance:
    """The clip's piece as played; its first note comes after both files have begun."""
    rng = plan.rng(NOTES)
    lead_s = max(origins.audio_minus_midi_s, Fraction(0)) + Fraction(
        int(rng.integers(100, 300)), 1000
    )
    return compose(plan.texture, lead_s, rng.uniform(4.0, 4.7), rng)


def sound(
    plan: Plan, performance: Performance, audio_minus_midi_s: Fraction
) -> tuple[np.ndarray[Any, np.dtype[np.float32]], int]:
    """The performance as heard: samples (N,), or (N, 2) for one clip in twelve, and their rate."""
    rng = plan.rng(SOUND)
    rate_hz = int(rng.choice(_HZ, p=_HZ_SHARES))
    end_s = performance.end_s - audio_minus_midi_s + Fraction(RELEASE_S)
    num_samples = int(end_s * rate_hz) + int(rng.uniform(0.05, 0.3) * rate_hz)
    parts = [
        render(
            [
                Tone(
                    float(performance.seconds(note.onset_tick) - audio_minus_midi_s),
                    float(performance.seconds(note.offset_tick) - audio_minus_midi_s),
                    note.pitch,
                    note.velocity,
                )
                for note in track.notes
            ],
            plan.timbre,
            rate_hz,
            num_samples,
            rng,
        )
        for track in performance.tracks
    ]
    if rng.random() < 1 / 12:
        places = ((0.9, 0.4), (0.7, 0.7), (0.4, 0.9))
        mixed = sum(part[:, None] * place for part, place in zip(parts, places, strict=True))
    else:
        mixed = sum(parts)
    return level(np.asarray(mixed), rng.uniform(-26, -18), rng.uniform(-84, -70), rng), rate_hz


def _about(plans: list[Plan], clips: int, seed: int) -> dict[str, Any]:
    """sample.json: what is planted, what is missing, and the best reachable scores."""
    rows = {
        plan.id: {_COLUMNS[name]: None if name in plan.missing else "there" for name in MODALITIES}
        for plan in plans
    }
    of_split = {
        split: [rows[plan.id] for plan in plans if split in ("all", plan.split)]
        for split in ("all", "train", "validation", "test")
    }
    subsets = [subset for n in (1, 2, 3) for subset in combinations(MODALITIES, n)]
    return {
        "what": SOURCE,
        "version": _VERSION,
        "clips": clips,
        "seed": seed,
        "factors": {name: list(seen) for name, seen in FACTORS.items()},
        "labels": dict(sorted(Counter(plan.label for plan in plans).items())),
        "splits": {split: len(rows) for split, rows in of_split.items() if split != "all"},
        "missing": {name: sum(name in plan.missing for plan in plans) for name in MODALITIES},
        "best_accuracy": {
            split: {"+".join(subset): best_accuracy(rows, subset) for subset in subsets}
            for split, rows in of_split.items()
        },
    }


def _for_readme(about: Mapping[str, Any]) -> dict[str, Any]:
    """The README's blanks."""
    best = about["best_accuracy"]
    table = [
        f"| {name} | {best['all'][name]:.4f} | {best['test'][name]:.4f} |" for name in best["all"]
    ]
    return {**about, "table": "\n".join(table), "classes": ", ".join(f"`{n}`" for n in LABELS)}


def _claim(out: Path, about: Mapping[str, Any]) -> None:
    """Make the folder, or find that it is ours to write.

    Raises:
        ConfigError: it is a file, or holds something other than this sample.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; give a new folder: mmfeat sample {out}-sample")
    out.mkdir(parents=True, exist_ok=True)
    if not any(out.iterdir()):
        return
    wanted = {key: about[key] for key in ("what", "version", "clips", "seed")}
    try:
        there = json.loads((out / "sample.json").read_bytes())
        found = {key: there[key] for key in wanted}
    except FileNotFoundError:
        raise ConfigError(
            f"{out} holds other files; give a new or empty folder: mmfeat sample {out}/sample"
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        found = {}
    if found != wanted:
        raise ConfigError(
            f"{out} holds another sample than --clips {about['clips']} --seed {about['seed']} "
            f"(its sample.json: {found or 'damaged'}); give a new folder, or remove that one first"
        )


def _write(path: Path, data: bytes) -> int:
    """Write bytes; returns how many."""
    return path.write_bytes(data)
