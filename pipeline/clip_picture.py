"""One clip to look at: log-mel frames, notes over them, bars, onsets and sound on one time axis.

Conventions: places are percent of the picture, from its left end, which is the clip's time 0, and
from its bottom. Frames are drawn at the height of their frequency on an axis of pitch, so that a
note lies on its own fundamental and its overtones stand above it. Times come from the store, as
the trainer gets them; nothing is moved to look better.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from mmfuse.features import chart
from mmfuse.features.alignment import estimate_lag
from mmfuse.features.audio import Audio, read_audio, resample
from mmfuse.features.chart import Tick
from mmfuse.features.clip import Clip
from mmfuse.features.clock import FrameRate, Timecode
from mmfuse.features.errors import ClipError
from mmfuse.features.logmel import LogMel, LogMelParams, band_centres_hz
from mmfuse.features.midi_file import MidiFile, read_midi
from mmfuse.features.notes import COLUMN, chosen_sequence
from mmfuse.features.origins import Alignment, align, audio_origin, needs_files
from mmfuse.features.png import data_uri, png
from mmfuse.features.store import FeatureStore
from mmfuse.pipeline.clip_sound import onset_curve, vorbis

LONGEST_S = 30.0
_RANGE_DB = 65.0
_BRIGHTEST = 0.8  # of the palette: notes stand out from what is loud
_LOWEST, _HIGHEST = 36, 119  # pitches: C2, and B8 just below 8 kHz
_ROWS = 2  # of pixels for a semitone
_NAMES = ("C", "C♯", "D", "E♭", "E", "F", "F♯", "G", "A♭", "A", "B♭", "B")
_TRACKS = 4  # colours that there are
_LETTER = 0.9  # percent of the picture that a letter of a word takes


@dataclass(slots=True)
class Picture:
    """A clip as the template draws it; what it lacks is empty."""

    clip: Clip
    labels: tuple[str, ...] = ()
    length_s: float = 0.0  # of the whole clip
    shown_s: float = 0.0  # of its part in the picture
    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    mel: str = ""  # data URI
    mel_place: tuple[float, float] = (0.0, 100.0)  # left end and width
    notes: list[tuple[float, float, float, float, int, float, str]] = field(default_factory=list)
    tracks: int = 0
    track_names: list[str] = field(default_factory=list)
    lowest: int = _LOWEST  # pitch at the foot
    highest: int = _HIGHEST
    bars: list[Tick] = field(default_factory=list)
    words: list[Tick] = field(default_factory=list)  # lyrics of the MIDI
    onsets: list[float] = field(default_factory=list)
    strength: str = ""  # points of an area
    audio: str = ""  # data URI
    seconds: tuple[Tick, ...] = ()
    timecodes: list[Tick] = field(default_factory=list)
    start_s: float | None = None  # time of day of the left end
    rate: FrameRate | None = None
    pitches: list[Tick] = field(default_factory=list)
    hertz: list[Tick] = field(default_factory=list)


def picture(store: FeatureStore, clip: Clip, keys: dict[str, str]) -> Picture:
    """Draw a clip from what a store has of it and, for sound and timecode, from its files.

    Args:
        keys: which stream is `logmel` and which is `notes`, where the store has them.
    """
    found = Picture(clip, names_of(clip))
    audio = _audio(clip, found)
    mel, times_s, params = _frames(store, found, keys.get("logmel"), audio)
    notes = _stored(store, clip, keys.get("notes"))
    ends_s = [audio.duration_s if audio else 0.0, float(times_s[-1]) if len(times_s) else 0.0]
    found.length_s = max(ends_s)
    if not found.length_s and notes is not None and len(notes):
        found.length_s = float(notes[:, COLUMN["offset_s"]].max())
    found.shown_s = max(min(found.length_s, LONGEST_S), 0.1)
    found.seconds = chart.linear([], low=0, high=found.shown_s, count=12).ticks
    lowest = _LOWEST
    if notes is not None and len(notes):
        lowest = min(lowest, int(notes[:, COLUMN["pitch"]].min()) - 1)
    _axes(found, lowest)
    if mel is not None:
        _draw_frames(found, mel, times_s, params, lowest)
    midi, aligned = _midi(clip, found)
    if notes is not None:
        _draw_notes(found, notes, lowest, midi)
    if midi is not None:
        _draw_words(found, midi, aligned.offset_s)
    _timecode(found)
    if audio is not None:
        _draw_sound(found, audio)
    if audio is not None and midi is not None:
        _tell(found, aligned, audio, notes)
    told = {"audio": clip.audio, "MIDI": clip.midi, "text": clip.text}
    missing = [name for name, there in told.items() if there is None]
    if len(missing) < len(told):  # else nothing is known of the clip's files
        found.facts += [f"no {name}" for name in missing]
    return found


def names_of(clip: Clip) -> tuple[str, ...]:
    """The labels of a clip: none, one, or several."""
    return (clip.label,) if isinstance(clip.label, str) else clip.label or ()


def note_name(pitch: int) -> str:
    """`A4` for 69; C4 is middle C."""
    return f"{_NAMES[pitch % 12]}{pitch // 12 - 1}"


def _audio(clip: Clip, found: Picture) -> Audio | None:
    if clip.audio is None:
        return None
    try:
        audio = read_audio(clip.audio.read())
    except ClipError as error:
        found.problems.append(f"audio: {error.reason}: {error}")
        return None
    found.facts.append(f"{audio.format}, {audio.rate_hz / 1000:g} kHz")
    return audio


def _stored(store: FeatureStore, clip: Clip, key: str | None) -> NDArray[np.float64] | None:
    if key is None or clip.id not in store[key]:
        return None
    return np.asarray(store[key][clip.id], np.float64)


def _frames(
    store: FeatureStore, found: Picture, key: str | None, audio: Audio | None
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64], LogMelParams]:
    """(T, M) dB, their times, and how they were made; made here, where the store has none."""
    clip = found.clip
    if key is not None and clip.id in store[key]:
        stream = store[key]
        known = {
            name: stream.spec.params[name] for name in LogMelParams.__slots__ if name != "dtype"
        }
        times_s = stream.frame_times_s(int(stream.find([clip.id])[0]))
        return np.asarray(stream[clip.id], np.float64), times_s, LogMelParams(**known)
    params = LogMelParams()
    samples_N = resample(audio.samples_N, audio.rate_hz, params.rate_hz) if audio else np.empty(0)
    if len(samples_N) < params.n_fft:
        return None, np.empty(0), params
    found.facts.append("frames made for this page")
    values_TM = LogMel(params).decibels(samples_N.astype(np.float32))
    first_s = params.n_fft / 2 / params.rate_hz
    times_s = first_s + np.arange(len(values_TM)) * params.hop / params.rate_hz
    return values_TM.astype(np.float64), times_s, params


def _axes(found: Picture, lowest: int) -> None:
    found.lowest = lowest
    span = _HIGHEST + 1 - lowest
    found.pitches = [
        Tick(100 * (pitch + 0.5 - lowest) / span, note_name(pitch), pitch % 24 != 0)
        for pitch in range(lowest, _HIGHEST + 1)
        if pitch % 12 == 0
    ]
    found.hertz = [
        Tick(100 * (69 + 12 * math.log2(hz / 440) + 0.5 - lowest) / span, shown)
        for hz, shown in ((100, "100"), (200, "200"), (500, "500"), (1000, "1k"), (2000, "2k"),
                          (4000, "4k"))
    ]  # fmt: skip


def _draw_frames(
    found: Picture,
    values_TM: NDArray[np.float64],
    times_s: NDArray[np.float64],
    params: LogMelParams,
    lowest: int,
) -> None:
    """The frames as a picture: each row of pixels between the two bands around its frequency."""
    kept = times_s <= found.shown_s
    values_TM, times_s = values_TM[kept], times_s[kept]
    if not len(times_s):
        return
    height = (_HIGHEST + 1 - lowest) * _ROWS
    pitch_H = _HIGHEST + 0.5 - (np.arange(height) + 0.5) / _ROWS
    hz_H = 440 * 2 ** ((pitch_H - 69) / 12)
    band_H = np.interp(hz_H, band_centres_hz(params), np.arange(params.n_mels))
    below_H = np.minimum(band_H.astype(int), params.n_mels - 2)
    into_H = band_H - below_H
    values_TH = values_TM[:, below_H] * (1 - into_H) + values_TM[:, below_H + 1] * into_H
    top = float(np.percentile(values_TM, 99.8))
    levels_TH = np.clip((values_TH - top + _RANGE_DB) / _RANGE_DB, 0, 1) * 255 * _BRIGHTEST
    found.mel = data_uri(png(np.round(levels_TH.T).astype(np.uint8)), "image/png")
    hop_s = params.hop / params.rate_hz
    left_s, right_s = times_s[0] - hop_s / 2, times_s[-1] + hop_s / 2
    found.mel_place = (_percent(found, left_s), _percent(found, right_s - left_s))


def _draw_notes(
    found: Picture, notes: NDArray[np.float64], lowest: int, midi: MidiFile | None
) -> None:
    columns = {name: notes[:, COLUMN[name]] for name in COLUMN}
    span = _HIGHEST + 1 - lowest
    inside = (columns["offset_s"] > 0) & (columns["onset_s"] < found.shown_s)
    tracks = np.unique(columns["track"]).tolist()
    found.tracks = min(len(tracks), _TRACKS)
    names = chosen_sequence(midi).track_names if midi is not None else {}
    found.track_names = [names.get(int(track)) or f"track {track:.0f}" for track in tracks]
    for n in np.flatnonzero(inside).tolist():
        one = {name: column[n] for name, column in columns.items()}
        pitch = int(one["pitch"])
        left = _percent(found, max(one["onset_s"], 0.0))
        right = _percent(found, min(one["offset_s"], found.shown_s))
        said = (
            f"{note_name(pitch)}, {one['onset_s']:.3f} to {one['offset_s']:.3f} s, velocity "
            f"{one['velocity']:.0f}, {found.track_names[tracks.index(one['track'])]}"
        )
        found.notes.append(
            (
                left,
                round(100 * (pitch - lowest) / span, 3),
                round(max(right - left, 0.05), 3),
                round(100 / span, 3),
                tracks.index(one["track"]) % _TRACKS,
                round(0.10 + 0.5 * one["velocity"] / 127, 2),
                said,
            )
        )
        if one["onset_s"] >= 0:
            found.onsets.append(left)
    beyond = int((columns["onset_s"] >= found.shown_s).sum())
    found.facts.append(f"{len(found.notes)} notes" + (f", {beyond} later" if beyond else ""))
    found.bars = _bars(found, columns)


def _bars(found: Picture, columns: dict[str, NDArray[np.float64]]) -> list[Tick]:
    """Where bars begin, by the first note in each: its place in the bar, at its tempo."""
    unit_s = np.where(columns["ticks_per_quarter"] > 0, columns["quarter_s"], 1.0)
    start_s = columns["onset_s"] - columns["beat_in_bar"] * unit_s
    bars, first = np.unique(columns["bar"], return_index=True)
    starts = zip(bars.tolist(), start_s[first].tolist(), strict=True)
    shown = [(bar, at_s) for bar, at_s in starts if 0 <= at_s < found.shown_s]
    stride = -(-len(shown) // 12)
    return [
        Tick(_percent(found, at_s), f"{bar + 1:.0f}" if i % max(stride, 1) == 0 else "", i % 2 == 1)
        for i, (bar, at_s) in enumerate(shown)
    ]


def _timecode(found: Picture) -> None:
    """SMPTE labels of whole seconds, where the clip has a time of day and a rate."""
    start = _start(found.clip)
    if start is None:
        return
    start_s, rate = start
    found.start_s, found.rate = float(start_s), rate
    found.facts.append(f"SMPTE {rate.name.replace('df', ' drop-frame')}")
    first = math.ceil(start_s * rate.fps)
    ticks, before = [], None
    for frame in range(first, math.floor((start_s + Fraction(found.shown_s)) * rate.fps) + 1):
        label = Timecode(frame, rate).label
        if before is not None and label[6:8] != before[6:8]:
            ticks.append((label, _percent(found, float(frame / rate.fps - start_s))))
        before = label
    stride = next(n for n in (1, 2, 5, 10, 15, 30) if len(ticks) <= 8 * n or n == 30)
    chosen = [(label, at) for label, at in ticks if int(label[6:8]) % stride == 0 and 3 < at < 97]
    found.timecodes = [Tick(at, label, i % 3 != 1) for i, (label, at) in enumerate(chosen)]


def _start(clip: Clip) -> tuple[Fraction, FrameRate] | None:
    """Time of day of the clip's time 0, by whoever tells it, as `origins.align` hears it."""
    told = clip.origins
    try:
        rate = FrameRate.parse(told.rate) if told.rate else None
        label = told.audio_smpte if clip.audio else told.midi_smpte
        if label and rate:
            return Timecode.parse(label, rate).seconds, rate
        if clip.audio is not None and told.audio is None:
            origin = audio_origin(clip)[0]
            known = rate or (origin.frame_rate if origin else None)
            return (origin.seconds, known) if origin and known else None
        if clip.audio is None and clip.midi is not None and told.midi is None:
            start = read_midi(clip.midi.read()).start
            return (start.seconds, start.rate) if start else None
    except ClipError:
        pass
    return None


