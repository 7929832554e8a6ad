"""Whose word counts on when audio and MIDI begin: the manifest's, then the files'."""

import json
import shutil
import struct
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mmfuse.features import notes
from mmfuse.features.clip import Clip, Origins, Source
from mmfuse.features.clock import FrameRate, Timecode
from mmfuse.features.config import FeatureConfig, MidiPreprocessing, Preprocessing
from mmfuse.features.corpus import open_corpus
from mmfuse.features.errors import AlignError
from mmfuse.features.midi_file import read_midi
from mmfuse.features.origins import align, midi_offset_s, needs_files
from mmfuse.features.store import open_store
from mmfuse.features.timecode import AudioOrigin, read_audio_origin
from mmfuse.pipeline.makers import MidiMaker
from mmfuse.pipeline.progress import Progress
from mmfuse.pipeline.run import make_features
from mmfuse.pipeline.scan import scan_corpus

HERE = Source("here", Path(), data=b"")


def clip_of(rate=None, audio=None, midi=None, audio_s=None, midi_s=None):
    return Clip("c", audio=HERE, midi=HERE, origins=Origins(rate, audio, midi, audio_s, midi_s))


def tc(label, rate):
    return Timecode.parse(label, FrameRate.parse(rate))


def bext(label, rate, **more):
    seconds = tc(label, rate).seconds
    return AudioOrigin(seconds, "bext", round(seconds * 48000), 48000, **more)


# -- precedence ----------------------------------------------------------------------------------


def test_the_manifest_comes_first_and_then_says_nothing():
    clip = clip_of("25", "01:00:00:00", "01:00:00:05")
    assert midi_offset_s(clip) == (Fraction(1, 5), "")
    assert not needs_files(clip)
    same = align(clip, bext("01:00:00:00", "25"), tc("01:00:00:05", "25"))
    assert (same.offset_s, same.sources, same.note) == (Fraction(1, 5), "manifest", "")


def test_a_file_that_contradicts_the_manifest_is_told():
    clip = clip_of("25", "01:00:00:00", "01:00:00:05")
    told = align(clip, bext("02:00:00:00", "25"), tc("01:00:00:04", "25"))
    assert told.offset_s == Fraction(1, 5)
    assert told.doubts == ("bext is +3600.000 s from the manifest, which counts",
                           "FF 54 is -0.040 s from the manifest, which counts")  # fmt: skip
    # half a frame is what rounding to samples and to frames may do
    near = replace(bext("01:00:00:00", "25"), seconds=Fraction(3600) + Fraction(1, 50))
    assert align(clip, near).doubts == ()
    # across midnight too
    clip = clip_of("25", "00:00:00:00", "00:00:00:00")
    assert align(clip, bext("23:59:59:24", "25")).doubts == (
        "bext is -0.040 s from the manifest, which counts",
    )


def test_what_the_manifest_leaves_open_comes_from_the_files():
    audio, midi = bext("01:00:00:00", "25"), tc("01:00:00:05", "25")
    for clip, sources in (
        (clip_of(), "bext and FF 54"),
        (clip_of("25"), "bext and FF 54"),
        (clip_of("25", audio="01:00:00:00"), "manifest and FF 54"),
        (clip_of("25", midi="01:00:00:05"), "bext and manifest"),
        (clip_of("25", midi_s="3600.2"), "bext and manifest"),
    ):
        assert needs_files(clip)
        assert midi_offset_s(clip, audio, midi) == (Fraction(1, 5), f"aligned by {sources}")


def test_one_start_alone_is_told_whoever_gives_it():
    audio, midi = bext("01:00:00:00", "25"), tc("01:00:00:05", "25")
    no_audio = (0, "no time origin of the audio: aligned at zero")
    no_midi = (0, "no time origin of the MIDI: aligned at zero")
    assert midi_offset_s(clip_of(), None, midi) == no_audio
    assert midi_offset_s(clip_of(), audio, None) == no_midi
    assert midi_offset_s(clip_of("25", midi="01:00:00:00")) == no_audio
    assert midi_offset_s(clip_of("25", audio="01:00:00:00"), audio) == no_midi
    assert midi_offset_s(clip_of()) == (0, "no time origins: aligned at zero")


