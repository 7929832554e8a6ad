"""Datasets of other libraries, written by them, give the streams that a manifest of files gives."""

import gzip
import io
import json
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import peers
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from test_engine import mmfeat

from mmfuse.features.audio import read_audio
from mmfuse.features.corpus import open_corpus
from mmfuse.features.errors import ClipError, ConfigError
from mmfuse.features.store import open_store

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")


@pytest.fixture(scope="module")
def corpus(sample, tmp_path_factory):
    """Clips that have audio, in a folder where others may write."""
    folder = shutil.copytree(sample, tmp_path_factory.mktemp("bridges") / "corpus")
    table = pq.read_table(folder / "manifest.parquet")
    pq.write_table(table.filter(table["audio_path"].is_valid()), folder / "manifest.parquet")
    return folder


@pytest.fixture(scope="module")
def written(corpus, tmp_path_factory):
    """Path of the same clips in every form."""
    out = tmp_path_factory.mktemp("peers")
    tars = peers.save_webdataset(corpus, out / "tars")
    return {
        "arrow": peers.save_hf_arrow(corpus, out / "arrow"),
        "parquet": peers.save_hf_parquet(corpus, out / "parquet"),
        "tars": tars,
        "pattern": tars / "clips-{train,validation,test}-{000..000}.tar",
        "lhotse": peers.save_lhotse(corpus),
    }


def told(path):
    """All that a corpus says of each clip, by id."""
    return {
        c.id: (c.text, c.label, c.split, c.group, c.origins, c.audio and c.audio.read(),
               c.midi and c.midi.read())
        for c in open_corpus(path).clips()
    }  # fmt: skip


@pytest.mark.parametrize("form", ["arrow", "parquet", "tars", "lhotse"])
def test_every_form_tells_the_same_of_the_same_clips(corpus, written, form):
    ours, theirs = told(corpus), told(written[form])
    assert ours.keys() == theirs.keys()
    for clip_id, clip in ours.items():
        assert theirs[clip_id] == clip, clip_id
    assert open_corpus(written[form]).check() == len(open_corpus(written[form])) == len(ours)


@pytest.fixture(scope="module")
def root(corpus, tmp_path_factory, features):
    store = tmp_path_factory.mktemp("ours") / "s.zarr"
    mmfeat("run", features, "--corpus", corpus, "--store", store)
    return open_store(store).root


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "features.toml"
    path.write_text("[preprocessing.audio]\n[preprocessing.midi]\n[preprocessing.text]\n")
    return path


@pytest.mark.parametrize("form", ["arrow", "parquet", "tars", "lhotse"])
def test_streams_have_the_root_of_the_manifest(written, form, features, root, tmp_path):
    store = tmp_path / "s.zarr"
    mmfeat("run", features, "--corpus", written[form], "--store", store)
    assert open_store(store).root == root
    again = mmfeat("run", features, "--corpus", written[form], "--store", store)
    assert "logmel: 0 made" in again.output
    if form == "parquet":  # plain bytes are taken to be everywhere, so that none are read
        return
    plan = mmfeat("plan", features, "--corpus", written[form], "--store", store, "--json")
    assert sum(stream["to_make"] for stream in json.loads(plan.stdout)["streams"]) == 0


def test_a_pattern_names_tars_in_order(written, tmp_path):
    some = [clip.id for clip in open_corpus(written["pattern"]).clips()]
    assert 0 < len(some) < len(told(written["tars"]))
    with pytest.raises(ConfigError, match="there is no .*x-3.tar"):
        open_corpus(tmp_path / "x-{3..4}.tar")


def test_workers_read_the_same_from_tars(written, features, root, tmp_path):
    where = ("--corpus", written["tars"], "--store", tmp_path / "s.zarr")
    mmfeat("run", features, *where, "--workers", 2)
    assert open_store(tmp_path / "s.zarr").root == root


