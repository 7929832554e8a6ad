"""Audio bytes become the samples that libsndfile reads, or one DecodeError with a stable reason."""

import io
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfuse.features.audio import AudioLimits, probe_audio, read_audio, resample
from mmfuse.features.errors import DecodeError

LIEDER = Path(__file__).parents[2] / "shared" / "data" / "lieder8"
RATE_HZ = 16_000
REASONS = {"empty", "not_audio", "codec", "damaged", "truncated", "no_samples", "non_finite",
           "too_long", "too_large", "channels", "rate"}  # fmt: skip
W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")


def short(value: object) -> str | None:
    return f"{len(value)}_bytes" if isinstance(value, bytes) else None


def noise(frames: int = 3000, channels: int = 2) -> np.ndarray:
    rng = np.random.default_rng(5)
    return (0.1 * rng.standard_normal((frames, channels))).clip(-1, 1).astype(np.float32)


def encoded(kind: str, subtype: str | None = None, samples_NC: np.ndarray | None = None) -> bytes:
    buffer = io.BytesIO()
    samples_NC = noise() if samples_NC is None else samples_NC
    soundfile.write(buffer, samples_NC, RATE_HZ, format=kind, subtype=subtype)
    return buffer.getvalue()


def wav(samples: bytes, *, tag: int = 1, channels: int = 1, rate_hz: int = RATE_HZ,
        bits: int = 16, data_size: int | None = None, extra: bytes = b"") -> bytes:  # fmt: skip
    frame = channels * bits // 8
    fmt = struct.pack("<HHIIHH", tag, channels, rate_hz, rate_hz * frame & 0xFFFFFFFF, frame, bits)
    size = len(samples) if data_size is None else data_size
    body = b"WAVEfmt " + struct.pack("<I", 16) + fmt + extra + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", (len(body) + size) & 0xFFFFFFFF) + body + samples


def reason_of(data: bytes, *limits: AudioLimits) -> str:
    with pytest.raises(DecodeError) as caught:
        read_audio(data, *limits)
    return caught.value.reason


KINDS = [("WAV", "PCM_U8"), ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "PCM_32"),
         ("WAV", "FLOAT"), ("WAV", "DOUBLE"), ("WAV", "ULAW"), ("WAVEX", "PCM_24"),
         ("RF64", "PCM_16"), ("RF64", "FLOAT"), ("W64", "PCM_24"), ("AIFF", "PCM_S8"),
         ("AIFF", "PCM_16"), ("AIFF", "FLOAT"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24"),
         ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")]  # fmt: skip
FILES = {(kind, subtype): encoded(kind, subtype) for kind, subtype in KINDS}
BW64 = b"BW64" + FILES["RF64", "PCM_16"][4:]


@pytest.mark.parametrize(("kind", "subtype"), KINDS)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_container_decodes_to_the_mean_of_the_channels(kind, subtype, channels):
    data = encoded(kind, subtype, noise(channels=channels))
    theirs_NC, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    mean_N = theirs_NC.mean(axis=1, dtype=np.float64).astype(np.float32)
    audio = read_audio(data)
    # an MP3 decoder that has been wound back differs from a fresh one in the last bit
    np.testing.assert_allclose(audio.samples_N, mean_N, rtol=0, atol=1e-7 * (kind == "MP3"))
    assert audio.samples_N.dtype == np.float32
    assert audio.samples_N.flags.c_contiguous
    assert (audio.rate_hz, audio.channels, audio.format) == (RATE_HZ, channels, kind)
    assert audio.frames == len(audio.samples_N) == 3000
    assert audio.duration_s == 3000 / RATE_HZ
    assert probe_audio(data).frames == 3000


def test_five_channels_are_one_mean():
    samples_NC = noise(channels=5)
    mean_N = samples_NC.mean(axis=1, dtype=np.float64).astype(np.float32)
    assert np.array_equal(read_audio(encoded("WAV", "FLOAT", samples_NC)).samples_N, mean_N)


def test_integers_are_scaled_by_their_full_range():
    data = wav(struct.pack("<4h", -32768, 0, 1, 32767))
    assert read_audio(data).samples_N.tolist() == [-1, 0, 1 / 32768, 32767 / 32768]


def test_float_files_keep_samples_above_full_scale():
    assert read_audio(wav(struct.pack("<2f", 1.5, -3), tag=3, bits=32)).samples_N.tolist() == [
        1.5,
        -3,
    ]


def test_opposite_channels_cancel():
    audio = read_audio(wav(struct.pack("<4h", 1000, -1000, 7, -7), channels=2))
    assert audio.samples_N.tolist() == [0, 0]


@pytest.mark.parametrize("frames", [1, (1 << 17) - 1, 1 << 17, (1 << 17) + 1, 300_000])
def test_lengths_around_a_block_lose_and_repeat_nothing(frames):
    samples_NC = np.resize(noise(), (frames, 2))
    audio = read_audio(encoded("WAV", "FLOAT", samples_NC))
    assert np.array_equal(audio.samples_N, samples_NC.mean(1, dtype=np.float64).astype(np.float32))


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "AIFF", "MP3"])
def test_the_magic_names_the_container(kind):
    # only bytes come in: a name or an ending could not mislead
    assert probe_audio(encoded(kind)).format == kind