def test_without_audio_the_clip_begins_with_its_midi():
    clip = Clip("c", midi=HERE, origins=Origins("25", None, "01:00:00:00"))
    assert midi_offset_s(clip, None, tc("02:00:00:00", "25")) == (0, "")


def test_seconds_of_no_day_are_not_set_against_times_of_day():
    audio, midi = bext("01:00:00:00", "25"), tc("01:00:00:05", "25")
    for clip in (clip_of(audio_s="12.5"), clip_of(midi_s="12.5")):
        offset_s, note = midi_offset_s(clip, audio, midi)
        assert offset_s == 0
        assert note.startswith("one start in plain seconds, the other a time of day: aligned at")
    assert midi_offset_s(clip_of(audio_s="1", midi_s="2"), audio, midi) == (1, "")


def test_a_manifest_that_can_not_be_read_is_an_error_as_before():
    with pytest.raises(AlignError, match="fill the column smpte_rate"):
        align(clip_of(audio="01:00:00:00"), None, tc("01:00:00:00", "25"))


def test_warnings_of_the_file_are_passed_on():
    audio = bext("01:00:00:00", "25", warnings=("bext says 1, iXML 2; bext counts",))
    _, note = midi_offset_s(clip_of(), audio, tc("01:00:00:00", "25"))
    assert note == "aligned by bext and FF 54; bext says 1, iXML 2; bext counts"
    _, note = midi_offset_s(clip_of(), audio, tc("00:00:00:00", "25"))
    assert note.endswith("the MIDI starts -3600 s from the audio; check both starts")


# -- which rate, which day -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "known", "label"),
    [("24", "23.976", "01:00:00:12"), ("30", "29.97", "01:00:00:12"), ("25", "25", "01:00:00:12"),
     ("24", "47.952", "01:00:00:12"), ("25", "50", "01:00:00:12"), ("30", "60", "01:00:00:12"),
     ("29.97df", "29.97df", "01:00:00;12"), ("29.97df", "59.94df", "01:00:00;12")],
)  # fmt: skip
@pytest.mark.parametrize("knower", ["manifest", "iXML"])
def test_the_digits_of_ff54_are_read_at_the_rate_that_is_known_better(
    written, known, label, knower
):
    rate = FrameRate.parse(known)
    half = rate if rate.nominal <= 30 else FrameRate(rate.fps / 2, rate.drop)
    start = Timecode.parse(label, half).seconds
    if knower == "manifest":
        clip, audio = clip_of(known), AudioOrigin(start, "bext", 1, 48000)
    else:
        clip, audio = clip_of(), AudioOrigin(start, "iXML", 1, 48000, rate)
    midi = tc(label, written)
    assert midi_offset_s(clip, audio, midi) == (0, f"aligned by {audio.source} and FF 54")


@pytest.mark.parametrize(
    ("written", "label", "known", "offset_s"),
    [
        ("25", "01:00:00:10", "29.97", Fraction(4, 10)),  # as it is written
        ("29.97df", "01:00:00;00", "30", Fraction(0)),  # the digits at 30
        ("30", "01:01:00:00", "29.97df", Fraction(60)),  # no such label there
    ],
)
def test_another_rate_in_ff54_is_told(written, label, known, offset_s):
    audio = AudioOrigin(Fraction(3600), "bext", 1, 48000)
    found = align(clip_of(known), audio, tc(label, written))
    assert found.offset_s == offset_s
    assert found.doubts == (f"FF 54 says rate {written}, the clip has {known}",)


