"""Short pieces composed by rule: a style, a key, a walk through chords, a humanised performance.

Four styles in two textures. In a `block` texture the tones of a chord are struck together
(chorale, march); in a `broken` one they follow each other (waltz, study). Nothing else about a
piece, neither key nor mode, register, loudness or instruments, depends on its texture.

Conventions: a beat is a quarter note; ticks count `division` to the beat; seconds are exact.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np

Rng = np.random.Generator

_DIVISIONS = (384, 480, 960)
_SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10))  # major, natural minor
_NEXT_DEGREES = {0: (3, 4, 5), 1: (4,), 3: (0, 1, 4), 4: (0, 5), 5: (1, 3)}
_ONSET_SPREAD_S, _ONSET_LIMIT_S = 0.005, 0.012  # how unevenly hands play
_SHORTEST_S = 0.06


@dataclass(frozen=True, slots=True)
class Note:
    """One played note; ticks from the start of the MIDI file, offset_tick > onset_tick."""

    onset_tick: int
    offset_tick: int
    pitch: int
    velocity: int


@dataclass(frozen=True, slots=True)
class Track:
    """One instrument: its notes by onset, none overlapping another of the same pitch."""

    name: str
    channel: int
    program: int
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class Performance:
    """All that a MIDI file and a rendering need. `tempi`: (tick, microseconds per beat), from 0."""

    style: str
    division: int
    beats_per_bar: int
    tempi: tuple[tuple[int, int], ...]
    tracks: tuple[Track, ...]

    def seconds(self, tick: int) -> Fraction:
        """Seconds from tick 0, exact."""
        return _seconds(self.tempi, self.division, tick)

    @property
    def end_s(self) -> Fraction:
        """When the last note is let go, in seconds from tick 0."""
        return self.seconds(max(n.offset_tick for t in self.tracks for n in t.notes))


@dataclass(frozen=True, slots=True)
class _Chord:
    """A triad, voiced: a bass tone, three tones in close position, and one above them."""

    bass: int
    inner: tuple[int, int, int]
    top: int


@dataclass(frozen=True, slots=True)
class _Struck:
    """A note as written: beats from the bar's start, voice 0 (upper), 1 (inner), 2 (bass)."""

    voice: int
    beat: float
    beats: float
    pitch: int


def _chorale(chords: tuple[_Chord, _Chord], rng: Rng) -> list[_Struck]:
    """Four parts in quarters, now and then a half note."""
    struck = []
    for half, chord in enumerate(chords):
        steps = ((0.0, 2.0),) if rng.random() < 0.2 else ((0.0, 1.0), (1.0, 1.0))
        for beat, beats in steps:
            top = int(rng.choice([chord.top, chord.inner[0] + 12, chord.inner[1] + 12]))
            parts = ((0, top), (1, chord.inner[2]), (1, chord.inner[1]), (2, chord.bass))
            struck += [_Struck(voice, 2 * half + beat, beats, pitch) for voice, pitch in parts]
    return struck


def _march(chords: tuple[_Chord, _Chord], rng: Rng) -> list[_Struck]:
    """Full chords in dotted rhythm over a striding bass."""
    rhythms = (((0.0, 0.75), (0.75, 0.25), (1.0, 1.0)), ((0.0, 1.0), (1.0, 0.75), (1.75, 0.25)))
    struck = []
    for half, chord in enumerate(chords):
        for beat, beats in rhythms[int(rng.integers(2))]:
            parts = [(0, chord.top), *((1, pitch) for pitch in chord.inner)]
            struck += [_Struck(voice, 2 * half + beat, beats, pitch) for voice, pitch in parts]
        struck += [_Struck(2, 2 * half, 1, chord.bass), _Struck(2, 2 * half + 1, 1, chord.bass + 7)]
    return struck


def _waltz(chords: tuple[_Chord, _Chord], rng: Rng) -> list[_Struck]:
    """A bass tone, then the chord one eighth after another, under a slow melody."""
    chord = chords[0]
    low, middle, high = chord.inner
    figure = ((low, high, middle, high, middle), (low, middle, high, middle, high))
    struck = [_Struck(2, 0, 1, chord.bass)]
    for i, pitch in enumerate(figure[int(rng.integers(2))]):
        struck.append(_Struck(1, 0.5 * (i + 1), 0.5, pitch))
    melody = ((0.0, 2.0), (2.0, 1.0)) if rng.random() < 0.5 else ((0.0, 3.0),)
    tones = rng.permutation([chord.top, chord.inner[1] + 12])
    struck += [
        _Struck(0, beat, beats, int(tone))
        for (beat, beats), tone in zip(melody, tones, strict=False)
    ]
    return struck


def _study(chords: tuple[_Chord, _Chord], rng: Rng) -> list[_Struck]:
    """Sixteenths that run up and down the chord, over half notes in the bass."""
    struck = []
    for half, chord in enumerate(chords):
        low, middle, high = chord.inner
        rising = (low, middle, high, low + 12, chord.top, low + 12, high, middle)
        run = rising if rng.random() < 0.5 else rising[4:] + rising[:4]
        struck += [
            _Struck(int(i % 4 == 0), 2 * half + 0.25 * i, 0.25, pitch)
            for i, pitch in enumerate(run)
        ]
        struck.append(_Struck(2, 2 * half, 2, chord.bass))
    return struck


@dataclass(frozen=True, slots=True)
class Style:
    """What a style fixes: its texture, its metre, its tempi, and how it fills a bar."""

    texture: str
    beats_per_bar: int
    bpm: tuple[int, int]
    bar: Callable[[tuple[_Chord, _Chord], Rng], list[_Struck]]


