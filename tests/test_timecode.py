"""Audio files tell when they begin, in every container, and hostile ones tell nothing costly."""

import io
import struct
import time
import tracemalloc
from fractions import Fraction

import pyarrow.parquet as pq
import pytest
import wavinfo
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfuse.features.clock import FrameRate, Pull, Timecode
from mmfuse.features.errors import AlignError, DecodeError
from mmfuse.features.timecode import read_audio_origin

NOON = 12 * 3600 * 48000
MANY = 2**32 + 12345  # needs the high word
W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")
W64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")

# -- files, byte by byte -------------------------------------------------------------------------


def chunk(name, body, size=None):
    return (
        name + struct.pack("<I", len(body) if size is None else size) + body + bytes(len(body) % 2)
    )


def fmt(rate_hz=48000):
    return chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, rate_hz, 2 * rate_hz, 2, 16))


def bext_body(samples, version=1, more=b""):
    """256 description, 32 originator, 32 reference, 10 date, 8 time, then the time reference."""
    return bytes(338) + struct.pack("<QH", samples, version) + bytes(254) + more


def bext(samples, version=1, more=b""):
    return chunk(b"bext", bext_body(samples, version, more))


def ixml(encoding="utf-8", **elements):
    inside = "".join(f"<{name}>{value}</{name}>" for name, value in elements.items())
    text = f'<?xml version="1.0"?><BWFXML><SPEED>{inside}</SPEED></BWFXML>'
    return chunk(b"iXML", text.encode(encoding))


def words(low, high=0, **more):
    return {"TIMESTAMP_SAMPLES_SINCE_MIDNIGHT_HI": high,
            "TIMESTAMP_SAMPLES_SINCE_MIDNIGHT_LO": low, **more}  # fmt: skip


DATA = chunk(b"data", bytes(range(100)))


def wav(*chunks, magic=b"RIFF", size=None):
    body = b"WAVE" + b"".join(chunks)
    return magic + struct.pack("<I", len(body) if size is None else size) + body


def ds64(data_size, table=(), rows=None, riff_size=0):
    body = struct.pack("<QQQI", riff_size, data_size, 0, len(table) if rows is None else rows)
    return chunk(b"ds64", body + b"".join(name + struct.pack("<Q", size) for name, size in table))


def rf64(*chunks, magic=b"RF64", **ds):
    data = chunk(b"data", bytes(100), 0xFFFFFFFF)
    chunks = [data if part is DATA else part for part in chunks]
    riff_size = len(wav(ds64(100, **ds), *chunks)) - 8
    return wav(ds64(100, riff_size=riff_size, **ds), *chunks, magic=magic, size=0xFFFFFFFF)


def w64_chunk(name, body, tail=W64_TAIL):
    return name + tail + struct.pack("<Q", 24 + len(body)) + body + bytes(-len(body) % 8)


def w64(*chunks):
    body = b"wave" + W64_TAIL + b"".join(chunks)
    return W64_RIFF + struct.pack("<Q", 24 + len(body)) + body


def w64_of(*parts):
    """The chunks of a WAV file as those of a Wave64 file."""
    return w64(*(w64_chunk(part[:4], part[8 : 8 + int.from_bytes(part[4:8], "little")])
                 for part in parts))  # fmt: skip


def flac(*blocks, rate_hz=48000):
    info = bytes(10) + (rate_hz << 44 | 15 << 36).to_bytes(8, "big") + bytes(16)
    blocks = [(0, info), *blocks]
    parts = [bytes([kind | 0x80 * (i == len(blocks) - 1)]) + len(body).to_bytes(3, "big") + body
             for i, (kind, body) in enumerate(blocks)]  # fmt: skip
    return b"fLaC" + b"".join(parts) + b"\xff\xf8frames"


def application(name, body):
    return 2, name + body


def comments(*tags):
    size = [struct.pack("<I", len(tag)) + tag for tag in (b"mmfuse", *tags)]
    return 4, size[0] + struct.pack("<I", len(tags)) + b"".join(size[1:])


def flac_of(*parts, **more):
    """FLAC that keeps the chunks of a RIFF file, as `flac --keep-foreign-metadata` writes it."""
    head = application(b"riff", b"RIFF" + bytes(4) + b"WAVE")
    return flac(head, *(application(b"riff", part) for part in parts), **more)