def test_bw64_is_read_as_rf64():
    same = read_audio(FILES["RF64", "PCM_16"]).samples_N
    assert np.array_equal(read_audio(BW64).samples_N, same)


def test_chunks_before_and_after_the_samples_are_skipped():
    chunk = b"bext" + struct.pack("<I", 5) + b"abcde\0"
    samples = struct.pack("<3h", 1, 2, 3)
    assert read_audio(wav(samples, extra=chunk) + chunk).frames == 3


def test_a_chunk_after_wave64_samples_does_not_become_samples():
    chunk = b"note" + W64_TAIL + struct.pack("<Q", 24 + 800) + b"\x11" * 800
    plain = FILES["W64", "PCM_24"]
    assert np.array_equal(read_audio(plain + chunk).samples_N, read_audio(plain).samples_N)


@pytest.mark.parametrize("kind", ["FLAC", "MP3"])
def test_id3_tags_at_either_end_are_skipped(kind):
    plain = encoded(kind)
    front, back = b"ID3\x03\0\0\0\0\0\x0a" + bytes(10), b"TAG" + bytes(125)
    for data in (front + plain, plain + back):
        assert np.array_equal(read_audio(data).samples_N, read_audio(plain).samples_N)


def test_a_wav_written_to_a_pipe_is_read_to_its_end():
    assert read_audio(wav(struct.pack("<3h", 1, 2, 3), data_size=0xFFFFFFFF)).frames == 3


def test_no_bytes():
    with pytest.raises(DecodeError, match="0 bytes") as caught:
        read_audio(b"")
    assert caught.value.reason == "empty"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"hello, this is take_07.wav\n", "look like text"),
        ("\ufeffhello, take_07.wav".encode("utf-16-le"), "UTF-16 text"),
        (b"<!doctype html><title>404</title>", "HTML"),
        (b"MThd\0\0\0\6\0\1\0\1\1\xe0", "a MIDI file"),
        (bytes(1000), "zeros"),
        (b"\0\0\0\x20ftypM4A ", "MP4 or M4A"),
        (b"\x80\x81\x82\x83" * 9, "no known kind of file"),
        (b"RIFF\x04\0\0\0AVI ", "RIFF file that is not WAVE"),
    ],
    ids=short,
)
def test_what_is_no_audio_is_named(data, words):
    with pytest.raises(DecodeError, match=words) as caught:
        read_audio(data)
    assert caught.value.reason == "not_audio"
    assert "expected WAV" in str(caught.value)