STYLES = {
    "chorale": Style("block", 4, (84, 120), _chorale),
    "march": Style("block", 4, (92, 126), _march),
    "waltz": Style("broken", 3, (112, 156), _waltz),
    "study": Style("broken", 4, (72, 104), _study),
}
TEXTURES = ("block", "broken")


def compose(texture: str, lead_s: Fraction, length_s: float, rng: Rng) -> Performance:
    """Compose a piece in one of the texture's two styles and play it.

    Args:
        texture: one of `TEXTURES`.
        lead_s: silence between tick 0 and the first note, seconds; rounded up to a tick.
        length_s: music after that, seconds; the piece is cut at the next beat.
        rng: draws style, key, mode, chords, tempo, register, instruments and all unevenness.
    """
    names = [name for name, style in STYLES.items() if style.texture == texture]
    name = names[int(rng.integers(len(names)))]
    style = STYLES[name]
    division = int(rng.choice(_DIVISIONS))
    tempo_us = round(60e6 / rng.uniform(*style.bpm))
    lead_ticks = -int(-lead_s * 1_000_000 * division // tempo_us)
    bars = 2 + int(length_s * 1.2e6 / tempo_us) // style.beats_per_bar
    tempi = _tempi(tempo_us, lead_ticks, style.beats_per_bar * division, bars, rng)
    end_s, beat_ticks = lead_s + Fraction(length_s), range(lead_ticks, 1 << 30, division)
    end_tick = next(t for t in beat_ticks if _seconds(tempi, division, t) >= end_s)
    chords = _chords(2 * bars, rng)
    loudness = int(rng.integers(64, 100))
    voices: list[list[Note]] = [[], [], []]
    for bar in range(bars):
        bar_tick = lead_ticks + bar * style.beats_per_bar * division
        next_beat_s = _seconds(tempi, division, bar_tick + division)
        beat_s = float(next_beat_s - _seconds(tempi, division, bar_tick))
        for struck in style.bar((chords[2 * bar], chords[2 * bar + 1]), rng):
            sway = np.clip(rng.normal(0, _ONSET_SPREAD_S), -_ONSET_LIMIT_S, _ONSET_LIMIT_S)
            onset = bar_tick + round(struck.beat * division + sway / beat_s * division)
            held = max(struck.beats * rng.uniform(0.84, 0.96), _SHORTEST_S / beat_s)
            offset = onset + round(held * division)
            accent = 8 * (struck.beat == 0) + int(rng.integers(-6, 7))
            note = Note(max(onset, lead_ticks), offset, struck.pitch, loudness + accent)
            if note.onset_tick + division // 8 < end_tick:
                voices[struck.voice].append(note)
    channels = rng.choice([c for c in range(16) if c != 9], size=3, replace=False)
    tracks = tuple(
        Track(part, int(channel), int(rng.integers(112)), _untangle(notes, end_tick))
        for part, channel, notes in zip(("upper", "inner", "bass"), channels, voices, strict=True)
    )
    return Performance(name, division, style.beats_per_bar, tempi, tracks)


def _seconds(tempi: tuple[tuple[int, int], ...], division: int, tick: int) -> Fraction:
    """Seconds from tick 0 under a tempo map."""
    total = 0
    for (start, tempo_us), (end, _) in pairwise((*tempi, (tick, 0))):
        total += max(0, min(end, tick) - start) * tempo_us
    return Fraction(total, 1_000_000 * division)


def _tempi(
    tempo_us: int, lead_ticks: int, bar_ticks: int, bars: int, rng: Rng
) -> tuple[tuple[int, int], ...]:
    """A tempo for the lead and the first bar, another for the second, and some after that."""
    changes = [bar for bar in range(1, bars) if bar == 1 or rng.random() < 0.4]
    later = [
        (lead_ticks + bar * bar_ticks, round(tempo_us * rng.uniform(0.9, 1.12))) for bar in changes
    ]
    return (0, tempo_us), *later


def _chords(count: int, rng: Rng) -> list[_Chord]:
    """A walk through the degrees of one key, voiced near one register."""
    tonic, scale = int(rng.integers(12)), _SCALES[int(rng.integers(2))]
    register, degree, chords = int(rng.integers(-4, 5)), 0, []
    for _ in range(count):
        root, third, fifth = (tonic + scale[(degree + step) % 7] for step in (0, 2, 4))
        low, middle, high = sorted(_near(pc, 60 + register) for pc in (root, third, fifth))
        top = _near(int(rng.choice([root, third, fifth])), 76 + register)
        chords.append(_Chord(_near(root, 45 + register), (low, middle, high), top))
        degree = int(rng.choice(_NEXT_DEGREES[degree]))
    return chords


def _near(pitch_class: int, centre: int) -> int:
    """The pitch of that class nearest to `centre`."""
    return centre + (pitch_class - centre + 6) % 12 - 6


def _untangle(notes: Iterable[Note], end_tick: int) -> tuple[Note, ...]:
    """Sort by onset; let each note go before the same pitch is struck again, and at the end."""
    kept: list[Note] = []
    next_onset: dict[int, int] = {}
    for note in sorted(notes, key=lambda n: (n.onset_tick, n.pitch), reverse=True):
        offset = min(note.offset_tick, next_onset.get(note.pitch, end_tick), end_tick)
        if offset > note.onset_tick:
            kept.append(Note(note.onset_tick, offset, note.pitch, note.velocity))
            next_onset[note.pitch] = note.onset_tick
    return tuple(reversed(kept))