def test_the_manifest_knows_the_rate_better_than_ixml():
    audio = AudioOrigin(Fraction(3600), "iXML", 1, 48000, FrameRate.parse("29.97"))
    found = align(clip_of("30"), audio, tc("01:00:00:00", "30"))
    assert found.offset_s == 0
    assert found.doubts == ("iXML says rate 29.97, the manifest 30",)


@pytest.mark.parametrize(("written", "slow"), [("24", "23.976"), ("30", "29.97")])
def test_a_rate_that_ff54_could_not_have_said_otherwise_is_told(written, slow):
    found = align(clip_of(), bext("01:00:00:00", written), tc("01:00:00:00", written))
    assert found.offset_s == 0
    assert found.doubts == (f"FF 54 says rate {written}, and can't say {slow}; fill smpte_rate",)
    assert align(clip_of(), bext("01:00:00:00", "25"), tc("01:00:00:00", "25")).doubts == ()


@pytest.mark.parametrize("name", ["23.976", "24", "25", "29.97", "29.97df", "30"])
def test_midnight_is_crossed_by_the_day_of_the_rate(name):
    rate = FrameRate.parse(name)
    last = Timecode(rate.day_frames - 1, rate)
    audio = AudioOrigin(Fraction(0), "bext", 0, 48000, rate)
    written = {"23.976": "24", "29.97": "30"}.get(name, name)
    midi = last.read_at(FrameRate.parse(written))
    assert align(clip_of(), audio, midi).offset_s == -1 / rate.fps
    assert align(clip_of(name, midi=last.label), audio).offset_s == -1 / rate.fps
    if written == name:
        assert align(clip_of(), replace(audio, frame_rate=None), midi).offset_s == -1 / rate.fps


# -- the makers ----------------------------------------------------------------------------------


def midi_file(start=b""):
    """One note of a second, with FF 54 in front."""
    offset = b"\0\xff\x54\5" + start if start else b""
    track = offset + b"\0\x90\x3c\x40\x83\x60\x80\x3c\x40\0\xff\x2f\0"
    return b"MThd\0\0\0\6\0\0\0\1\1\xe0MTrk" + struct.pack(">I", len(track)) + track


def wav_file(seconds=None):
    chunks = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16)
    if seconds is not None:
        chunks += b"bext" + struct.pack("<I338xQ256x", 602, seconds * 8000)
    chunks += b"data" + struct.pack("<I", 16000) + bytes(16000)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


HOUR_25 = bytes([0x21, 0, 0, 5, 0])  # 01:00:00:05 at 25


@pytest.fixture
def corpus(tmp_path):
    """A manifest of one clip; call it with what the files and the manifest say."""

    def write(audio=None, midi=b"", **columns):
        folder = tmp_path / "corpus"
        folder.mkdir(exist_ok=True)
        if audio is not None:
            (folder / "a.wav").write_bytes(audio)
        (folder / "a.mid").write_bytes(midi_file(midi))
        row = {"id": "a", "audio_path": "a.wav", "midi_path": "a.mid", **columns}
        (folder / "manifest.jsonl").write_text(json.dumps(row) + "\n")
        return open_corpus(folder)

    return write


def only_midi():
    return FeatureConfig(preprocessing=Preprocessing(midi=MidiPreprocessing()))


def made(corpus):
    """(content, onset of the note in seconds, note of the entry) that the maker gives."""
    maker, clip = MidiMaker(MidiPreprocessing()), next(corpus.clips())
    loaded = maker.load(clip)
    entry = maker.decode(clip, loaded)
    return loaded.content, float(entry.values[0, notes.COLUMN["onset_s"]]), entry.note


