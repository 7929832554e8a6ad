"""Proof of alignment: how far recordings and their MIDI are apart, over a whole corpus."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmfuse.features.alignment import DETECTOR_LAG_S, estimate_lag, warp
from mmfuse.features.audio import read_audio
from mmfuse.features.clip import Clip, Estimate
from mmfuse.features.console import signals_held
from mmfuse.features.corpus import Corpus
from mmfuse.features.errors import ClipError, ConfigError
from mmfuse.features.layout import write_durably
from mmfuse.features.midi_file import read_midi
from mmfuse.features.notes import notes_entry
from mmfuse.features.origins import align, audio_origin, needs_files
from mmfuse.pipeline.progress import Progress
from mmfuse.pipeline.report import SCHEMA_VERSION

CERTAIN = 0.05  # confidence below which a lag proves nothing
_EDGES_MS = (-50, -40, -30, -20, -10, 0, 10, 20, 30, 40, 50)
_WORST = 10

SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("offset_s", pa.string()),  # MIDI start minus audio start that was used, exact
        ("assumed", pa.string()),  # why the offset had to be assumed; "" where it was known
        ("lag_s", pa.float64()),  # audio minus MIDI that is left
        ("confidence", pa.float64()),
        ("drift_s", pa.float64()),
        ("onsets", pa.int64()),
        ("flagged", pa.bool_()),
        ("refined_offset_s", pa.float64()),  # estimated; null where the offset was known
        ("warp_median_s", pa.float64()),  # audio minus MIDI along the warping path
        ("warp_spread_s", pa.float64()),  # 5 % to 95 % of it
        ("problem", pa.string()),
    ]
)


@dataclass(slots=True)
class Row:
    """One clip of `alignment.parquet`."""

    clip_id: str
    offset_s: str = ""
    assumed: str = ""
    lag_s: float | None = None
    confidence: float | None = None
    drift_s: float | None = None
    onsets: int = 0
    flagged: bool = False
    refined_offset_s: float | None = None
    warp_median_s: float | None = None
    warp_spread_s: float | None = None
    problem: str = ""


@dataclass(slots=True)
class Alignment:
    """What was found in a corpus."""

    max_lag_s: float | None
    rows: list[Row] = field(default_factory=list)
    audio_s: float = 0.0
    already: Counter[str] = field(default_factory=Counter)  # what Progress shows
    failed: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def certain(self) -> list[Row]:
        """Clips whose lag was found with some confidence."""
        return [r for r in self.rows if r.lag_s is not None and (r.confidence or 0) >= CERTAIN]

    @property
    def exit_code(self) -> int:
        """4 where a clip is flagged, 3 where clips are bad, else 0."""
        if any(row.flagged for row in self.rows):
            return 4
        return 3 if self.failed else 0

    def to_json(self) -> dict[str, Any]:
        """One object, for `--json`."""
        lags_ms = self._lags_ms()
        return {
            "schema_version": SCHEMA_VERSION,
            "pairs": len(self.rows),
            "measured": len(lags_ms),
            "uncertain": len([r for r in self.rows if r.lag_s is not None]) - len(lags_ms),
            "assumed": sum(bool(row.assumed) for row in self.rows),
            "refined": sum(row.refined_offset_s is not None for row in self.rows),
            "failed": [
                {"stage": stage, "reason": reason, "clips": count}
                for (stage, reason), count in sorted(self.failed.items())
            ],
            "detector_lag_ms": DETECTOR_LAG_S * 1000,
            "lag_ms": {
                f"p{q}": round(float(np.percentile(lags_ms, q)), 2) for q in (5, 50, 95)
            } if len(lags_ms) else {},
            "within": {
                f"{ms}_ms": round(float((np.abs(lags_ms) <= ms).mean()), 4) for ms in (10, 20, 50)
            } if len(lags_ms) else {},
            "max_lag_ms": None if self.max_lag_s is None else self.max_lag_s * 1000,
            "flagged": [row.clip_id for row in self.rows if row.flagged],
            "histogram_ms": self._histogram(lags_ms),
            "worst": [asdict(row) for row in self._worst()],
        }  # fmt: skip

    def lines(self) -> list[str]:
        """The summary, a line a fact."""
        found = self.to_json()
        lines = [
            f"{found['pairs']} clips with audio and MIDI: {found['measured']} measured, "
            f"{found['uncertain']} uncertain, {sum(self.failed.values())} failed"
        ]
        if not found["measured"]:
            return lines
        lag, within = found["lag_ms"], found["within"]
        lines.append(
            f"  audio minus MIDI: median {lag['p50']:+.1f} ms, 90 % between {lag['p5']:+.1f} and "
            f"{lag['p95']:+.1f} ms; within 20 ms: {within['20_ms']:.1%}"
        )
        most = max(count for _, count in found["histogram_ms"])
        for name, count in found["histogram_ms"]:
            lines.append(f"  {name:>14} ms {count:6} {'#' * -(-count * 40 // most)}")
        if found["assumed"]:
            lines.append(
                f"  {found['assumed']} clips had no time origins: {found['refined']} refined"
            )
        if self.max_lag_s is not None:
            lines.append(f"  beyond {self.max_lag_s * 1000:.0f} ms: {len(found['flagged'])} clips")
        lines.append("  worst: clip, lag, confidence, drift")
        lines += [
            f"    {row.clip_id}  {1000 * (row.lag_s or 0):+.1f} ms  {row.confidence:.2f}  "
            + ("no drift known" if row.drift_s is None else f"{1000 * row.drift_s:+.1f} ms")
            for row in self._worst()
        ]
        return lines

    def _lags_ms(self) -> Any:
        return np.array([1000 * (row.lag_s or 0) for row in self.certain])

    def _worst(self) -> list[Row]:
        return sorted(self.certain, key=lambda row: -abs(row.lag_s or 0))[:_WORST]

    @staticmethod
    def _histogram(lags_ms: Any) -> list[tuple[str, int]]:
        counts, _ = np.histogram(lags_ms, bins=[-np.inf, *_EDGES_MS, np.inf])
        names = ["< -50", *(f"{a} to {a + 10}" for a in _EDGES_MS[:-1]), "> 50"]
        return [(name, int(count)) for name, count in zip(names, counts, strict=True)]


def align_corpus(
    corpus: Corpus,
    progress: Progress,
    *,
    max_lag_s: float | None = None,
    search_s: float = 1.0,
    refine: bool = False,
    warped: bool = False,
    limit: int | None = None,
) -> Alignment:
    """Measure every clip that has audio and MIDI.

    Args:
        max_lag_s: flag clips beyond it.
        search_s: lags up to it are looked for.
        refine: estimate the offset of clips whose time origins are unknown.
        warped: also follow drift by dynamic time warping.
        limit: only the first clips of the manifest.

    Raises:
        ConfigError: the manifest is wrong.
    """
    count = corpus.check()
    count = count if limit is None else min(limit, count)
    found = Alignment(max_lag_s)
    progress.start(count)
    for clip in islice(corpus.clips(), count):
        with signals_held():
            if clip.audio is not None and clip.midi is not None:
                row = Row(clip.id)
                found.rows.append(row)
                try:
                    found.audio_s += _measure(clip, row, search_s, refine=refine, warped=warped)
                except ClipError as error:
                    row.problem = f"{error.reason}: {error}"
                    found.failed["align", error.reason] += 1
                certain = row.lag_s is not None and (row.confidence or 0) >= CERTAIN
                if certain and max_lag_s is not None and row.refined_offset_s is None:
                    row.flagged = abs(row.lag_s or 0) > max_lag_s
        progress.advance(found)
    return found


def write_alignment(path: Path, found: Alignment) -> None:
    """Write `alignment.parquet`: a row for each clip with audio and MIDI."""
    table = pa.Table.from_pylist([asdict(row) for row in found.rows], schema=SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, sink.getvalue().to_pybytes())


def read_alignment(path: Path) -> list[dict[str, Any]]:
    """Rows of `alignment.parquet`, with the fields of `Row`.

    Raises:
        ConfigError: no such table.
    """
    try:
        return list(pq.read_table(path, schema=SCHEMA).to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(
            f"{path} is no alignment table ({error}); make one with: mmfeat align --refine"
        ) from None


def read_estimates(path: Path) -> dict[str, Estimate]:
    """Offsets that `--refine` estimated, by clip id, to the microsecond.

    Raises:
        ConfigError: no such table.
    """
    found = {}
    for row in read_alignment(path):
        offset_s, confidence = row["refined_offset_s"], row["confidence"]
        if offset_s is not None:
            exact = Fraction(round(offset_s * 1_000_000), 1_000_000)
            found[row["clip_id"]] = Estimate(exact, confidence)
    return found


def _measure(clip: Clip, row: Row, search_s: float, *, refine: bool, warped: bool) -> float:
    """Fill a row; returns the seconds of audio."""
    assert clip.audio is not None
    assert clip.midi is not None
    midi = read_midi(clip.midi.read())
    origin = audio_origin(clip)[0] if needs_files(clip) else None
    aligned = align(clip, origin, midi.start if needs_files(clip) else None)
    row.offset_s, row.assumed = str(aligned.offset_s), aligned.zero
    audio = read_audio(clip.audio.read())
    notes_values = notes_entry(midi, aligned.offset_s).values
    lag = estimate_lag(audio, notes_values, search_s)
    if lag is None:
        row.problem = "no onsets to compare"
        return len(audio.samples_N) / audio.rate_hz
    row.lag_s, row.confidence, row.onsets = lag.lag_s, lag.confidence, lag.onsets
    row.drift_s = None if np.isnan(lag.drift_s) else lag.drift_s
    if refine and row.assumed and lag.confidence >= CERTAIN:
        row.refined_offset_s = float(aligned.offset_s) + lag.lag_s
    if warped:
        difference_s = np.diff(warp(audio, notes_values), axis=1)[:, 0]
        low, row.warp_median_s, high = (float(v) for v in np.percentile(difference_s, [5, 50, 95]))
        row.warp_spread_s = high - low
    return len(audio.samples_N) / audio.rate_hz
