"""Words of the sample corpus: sentences that tell a mood and nothing else, and its README.

A sentence draws three words of one mood; the template, the form, the place, the time and the
player are shared by both moods and say nothing about any label.
"""

import numpy as np

MOODS = {
    "glad": (
        "merry", "joyful", "cheerful", "sunny", "playful",
        "festive", "radiant", "gleeful", "jaunty", "hopeful",
    ),
    "wistful": (
        "mournful", "wistful", "sombre", "lonely", "gloomy",
        "sorrowful", "weary", "forlorn", "tearful", "bleak",
    ),
}  # fmt: skip
_TEMPLATES = (
    "A {0} {form} for {place}, {1} from the start and {2} in its close.",
    "{player} played this {form} {time}; it seems {0}, almost {1}, and the end stays {2}.",
    "Written {time} for {place}: a {0} {form}, {1} at heart, with a {2} turn near the close.",
    "They call it the {0} {form}; {player} found it {1} and rather {2} {time}.",
    "{player} wanted a {0} {form} for {place} and got a {1} one, {2} to the last.",
    "Number {number} of a set, a {0} {form}, {1} {time}, {2} when {player} plays it.",
)
_FORMS = ("piece", "sketch", "tune", "page", "prelude", "interlude", "miniature", "song")
_PLACES = ("a small room", "the old hall", "two friends", "the village school", "an empty house",
           "the garden", "a long journey", "the theatre")  # fmt: skip
_TIMES = ("in winter", "one evening", "before the war", "last spring", "at the harbour",
          "after the rain", "in one day", "by candlelight")  # fmt: skip
_PLAYERS = ("a neighbour", "her brother", "the teacher", "a stranger", "the miller",
            "their aunt", "a sailor", "the printer")  # fmt: skip

README = """\
# A synthesized sample corpus

Every clip here is **synthesized** by `mmfeat sample --clips {clips} --seed {seed}`: composed by
rule, played into MIDI, rendered by additive synthesis from the same performance, and described by
a sentence made from templates. Nothing was recorded, nobody wrote it, and a score on it says that
a pipeline works, not that a model knows music. The same command gives the same bytes again, on
the same machine and libraries.

`manifest.parquet` lists the clips, `sample.json` holds the numbers below, `audio/` and `midi/`
the files.

## What is planted

A label is three independent binary factors, in balanced classes: {classes}.

| factor | values | planted in |
|---|---|---|
| mood | glad, wistful | the words of the text alone |
| texture | block (chorale, march), broken (waltz, study) | the notes: in MIDI, and heard in audio |
| timbre | reed (odd partials), bow (all partials) | the sound of the audio alone |

Key, mode, register, tempo, MIDI programs, loudness, noise, sample rate, container, time origins
and the other words are drawn without looking at mood and timbre; all but the tempo, which
belongs to the style, without looking at texture.

Missing modalities (null in the manifest), whatever the label: text {missing[text]}, audio
{missing[audio]}, MIDI {missing[midi]} of {clips} clips; at least one is always there.

## Best reachable accuracy

A factor that no given modality shows can only be guessed: each halves the chance. A lucky guesser
may pass these numbers on few clips; a model that passes them clearly has found a leak.

| modalities | all {clips} clips | {splits[test]} test clips |
|---|---|---|
{table}

## Time

Audio and MIDI start a known whole number of SMPTE frames apart: `audio_smpte_start` and
`midi_smpte_start` at `smpte_rate`. Time t in the audio is time t + `audio_minus_midi_s` in the
MIDI, across midnight too. Broadcast WAV files carry the audio start in `bext`, and about half of
the MIDI files at 24, 25, 29.97 drop-frame and 30 carry theirs as an SMPTE offset event (FF 54).
"""


def sentence(mood: str, rng: np.random.Generator) -> str:
    """A sentence in one of `MOODS`; every draw but the mood's own words ignores the mood."""
    template = _TEMPLATES[int(rng.integers(len(_TEMPLATES)))]
    words = [MOODS[mood][i] for i in rng.permutation(len(MOODS[mood]))[:3]]
    form, place, time, player = (
        choices[int(rng.integers(len(choices)))] for choices in (_FORMS, _PLACES, _TIMES, _PLAYERS)
    )
    text = template.format(
        *words, form=form, place=place, time=time, player=player, number=int(rng.integers(2, 99))
    )
    return text[0].upper() + text[1:]