# -- cuts ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cuts(corpus):
    """Cuts out of the middle, as lhotse loads them, and as a corpus."""
    from lhotse import CutSet

    whole = [
        cut
        for cut in CutSet.from_file(peers.save_lhotse(corpus))
        if cut.duration > 3 and cut.has_custom("midi")
    ]
    chosen = [
        cut.truncate(offset=0.3 + 0.17 * i, duration=1.123) for i, cut in enumerate(whole[:8])
    ]
    path = corpus / "part_cuts_test.jsonl"
    CutSet.from_cuts(chosen).to_file(path)
    return path, chosen


def test_a_cut_out_of_a_recording_is_what_lhotse_loads(cuts):
    path, chosen = cuts
    clips = list(open_corpus(path).clips())
    assert [clip.id for clip in clips] == [cut.id for cut in chosen]
    assert {file.recording.sources[0].source.rpartition(".")[2] for file in chosen} >= {
        "ogg",
        "wav",
    }
    for clip, cut in zip(clips, chosen, strict=True):
        wanted_N = cut.load_audio().mean(axis=0, dtype=np.float64).astype(np.float32)
        np.testing.assert_array_equal(read_audio(clip.audio.read()).samples_N, wanted_N)
        assert clip.text == cut.supervisions[0].text


def test_midi_of_a_cut_lies_on_the_clock_of_the_cut(corpus, cuts, features, tmp_path):
    path, chosen = cuts
    mmfeat("run", features, "--corpus", path, "--store", tmp_path / "cuts.zarr", code=None)
    mmfeat("run", features, "--corpus", corpus, "--store", tmp_path / "whole.zarr")
    notes, whole = (open_store(tmp_path / f"{name}.zarr")["notes"] for name in ("cuts", "whole"))
    onset = notes.spec.fields.index("onset_s")
    for cut in chosen:
        there, here = whole[cut.recording.id][:, onset], notes[cut.id][:, onset]
        np.testing.assert_allclose(here, there - cut.start, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "MixedCut"}, "a cut of type 'MixedCut' has no recording of its own; save plain"),
        ({"start": -1.0}, "begins at -1.0 s"),
        ({"duration": None}, "no cut as lhotse writes it"),
        ({"recording": {"sources": [{"type": "command", "channels": [0], "source": "touch here"}]}},
         "is of type command, and only one of type file is read"),
        ({"recording": {"transforms": [{"name": "Speed"}]}}, "has transforms; save plain cuts"),
    ],
)  # fmt: skip
def test_what_can_not_be_read_of_cuts_is_told_and_never_run(corpus, tmp_path, change, message):
    with gzip.open(peers.save_lhotse(corpus), "rt") as lines:
        cut = json.loads(next(lines))
    changed = {**cut, **change, "recording": {**cut["recording"], **change.get("recording", {})}}
    path = tmp_path / "cuts.jsonl"
    path.write_text(json.dumps({**cut, "id": "first"}) + "\n" + json.dumps(changed))
    with pytest.raises(ConfigError, match=f"cuts.jsonl, line 2: .*{message}"):
        open_corpus(path)
    assert not (tmp_path / "here").exists()


def test_a_cut_beyond_its_recording_and_one_of_other_folders_are_told(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros((16000, 2)), 16000)
    recording = {"id": "a", "sampling_rate": 16000, "num_samples": 16000, "duration": 1.0,
                 "sources": [{"type": "file", "channels": [0, 1], "source": "a.wav"}]}  # fmt: skip
    cut = {"type": "MonoCut", "id": "c", "start": 0.5, "duration": 0.75, "channel": 1,
           "supervisions": [], "recording": recording}  # fmt: skip
    path = tmp_path / "cuts.jsonl"
    path.write_text(json.dumps(cut))
    (clip,) = open_corpus(path).clips()
    with pytest.raises(ClipError, match="ends 1.000 s from its start, the clip only 1.250 s"):
        clip.audio.read()
    recording["sources"][0]["source"] = "/etc/passwd"
    path.write_text(json.dumps(cut))
    with pytest.raises(ConfigError, match="leads out of the corpus folder"):
        open_corpus(path).check()