def test_notes_are_placed_by_the_files(corpus):
    content, onset_s, note = made(corpus(wav_file(3600), HOUR_25))
    assert (onset_s, note) == (0.2, "aligned by bext and FF 54")
    # all that the place depends on is part of the content
    others = [
        made(corpus(wav_file(3601), HOUR_25)),
        made(corpus(wav_file(), HOUR_25)),
        made(corpus(wav_file(3600))),
        made(corpus(wav_file(3600), HOUR_25, smpte_rate="25")),
        made(corpus(wav_file(3600), HOUR_25, smpte_rate="25", midi_smpte_start="01:00:00:05")),
    ]
    assert [onset for _, onset, _ in others] == [-0.8, 0, 0, 0.2, 0.2]
    assert len({content, *(content for content, _, _ in others)}) == 6
    # and nothing else is: other samples leave the MIDI alone
    louder = wav_file(3600)[:-4] + b"\1\1\1\1"
    assert made(corpus(louder, HOUR_25))[0] == content


def test_an_audio_file_that_is_missing_or_broken_does_not_take_the_midi_with_it(corpus):
    _, onset_s, note = made(corpus(None, HOUR_25))
    assert onset_s == 0
    assert note == ("no time origin of the audio: aligned at zero; the start of the audio can't be "
                    "read from its file (missing_file)")  # fmt: skip
    broken = wav_file(3600).replace(struct.pack("<I", 602), struct.pack("<I", 100))
    assert made(corpus(broken, HOUR_25))[2].endswith("(bad_origin)")
    assert made(corpus(b"no audio", HOUR_25))[1:] == (
        0,
        "no time origin of the audio: aligned at zero",
    )


def test_the_audio_is_not_looked_at_where_the_manifest_gives_its_start(corpus, monkeypatch):
    def forbidden(clip):
        raise AssertionError

    monkeypatch.setattr("mmfuse.pipeline.makers.audio_origin", forbidden)
    both = {"smpte_rate": "25", "audio_smpte_start": "01:00:00:00"}
    assert made(corpus(wav_file(7200), HOUR_25, **both))[1:] == (
        0.2,
        "aligned by manifest and FF 54",
    )
    both["midi_smpte_start"] = "01:00:00:10"
    assert made(corpus(wav_file(7200), HOUR_25, **both))[1:] == (0.4, "")


def test_a_changed_bext_makes_the_midi_anew_and_nothing_else_does(corpus, tmp_path):
    store, quiet = tmp_path / "s.zarr", Progress(quiet=True)
    make_features(corpus(wav_file(3600), HOUR_25), store, only_midi(), quiet)
    assert open_store(store)["notes"]["a"][0, notes.COLUMN["onset_s"]] == 0.2
    again = make_features(corpus(wav_file(3600), HOUR_25), store, only_midi(), quiet)
    assert not again.made
    changed = make_features(corpus(wav_file(3601), HOUR_25), store, only_midi(), quiet)
    assert changed.made["notes"] == 1
    assert open_store(store)["notes"]["a"][0, notes.COLUMN["onset_s"]] == -0.8


def test_scan_counts_by_source_and_lists_doubts(corpus):
    quiet = Progress(quiet=True)
    found = scan_corpus(corpus(wav_file(3600), HOUR_25), quiet)
    assert (found.aligned, found.doubts) == ({"by bext and FF 54": 1}, [])
    found = scan_corpus(
        corpus(wav_file(3600), HOUR_25, smpte_rate="25", audio_smpte_start="01:00:02:00",
               midi_smpte_start="01:00:02:00"), quiet)  # fmt: skip
    assert found.aligned == {"by manifest": 1}
    assert [text[:15] for _, text in found.doubts] == ["bext is -2.000 ", "FF 54 is -1.800"]
    assert "    a: bext is -2.000 s from the manifest, which counts" in found.lines()
    assert found.to_json()["alignment_doubts"][0]["clip_id"] == "a"
    (found,) = scan_corpus(corpus(wav_file()), quiet).aligned
    assert found == "no time origins: aligned at zero"


# -- the real corpus -----------------------------------------------------------------------------

TIMES = ("smpte_rate", "smpte_fps", "smpte_drop", "audio_smpte_start", "midi_smpte_start")


