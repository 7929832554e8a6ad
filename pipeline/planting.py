"""What the sample corpus plants, decided for every clip before a note is written.

A label is three independent binary factors: the *mood* of the words, the *texture* of the notes
and the *timbre* of the sound. Each is planted in one place alone: text knows the mood, MIDI the
texture, audio the timbre, and the texture too since it plays the same notes. Whatever else varies
(key, register, instruments, loudness, noise, sample rate, container, origins, words that say
nothing, missing modalities) is drawn without looking at the label.

Every draw comes from a generator of (seed, clip, purpose), so no clip depends on another.
"""

from dataclasses import dataclass
from fractions import Fraction
from itertools import product

import numpy as np

from mmfuse.features.clock import FrameRate, Timecode
from mmfuse.features.errors import ConfigError
from mmfuse.pipeline.compose import TEXTURES, Rng
from mmfuse.pipeline.containers import OFFSET_RATES
from mmfuse.pipeline.synth import TIMBRES
from mmfuse.pipeline.words import MOODS

MODALITIES = ("text", "audio", "midi")
FACTORS = {"mood": ("text",), "texture": ("audio", "midi"), "timbre": ("audio",)}  # seen by
LABELS = tuple("-".join(factors) for factors in product(MOODS, TEXTURES, TIMBRES))
RATES = ("23.976", "24", "25", "29.97", "29.97df", "30")
TEXT, NOTES, CLOCK, SOUND = range(4)  # purposes of a clip's draws

_CORPUS = 4  # purpose of the draws for all clips together
_FEWEST_CLIPS = 16
_TRAIN, _VALIDATION, _MISSING = 0.5, 0.15, 0.06  # shares
_FARTHEST_FRAMES = 24  # between the starts of audio and MIDI


@dataclass(frozen=True, slots=True)
class Plan:
    """What is decided about a clip before a note is written."""

    seed: int
    index: int
    mood: str
    texture: str
    timbre: str
    split: str
    missing: frozenset[str]

    @property
    def id(self) -> str:
        """`s00017`."""
        return f"s{self.index:05}"

    @property
    def label(self) -> str:
        """`glad-block-reed`."""
        return f"{self.mood}-{self.texture}-{self.timbre}"

    def rng(self, purpose: int) -> Rng:
        """The clip's own generator for one purpose."""
        return np.random.default_rng([self.seed, self.index, purpose])


@dataclass(frozen=True, slots=True)
class Origins:
    """Where audio and MIDI start. Audio time t is MIDI time t + audio_minus_midi_s."""

    audio: Timecode
    midi: Timecode
    audio_minus_midi_s: Fraction
    in_midi_file: bool


def plan_clips(clips: int, seed: int) -> list[Plan]:
    """Labels, splits and missing modalities of a corpus, by clip index.

    Classes are balanced to one clip, within each split too; a share of `_MISSING` of the clips of
    each split lacks each modality, drawn without looking at labels, and none lacks all three.

    Raises:
        ConfigError: fewer than 16 clips, or a negative seed.
    """
    if clips < _FEWEST_CLIPS:
        raise ConfigError(
            f"--clips {clips} is too few: 8 classes in 3 splits need at least {_FEWEST_CLIPS}; "
            "leave it out for 240"
        )
    if seed < 0:
        raise ConfigError(f"--seed {seed} is negative; give 0 or more")
    rng = np.random.default_rng([seed, 0, _CORPUS])
    order = rng.permutation(clips)
    rounds = [rng.permutation(len(LABELS)) for _ in range(-(-clips // len(LABELS)))]
    labels = np.concatenate(rounds)[:clips]
    first, plans = 0, []
    shares = (("train", _TRAIN), ("validation", _TRAIN + _VALIDATION), ("test", 1.0))
    for split, share in shares:
        last = round(share * clips)
        count = max(1, round(_MISSING * (last - first)))
        lacking = {name: {first + int(i) for i in rng.permutation(last - first)[:count]}
                   for name in MODALITIES}  # fmt: skip
        for place in range(first, last):
            mood, texture, timbre = LABELS[labels[place]].split("-")
            missing = frozenset(name for name in MODALITIES if place in lacking[name])
            if len(missing) == len(MODALITIES):
                missing -= {"text"}
            index = int(order[place])
            plans.append(Plan(seed, index, mood, texture, timbre, split, missing))
        first = last
    return sorted(plans, key=lambda plan: plan.index)


def origins_of(plan: Plan) -> Origins:
    """SMPTE origins a whole number of frames apart; every 17th clip starts around midnight."""
    rng = plan.rng(CLOCK)
    rate = FrameRate.parse(RATES[plan.index % len(RATES)])
    ahead = int(rng.integers(-_FARTHEST_FRAMES, _FARTHEST_FRAMES + 1))  # audio - MIDI, frames
    frame = int(rng.integers(rate.day_frames))
    if plan.index % 17 == 3:
        ahead = ahead if abs(ahead) > 1 else 7
        frame = ahead // 2  # the MIDI file then starts on the other side of midnight
    written = rate.name in OFFSET_RATES and rng.random() < 0.5
    audio, midi = (Timecode(f % rate.day_frames, rate) for f in (frame, frame - ahead))
    return Origins(audio, midi, ahead / rate.fps, bool(written))