def test_channels_of_a_cut_are_those_it_names(tmp_path):
    rng = np.random.default_rng(0)
    samples_NC = rng.uniform(-1, 1, (8000, 3)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples_NC, 8000, subtype="FLOAT")
    from lhotse import CutSet, MultiCut, Recording

    recording = Recording.from_file(tmp_path / "a.wav")
    one = recording.to_cut()
    assert isinstance(one, MultiCut)
    mono = one.to_mono()[1]
    two = MultiCut("two", 0.25, 0.5, [0, 2], recording=recording)
    CutSet.from_cuts([one, mono, two]).to_file(tmp_path / "cuts.jsonl.gz")
    got = [read_audio(c.audio.read()).samples_N for c in open_corpus(tmp_path).clips()]
    mean = [samples_NC[:, c].mean(axis=1, dtype=np.float64) for c in ([0, 1, 2], [1], [0, 2])]
    for found, wanted in zip(got, [mean[0], mean[1], mean[2][2000:6000]], strict=True):
        np.testing.assert_array_equal(found, wanted.astype(np.float32))


# -- archives and folders from strangers -----------------------------------------------------------


def tar_of(path, *members):
    with tarfile.open(path, "w") as archive:
        for name, data, change in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in change.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (("/etc/passwd.wav", b"x", {}), "'/etc/passwd.wav' leads out of the archive"),
        (("../a.wav", b"x", {}), "'../a.wav' leads out"),
        (("a.wav", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}), "'a.wav' is a link"),
        (("a.wav", b"", {"type": tarfile.LNKTYPE, "linkname": "b.wav"}), "is a link"),
        (("a.wav", b"", {"type": tarfile.FIFOTYPE}), "is a link, a device or sparse"),
        (("a.json", b"[]", {}), "sample 'a': its .json is no JSON object"),
        (("a.txt", b"\xff\xfe", {}), "sample 'a': no UTF-8 text"),
        (("b.flac", b"x", {}), "sample 'b': two files of audio; keep one"),
        (("n.wav", b"x", {"pax_headers": {"path": "x" * (2 << 20)}}), "a header of"),
    ],
)
def test_a_tar_with_a_bad_member_is_one_line(tmp_path, member, message):
    path = tar_of(tmp_path / "x.tar", ("b.wav", b"x", {}), member)
    with pytest.raises(ConfigError, match=message):
        open_corpus(path).check()


def test_a_damaged_tar_loses_no_clip_silently(tmp_path):
    path = tar_of(tmp_path / "x.tar", *((f"{i}.wav", bytes(600), {}) for i in range(9)))
    data = path.read_bytes()
    assert [clip.audio.read() for clip in open_corpus(path).clips()] == [bytes(600)] * 9
    for damaged in (data[:5000], data[:4608] + b"x" + data[4609:], gzip.compress(data)):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match="is no tar, or damaged"):
            open_corpus(path).check()
    with pytest.raises(ConfigError, match="unpack it first"):
        open_corpus(path)


def save_arrow(folder, table, options=None, state=None):
    folder.mkdir(exist_ok=True)
    with pa.ipc.new_stream(folder / "d.arrow", table.schema, options=options) as writer:
        writer.write_table(table)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(
        json.dumps(state or {"_data_files": [{"filename": "d.arrow"}]})
    )
    return folder


TEXTS = pa.table({"id": ["a", "b"], "text": ["one", "two"]})


@pytest.mark.parametrize(
    ("names", "message"),
    [(["../d.arrow"], "is no name of a file"), (["link.arrow"], "is not there, or is a link"),
     (["none.arrow"], "is not there"), ([], "names no data files"), (["a\0b"], "is no name of")],
)  # fmt: skip
def test_an_arrow_folder_names_files_of_its_own(tmp_path, names, message):
    folder = save_arrow(
        tmp_path / "d", TEXTS, None, {"_data_files": [{"filename": n} for n in names]}
    )
    (folder / "link.arrow").symlink_to("d.arrow")
    with pytest.raises(ConfigError, match=message):
        open_corpus(folder)


