"""Log-mel values are librosa's, each at the middle of its own window, whatever the threads."""

import subprocess
import sys
from fractions import Fraction

import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from mmfuse.features import logmel
from mmfuse.features.audio import Audio, resample
from mmfuse.features.encoders import encode_clip
from mmfuse.features.errors import ConfigError, DecodeError
from mmfuse.features.logmel import LogMel, LogMelParams, logmel_spec
from mmfuse.features.spec import frame_times_s

RATE_HZ = 16_000
MEL = LogMel()


def music(seconds: float, rate_hz: int = RATE_HZ) -> np.ndarray:
    rng = np.random.default_rng(2)
    t_s = np.arange(int(seconds * rate_hz)) / rate_hz
    tones = sum(np.sin(2 * np.pi * 220 * k * t_s) / k for k in range(1, 9))
    return (0.1 * tones + 0.001 * rng.standard_normal(len(t_s))).astype(np.float32)


def audio_of(samples_N: np.ndarray, rate_hz: int = RATE_HZ) -> Audio:
    return Audio(samples_N, rate_hz, 1, len(samples_N), "WAV")


def librosa_db(samples_N: np.ndarray, params: LogMelParams) -> np.ndarray:
    power_MT = librosa.feature.melspectrogram(
        y=samples_N.astype(np.float64),
        sr=params.rate_hz,
        n_fft=params.n_fft,
        hop_length=params.hop,
        n_mels=params.n_mels,
        fmin=params.f_min_hz,
        fmax=params.f_max_hz,
        center=False,
        htk=False,
        norm="slaney",
        power=2.0,
        dtype=np.float64,
    )
    db_TM: np.ndarray = librosa.power_to_db(power_MT, ref=1.0, amin=1e-10, top_db=None).T
    return db_TM


@pytest.mark.parametrize(
    "params",
    [
        LogMelParams(),
        LogMelParams(hop=160, n_mels=64),
        LogMelParams(n_fft=2048, n_mels=128, f_min_hz=50, f_max_hz=7600),
        LogMelParams(rate_hz=22_050, n_fft=1000, hop=333, n_mels=40, f_max_hz=11_025),
    ],
)
def test_values_are_those_of_librosa(params):
    samples_N = music(2.3, params.rate_hz)
    samples_N[8000:16_000] *= 1e-4  # quiet, down to the floor
    samples_N[16_000:20_000] = 0
    ours_TM, theirs_TM = LogMel(params).decibels(samples_N), librosa_db(samples_N, params)
    assert ours_TM.shape == theirs_TM.shape
    assert ours_TM.dtype == np.float32
    assert np.abs(ours_TM - theirs_TM).max() < 1e-4


def test_an_entry_holds_the_rounded_values_of_the_resampled_clip():
    samples_N = music(1.5, 44_100)
    entry = encode_clip(MEL, audio_of(samples_N, 44_100))["logmel"]
    db_TM = MEL.decibels(resample(samples_N, 44_100, RATE_HZ))
    assert np.array_equal(entry.values, db_TM.astype(np.float16))
    assert entry.values.dtype == MEL.specs[0].dtype == "float16"
    assert entry.values.flags.c_contiguous
    assert (entry.origin_s, entry.note) == (0, "")
    assert entry.windows == ((Fraction(0), len(db_TM)),)