@pytest.mark.parametrize("kind", ["WAV", "RF64", "W64", "AIFF", "OGG"])
def test_a_file_without_samples(kind):
    assert reason_of(encoded(kind, None, noise(0))) == "no_samples"


@pytest.mark.parametrize(("kind", "subtype"), [key for key in KINDS if key[0] != "MP3"])
def test_a_cut_file_is_truncated_wherever_it_is_cut(kind, subtype):
    data = FILES[kind, subtype]
    cuts = [*range(40, 140, 7), *range(140, len(data), len(data) // 20), len(data) - 1]
    assert {reason_of(data[:cut]) for cut in cuts} == {"truncated"}


def test_a_cut_mp3_with_a_xing_tag_is_truncated():
    data = FILES["MP3", "MPEG_LAYER_III"]
    assert {reason_of(data[: len(data) * part // 10]) for part in (3, 5, 9)} == {"truncated"}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(bad):
    samples_NC = noise(5000, 1)
    samples_NC[4321] = bad
    with pytest.raises(DecodeError, match="NaN or infinity") as caught:
        read_audio(encoded("WAV", "FLOAT", samples_NC))
    assert caught.value.reason == "non_finite"


def test_doubles_beyond_float32_are_refused():
    assert reason_of(wav(struct.pack("<2d", 0.5, 1e300), tag=3, bits=64)) == "non_finite"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encoded("WAV", "MS_ADPCM"), "WAV codec 0x0002"),
        (encoded("W64", "IMA_ADPCM"), "W64 codec 0x0011"),
        (encoded("AIFF", "IMA_ADPCM"), "AIFF-C b'ima4'"),
        (encoded("OGG", "VORBIS") * 2, "several Ogg streams"),
    ],
    ids=short,
)
def test_codecs_that_are_not_read_say_so(data, words):
    with pytest.raises(DecodeError, match=words) as caught:
        read_audio(data)
    assert caught.value.reason == "codec"


def test_ogg_streams_that_take_turns_are_refused_as_several():
    first, other = FILES["OGG", "VORBIS"], FILES["OGG", "OPUS"]
    page = 27 + first[26] + sum(first[27 : 27 + first[26]])
    assert reason_of(first[:page] + other) == "codec"


def test_a_flipped_bit_in_ogg_or_flac_is_found():
    for key in (("OGG", "VORBIS"), ("OGG", "OPUS"), ("FLAC", "PCM_16")):
        data = bytearray(FILES[key])
        data[len(data) * 2 // 3] ^= 4
        assert reason_of(bytes(data)) == "damaged"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (wav(bytes(64), data_size=0x7FFFFFFF), "truncated"),
        (wav(bytes(64), rate_hz=0xFFFFFFFF), "damaged"),
        (wav(bytes(64), rate_hz=1), "rate"),
        (wav(bytes(64), rate_hz=0), "damaged"),
        (wav(bytes(260), channels=65), "channels"),
        (wav(bytes(64), channels=0), "damaged"),
        (FILES["FLAC", "PCM_16"][:21] + b"\x0f\xff\xff\xff\xff", "truncated"),
        (FILES["FLAC", "PCM_16"][:4] + b"\0\xff\xff\xff", "truncated"),
        (FILES["RF64", "PCM_16"][:20] + b"\xff" * 24, "truncated"),
    ],
    ids=short,
)
def test_hostile_headers_are_refused_at_once(data, reason):
    started = time.perf_counter()
    assert reason_of(data) == reason
    assert time.perf_counter() - started < 5


def test_a_flac_that_declares_weeks_is_too_long_before_decoding():
    data = bytearray(FILES["FLAC", "PCM_16"])
    data[21] |= 0x0F  # the top four of 36 bits of its length
    with pytest.raises(DecodeError, match="up to 21600 s are read") as caught:
        probe_audio(bytes(data))
    assert caught.value.reason == "too_long"


def test_limits_hold():
    data = FILES["WAV", "PCM_16"]
    assert reason_of(data, AudioLimits(channels=1)) == "channels"
    assert reason_of(data, AudioLimits(min_rate_hz=16_001)) == "rate"
    assert reason_of(data, AudioLimits(max_rate_hz=15_999)) == "rate"
    assert reason_of(data, AudioLimits(duration_s=0)) == "too_long"
    assert reason_of(data, AudioLimits(decoded_bytes=3000 * 2 * 4 - 1)) == "too_large"
    assert read_audio(data, AudioLimits(decoded_bytes=3000 * 2 * 4)).frames == 3000


def only_decode_errors(data: bytes) -> None:
    started = time.perf_counter()
    for reader in (read_audio, probe_audio):
        try:
            reader(data)
        except DecodeError as error:
            assert error.reason in REASONS
            assert str(error)
    assert time.perf_counter() - started < 5


sources = st.sampled_from([*FILES.values(), BW64])


@settings(max_examples=150, deadline=None)
@given(sources, st.data())
def test_cut_files_raise_decode_errors_only(data, draw):
    only_decode_errors(data[: draw.draw(st.integers(0, len(data)))])


@settings(max_examples=300, deadline=None)
@given(sources, st.data())
def test_damaged_files_raise_decode_errors_only(data, draw):
    damaged = bytearray(data)
    place = st.integers(0, 199) | st.integers(0, len(data) - 1)
    for at, value in draw.draw(st.lists(st.tuples(place, st.integers(0, 255)), max_size=6)):
        damaged[at] = value
    only_decode_errors(bytes(damaged))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([data[:12] for data in FILES.values()] + [b"ID3"]), st.binary(max_size=300))