def test_arrow_that_could_unpack_to_anything_is_refused(tmp_path):
    assert [c.text for c in open_corpus(save_arrow(tmp_path / "d", TEXTS)).clips()] == [
        "one",
        "two",
    ]
    packed = save_arrow(tmp_path / "d", TEXTS, pa.ipc.IpcWriteOptions(compression="zstd"))
    with pytest.raises(ConfigError, match="a compressed batch or a dictionary"):
        open_corpus(packed).check()
    coded = TEXTS.set_column(1, "text", TEXTS["text"].dictionary_encode())
    with pytest.raises(ConfigError, match="a compressed batch or a dictionary"):
        open_corpus(save_arrow(tmp_path / "d", coded)).check()
    nested = TEXTS.set_column(1, "text", pa.array([[["a"]], [["b"]]]))
    with pytest.raises(ConfigError, match="column 'text' of the dataset holds list"):
        open_corpus(save_arrow(tmp_path / "d", nested)).check()


def test_any_flipped_byte_of_arrow_is_an_error_or_nothing(tmp_path):
    folder = save_arrow(tmp_path / "d", TEXTS)
    file = folder / "d.arrow"
    data, rng, told = file.read_bytes(), np.random.default_rng(0), 0
    for at in rng.permutation(len(data)):
        file.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        try:
            list(open_corpus(folder).clips())
        except ConfigError:
            told += 1
    assert told > len(data) // 4


def test_a_dataset_without_ids_numbers_its_clips(tmp_path):
    plain = pa.table({"text": ["one", "two", "three"]})
    for split in ("train", "unsupervised"):
        save_arrow(tmp_path / split, plain)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "unsupervised"]}')
    clips = list(open_corpus(tmp_path).clips())
    assert [clip.id for clip in clips][2:4] == ["train-2", "unsupervised-0"]
    assert [clip.split for clip in clips] == ["train"] * 3 + [None] * 3
    assert [c.id for c in open_corpus(tmp_path).clips(4, 5)] == ["unsupervised-1"]
    pq.write_table(plain, tmp_path / "plain.parquet")
    with pytest.raises(ConfigError, match="no column id"):
        open_corpus(tmp_path / "plain.parquet")


def test_labels_of_a_dataset_may_be_lists(tmp_path):
    from datasets import ClassLabel, Dataset, Features, List, Value

    kinds = Features(text=Value("string"), label=List(ClassLabel(names=["sad", "slow"])))
    rows = {"text": ["x", "y"], "label": [[1, 0], []]}
    Dataset.from_dict(rows, features=kinds).save_to_disk(tmp_path / "d")
    clips = open_corpus(tmp_path / "d").clips()
    assert [(c.id, c.label) for c in clips] == [("0", ("slow", "sad")), ("1", ())]


MEASURES = """
import sys, resource
from mmfuse.features.corpus import open_corpus
corpus = open_corpus(sys.argv[1])
assert corpus.check() == 256
total = sum(len(clip.audio.read()) for clip in corpus.clips())
kept = [corpus for corpus in corpus.tables(["id", "audio"], 256)]
import re
print(total >> 20, int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("form", ["arrow", "tar"])
def test_memory_does_not_grow_with_a_dataset(tmp_path, form):
    clip = np.random.default_rng(0).bytes(4 << 20)
    if form == "tar":
        path = tar_of(tmp_path / "x.tar", *((f"{i}.wav", clip, {}) for i in range(256)))
    else:
        table = pa.table({"id": [str(i) for i in range(32)], "audio": [clip] * 32})
        path = save_arrow(tmp_path / "d", table)
        names = []
        for i in range(8):
            table = table.set_column(0, "id", pa.array([f"{i}-{j}" for j in range(32)]))
            save_arrow(path, table)
            (path / "d.arrow").rename(path / f"d{i}.arrow")
            names.append({"filename": f"d{i}.arrow"})
        (path / "state.json").write_text(json.dumps({"_data_files": names}))
    command = [sys.executable, "-c", MEASURES, path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    total, most = map(int, done.stdout.split())
    assert total == 1024
    assert most < 700  # mapped pages of the system's cache count until they are needed elsewhere
