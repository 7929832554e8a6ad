"""Reading a whole corpus once, to tell what is in it before anything is computed."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from mmfuse.features.audio import read_audio
from mmfuse.features.clip import Clip
from mmfuse.features.console import signals_held
from mmfuse.features.corpus import Corpus
from mmfuse.features.errors import ClipError
from mmfuse.features.midi_file import read_midi
from mmfuse.features.origins import align, audio_origin, needs_files
from mmfuse.pipeline.progress import Progress
from mmfuse.pipeline.report import SCHEMA_VERSION


@dataclass(slots=True)
class Scan:
    """What a corpus holds; problems are (clip id, modality, reason, detail).

    `aligned` counts clips by where their time origins come from; `doubts` are (clip id, text) where
    these contradict each other or can't be what was meant.
    """

    clips: int = 0
    audio_s: float = 0.0
    has: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    rates: Counter[str] = field(default_factory=Counter)
    notes: int = 0
    aligned: Counter[str] = field(default_factory=Counter)
    doubts: list[tuple[str, str]] = field(default_factory=list)
    problems: list[tuple[str, str, str, str]] = field(default_factory=list)
    already: Counter[str] = field(default_factory=Counter)  # what Progress shows
    failed: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def exit_code(self) -> int:
        """0, or 3 where some clips are bad."""
        return 3 if self.problems else 0

    def to_json(self) -> dict[str, Any]:
        """One object, for `--json`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "clips": self.clips,
            "audio_hours": round(self.audio_s / 3600, 6),
            "notes": self.notes,
            "modalities": dict(self.has),
            "splits": dict(self.splits),
            "labels": dict(self.labels),
            "audio_formats": dict(self.formats),
            "audio_rates_hz": dict(self.rates),
            "alignment": dict(self.aligned),
            "alignment_doubts": [{"clip_id": i, "detail": text} for i, text in self.doubts],
            "problems": [
                dict(zip(("clip_id", "modality", "reason", "detail"), row, strict=True))
                for row in self.problems
            ],
        }

    def lines(self) -> list[str]:
        """The summary, a line a fact."""
        lines = [
            f"{self.clips} clips, {self.audio_s / 3600:.2f} h of audio, {self.notes} notes",
            f"  modalities: {_counts(self.has)}",
            f"  splits: {_counts(self.splits)}",
            f"  labels: {_counts(self.labels)}",
            f"  audio: {_counts(self.formats)}; {_counts(self.rates)}",
            f"  alignment: {_counts(self.aligned)}",
            f"  problems: {len(self.problems)}",
        ]
        lines[-1:-1] = [f"    {i}: {text}" for i, text in self.doubts]
        return lines + [f"    {i}: {m}: {r}: {d}" for i, m, r, d in self.problems]


def scan_corpus(corpus: Corpus, progress: Progress, *, limit: int | None = None) -> Scan:
    """Check the manifest, then read and decode every clip; nothing is written.

    Raises:
        ConfigError: the manifest is wrong.
    """
    count = corpus.check()
    found = Scan(clips=count if limit is None else min(limit, count))
    progress.start(found.clips)
    for clip in islice(corpus.clips(), found.clips):
        found.splits[clip.split or "none"] += 1
        several = clip.label if isinstance(clip.label, tuple) else (clip.label,)
        found.labels.update(label or "none" for label in several or (None,))
        with signals_held():
            for modality, probe in (("audio", _audio), ("midi", _midi), ("text", _text)):
                _try(modality, probe, clip, found)
        progress.advance(found)
    return found


def _try(modality: str, probe: Callable[[Clip, Scan], None], clip: Clip, found: Scan) -> None:
    try:
        probe(clip, found)
    except ClipError as error:
        found.problems.append((clip.id, modality, error.reason, str(error)))
        found.failed[modality, error.reason] += 1


def _audio(clip: Clip, found: Scan) -> None:
    if clip.audio is None:
        return
    audio = read_audio(clip.audio.read())
    found.has["audio"] += 1
    found.audio_s += len(audio.samples_N) / audio.rate_hz
    found.formats[audio.format] += 1
    found.rates[f"{audio.rate_hz} Hz"] += 1


def _midi(clip: Clip, found: Scan) -> None:
    if clip.midi is None:
        return
    midi = read_midi(clip.midi.read())
    audio, note = audio_origin(clip)
    alignment = align(clip, audio, midi.start)
    found.has["midi"] += 1
    found.notes += sum(len(sequence.notes) for sequence in midi.sequences)
    if clip.audio is not None:
        found.aligned[alignment.zero or f"by {alignment.sources}"] += 1
        doubts = (*alignment.doubts, note) if needs_files(clip) else alignment.doubts
        found.doubts += [(clip.id, text) for text in doubts if text]


def _text(clip: Clip, found: Scan) -> None:
    found.has["text"] += clip.text is not None


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common()) or "none"
