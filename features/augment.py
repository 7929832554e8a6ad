"""Views of a clip: one draw moves its audio and its MIDI together.

Conventions: view 0 is the clip as it is. What view v of a clip differs in is a pure function of the
policy, the seed, the clip's id and v: generators are keyed by a hash of these, and each parameter
has one of its own, so that a parameter that is added or taken out changes no other.

A stretch is an exact ratio: what lies at t seconds lies at t * stretch afterwards, in the audio as
in the notes, and both count from the clip's first sample. N samples become N * stretch, rounded.

Source: librosa's `stft`, `phase_vocoder` and `istft`; resampling by soxr. What lies below 500 Hz
goes through windows of 96 ms, so that the tones of a low chord stay apart; the rest through windows
of 24 ms. With librosa's own default, 2048 samples for all, onsets are smeared until recording and
notes can't be aligned any more.
"""

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from mmfuse.features import augment_plugins
from mmfuse.features.audio import Audio, Samples
from mmfuse.features.config import Augmentations, Range
from mmfuse.features.errors import DecodeError
from mmfuse.features.note_augment import (
    Rows,
    jitter,
    quantize,
    scale_tempo,
    transpose,
    vary_velocity,
)

Wide = NDArray[np.float64]

VERSION = 1  # of the numbers that a draw leads to; raise it whenever they change
MAX_SAMPLES = 1 << 25  # of a stretched or shifted clip: 12 minutes at 44.1 kHz, 3.5 GB of spectra
_LOW_HOP_S, _HIGH_HOP_S = Fraction(24, 1000), Fraction(6, 1000)  # a window has four hops
_CROSSOVER_HZ = (420, 595)  # half an octave in which low gives way to high
_TOUCHES = {  # what each modality's numbers depend on
    "audio": ("stretch", "semitones", "snr_db", "gain_db"),
    "midi": ("stretch", "semitones", "velocity", "quantize", "strength", "jitter_s"),
}