def test_noise_after_a_magic_raises_decode_errors_only(magic, noise_bytes):
    only_decode_errors(magic + noise_bytes)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([8000, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000]),
    st.sampled_from([16_000, 24_000, 48_000]),
    st.integers(1, 20_000),
)
def test_resampling_gives_the_length_rounded(from_hz, to_hz, frames):
    out_N = resample(np.zeros(frames, np.float32), from_hz, to_hz)
    assert abs(len(out_N) - frames * to_hz / from_hz) <= 0.5
    assert out_N.dtype == np.float32
    assert out_N.flags.c_contiguous


@pytest.mark.parametrize(("from_hz", "to_hz"), [(44_100, 16_000), (16_000, 48_000)])
def test_resampling_keeps_a_sine_and_its_place_in_time(from_hz, to_hz):
    def sine(rate_hz: int) -> np.ndarray:
        return np.sin(2 * np.pi * 440 * np.arange(rate_hz) / rate_hz).astype(np.float32)

    error_N = resample(sine(from_hz), from_hz, to_hz) - sine(to_hz)
    inner = slice(to_hz // 10, -to_hz // 10)
    assert np.abs(error_N[inner]).max() < 2e-6


def test_a_click_stays_where_it_was():
    click_N = np.zeros(44_100, np.float32)
    click_N[22_050] = 1
    assert np.argmax(resample(click_N, 44_100, 16_000)) == 8000


def test_equal_rates_give_the_same_array():
    samples_N = noise(10, 1)[:, 0]
    assert resample(samples_N, 48_000, 48_000) is samples_N


@pytest.mark.skipif(not LIEDER.exists(), reason="lieder8 corpus is not beside the project")
def test_real_files_decode_as_soundfile_does():
    paths = sorted((LIEDER / "audio").iterdir())
    some = [
        path
        for ending in (".ogg", ".flac", ".wav")
        for path in [path for path in paths if path.suffix == ending][:4]
    ]
    assert len(some) == 12
    for path in some:
        theirs_NC, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
        audio = read_audio(path.read_bytes())
        mean_N = theirs_NC.mean(axis=1, dtype=np.float64).astype(np.float32)
        assert (audio.rate_hz, audio.channels) == (rate_hz, theirs_NC.shape[1])
        assert np.array_equal(audio.samples_N, mean_N)