# -- where it is ---------------------------------------------------------------------------------

CONTAINERS = {
    "WAV": wav,
    "RF64": rf64,
    "BW64": lambda *parts: rf64(*parts, magic=b"BW64"),
    "W64": w64_of,
    "FLAC": lambda *parts: flac_of(*(part for part in parts if part is not DATA)),
}
ODD = chunk(b"note", b"odd")


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("samples", [0, 1, NOON, MANY, 2**33 - 1])
def test_bext_is_found_at_any_place(container, samples):
    part = bext(samples)
    for order in ([part, fmt(), DATA], [fmt(), part, DATA], [fmt(), DATA, part],
                  [ODD, fmt(), ODD, DATA, ODD, part, ODD]):  # fmt: skip
        origin = read_audio_origin(CONTAINERS[container](*order))
        assert origin.seconds == Fraction(samples, 48000)
        assert origin.source == ("FLAC riff bext" if container == "FLAC" else "bext")
        assert (origin.time_reference, origin.rate_hz) == (samples, 48000)
        assert origin.frame_rate is None
        assert not [text for text in origin.warnings if "day" not in text]


@pytest.mark.parametrize("container", CONTAINERS)
def test_ixml_counts_where_there_is_no_bext(container):
    part = ixml(**words(12345, 1, TIMECODE_RATE="30000/1001", TIMECODE_FLAG="DF"))
    for order in ([part, fmt(), DATA], [fmt(), DATA, ODD, part]):
        origin = read_audio_origin(CONTAINERS[container](*order))
        assert (origin.seconds, origin.source) == (Fraction(MANY, 48000), "iXML")
        assert origin.frame_rate == FrameRate.parse("29.97df")


@pytest.mark.parametrize("version", [0, 1, 2, 3, 65535])
@pytest.mark.parametrize("more", [b"", b"A=PCM,F=48000\r\n", bytes(100_001)])
def test_any_version_of_bext_is_read(version, more):
    origin = read_audio_origin(wav(bext(NOON, version, more), fmt(), DATA))
    assert (origin.seconds, origin.warnings) == (12 * 3600, ())


def test_a_bext_that_ends_behind_its_time_reference_is_enough():
    body = bext_body(NOON)[:346]
    assert read_audio_origin(wav(chunk(b"bext", body), fmt(), DATA)).seconds == 12 * 3600


def test_seconds_are_counted_at_the_rate_of_the_file():
    assert read_audio_origin(wav(bext(NOON), fmt(44100))).seconds == Fraction(NOON, 44100)
    assert read_audio_origin(flac_of(bext(NOON), rate_hz=96000)).seconds == 6 * 3600


def test_real_recorder_on_a_frame_of_23_976():
    # Sound Devices 702T, frame 0 of 12:39:59:00: seconds are real ones, not those of the label
    origin = read_audio_origin(wav(bext(2190940753), fmt(), DATA))
    label = Timecode.from_seconds(origin.seconds, FrameRate.parse("23.976"))
    assert (label.label, label.subframe) == ("12:39:59:00", 0)


def test_pull_scales_the_rate_only_where_it_is_asked_for():
    data = wav(bext(48048 * 3600), fmt(), DATA, ixml(DIGITIZER_SAMPLE_RATE=48048))
    origin = read_audio_origin(data)
    assert origin.seconds == Fraction(36036, 10)
    assert origin.digitizer_hz == 48048
    assert origin.warnings == ("iXML says DIGITIZER_SAMPLE_RATE 48048 Hz, the file 48000 Hz",)
    up = read_audio_origin(data, Pull.UP)
    assert (up.seconds, up.warnings) == (3600, ())
    assert read_audio_origin(data, Pull.DOWN).seconds == Fraction(36036, 10) * Fraction(1001, 1000)


def test_ixml_counts_at_its_own_rate_and_says_where_it_differs():
    data = wav(fmt(44100), DATA, ixml(**words(NOON, TIMESTAMP_SAMPLE_RATE=48000)))
    origin = read_audio_origin(data)
    assert (origin.seconds, origin.rate_hz) == (12 * 3600, 48000)
    assert "TIMESTAMP_SAMPLE_RATE 48000 Hz, the file 44100 Hz" in origin.warnings[0]
    both = read_audio_origin(wav(bext(NOON), data[12:]))
    assert both.seconds == Fraction(NOON, 44100)
    assert len(both.warnings) == 1


