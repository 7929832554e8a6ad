"""What a corpus holds, from its manifest's columns and the headers of a few files: in one pass.

Columns are counted many clips at a time and never stand in memory as a whole; ids become hashes.
"""

import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmfuse.features.audio import probe_audio
from mmfuse.features.clip import Clip
from mmfuse.features.config import MidiPreprocessing
from mmfuse.features.corpus import Corpus
from mmfuse.features.errors import ClipError
from mmfuse.features.known import Known
from mmfuse.features.splits import SPLITS
from mmfuse.pipeline.makers import MidiMaker

MODALITIES = ("audio", "midi", "text")
PROBED = 32  # clips whose files are looked into
_KEPT = 1000  # values of a column that stand for all of them
_COLUMNS = ("id", "text", "split", "audio", "audio_path", "midi", "midi_path", "duration_s")


@dataclass(slots=True)
class Survey:
    """Counts of clips by modality, and of the entries that they shall have.

    `entries` counts views, too; `there` has, by stream key, those that a store has by clip id.
    `audio_s` and `characters` are samples of what clips hold; `rows` samples of what MIDI becomes,
    by stream name. `probed` is how many clips' files were looked into, by modality.
    """

    clips: int = 0
    has: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MODALITIES, 0))
    entries: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MODALITIES, 0))
    there: dict[str, int] = field(default_factory=dict)
    audio_s: list[float] = field(default_factory=list)
    from_column: bool = False
    characters: list[float] = field(default_factory=list)
    rows: dict[str, list[float]] = field(default_factory=dict)
    probed: dict[str, int] = field(default_factory=dict)


def survey(
    corpus: Corpus,
    count: int,
    views: Mapping[str, int],
    splits: Collection[str],
    known: Mapping[str, tuple[str, Known]],
) -> Survey:
    """Count the first clips of a corpus.

    Args:
        views: of each modality, beside the clip as it is.
        splits: whose clips have views.
        known: by stream key its modality, and what the store has of it.
    """
    found = Survey(there=dict.fromkeys(known, 0), from_column="duration_s" in corpus.columns)
    keep = max(count // _KEPT, 1)
    for table in corpus.tables(_COLUMNS, count):
        first, found.clips = found.clips, found.clips + len(table)
        viewed = _viewed(table, splits)
        sampled = pa.array(np.arange(-first % keep, len(table), keep))
        wanted = {}
        for modality in MODALITIES:
            has = _has(table, modality)
            wanted[modality] = has * (1 + viewed * views[modality])
            found.has[modality] += int(has.sum())
            found.entries[modality] += int(wanted[modality].sum())
        if found.from_column:
            found.audio_s += _numbers(table["duration_s"].take(sampled))
        if "text" in table.column_names:
            text = table["text"].take(sampled).cast(pa.string())
            found.characters += [n for n in _numbers(pc.utf8_length(text)) if n]
        ids = table["id"].cast(pa.string()).to_pylist() if known else []
        for key, (modality, one) in known.items():
            found.there[key] += int(np.minimum(one.counts(ids), wanted[modality]).sum())
    return found


def look_into(corpus: Corpus, found: Survey, midi: MidiPreprocessing | None) -> None:
    """Read the headers of a few clips' audio, and make of their MIDI what would be made."""
    audio = not found.from_column and found.has["audio"] > 0
    if not audio and (midi is None or not found.has["midi"]):
        return
    maker = MidiMaker(midi) if midi is not None else None
    for clip in _some(corpus, found.clips):
        if audio and clip.audio is not None:
            try:
                info = probe_audio(clip.audio.read())
                found.audio_s.append(info.frames / info.rate_hz)
                found.probed["audio"] = found.probed.get("audio", 0) + 1
            except ClipError:
                pass  # a bad clip makes no rows, and is told by the run
        if maker is not None and clip.midi is not None:
            _look_into_midi(maker, clip, found)


def _look_into_midi(maker: MidiMaker, clip: Clip, found: Survey) -> None:
    from mmfuse.features.augment import VIEW_0

    try:
        loaded = maker.load(clip)
        assert loaded is not None
        prepared = maker.prepare(maker.decode(clip, loaded), VIEW_0)
    except ClipError:
        return
    found.probed["midi"] = found.probed.get("midi", 0) + 1
    for name, entry in prepared.rest.items():
        found.rows.setdefault(name, []).append(float(len(entry.values)))


def _some(corpus: Corpus, count: int) -> list[Clip]:
    """Clips from all over a corpus; the first ones where files lie in the manifest itself."""
    if not corpus.by_number or {"audio", "midi"} & corpus.columns:
        step = 1 if corpus.by_number else max(count // PROBED, 1)
        every = enumerate(corpus.clips(0, min(count, PROBED * step)))
        return [clip for number, clip in every if number % step == 0]
    numbers = sorted({zlib.crc32(b"%d" % i) % count for i in range(PROBED)}) if count else []
    return [clip for number in numbers for clip in corpus.clips(number, number + 1)]


def _viewed(table: pa.Table, splits: Collection[str]) -> NDArray[np.bool_]:
    if "split" not in table.column_names:
        return np.zeros(len(table), np.bool_)
    names = pa.array([name for name, split in SPLITS.items() if split in splits], pa.string())
    lower = pc.utf8_lower(table["split"].cast(pa.string()))
    return np.asarray(pc.is_in(lower, names))


def _has(table: pa.Table, modality: str) -> NDArray[np.bool_]:
    """Which clips have a modality: a text, a path, or bytes."""
    has = np.zeros(len(table), np.bool_)
    for name in (modality, f"{modality}_path"):
        if name not in table.column_names:
            continue
        column = table[name].combine_chunks()
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            text = pc.utf8_trim_whitespace(column)
            has |= np.asarray(pc.greater(pc.binary_length(text), 0).fill_null(False))
        else:
            has |= np.asarray(column.is_valid())
    return has


def _numbers(column: pa.ChunkedArray) -> list[float]:
    values = np.asarray(column.cast(pa.float64()).drop_null(), np.float64)
    return [float(value) for value in values[np.isfinite(values) & (values >= 0)]]
