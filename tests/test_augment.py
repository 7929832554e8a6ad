"""Views are a pure function of seed, clip and number, and leave audio and notes together."""

import random
from fractions import Fraction

import librosa
import numpy as np
import pytest

from mmfuse.features.alignment import estimate_lag
from mmfuse.features.audio import Audio
from mmfuse.features.augment import (
    MAX_SAMPLES,
    Draw,
    augment_audio,
    augment_notes,
    draw,
    touches,
)
from mmfuse.features.config import Augmentations, FeatureConfig, validate
from mmfuse.features.errors import ConfigError, DecodeError
from mmfuse.features.midi_file import DRUM
from mmfuse.features.notes import COLUMN

EVERYTHING = Augmentations(
    time_stretch=(0.8, 1.25),
    pitch_shift=6,
    noise_snr_db=(10, 40),
    gain_db=(-12, 6),
    velocity=10,
    quantize=4,
    jitter_s=0.01,
)
KEY = "00112233445566778899aabbccddeeff"


def audio(samples_N, rate_hz=22_050):
    samples_N = np.asarray(samples_N, np.float32)
    return Audio(samples_N, rate_hz, 1, len(samples_N), "WAV")


def tone(pitch, rate_hz=22_050, seconds=1.2):
    """A note of 15 partials."""
    t, hz = np.arange(int(rate_hz * seconds)) / rate_hz, librosa.midi_to_hz(pitch)
    partials = [k for k in range(1, 16) if k * hz < rate_hz / 2]
    return audio(0.2 * sum(np.sin(2 * np.pi * k * hz * t + k * k) / k for k in partials), rate_hz)


def pitch_of(sound):
    """Of a steady tone, in semitones."""
    inner = slice(4, -4)
    hz = librosa.yin(
        sound.samples_N.astype(float), fmin=40, fmax=2000, sr=sound.rate_hz, frame_length=4096
    )[inner]
    return float(np.median(librosa.hz_to_midi(hz)))


def played(values, seconds, rate_hz=22_050):
    """Notes as sound: struck, each decaying, with partials."""
    out = np.zeros(int(seconds * rate_hz))
    for onset_s, pitch in values[:, [COLUMN["onset_s"], COLUMN["pitch"]]]:
        first = round(onset_s * rate_hz)
        t = np.arange(len(out) - first) / rate_hz
        hz = librosa.midi_to_hz(pitch)
        rise = np.minimum(t / 0.01, 1) * np.exp(-4 * t)
        out[first:] += 0.1 * rise * sum(np.sin(2 * np.pi * k * hz * t) / k for k in (1, 2, 3, 4))
    return audio(out, rate_hz)


@pytest.fixture(scope="module")
def piece(in_bars):
    """Twelve seconds of notes, unevenly in time, and their sound."""
    rng = np.random.default_rng(5)
    onsets = np.cumsum(rng.uniform(0.2, 1.2, 40))
    onsets = onsets[onsets < 22]
    values = in_bars(*[(float(on), 0.5, int(rng.integers(48, 80))) for on in onsets])
    return values, played(values, 12)


# What is drawn


def test_a_view_is_the_same_whatever_was_drawn_before_it():
    alone = draw(EVERYTHING, 0, "clip", 3)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    for view in (1, 2, 3):
        for clip in ("other", "clip"):
            last = draw(EVERYTHING, 0, clip, view)
    assert last == alone


def test_another_seed_clip_or_view_is_another_draw():
    drawn = [
        draw(EVERYTHING, seed, clip, view)
        for seed in (0, 1)
        for clip in ("a", "b", "1", "ä")
        for view in (1, 2, 11)
    ]
    assert len({one.to_json() for one in drawn}) == len(drawn)
    assert len({one.key for one in drawn}) == len(drawn)


PINNED = (
    '{"gain_db":-9.1,"jitter_s":0.01,"key":"1f74bfccb72049747c1221302ef7de9a",'
    '"quantize":4,"semitones":3,"snr_db":24.9,"strength":0.69,"stretch":"109/100","velocity":10}'
)


def test_draws_stay_what_they_were_in_earlier_versions():
    assert draw(EVERYTHING, 7, "clip", 2).to_json() == PINNED