def _draw_sound(found: Picture, audio: Audio) -> None:
    shown = audio.samples_N[: math.ceil(found.shown_s * audio.rate_hz)]
    at_s, strength = onset_curve(shown, audio.rate_hz)
    if len(at_s):
        places = [_percent(found, second) for second in at_s.tolist()]
        points = [chart.point(x, 100 * y) for x, y in zip(places, strength.tolist(), strict=True)]
        found.strength = " ".join([chart.point(places[0], 0), *points, chart.point(places[-1], 0)])
    found.audio = data_uri(vorbis(shown, audio.rate_hz), "audio/ogg")


def _midi(clip: Clip, found: Picture) -> tuple[MidiFile | None, Alignment]:
    """The MIDI file, and where it lies on the clip's clock."""
    if clip.midi is None:
        return None, Alignment()
    try:
        midi = read_midi(clip.midi.read())
        asked = needs_files(clip)
        origin = audio_origin(clip)[0] if asked else None
        return midi, align(clip, origin, midi.start if asked else None)
    except ClipError as error:
        found.problems.append(f"MIDI: {error.reason}: {error}")
        return None, Alignment()


def _draw_words(found: Picture, midi: MidiFile, offset_s: Fraction) -> None:
    """Lyrics where they are sung; one that would lie on another is left out, or minor if narrow."""
    free = clear = 0.0
    for word in chosen_sequence(midi).lyrics:
        text, at = word.text.strip(), _percent(found, word.time_s + float(offset_s))
        if text and free <= at < 100:
            found.words.append(Tick(at, text, at < clear))
            free = at + _LETTER * (len(text) + 1)
            clear = clear if at < clear else at + 3 * _LETTER * (len(text) + 1)