def test_paths_and_open_files_read_as_bytes_do(tmp_path):
    data = wav(fmt(), DATA, bext(NOON))
    (tmp_path / "a.wav").write_bytes(data)
    origin = read_audio_origin(data)
    assert read_audio_origin(tmp_path / "a.wav") == origin
    with (tmp_path / "a.wav").open("rb") as file:
        file.seek(77)
        assert read_audio_origin(file) == origin
    with pytest.raises(DecodeError, match="can't read the audio file"):
        read_audio_origin(tmp_path / "b.wav")


# -- RF64 and Wave64 -----------------------------------------------------------------------------


def test_sizes_beyond_32_bits_come_from_ds64():
    long = chunk(b"junk", bytes(50), 0xFFFFFFFF)
    data = rf64(fmt(), long, DATA, bext(NOON), table=[(b"abcd", 7), (b"junk", 50)])
    assert read_audio_origin(data).seconds == 12 * 3600
    # the size of data is read by the table's own, too, where 32 bits were enough
    assert read_audio_origin(wav(ds64(1), fmt(), DATA, bext(NOON), magic=b"RF64")).seconds == 43200
    lying = rf64(fmt(), long, DATA, bext(NOON), table=[(b"junk", 50)], rows=2**32 - 1)
    assert read_audio_origin(lying).seconds == 12 * 3600


def test_what_was_written_to_a_pipe_has_its_bext_before_the_samples():
    data = chunk(b"data", bytes(100), 0xFFFFFFFF)
    piped = wav(bext(NOON), fmt(), data, size=0xFFFFFFFF)
    assert read_audio_origin(piped).seconds == 12 * 3600
    assert read_audio_origin(wav(fmt(), data, bext(NOON), size=0xFFFFFFFF)) is None


def test_a_wave64_chunk_of_another_guid_is_none_of_ours():
    alien = w64_chunk(b"bext", bext_body(NOON), bytes(12))
    assert read_audio_origin(w64(w64_chunk(b"fmt ", fmt()[8:]), alien)) is None
    odd = w64_chunk(b"junk", bytes(13))
    data = w64(odd, w64_chunk(b"fmt ", fmt()[8:]), odd, w64_chunk(b"bext", bext_body(NOON)))
    assert read_audio_origin(data).seconds == 12 * 3600


def test_a_file_of_five_gigabytes_is_not_read(tmp_path):
    size = 5 * 2**30
    head = wav(ds64(size), fmt(), b"data" + b"\xff" * 4, magic=b"RF64", size=0xFFFFFFFF)
    with (tmp_path / "long.wav").open("wb") as file:
        file.write(head)
        file.seek(size, io.SEEK_CUR)
        file.write(bext(NOON))
    tracemalloc.start()
    began = time.monotonic()
    assert read_audio_origin(tmp_path / "long.wav").seconds == 12 * 3600
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000
    assert time.monotonic() - began < 1


# -- iXML ----------------------------------------------------------------------------------------

SIGNED = 2**32 - 1940552340


