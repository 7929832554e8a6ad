"""A recording as one row: cepstra are the DCT, pitch is heard, gain is not."""

import numpy as np
import pytest
from scipy.fft import dct

from mmfuse.features.audio import Audio
from mmfuse.features.audio_statistics import (
    FIELDS,
    PITCHES,
    SIZES,
    SPECTRUM,
    AudioStatistics,
    audio_statistics_spec,
    describe,
    pitch_spectrum,
)
from mmfuse.features.encoders import encode_clip
from mmfuse.features.errors import DecodeError
from mmfuse.features.logmel import LogMel

RATE = SPECTRUM.rate_hz


def tone(pitch, seconds=2.0, partials=6):
    time_N = np.arange(round(seconds * RATE)) / RATE
    hz = 440 * 2 ** ((pitch - 69) / 12)
    waves = [np.sin(2 * np.pi * hz * k * time_N) / k for k in range(1, partials + 1)]
    return (0.1 * np.sum(waves, axis=0)).astype(np.float32)


def recording(samples_N):
    return Audio(samples_N, RATE, 1, len(samples_N), "made")


def level_of(samples_N):
    return LogMel(SPECTRUM).decibels(samples_N)


@pytest.fixture
def music():
    rng = np.random.default_rng(1)
    parts = [tone(pitch, 0.5) + tone(pitch + 7, 0.5) for pitch in (60, 64, 65, 67, 72, 60)]
    samples_N = np.concatenate(parts)
    return (samples_N + rng.normal(0, 1e-3, len(samples_N))).astype(np.float32)


def test_sizes_and_names_agree(music):
    found = describe(level_of(music))
    assert {name: len(values) for name, values in found.items()} == dict(SIZES)
    assert len(set(FIELDS)) == len(FIELDS) == sum(SIZES.values())
    entry = encode_clip(AudioStatistics(), recording(music))["audio_statistics"]
    assert entry.values.shape == (1, *audio_statistics_spec().item)
    assert np.isfinite(entry.values).all()
    assert entry.values[0] == pytest.approx(
        np.concatenate(list(found.values())), rel=1e-4, abs=1e-5
    )


def test_cepstra_are_the_cosine_transform_of_levels(music):
    level_TM = level_of(music).astype(np.float64)
    cepstrum_TC = dct(level_TM, norm="ortho", axis=1)[:, :20]
    found = describe(level_TM)
    assert found["cepstrum_mean"] == pytest.approx(cepstrum_TC[:, 1:].mean(axis=0))
    assert found["cepstrum_deviation"] == pytest.approx(cepstrum_TC.std(axis=0))


@pytest.mark.parametrize("pitch", [55, 62, 69, 76])
def test_a_tone_stands_out_at_its_pitch_and_octave(pitch):
    spectrum_P = pitch_spectrum(level_of(tone(pitch)).astype(np.float64)).mean(axis=0)
    here = spectrum_P[pitch == PITCHES]
    for other in (pitch - 3, pitch + 3):
        assert here > spectrum_P[other == PITCHES] + 6
    assert spectrum_P[pitch + 12 == PITCHES] > spectrum_P[pitch + 9 == PITCHES] + 6


def test_an_interval_shows_in_the_product_with_itself(music):
    alone = describe(level_of(tone(60, partials=1)))["interval"]
    both = describe(level_of(tone(60, partials=1) + tone(67, partials=1)))["interval"]
    assert both[7 - 1] > alone[7 - 1] + 0.2
    assert both.argmax() == 7 - 1 or both[7 - 1] > both[9 - 1] + 0.2


def test_a_pulse_shows_at_its_period():
    strokes = np.concatenate(
        [np.r_[tone(60, 0.2), np.zeros(round(0.28 * RATE))] for _ in range(12)]
    )
    rng = np.random.default_rng(0)
    noisy = (strokes + rng.normal(0, 1e-3, len(strokes))).astype(np.float32)
    pulse = describe(level_of(noisy))["pulse"]
    period = round(0.48 / (SPECTRUM.hop / RATE)) - 1  # lag of 12 frames
    assert pulse[period] == max(pulse[5:20])
    assert pulse[period] > 0.3


def test_gain_changes_nothing(music):
    loud, soft = describe(level_of(music)), describe(level_of(music * np.float32(0.25)))
    for name in SIZES:
        assert soft[name] == pytest.approx(loud[name], rel=1e-3, abs=1e-3), name


def test_a_recording_shorter_than_a_frame_is_refused_and_a_frame_is_enough():
    with pytest.raises(DecodeError, match="one frame takes 4096"):
        encode_clip(AudioStatistics(), recording(np.zeros(4000, np.float32)))
    entry = encode_clip(AudioStatistics(), recording(np.zeros(4096, np.float32)))
    assert np.isfinite(entry["audio_statistics"].values).all()