def _tell(
    found: Picture, aligned: Alignment, audio: Audio, notes: NDArray[np.float64] | None
) -> None:
    """Say where the MIDI lies, by whose word, and how far off the sound is from it."""
    apart_s = float(aligned.offset_s)
    where = f"{abs(apart_s):.4f} s {'after' if apart_s >= 0 else 'before'} the audio"
    found.facts.append(aligned.zero or f"MIDI starts {where}, by {aligned.sources}")
    lag = estimate_lag(audio, notes) if notes is not None and len(notes) else None
    if lag is not None:
        found.facts.append(
            f"sound {chart.plain(1000 * lag.lag_s, '+.1f')} ms from the notes, confidence "
            f"{lag.confidence:.2f}"
        )


def _percent(found: Picture, seconds: float) -> float:
    return round(100 * seconds / found.shown_s, 3)


def spread(ids: Sequence[str], labels: dict[str, str], count: int) -> list[str]:
    """So many of the clips, of as many labels as can be; the same in every process."""
    from blake3 import blake3

    order = sorted(ids, key=lambda clip_id: blake3(clip_id.encode(errors="surrogatepass")).digest())
    turns: dict[str, int] = {}
    ranked = []
    for place, clip_id in enumerate(order):
        label = labels.get(clip_id, "")
        ranked.append((turns.get(label, 0), place, clip_id))
        turns[label] = turns.get(label, 0) + 1
    return [clip_id for _, _, clip_id in sorted(ranked)[:count]]