@pytest.mark.parametrize(
    ("elements", "samples"),
    [
        (words("-1940552340"), SIGNED),  # Metacorder's
        (words("-1940552340", "-0"), SIGNED),
        (words("0002354414956", "0000000000"), SIGNED),
        (words("+12345", "01"), MANY),
        (words(" 12345\n", "\t1 "), MANY),
        ({"TIMESTAMP_SAMPLES_SINCE_MIDNIGHT_LO": "77"}, 77),
        ({"BWF_TIME_REFERENCE_LOW": "-1940552340", "BWF_TIME_REFERENCE_HIGH": "0"}, SIGNED),
        ({**words("5"), "BWF_TIME_REFERENCE_LOW": "6"}, 5),
        ({**words("none"), "BWF_TIME_REFERENCE_LOW": "6"}, 6),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_ixml_words_are_taken_modulo_2_to_32(elements, samples, encoding):
    origin = read_audio_origin(wav(fmt(), DATA, ixml(encoding, **elements)))
    assert (origin.time_reference, origin.seconds) == (samples, Fraction(samples, 48000))


@pytest.mark.parametrize(
    ("rate", "flag", "name"),
    [
        ("30000/1001", "NDF", "29.97"),
        ("30000/1001", "DF", "29.97df"),
        ("29.97", "DF", "29.97df"),
        ("24000/1001", "", "23.976"),
        ("25/1", "NDF", "25"),
        ("60000/1001", "df", "59.94df"),
    ],
)
def test_ixml_names_the_frame_rate(rate, flag, name):
    part = ixml(TIMECODE_RATE=rate, TIMECODE_FLAG=flag)
    origin = read_audio_origin(wav(bext(NOON), fmt(), DATA, part))
    assert (origin.frame_rate, origin.warnings) == (FrameRate.parse(name), ())


@pytest.mark.parametrize(
    ("rate", "flag"), [("25/1", "DF"), ("0/0", "NDF"), ("2997ND", "NDF"), ("1/0", ""), ("x", "DF")]
)
def test_a_frame_rate_that_can_not_be_is_told(rate, flag):
    part = ixml(TIMECODE_RATE=rate, TIMECODE_FLAG=flag)
    origin = read_audio_origin(wav(bext(NOON), fmt(), DATA, part))
    assert origin.frame_rate is None
    assert "which is no SMPTE rate" in origin.warnings[0]


def test_bext_beats_ixml_beats_tag_with_a_warning():
    origin = read_audio_origin(wav(fmt(), ixml(**words(7)), DATA, bext(NOON)))
    assert (origin.time_reference, origin.source) == (NOON, "bext")
    assert origin.warnings == ("bext says 2073600000 samples, iXML 7; bext counts",)
    assert read_audio_origin(wav(fmt(), ixml(**words(NOON)), bext(NOON))).warnings == ()
    kept = [application(b"riff", part) for part in (ixml(**words(7)), bext(8))]
    origin = read_audio_origin(flac(comments(b"TIME_REFERENCE=9"), *kept))
    assert (origin.time_reference, origin.source) == (8, "FLAC riff bext")
    assert len(origin.warnings) == 2
    assert read_audio_origin(flac(comments(b"time_reference=9"), kept[0])).source == "iXML"


def test_the_first_of_two_counts():
    origin = read_audio_origin(wav(bext(1), fmt(), bext(1), bext(2), ixml(), ixml(**words(1))))
    assert origin.time_reference == 1
    assert origin.warnings == ("more than one bext, and they differ; the first counts",
                               "more than one iXML; the first counts")  # fmt: skip


def test_comments_in_ixml_do_not_count():
    part = chunk(b"iXML", b"<BWFXML><!-- <TIMESTAMP_SAMPLES_SINCE_MIDNIGHT_LO>1</TIMESTAMP_SAMPLES_"
                 b"SINCE_MIDNIGHT_LO> --><SPEED><TIMESTAMP_SAMPLES_SINCE_MIDNIGHT_LO>2</TIMESTAMP_"
                 b"SAMPLES_SINCE_MIDNIGHT_LO></SPEED></BWFXML>\0\0\0")  # fmt: skip
    assert read_audio_origin(wav(fmt(), part)).time_reference == 2


def test_entities_are_never_expanded():
    laughs = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 20))
    text = (f'<?xml version="1.0"?><!DOCTYPE BWFXML [<!ENTITY l0 "1">{laughs}]><BWFXML><SPEED>'
            "<TIMESTAMP_SAMPLES_SINCE_MIDNIGHT_LO>&l19;</TIMESTAMP_SAMPLES_SINCE_MIDNIGHT_LO>"
            "</SPEED></BWFXML>")  # fmt: skip
    tracemalloc.start()
    with pytest.raises(DecodeError, match="no numbers"):
        read_audio_origin(wav(fmt(), DATA, chunk(b"iXML", text.encode())))
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    "bit", [b"<", b"<A>", b"<!--", b"<A>" + b"b" * 63, b"</A>", b"<AAAAAAAA", b" "]
)
def test_markup_without_end_is_read_in_linear_time(bit):
    part = chunk(b"iXML", bit * (5_000_000 // len(bit)))
    began = time.monotonic()
    assert read_audio_origin(wav(fmt(), DATA, part)) is None
    assert time.monotonic() - began < 3


# -- FLAC ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", [b"time_reference=2073600000", b"TIME_REFERENCE= 2073600000\x1d"])
def test_the_tag_that_ffmpeg_writes_is_read(tag):
    origin = read_audio_origin(flac(comments(b"TITLE=a", b"X=" + b"x" * 1000, tag, b"Y=z")))
    assert (origin.seconds, origin.source) == (12 * 3600, "FLAC tag")


def test_chunks_of_a_wave64_file_are_kept_in_flac_too():
    kept = [application(b"w64 ", w64_chunk(b"bext", bext_body(NOON)))]
    assert read_audio_origin(flac(*kept)).seconds == 12 * 3600


def test_blocks_after_the_last_are_samples():
    data = flac(application(b"riff", bext(NOON)))
    assert read_audio_origin(flac() + data[46:]) is None


# -- nothing, or nothing good --------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"RIFF", b"a text", b"OggS" + bytes(100), b"FORM1234AIFF" + bytes(50)),
        *(wav(), wav(fmt(), DATA), rf64(fmt(), DATA), w64(), flac(), flac(comments(b"A=b"))),
        *(wav(fmt(), ixml(TIMECODE_RATE="25/1")), wav(fmt(), chunk(b"bxet", bext_body(1)))),
        b"\xff\xfb\x90\x00" + bytes(99),
    ],
)
def test_a_file_that_says_nothing_has_no_origin(data):
    assert read_audio_origin(data) is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (wav(fmt(), DATA, chunk(b"bext", bytes(345))), "bext of 345 bytes"),
        (wav(bext(NOON), DATA), "a rate that is 0"),
        (wav(bext(NOON), fmt(0)), "a rate that is 0"),
        (wav(fmt(), ixml(**words("1e9"))), "no numbers"),
        (wav(fmt(), ixml(**words("9" * 21))), "no numbers"),
        (flac(comments(b"TIME_REFERENCE=noon")), "'noon' is no number"),
    ],
)
def test_an_origin_that_can_not_be_read_is_told(data, message):
    with pytest.raises(DecodeError, match=message) as caught:
        read_audio_origin(data)
    assert caught.value.reason == "bad_origin"