def test_float32_is_kept_when_asked_for():
    mel = LogMel(LogMelParams(dtype="float32"))
    samples_N = music(0.5)
    assert np.array_equal(
        encode_clip(mel, audio_of(samples_N))["logmel"].values, mel.decibels(samples_N)
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1024, 6000))
def test_frames_are_counted_without_padding(samples):
    db_TM = MEL.decibels(np.zeros(samples, np.float32))
    assert db_TM.shape == (1 + (samples - 1024) // 320, 80)
    assert (db_TM == -100).all()  # the floor of 1e-10


@pytest.mark.parametrize("click", [512, 5000, 8000, 11_111, 15_000])
def test_a_click_is_loudest_in_the_frame_whose_time_is_nearest(click):
    samples_N = np.zeros(RATE_HZ, np.float32)
    samples_N[click] = 1
    entry = encode_clip(MEL, audio_of(samples_N))["logmel"]
    times_s = frame_times_s(MEL.specs[0].timing, (), entry.values, entry.origin_s, entry.windows)
    loudness_T = entry.values.astype(np.float64).sum(axis=1)
    assert np.argmax(loudness_T) == np.argmin(np.abs(times_s - click / RATE_HZ))


def test_the_first_time_is_the_middle_of_the_first_window():
    timing = MEL.specs[0].timing
    assert (timing.first_s, timing.hop_s) == (Fraction(32, 1000), Fraction(20, 1000))
    assert timing.kind == "frames"


def test_one_thread_or_two_give_the_same_bytes():
    samples_N = music(70)  # more than one block of frames
    stored = []
    for count in (1, 2):
        with threadpool_limits(count):
            stored.append(encode_clip(LogMel(), audio_of(samples_N))["logmel"].values.tobytes())
    assert stored[0] == stored[1]


def test_it_does_not_wait_for_torch():
    code = """
import sys
import numpy as np
from mmfuse.features.logmel import LogMel
LogMel().decibels(np.zeros(2000, np.float32))
print("torch" in sys.modules, "scipy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_block_size_does_not_show(monkeypatch):
    samples_N = music(3)
    whole = encode_clip(MEL, audio_of(samples_N))["logmel"].values
    for frames in (1, 7, 64):
        monkeypatch.setattr(logmel, "_BLOCK_FRAMES", frames)
        assert np.array_equal(encode_clip(MEL, audio_of(samples_N))["logmel"].values, whole)


def test_a_frame_depends_on_its_own_samples_only():
    samples_N = music(2)
    louder_N = samples_N.copy()
    louder_N[RATE_HZ:] *= 100
    until = (RATE_HZ - 1024) // 320
    assert np.array_equal(MEL.decibels(samples_N)[:until], MEL.decibels(louder_N)[:until])


@pytest.mark.parametrize("samples", [0, 1, 1023])
def test_a_clip_shorter_than_a_frame_is_too_short(samples):
    with pytest.raises(DecodeError, match=f"{samples} samples .* one frame takes 1024") as caught:
        encode_clip(MEL, audio_of(np.zeros(samples, np.float32)))
    assert caught.value.reason == "too_short"


def test_values_that_can_not_be_stored_are_refused():
    with pytest.raises(DecodeError, match="can't hold") as caught:
        encode_clip(MEL, audio_of(np.full(2000, np.nan, np.float32)))
    assert caught.value.reason == "non_finite"


def test_a_band_without_a_bin_is_refused():
    with pytest.raises(ConfigError, match="raise n_fft or lower n_mels"):
        LogMel(LogMelParams(n_fft=256, n_mels=128))


def test_default_bands_each_hold_a_bin():
    basis_MF = librosa.filters.mel(sr=RATE_HZ, n_fft=1024, n_mels=80, fmax=8000)
    assert (basis_MF.max(axis=1) > 0).all()  # by librosa's account too


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"hop": 0}, "at least 1"),
        ({"n_mels": -1}, "at least 1"),
        ({"f_min_hz": 8000.0}, "must rise"),
        ({"f_min_hz": -1.0}, "must rise"),
        ({"f_max_hz": 8001.0}, "at most half of rate_hz"),
        ({"f_max_hz": float("nan")}, "must rise"),
        ({"dtype": "float64"}, "choose float16 or float32"),
    ],
)
def test_impossible_parameters_are_refused(wrong, words):
    with pytest.raises(ConfigError, match=words):
        LogMelParams(**wrong)


def test_the_spec_says_all_that_changes_values():
    plain = logmel_spec()
    assert plain == MEL.specs[0]
    assert plain.params["decoder"] == "soundfile"
    assert plain.params["resampler"] == "soxr-VHQ"
    changed = [{"hop": 160}, {"n_mels": 64}, {"f_max_hz": 7999.0}, {"n_fft": 2048},
               {"rate_hz": 22_050}, {"f_min_hz": 1.0}, {"dtype": "float32"}]  # fmt: skip
    prints = {logmel_spec(LogMelParams(**change)).fingerprint for change in changed}
    assert len(prints | {plain.fingerprint}) == len(changed) + 1