def test_view_0_is_the_clip_as_it_is(piece):
    values, sound = piece
    drawn = draw(EVERYTHING, 0, "clip", 0)
    assert drawn == Draw()
    assert drawn.to_json() == "{}"
    assert augment_audio(sound, drawn) == sound
    assert np.array_equal(augment_notes(values, drawn), values)


def test_draws_fill_their_ranges_and_no_more():
    drawn = [draw(EVERYTHING, 0, str(number), 1) for number in range(2000)]
    stretches = {one.stretch for one in drawn}
    assert stretches == {Fraction(n, 100) for n in range(80, 126)}
    assert {one.semitones for one in drawn} == set(range(-6, 7))
    assert {one.snr_db for one in drawn} == {n / 10 for n in range(100, 401)}
    assert {one.gain_db for one in drawn} == {n / 10 for n in range(-120, 61)}
    assert {one.strength for one in drawn} == {n / 100 for n in range(101)}
    assert {(one.velocity, one.quantize, one.jitter_s) for one in drawn} == {(10, 4, 0.01)}


def test_parameters_are_drawn_apart():
    few = Augmentations(time_stretch=(0.8, 1.25), gain_db=(-12, 6))
    for view in range(1, 20):
        one, other = draw(few, 0, "clip", view), draw(EVERYTHING, 0, "clip", view)
        assert (one.stretch, one.gain_db) == (other.stretch, other.gain_db)
        assert (one.semitones, one.snr_db) == (0, None)


def test_semitones_are_drawn_among_those_that_fit_the_notes():
    drawn = {draw(EVERYTHING, 0, str(n), 1, range(-6, 3)).semitones for n in range(300)}
    assert drawn == set(range(-6, 3))
    assert {draw(EVERYTHING, 0, str(n), 1, range(0, 1)).semitones for n in range(9)} == {0}


def test_a_draw_survives_json_and_says_only_what_differs():
    for view in range(4):
        drawn = draw(EVERYTHING, 0, "clip", view)
        assert Draw.from_json(drawn.to_json()) == drawn
    assert Draw.from_json("") == Draw()
    assert Draw(Fraction(19, 20), -3).to_json() == '{"semitones":-3,"stretch":"19/20"}'


def test_what_touches_one_modality_is_not_in_the_draw_of_the_other():
    drawn = draw(EVERYTHING, 0, "clip", 1)
    sound, notes = drawn.of("audio"), drawn.of("midi")
    assert (sound.stretch, sound.semitones) == (notes.stretch, notes.semitones)
    assert (sound.velocity, sound.quantize, sound.jitter_s) == (0, 0, 0)
    assert (notes.snr_db, notes.gain_db) == (None, 0)
    assert drawn.of("text") == Draw()
    quiet = draw(Augmentations(pitch_shift=2), 0, "clip", 1)
    assert quiet.of("audio").key == quiet.of("midi").key == ""


@pytest.mark.parametrize(
    ("policy", "touched"),
    [
        ({}, set()),
        ({"pitch_shift": 1}, {"audio", "midi"}),
        ({"time_stretch": (1, 1)}, {"audio", "midi"}),
        ({"gain_db": (0, 1)}, {"audio"}),
        ({"velocity": 3}, {"midi"}),
    ],
)
def test_a_policy_touches_the_modalities_that_it_moves(policy, touched):
    policy = Augmentations(**policy)
    assert {name for name in ("text", "audio", "midi") if touches(policy, name)} == touched


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("audio", {"time_stretch": [1.2, 0.9]}, r"expected \[from, to\] with 0.5 <= from"),
        ("audio", {"time_stretch": [0.1, 1]}, r"expected \[from, to\] with 0.5 <= from"),
        ("audio", {"noise_snr_db": [10, 500]}, r"with -60 <= from <= to <= 120"),
        ("midi", {"quantize_strength": [0, 2]}, r"with 0 <= from <= to <= 1"),
        ("midi", {"gain_db": [0, 1]}, "no such key"),
        ("audio", {"pitch_shfit": 3}, "did you mean 'pitch_shift'"),
    ],
)
def test_an_impossible_augmentation_is_refused(key, value, message):
    document = {"preprocessing": {key: {"augmentations": value}}}
    with pytest.raises(ConfigError, match=message):
        validate(FeatureConfig, document, "c.toml")


# Notes