def test_more_than_a_day_is_told():
    origin = read_audio_origin(wav(fmt(), bext(2**64 - 1)))
    assert origin.seconds == Fraction(2**64 - 1, 48000)
    assert origin.warnings == ("bext counts 18446744073709551615 samples, more than a day",)


GOOD = [make(bext(NOON), fmt(), ODD, ixml(**words(MANY, TIMECODE_RATE="25/1")), DATA)
        for make in CONTAINERS.values()]  # fmt: skip
GOOD.append(flac(comments(b"A=b", b"TIME_REFERENCE=12"), application(b"w64 ", bytes(40))))


def survives(data):
    began = time.monotonic()
    try:
        origin = read_audio_origin(data)
        assert origin is None or isinstance(origin.seconds, Fraction)
    except (DecodeError, AlignError):
        pass
    assert time.monotonic() - began < 2


def test_every_cut_is_survived():
    for data in GOOD:
        for end in range(len(data)):
            survives(data[:end])


@settings(max_examples=1500, deadline=None)
@given(st.sampled_from(GOOD), st.data())
def test_flipped_bits_and_random_bytes_are_survived(good, data):
    spoilt = bytearray(good)
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(spoilt) - 1))
        spoilt[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(spoilt) - 8))
        spoilt[place : place + 8] = data.draw(st.sampled_from([b"\xff" * 8, bytes(8),
                                                               b"\xff" * 7 + b"\x7f"]))  # fmt: skip
    survives(bytes(spoilt[: data.draw(st.integers(1, len(spoilt)))]))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([b"RIFF1234WAVE", b"RF64\xff\xff\xff\xffWAVE", W64_RIFF, b"fLaC"]),
       st.binary(max_size=400))  # fmt: skip
def test_random_bytes_behind_a_magic_are_survived(magic, data):
    survives(magic + data)