@dataclass(frozen=True, slots=True)
class Draw:
    """What one view of a clip differs in.

    Attributes:
        stretch: how many times as long everything takes.
        semitones: by which pitches move.
        snr_db: power of the clip over power of white noise; None is no noise.
        gain_db: of the clip with its noise.
        velocity: each note's varies by up to it.
        quantize: steps a quarter towards which onsets are drawn; 0 is not at all.
        strength: how far they are drawn, 0 to 1.
        jitter_s: each note moves by up to it.
        key: what noise, velocities and jitter are drawn from; "" where there are none.
        others: what augmentations of other packages drew.
    """

    stretch: Fraction = Fraction(1)
    semitones: int = 0
    snr_db: float | None = None
    gain_db: float = 0.0
    velocity: int = 0
    quantize: int = 0
    strength: float = 0.0
    jitter_s: float = 0.0
    key: str = ""
    others: tuple[augment_plugins.Drawn, ...] = ()

    def of(self, modality: str) -> "Draw":
        """The part that a modality's numbers depend on: `audio` or `midi`."""
        kept = {name: getattr(self, name) for name in _TOUCHES.get(modality, ())}
        part = Draw(**kept, others=tuple(o for o in self.others if o.modality == modality))
        chance = part.snr_db is not None or part.velocity or part.jitter_s or part.others
        return replace(part, key=self.key if chance else "")

    def rng(self, what: str) -> np.random.Generator:
        """The generator for one kind of chance within the view."""
        return _generator(self.key, what)

    def to_json(self) -> str:
        """What differs from view 0, as canonical JSON; `from_json` reads it."""
        kept = {k: v for k, v in asdict(self).items() if v != getattr(Draw(), k)}
        if "stretch" in kept:
            kept["stretch"] = str(self.stretch)
        if self.others:
            kept["others"] = augment_plugins.to_plain(self.others)
        return json.dumps(kept, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Draw":
        """Read what `to_json` wrote; "" is view 0."""
        kept: dict[str, Any] = json.loads(text or "{}")
        known = {field.name for field in fields(cls)}
        kept = {name: value for name, value in kept.items() if name in known}
        others = augment_plugins.from_plain(kept.get("others", ()))
        return cls(**{**kept, "stretch": Fraction(kept.get("stretch", 1)), "others": others})


VIEW_0 = Draw()  # the clip as it is


def touches(policy: Augmentations, modality: str) -> bool:
    """Whether views can differ in a modality at all."""
    joint = policy.time_stretch is not None or policy.pitch_shift > 0
    own = {
        "audio": policy.noise_snr_db is not None or policy.gain_db is not None,
        "midi": policy.velocity > 0 or policy.quantize > 0 or policy.jitter_s > 0,
    }
    if modality not in own:
        return False
    return joint or own[modality] or augment_plugins.touched(policy, modality)


def draw(
    policy: Augmentations, seed: int, clip_id: str, view: int, fitting: range | None = None
) -> Draw:
    """Draw what a view of a clip differs in.

    Args:
        policy: what may differ, and by how much.
        seed: another seed, other views.
        clip_id: the clip's id in the corpus.
        view: its number; 0 differs in nothing.
        fitting: semitones by which the clip's notes can move exactly, as
            `note_augment.fitting_semitones` tells them for `policy.pitch_shift`; None where there
            are no notes.
    """
    if view == 0:
        return VIEW_0
    key = blake3(json.dumps([seed, view, clip_id]).encode()).hexdigest(length=16)

    def whole(what: str, least: int, most: int) -> int:
        return int(_generator(key, what).integers(least, most, endpoint=True))

    def tenths(what: str, between: Range) -> float:
        return whole(what, round(between[0] * 10), round(between[1] * 10)) / 10

    most = policy.pitch_shift
    shifts = fitting if fitting is not None else range(-most, most + 1)
    drawn = Draw(velocity=policy.velocity, quantize=policy.quantize, jitter_s=policy.jitter_s)
    if policy.time_stretch is not None:
        hundredths = whole("time_stretch", *_hundredths(policy.time_stretch))
        drawn = replace(drawn, stretch=Fraction(hundredths, 100))
    if most:
        drawn = replace(drawn, semitones=whole("pitch_shift", shifts[0], shifts[-1]))
    if policy.noise_snr_db is not None:
        drawn = replace(drawn, snr_db=tenths("noise", policy.noise_snr_db))
    if policy.gain_db is not None:
        drawn = replace(drawn, gain_db=tenths("gain", policy.gain_db))
    if policy.quantize:
        strength = whole("quantize", *_hundredths(policy.quantize_strength)) / 100
        drawn = replace(drawn, strength=strength)
    chance = {name: _generator(key, f"plugin {name}") for name in policy.plugins}
    return replace(drawn, key=key, others=augment_plugins.draw_plugins(policy, chance))


def augment_notes(notes_values: Rows, drawn: Draw) -> Rows:
    """A view's notes: rows of the `notes` stream to rows of it, none lost.

    Each time is multiplied by the stretch exactly and rounded once; ticks, bars and beats stay. The
    same rows come back where nothing is drawn.
    """
    values = notes_values
    if drawn.stretch != 1:
        values = scale_tempo(values, 1 / drawn.stretch)
    if drawn.semitones:
        values = transpose(values, drawn.semitones)
    if drawn.quantize:
        values = quantize(values, drawn.quantize, drawn.strength)
    if drawn.jitter_s:
        values = jitter(values, drawn.jitter_s, drawn.rng("jitter"))
    if drawn.velocity:
        values = vary_velocity(values, drawn.velocity, drawn.rng("velocity"))
    for other in drawn.of("midi").others:
        values = augment_plugins.apply_to_notes(values, other, drawn.rng(f"apply {other.name}"))
    return values


def augment_audio(audio: Audio, drawn: Draw) -> Audio:
    """A view's recording: stretched and shifted, then with noise, then with gain.

    Noise is white and has exactly the power asked for, over the whole clip; silence gets none.
    Samples beyond full scale stay as they are, so the level is right.

    Raises:
        DecodeError: `too_long`: the clip is longer than can be stretched.
    """
    samples_N = _stretched(audio, drawn.stretch, drawn.semitones)
    if drawn.snr_db is not None:
        samples_N = _noisy(samples_N, drawn.snr_db, drawn.rng("noise"))
    if drawn.gain_db:
        samples_N = samples_N * np.float32(10 ** (drawn.gain_db / 20))
    audio = replace(audio, samples_N=samples_N, frames=len(samples_N))
    for other in drawn.of("audio").others:
        chance = drawn.rng(f"apply {other.name}")
        audio = replace(audio, samples_N=augment_plugins.apply_to_audio(audio, other, chance))
    return audio


def _stretched(audio: Audio, stretch: Fraction, semitones: int) -> Samples:
    """Stretched by both in one pass, then played faster by the shift: one vocoder, not two.

    Twelve-tone intervals are taken as ratios of small numbers, good to 0.01 cent, so that the two
    cancel exactly and no time is lost or won. Frame i of the vocoder is at i hops in and out, so
    it adds no latency.
    """
    if stretch == 1 and not semitones:
        return audio.samples_N
    interval = Fraction(2 ** (semitones / 12)).limit_denominator(1000)
    longer = stretch * interval
    if audio.frames * longer > MAX_SAMPLES:
        raise DecodeError(
            "too_long",
            f"{audio.duration_s:.0f} s at {audio.rate_hz} Hz; up to {MAX_SAMPLES} samples are "
            "stretched or shifted: cut the recording into shorter clips, or make no views of it",
        )
    samples_N = audio.samples_N.astype(np.float64)  # in float32 the sum of phases wears out
    if longer != 1:
        samples_N = _vocoded(samples_N, longer, audio.rate_hz)
    if interval != 1:
        import soxr

        samples_N = soxr.resample(
            samples_N, float(interval.numerator), float(interval.denominator), quality="VHQ"
        )
    size = math.floor(audio.frames * stretch + Fraction(1, 2))
    samples_N = np.pad(samples_N[:size], (0, max(size - len(samples_N), 0)))
    return np.ascontiguousarray(samples_N, dtype=np.float32)


def _vocoded(samples_N: Wide, longer: Fraction, rate_hz: int) -> Wide:
    """`longer` times as long at the same pitch, in two bands."""
    import librosa

    def spectrum_of(part_N: Wide, hop: int) -> NDArray[np.complex128]:
        return librosa.stft(part_N, n_fft=4 * hop, hop_length=hop)

    def sound_of(spectrum_FT: NDArray[np.complex128], hop: int, size: int) -> Wide:
        return librosa.istft(spectrum_FT, n_fft=4 * hop, hop_length=hop, length=size)

    def stretched(spectrum_FT: NDArray[np.complex128], hop: int) -> Wide:
        rate = float(1 / longer)
        slow_FT = librosa.phase_vocoder(spectrum_FT, rate=rate, hop_length=hop, n_fft=4 * hop)
        return sound_of(slow_FT, hop, math.ceil(len(samples_N) * longer))

    low_hop, high_hop = (math.floor(rate_hz * hop_s) for hop_s in (_LOW_HOP_S, _HIGH_HOP_S))
    samples_N = np.pad(samples_N, (0, max(4 * low_hop - len(samples_N), 0)))
    low_FT = spectrum_of(samples_N, low_hop)
    octaves_F = np.log2(np.maximum(librosa.fft_frequencies(sr=rate_hz, n_fft=4 * low_hop), 1))
    edge = np.interp(octaves_F, np.log2(_CROSSOVER_HZ), [0, np.pi / 2])
    low_FT *= np.square(np.cos(edge))[:, None]
    high_N = samples_N - sound_of(low_FT, low_hop, len(samples_N))
    return stretched(low_FT, low_hop) + stretched(spectrum_of(high_N, high_hop), high_hop)


def _noisy(samples_N: Samples, snr_db: float, rng: np.random.Generator) -> Samples:
    noise_N = rng.standard_normal(len(samples_N))
    power = np.square(samples_N, dtype=np.float64).sum() / max(np.square(noise_N).sum(), 1e-300)
    return np.asarray(samples_N + noise_N * math.sqrt(power / 10 ** (snr_db / 10)), np.float32)


def _hundredths(between: Range) -> tuple[int, int]:
    return round(between[0] * 100), round(between[1] * 100)


def _generator(key: str, what: str) -> np.random.Generator:
    seed = int.from_bytes(blake3(f"{key} {what}".encode()).digest(length=16), "little")
    return np.random.Generator(np.random.Philox(key=seed))