def without(folder, tmp_path, *columns):
    """The corpus with columns of its manifest left out."""
    table = pq.read_table(folder / "manifest.parquet").drop_columns(list(columns))
    out = tmp_path / "-".join(columns)
    out.mkdir()
    pq.write_table(table, out / "manifest.parquet")
    return open_corpus(out / "manifest.parquet")


def read_here(folder, clip):
    """(audio origin, FF 54) of a clip, straight from its files."""
    audio = read_audio_origin(folder / clip.audio.path) if clip.audio else None
    return audio, read_midi((folder / clip.midi.path).read_bytes()).start if clip.midi else None


@pytest.fixture(scope="module")
def real(lieder8):
    """(row, clip, audio origin, FF 54) of every clip."""
    rows = pq.read_table(lieder8 / "manifest.parquet").to_pylist()
    clips = open_corpus(lieder8 / "manifest.parquet").clips()
    return [(row, clip, *read_here(lieder8, clip)) for row, clip in zip(rows, clips, strict=True)]


def test_ff54_of_the_real_corpus_is_what_its_manifest_says(real):
    starts = [(row, start) for row, _, _, start in real if start is not None]
    assert len(starts) == sum(
        "midi_smpte_offset" in row["notes"] for row, clip, _, _ in real if clip.midi
    )
    assert len(starts) > 200
    for row, start in starts:
        assert (start.rate.name, start.label) == (row["smpte_rate"], row["midi_smpte_start"])


def test_known_offsets_of_the_real_corpus_are_whole_frames_exactly(real):
    compared = midnights = 0
    for row, clip, audio, start in real:
        if clip.audio is None or clip.midi is None:
            continue
        rate = FrameRate.parse(row["smpte_rate"])
        frames = round(Fraction(row["audio_minus_midi_s"]) * rate.fps)
        known = frames / rate.fps
        assert float(known) == pytest.approx(row["audio_minus_midi_s"], abs=1e-6)
        assert align(clip, audio, start) == replace(align(clip), offset_s=-known)
        assert align(clip).note == ""
        compared += 1
        midnights += "midnight_wrap" in row["notes"]
    assert compared == 447
    assert midnights > 0


def test_the_files_alone_give_the_same_offsets(lieder8, real, tmp_path):
    bare = {clip.id: clip for clip in without(lieder8, tmp_path, *TIMES).clips()}
    compared = 0
    for _, clip, audio, start in real:
        if audio is not None and start is not None:
            found = align(bare[clip.id], audio, start)
            assert found.offset_s == align(clip).offset_s
            assert found.sources == "bext and FF 54"
            compared += 1
    assert compared == 12


@pytest.mark.parametrize("side", ["audio", "midi"])
def test_one_side_from_the_files_gives_the_same_offsets(lieder8, real, tmp_path, side):
    bare = {clip.id: clip for clip in without(lieder8, tmp_path, f"{side}_smpte_start").clips()}
    compared = 0
    for _, clip, audio, start in real:
        if clip.audio is None or clip.midi is None or (audio if side == "audio" else start) is None:
            continue
        found = align(bare[clip.id], audio, start)
        # bext counts samples: half of one is what it rounds off
        within_s = Fraction(1, 2 * audio.rate_hz) if side == "audio" else 0
        assert abs(found.offset_s - align(clip).offset_s) <= within_s
        assert found.doubts == ()
        compared += 1
    assert compared > 20


def test_a_second_run_over_file_origins_takes_less_than_three_seconds(lieder8, tmp_path):
    corpus, quiet = without(lieder8, tmp_path, *TIMES), Progress(quiet=True)
    for name in ("audio", "midi"):
        shutil.copytree(lieder8 / name, corpus.root / name)
    assert not make_features(corpus, tmp_path / "s.zarr", only_midi(), quiet).failed
    began = time.monotonic()
    report = make_features(corpus, tmp_path / "s.zarr", only_midi(), quiet)
    assert time.monotonic() - began < 3
    assert not report.made