def test_times_of_notes_are_multiplied_exactly(piece):
    values, _ = piece
    values = values.copy()
    values[:, [COLUMN["onset_s"], COLUMN["offset_s"]]] -= 1.5  # some notes before the audio begins
    slower = augment_notes(values, Draw(stretch=Fraction(107, 100)))
    for name in ("onset_s", "offset_s", "quarter_s"):
        exact = [Fraction(second) * Fraction(107, 100) for second in values[:, COLUMN[name]]]
        assert slower[:, COLUMN[name]].tolist() == [float(second) for second in exact]
    for name in ("tick", "bar", "beat_in_bar", "pitch", "velocity"):
        assert np.array_equal(slower[:, COLUMN[name]], values[:, COLUMN[name]])


def test_notes_are_transposed_exactly_and_drums_stay(in_bars):
    values = np.concatenate([in_bars((0, 1, 60), (1, 1, 64)), in_bars((0, 1, 36), flags=DRUM)])
    moved = augment_notes(values, Draw(semitones=-3))
    assert sorted(moved[:, COLUMN["pitch"]].tolist()) == [36, 57, 61]


def test_chance_in_notes_is_that_of_the_draw(piece):
    values, _ = piece
    drawn = Draw(velocity=20, jitter_s=0.02, key=KEY)
    np.random.seed(0)  # noqa: NPY002
    one = augment_notes(values, drawn)
    np.random.seed(1)  # noqa: NPY002
    assert np.array_equal(augment_notes(values, drawn), one)
    assert not np.array_equal(augment_notes(values, Draw(velocity=20, jitter_s=0.02)), one)
    moved_s = np.sort(one[:, COLUMN["onset_s"]]) - values[:, COLUMN["onset_s"]]
    assert 0.01 < np.abs(moved_s).max() < 0.021
    assert np.abs(one[:, COLUMN["velocity"]] - 64).max() > 10


# Sound


@pytest.mark.parametrize("frames", [1, 10, 500, 22_050, 22_051])
@pytest.mark.parametrize(
    ("stretch", "semitones"), [("9/10", 0), ("113/100", 0), ("1", 5), ("1", -7), ("4/5", 3)]
)
def test_a_stretched_clip_has_exactly_the_samples_that_it_should(frames, stretch, semitones):
    rng = np.random.default_rng(frames)
    stretch = Fraction(stretch)
    changed = augment_audio(audio(rng.uniform(-1, 1, frames)), Draw(stretch, semitones))
    assert changed.frames == len(changed.samples_N) == int(frames * stretch + Fraction(1, 2))
    assert changed.samples_N.dtype == np.float32
    assert np.isfinite(changed.samples_N).all()


@pytest.mark.parametrize("pitch", [38, 50, 60, 72])
@pytest.mark.parametrize(
    ("stretch", "semitones"), [("1", 4), ("1", -5), ("1", 12), ("9/10", 0), ("5/4", -2)]
)
def test_pitch_moves_by_the_semitones_within_10_cents(pitch, stretch, semitones):
    sound = tone(pitch)
    moved = pitch_of(augment_audio(sound, Draw(Fraction(stretch), semitones)))
    assert 100 * abs(moved - pitch_of(sound) - semitones) < 10


def test_every_tone_of_a_low_chord_moves_by_the_semitones():
    chord = (43, 47, 50, 55)
    sound = audio(sum(tone(pitch, seconds=3).samples_N for pitch in chord) / 4)
    moved = augment_audio(sound, Draw(Fraction(11, 10), 3)).samples_N
    size = 1 << 20
    spectrum = np.abs(np.fft.rfft(moved[4000:-4000] * np.hanning(len(moved) - 8000), size))
    for pitch in chord:
        hz = librosa.midi_to_hz(pitch + 3) * 2.0 ** (np.array([-70, 70]) / 1200)
        low, high = (int(bound * size / 22_050) for bound in hz)
        peak_hz = (low + spectrum[low:high].argmax()) * 22_050 / size
        assert 100 * abs(librosa.hz_to_midi(peak_hz) - pitch - 3) < 10


