"""`mmfeat report`: a page that shows a store as it is, loads nothing, lets no markup through."""

import base64
import hashlib
import io
import json
import re
import struct
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
from browser import EVIL
from midi_bytes import meta, smf, track
from typer.testing import CliRunner

from mmfuse.features import chart, page, png
from mmfuse.features.clock import FrameRate, Timecode
from mmfuse.features.containers import check_container
from mmfuse.features.errors import ConfigError, MissingError
from mmfuse.features.notes import COLUMN
from mmfuse.features.store import open_store
from mmfuse.pipeline.cli import app
from mmfuse.pipeline.clip_picture import note_name, spread
from mmfuse.pipeline.clip_sound import onset_curve, vorbis
from mmfuse.pipeline.store_page import store_page


class Parsed(HTMLParser):
    """What is in a page: tags with their attributes, text, and the text of the last script."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.inside = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self.inside[-1:]):
            self.text.append(data)

    def all(self, tag, name=None):
        return [attrs for found, attrs in self.tags if found == tag and (not name or name in attrs)]

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


def mmfeat(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def shown(hostile):
    store, _ = hostile
    found = store_page(store, count=2, wanted=[f"a {EVIL}"])
    return found, Parsed(found.html)


def test_the_page_has_one_script_one_style_and_a_policy_that_names_them(shown):
    found, parsed = shown
    (rule,) = (a["content"] for a in parsed.all("meta", "http-equiv"))
    assert "default-src 'none'" in rule
    assert "unsafe" not in rule
    for tag in ("script", "style"):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", found.html, re.S)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in rule
    assert not [name for _, attrs in parsed.tags for name in attrs if name.startswith("on")]
    assert not parsed.all("p", "style")


def test_nothing_in_the_page_points_out_of_it(shown):
    found, parsed = shown
    for _, attrs in parsed.tags:
        for name in ("src", "href", "data", "action", "poster", "srcset"):
            assert attrs.get(name, "data:").startswith(("data:", "#")), attrs
    (style,) = re.findall(r"<style>(.*?)</style>", found.html, re.S)
    assert "url(" not in style
    assert "@import" not in style


def test_names_texts_labels_and_files_stay_text(shown):
    found, parsed = shown
    assert EVIL not in found.html.replace("</script>\n</body>", "")
    assert [tag for tag, _ in parsed.tags].count("script") == 1
    assert not parsed.all("img")
    for said in (f"a {EVIL}", f"</script>{EVIL}<img src=x onerror=alert(2)>", f"\"'>{EVIL}xxxx",
                 "<script>alert(3)<.flac"):  # fmt: skip
        assert said in parsed.words


def test_presence_failures_and_sizes_are_those_of_the_store(shown, hostile):
    _, parsed = shown
    store, _ = hostile
    words = parsed.words
    assert "text + audio + midi 3" in words
    assert "audio + midi 1" in words
    assert "text + midi 2" in words
    assert "missing_file" in words
    assert open_store(store).root in words


def test_clips_that_were_asked_for_come_first_and_others_fill_up(shown, hostile):
    found, _ = shown
    assert found.clips[0] == f"a {EVIL}"
    assert len(found.clips) == 2
    store, _ = hostile
    assert store_page(store, count=2, wanted=[f"a {EVIL}"]).html == found.html
    assert store_page(store, count=0).clips == []
    with pytest.raises(MissingError, match="no stream .* has a clip 'nobody'"):
        store_page(store, wanted=["nobody"])


def test_notes_stand_where_the_store_says(shown, hostile):
    _, parsed = shown
    store, _ = hostile
    clip_id = f"a {EVIL}"
    opened = open_store(store)
    notes = opened["notes"][clip_id]
    (clip, *_) = (a for a in parsed.all("article") if "data-seconds" in a)
    seconds, low, high = (float(clip[f"data-{k}"]) for k in ("seconds", "lowest", "highest"))
    stream = opened["logmel"]
    assert abs(seconds - stream.frame_times_s(int(stream.find([clip_id])[0]))[-1]) < 0.07
    inside = notes[(notes[:, COLUMN["onset_s"]] < seconds) & (notes[:, COLUMN["offset_s"]] > 0)]
    bars = [a for a in parsed.all("rect", "class") if a["class"].startswith("note-bar n")]
    bars = bars[: len(inside)]
    for bar, note in zip(bars, inside, strict=True):
        onset_s, pitch = note[COLUMN["onset_s"]], note[COLUMN["pitch"]]
        assert float(bar["x"].rstrip("%")) == pytest.approx(
            100 * max(onset_s, 0) / seconds, abs=0.01
        )
        foot = 100 - float(bar["y"].rstrip("%")) - float(bar["height"].rstrip("%"))
        assert foot == pytest.approx(100 * (pitch - low) / (high + 1 - low), abs=0.01)


def test_the_timecode_of_the_picture_is_the_manifests(shown, hostile):
    _, parsed = shown
    _, folder = hostile
    row = json.loads((folder / "manifest.jsonl").read_text().splitlines()[0])
    rate = FrameRate.parse(row["smpte_rate"])
    (clip, *_) = (a for a in parsed.all("article") if "data-seconds" in a)
    start = Timecode.parse(row["audio_smpte_start"], rate)
    assert float(clip["data-start"]) == pytest.approx(float(start.seconds), abs=1e-9)
    assert clip["data-fps"] == f"{rate.fps.numerator}/{rate.fps.denominator}"
    assert ("data-drop" in clip) == rate.drop


def test_the_sound_in_the_page_is_the_clips_own_and_not_moved():
    rng = np.random.default_rng(0)
    samples = (0.3 * rng.standard_normal(30_000)).astype(np.float32)
    for rate_hz in (16_000, 22_050, 48_000):
        data = vorbis(samples, rate_hz)
        check_container("Ogg", data)
        assert data == vorbis(samples, rate_hz)
        heard, found_hz = soundfile.read(io.BytesIO(data), dtype="float32")
        assert found_hz == min(rate_hz, 24_000)
        assert len(heard) == -(-len(samples) * found_hz // rate_hz)
        if found_hz == rate_hz:
            lags = np.correlate(heard[5000:6000], samples[4900:6100], "valid")
            assert int(np.abs(lags).argmax()) == 100


def test_a_corpus_that_is_gone_costs_sound_and_labels_and_is_said(hostile, tmp_path):
    store, folder = hostile
    moved = folder.rename(folder.with_name("moved"))
    try:
        found = store_page(moved / store.name, count=1)
        assert "name its place with --corpus PATH" in found.notes[0]
        assert "<audio" not in found.html
        assert "data:image/png" in found.html
        assert "<audio" in store_page(moved / store.name, moved, count=1).html
    finally:
        moved.rename(folder)


def test_the_command_writes_the_page_and_says_so(hostile, tmp_path, monkeypatch):
    store, _ = hostile
    monkeypatch.chdir(tmp_path)
    done = mmfeat("report", store, "--clips", "1", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["bytes"] == (tmp_path / "report.html").stat().st_size
    assert told["bytes"] < 750_000
    assert mmfeat("report", tmp_path / "none.zarr").exit_code == 6
    assert mmfeat("report", store, "--out", tmp_path).exit_code == 2
    assert mmfeat("report", store, "--corpus", tmp_path / "none").exit_code == 2


def test_the_table_of_lags_is_shown_where_it_is_of_this_corpus(
    hostile, sample, tmp_path, monkeypatch
):
    store, folder = hostile
    monkeypatch.chdir(tmp_path)
    assert "mmfeat align --corpus CORPUS" in store_page(store, count=0).html
    mmfeat("align", "--corpus", folder, "-q")
    words = Parsed(store_page(store, count=0).html).words
    assert "Farthest apart" in words
    assert "alignment.parquet" in words
    mmfeat("align", "--corpus", sample, "--limit", "3", "-q")
    found = store_page(store, count=0)
    assert found.notes == ["alignment.parquet is of another corpus, and left out"]
    with pytest.raises(ConfigError, match="that the corpus lacks"):
        store_page(store, alignment=tmp_path / "alignment.parquet", count=0)


def test_words_notes_and_onsets_stand_where_they_sound_under_the_names_of_their_tracks(tmp_path):
    rate_hz, at_s = 16_000, (0.75, 1.25, 2.25)  # MIDI 0.25, 0.75 and 1.75 s, half a second later
    samples = np.zeros(3 * rate_hz, np.float32)
    for one in at_s:
        start = round(one * rate_hz)
        wave = np.sin(2 * np.pi * 440 * np.arange(3200) / rate_hz) * np.exp(-np.arange(3200) / 800)
        samples[start : start + 3200] += 0.5 * wave.astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, rate_hz)
    on, off = b"\x90\x45\x60", b"\x80\x45\x00"
    events = [(0, meta(0x03, b"So<b>prano"))]
    for gap, word in ((240, b"Hey<i>"), (384, b"you"), (864, b"there")):
        events += [(gap, meta(0x05, word)), (0, on), (96, off)]
    (tmp_path / "a.mid").write_bytes(smf(track(*events)))
    row = {"id": "x", "audio_path": "a.wav", "midi_path": "a.mid"}
    row |= {"audio_start_s": 10, "midi_start_s": 10.5}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(row))
    assert mmfeat("tokenize", "--corpus", tmp_path, "--store", tmp_path / "s.zarr").exit_code == 0
    html = store_page(tmp_path / "s.zarr").html
    assert "So&lt;b&gt;prano" in html
    words = re.findall(r'<text x="([\d.]+)%" y="100%" dy="-7"[^>]*>([^<]+)</text>', html)
    assert [text for _, text in words] == ["Hey&lt;i&gt;", "you", "there"]
    percent = [100 * one / 3 for one in at_s]
    assert [float(x) for x, _ in words] == pytest.approx(percent, abs=0.01)
    bars = [float(x) for x in re.findall(r'class="note-bar n0" x="([\d.]+)%"', html)]
    assert bars == pytest.approx(percent, abs=0.01)
    assert "MIDI starts 0.5000 s after the audio, by manifest" in html
    seconds, strength = onset_curve(samples, rate_hz)
    for one in at_s:
        near = np.abs(seconds - one) < 0.1
        assert seconds[near][strength[near].argmax()] == pytest.approx(one, abs=0.008)


# -- parts ---------------------------------------------------------------------------------------


def test_an_axis_holds_its_values_between_round_numbers():
    axis = chart.linear([0.13, 0.87])
    assert (axis.low, axis.high) == (0.0, 1.0)
    assert [tick.label for tick in axis.ticks] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert axis.at(0.5) == 50
    assert [tick.minor for tick in axis.ticks] == [False, True] * 3
    fixed = chart.linear([], low=-50, high=50, count=10)
    assert [tick.label for tick in fixed.ticks if not tick.minor] == ["−40", "−20", "0", "20", "40"]
    assert [tick.label for tick in chart.linear([-3, 7], count=4).ticks] == [
        "−4",
        "−2",
        "0",
        "2",
        "4",
        "6",
        "8",
    ]
    flat = chart.linear([5.0, 5.0])
    assert flat.low <= 5 < flat.high
    empty = chart.linear([float("nan")])
    assert (empty.low, empty.high) == (0.0, 1.0)
    log = chart.logarithmic([0.002, 3])
    assert (log.low, log.high) == pytest.approx((0.001, 10))
    assert log.at(0.1) == pytest.approx(50)


def test_a_line_breaks_where_nothing_is_known():
    unit = chart.Axis(0, 1)
    broken = chart.paths(unit, unit, [0, 0.5, 0.75, 1], [0, float("nan"), 0.5, 1])
    assert broken == ("0.0,1000.0", "750.0,500.0 1000.0,0.0")


def test_a_picture_comes_back_from_its_file():
    levels = np.arange(6, dtype=np.uint8).reshape(2, 3) * 50
    data = png.png(levels)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        chunks[name], end = data[at + 8 : at + 8 + length], at + 8 + length
        assert struct.unpack(">I", data[end : end + 4]) == (zlib.crc32(data[at + 4 : end]),)
        at = end + 4
    assert list(chunks) == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]
    assert chunks[b"IHDR"] == struct.pack(">IIBBBBB", 3, 2, 8, 3, 0, 0, 0)
    assert chunks[b"PLTE"] == png.palette().tobytes()
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(2, 4)
    assert np.array_equal(rows[:, 1:], levels)
    assert not rows[:, 0].any()


def test_the_palette_rises_in_lightness():
    linear = (png.palette() / 255) ** 2.2
    assert (np.diff(linear @ [0.2126, 0.7152, 0.0722]) > 0).all()


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_960, "100 kB"), (2.5e9, "2.5 GB")],
)
def test_bytes_have_the_unit_that_fits(value, said):
    assert page.size(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.416, "0.42 s"), (59.96, "60.0 s"), (61, "1:01 min"), (3 * 3600 + 60, "3:01 h")],
)
def test_lengths_of_time(value, said):
    assert page.span(value) == said


def test_names_of_pitches():
    assert [note_name(n) for n in (21, 60, 69, 127)] == ["A0", "C4", "A4", "G9"]


def test_clips_are_spread_over_labels_and_the_same_every_time():
    labels = {f"c{n}": "rare" if n == 7 else "often" for n in range(40)}
    chosen = spread(list(labels), labels, 4)
    assert "c7" in chosen
    assert chosen == spread(list(reversed(labels)), labels, 4)
    assert len(set(chosen)) == 4