@pytest.mark.parametrize("size", [0, 7, 2**31, 2**32 - 2, 2**32 - 1])
def test_sizes_that_lie_allocate_nothing(size):
    huge = struct.pack("<Q", 2**63 + size)
    files = [wav(chunk(name, bytes(4), size), fmt(), bext(1))
             for name in (b"fmt ", b"bext", b"iXML", b"data", b"ds64", b"LIST")]  # fmt: skip
    files += [w64(name + W64_TAIL + huge + bytes(30)) for name in (b"fmt ", b"bext", b"iXML")]
    files += [rf64(fmt(), DATA, bext(1), table=[(b"bext", 2**64 - 1), (b"data", 2**63)]),
              wav(ds64(2**64 - 1), fmt(), chunk(b"data", b"", 0xFFFFFFFF), magic=b"RF64"),
              flac(application(b"riff", b"iXML" + struct.pack("<I", size))),
              flac(application(b"w64 ", b"bext" + W64_TAIL + huge)),
              flac((4, struct.pack("<II", size, 2**32 - 1) + b"\xff" * 99)),
              flac((4, struct.pack("<III", 0, 2**32 - 1, size) + b"\xff" * 99))]  # fmt: skip
    tracemalloc.start()
    for data in files:
        survives(data)
    assert tracemalloc.get_traced_memory()[1] < 200_000
    tracemalloc.stop()


def test_chunks_without_end_are_left_after_a_while():
    began = time.monotonic()
    assert read_audio_origin(wav(fmt(), bytes(8 * 2_000_000), bext(NOON))) is None
    assert read_audio_origin(flac(*[(1, b"")] * 100_000, application(b"riff", bext(1)))) is None
    assert read_audio_origin(wav(fmt(), chunk(b"junk", b"") * 9_000, bext(1))).time_reference == 1
    assert time.monotonic() - began < 2


# -- beside the package `wavinfo` ----------------------------------------------------------------


@pytest.mark.parametrize("container", ["WAV", "RF64", "BW64"])
@pytest.mark.parametrize("samples", [0, NOON, MANY])
def test_bext_agrees_with_another_package(container, samples):
    for order in ([bext(samples, 0), fmt(), DATA], [fmt(), ODD, DATA, ODD, bext(samples, 2)]):
        data = CONTAINERS[container](*order)
        theirs = wavinfo.WavInfoReader(io.BytesIO(data))
        assert theirs.bext.time_reference == read_audio_origin(data).time_reference == samples


def test_where_the_other_package_is_wrong():
    only_ixml = wav(fmt(), DATA, ixml(**words(NOON)))
    theirs = wavinfo.WavInfoReader(io.BytesIO(only_ixml))
    assert theirs.bext is None
    assert not any("timestamp" in name for name in dir(theirs.ixml))  # has the XML, not the time
    assert read_audio_origin(only_ixml).seconds == 12 * 3600
    short = wav(chunk(b"bext", bext_body(NOON)[:346]), fmt(), DATA)
    with pytest.raises(struct.error):
        wavinfo.WavInfoReader(io.BytesIO(short))
    assert read_audio_origin(short).seconds == 12 * 3600
    piped = wav(bext(NOON), fmt(), chunk(b"data", bytes(4), 0xFFFFFFFF), size=0xFFFFFFFF)
    with pytest.raises(AssertionError):
        wavinfo.WavInfoReader(io.BytesIO(piped))
    assert read_audio_origin(piped).seconds == 12 * 3600
    unsized = wav(ds64(100), fmt(), DATA, bext(NOON), magic=b"RF64", size=0xFFFFFFFF)
    with pytest.raises(StopIteration):  # for a size of the whole file that is 0
        wavinfo.WavInfoReader(io.BytesIO(unsized))
    assert read_audio_origin(unsized).seconds == 12 * 3600


# -- the real corpus -----------------------------------------------------------------------------


def test_bext_of_the_real_corpus_is_what_its_manifest_says(lieder8):
    found = 0
    for row in pq.read_table(lieder8 / "manifest.parquet").to_pylist():
        if row["audio_path"] is None:
            continue
        origin = read_audio_origin(lieder8 / row["audio_path"])
        assert (origin is not None) == ("bwf_bext" in row["notes"])
        if origin is not None:
            start = Timecode.parse(row["audio_smpte_start"], FrameRate.parse(row["smpte_rate"]))
            assert origin.rate_hz == row["audio_sample_rate"]
            assert origin.time_reference == round(start.seconds * origin.rate_hz)
            assert origin.warnings == ()
            found += 1
    assert found == 27