@pytest.mark.parametrize(
    ("stretch", "semitones", "rate_hz"),
    [
        ("4/5", 0, 16_000),
        ("5/4", 0, 22_050),
        ("1", 6, 22_050),
        ("1", -6, 8_000),
        ("9/10", -3, 48_000),
    ],
)
def test_sound_and_notes_stay_together(piece, stretch, semitones, rate_hz):
    values, _ = piece
    sound, drawn = played(values, 12, rate_hz), Draw(Fraction(stretch), semitones)
    before = estimate_lag(sound, values)
    after = estimate_lag(augment_audio(sound, drawn), augment_notes(values, drawn))
    assert abs(after.lag_s - before.lag_s) < 0.005
    assert after.confidence > 0.3


@pytest.mark.parametrize(("stretch", "semitones"), [("9/10", 0), ("11/10", 4), ("1", -5)])
def test_time_is_stretched_evenly_and_without_latency(stretch, semitones):
    # 60 s of bursts, 20 ms each; where the energy around each lies, against where it should
    rate_hz, stretch = 16_000, Fraction(stretch)
    at_s = np.arange(0.5, 59.5, 0.7)
    sound = np.zeros(60 * rate_hz)
    burst = np.hanning(320) * np.sin(np.arange(320))
    for second in at_s:
        sound[round(second * rate_hz) - 160 :][:320] += burst
    changed = augment_audio(audio(sound, rate_hz), Draw(stretch, semitones)).samples_N
    found_s, reach = [], 800
    for second in at_s * float(stretch):
        middle = round(second * rate_hz)
        around = np.square(changed[middle - reach : middle + reach])
        offset = (around * np.arange(-reach, reach)).sum() / around.sum()
        found_s.append((middle + offset) / rate_hz)
    slope, start_s = np.polyfit(at_s, found_s, 1)
    assert slope == pytest.approx(float(stretch), abs=2e-5)
    assert abs(start_s) < 0.001
    off_s = np.abs(found_s - at_s * float(stretch))
    assert np.percentile(off_s, 90) < 0.005
    assert off_s.max() < 0.01


def test_the_check_of_togetherness_finds_10_ms(piece):
    values, sound = piece
    drawn = Draw(Fraction(9, 10), 2)
    changed = augment_audio(sound, drawn)
    late = audio(np.pad(changed.samples_N, (220, 0)))
    moved = augment_notes(values, drawn)
    lag_s = estimate_lag(late, moved).lag_s - estimate_lag(changed, moved).lag_s
    assert lag_s == pytest.approx(220 / 22_050, abs=0.0005)


def test_noise_has_the_power_asked_for_and_comes_from_the_draw(piece):
    _, sound = piece
    for snr_db in (-10.0, 0.0, 23.4, 40.0):
        np.random.seed(int(abs(snr_db)))  # noqa: NPY002
        noise = augment_audio(sound, Draw(snr_db=snr_db, key=KEY)).samples_N.astype(float)
        noise -= sound.samples_N
        powers = (np.square(sound.samples_N, dtype=float).mean(), np.square(noise).mean())
        assert 10 * np.log10(powers[0] / powers[1]) == pytest.approx(snr_db, abs=0.01)
        spectrum = np.abs(np.fft.rfft(noise))[: len(noise) // 2 // 4 * 4].reshape(4, -1)
        assert np.square(spectrum).mean(axis=1) == pytest.approx(
            np.square(spectrum).mean(), rel=0.1
        )
    one, again, other = (
        augment_audio(sound, Draw(snr_db=10.0, key=key)).samples_N for key in (KEY, KEY, KEY[::-1])
    )
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_silence_gets_no_noise():
    assert not augment_audio(audio(np.zeros(1000)), Draw(snr_db=0.0, key=KEY)).samples_N.any()


def test_gain_is_in_decibels_and_clips_nothing(piece):
    _, sound = piece
    louder = augment_audio(sound, Draw(gain_db=20.0)).samples_N
    assert np.allclose(louder, 10 * sound.samples_N, rtol=1e-6)
    assert np.abs(louder).max() > 1


def test_a_clip_that_is_too_long_is_a_failure_of_the_clip():
    endless = Audio(np.broadcast_to(np.float32(0), MAX_SAMPLES), 44_100, 1, MAX_SAMPLES, "WAV")
    with pytest.raises(DecodeError, match="761 s at 44100 Hz; up to 33554432 samples") as error:
        augment_audio(endless, Draw(Fraction(101, 100)))
    assert error.value.reason == "too_long"
