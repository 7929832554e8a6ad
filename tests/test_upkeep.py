"""`mmfeat gc`, `merge` and `subset`: whole stores out of stores, and nothing lost on the way."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
from test_verify import FRAMES, LOCK, PLANES, TOKENS, append, mmfeat, write

from mmfuse.features.combine import merge, subset
from mmfuse.features.errors import ConfigError, LockedError, MissingError, StoreError
from mmfuse.features.gc import collect
from mmfuse.features.store import open_store
from mmfuse.features.verify import verify_store
from mmfuse.features.writer import StoreWriter


@pytest.fixture
def store(tmp_path):
    write(tmp_path / "s.zarr", range(9))
    return tmp_path / "s.zarr"


def bytes_of(path):
    return {f.relative_to(path).as_posix(): f.read_bytes() for f in sorted(path.rglob("*"))
            if f.is_file() and f != path / LOCK}  # fmt: skip


def contents(path):
    opened = open_store(path)
    return {(key, clip_id): opened[key][clip_id].tobytes()
            for key in opened.specs() for clip_id in opened[key].ids}  # fmt: skip


def assert_whole(path):
    assert verify_store(path, 1.0).findings == []


# -- gc ------------------------------------------------------------------------------------------


def test_gc_of_a_whole_store_removes_only_tokenizers_that_no_stream_has(store):
    before = bytes_of(store)
    swept = collect(store)
    tokenizers = {name for name in before if "tokenizer-" in name}
    assert set(swept.removed) == tokenizers
    assert swept.written == []
    after = bytes_of(store)
    assert before.keys() - after.keys() == tokenizers
    assert [name for name in after if after[name] != before[name]] == ["_mm/manifest.json"]
    assert collect(store).removed == []
    assert_whole(store)


def test_gc_removes_leftovers_and_leaves_strangers(store):
    collect(store)
    before = bytes_of(store)
    shard = next(store.glob("frames-*/values/c/0/0"))
    (shard.parents[1] / "7").mkdir()
    shutil.copy(shard, shard.parents[1] / "7" / "0")
    (store / "_mm" / "manifest.json.tmp").write_bytes(b"half of i")
    (store / "thesis.txt").write_text("precious")
    assert len(verify_store(store).findings) == 2
    dry = collect(store, dry_run=True)
    assert len(bytes_of(store)) == len(before) + 3
    swept = collect(store)
    assert swept.removed == dry.removed
    assert len(swept.removed) == 2
    assert swept.strangers == ["thesis.txt"]
    (store / "thesis.txt").unlink()
    assert bytes_of(store) == before
    assert not (shard.parents[1] / "7").exists()


def test_gc_drops_a_stream_and_keeps_the_others_to_the_bit(store):
    expected = contents(store)
    collect(store, [FRAMES.key])
    assert open_store(store).keys() == sorted([TOKENS.key, PLANES.key])
    assert contents(store) == {k: v for k, v in expected.items() if k[0] != FRAMES.key}
    assert not (store / FRAMES.key).exists()
    assert_whole(store)
    write(store, range(9), [FRAMES])
    assert contents(store) == expected
    assert_whole(store)


def test_a_damaged_stream_can_be_dropped_and_made_anew(store):
    expected = contents(store)
    next(store.glob("frames-*/values/c/1/0")).unlink()
    next(store.glob(f"_mm/{FRAMES.key}/shard-0.arrow")).write_bytes(b"")
    collect(store, [FRAMES.key])
    write(store, range(9), [FRAMES])
    assert contents(store) == expected
    assert_whole(store)


def test_gc_writes_documents_for_zarr_anew(store, others_agree):
    before = bytes_of(store)
    for name in ("zarr.json", f"{FRAMES.key}/values/zarr.json", f"{TOKENS.key}/starts/c/0"):
        (store / name).write_bytes(b"?")
    (store / PLANES.key / "lengths" / "zarr.json").unlink()
    assert len(verify_store(store).findings) == 4
    assert len(collect(store).written) == 4
    assert all(data == before[name] for name, data in bytes_of(store).items()
               if name != "_mm/manifest.json")  # fmt: skip
    assert others_agree(store) == 3 * 27


def test_gc_leaves_the_work_of_a_killed_run_unless_told(store):
    writer = StoreWriter(store)
    for number in (20, 21, 22):
        append(writer.stream(FRAMES), number)
    writer.close(finish=False)
    assert collect(store).unfinished == 2
    with StoreWriter(store) as writer:
        assert len(writer.stream(FRAMES)._staged.contents()) == 3  # it was taken up
    assert "clip-21" in open_store(store)["frames"]
    writer = StoreWriter(store)
    append(writer.stream(FRAMES), 30)
    writer.close(finish=False)
    removed = collect(store, unfinished=True).removed
    assert [name for name in removed if "tokenizer" not in name] == [
        f"_mm/{FRAMES.key}/task-own-0.journal", f"_mm/{FRAMES.key}/task-own-0.part"]  # fmt: skip
    assert_whole(store)


def test_gc_waits_for_no_writer(store):
    with StoreWriter(store), pytest.raises(LockedError, match="wait for it"):
        collect(store)


def test_gc_names_streams_that_there_are(store, tmp_path):
    with pytest.raises(MissingError, match=f"it holds: {FRAMES.key}, "):
        collect(store, ["logmel"])
    with pytest.raises(MissingError, match="no feature store"):
        collect(tmp_path / "none")


# -- merge ---------------------------------------------------------------------------------------


def test_a_merged_store_has_the_root_of_one_made_at_once(store, tmp_path, others_agree):
    for i in range(3):
        write(tmp_path / f"{i}.zarr", range(i * 3, i * 3 + 3))
    report = merge(tmp_path / "all.zarr", [tmp_path / f"{i}.zarr" for i in (2, 0, 1)])
    assert report.root == open_store(store).root
    assert (report.entries, report.duplicates, report.copied) == (27, 0, 0)
    assert contents(tmp_path / "all.zarr") == contents(store)
    assert others_agree(tmp_path / "all.zarr") == 3 * 27
    assert_whole(tmp_path / "all.zarr")
    failures = open_store(tmp_path / "all.zarr").failures()
    assert failures.equals(open_store(store).failures())
    for i in range(3):
        assert_whole(tmp_path / f"{i}.zarr")


def test_merging_one_store_gives_its_files_to_the_byte_and_shares_their_data(store, tmp_path):
    merge(tmp_path / "copy.zarr", [store])
    assert bytes_of(store) == bytes_of(tmp_path / "copy.zarr")
    shards = list(store.glob("frames-*/values/c/*/0"))
    assert len(shards) == 3
    assert all(path.stat().st_nlink == 2 for path in shards)
    shutil.rmtree(store)
    assert_whole(tmp_path / "copy.zarr")


def test_where_links_can_not_be_shards_are_copied_and_checked(store, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    report = merge(tmp_path / "a.zarr", [store])
    assert (report.linked, report.copied) == (0, 18)
    assert_whole(tmp_path / "a.zarr")
    shard = next(store.glob("frames-*/values/c/1/0"))
    shard.chmod(0o644)
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(StoreError, match="damaged; mmfeat verify tells more"):
        merge(tmp_path / "b.zarr", [store])
    with pytest.raises(MissingError):
        open_store(tmp_path / "b.zarr")


def test_entries_that_several_stores_have_are_taken_once(store, tmp_path):
    write(tmp_path / "a.zarr", range(6))
    write(tmp_path / "b.zarr", range(4, 9))
    report = merge(tmp_path / "all.zarr", [tmp_path / "a.zarr", tmp_path / "b.zarr"])
    assert report.duplicates == 2 * 3
    assert report.root == open_store(store).root
    assert contents(tmp_path / "all.zarr") == contents(store)
    assert_whole(tmp_path / "all.zarr")
    again = merge(tmp_path / "all.zarr", [tmp_path / "b.zarr"])
    assert (again.entries, again.root) == (0, report.root)
    assert_whole(tmp_path / "all.zarr")


def test_a_clip_that_was_made_anew_is_merged_as_it_is_now(tmp_path):
    with StoreWriter(tmp_path / "a.zarr") as writer:
        stream = writer.stream(FRAMES)
        for number, seed in ((1, 0), (2, 0), (1, 5)):
            append(stream, number, seed)
    write(tmp_path / "b.zarr", [3], [FRAMES])
    merge(tmp_path / "all.zarr", [tmp_path / "a.zarr", tmp_path / "b.zarr"])
    expected = contents(tmp_path / "a.zarr") | contents(tmp_path / "b.zarr")
    assert contents(tmp_path / "all.zarr") == expected
    assert_whole(tmp_path / "all.zarr")


def test_stores_that_differ_about_a_clip_are_refused(store, tmp_path):
    with StoreWriter(tmp_path / "other.zarr") as writer:
        append(writer.stream(FRAMES), 4, seed=9)
    with pytest.raises(StoreError, match="'clip-4' of frames-.* has another source in .*other"):
        merge(tmp_path / "all.zarr", [store, tmp_path / "other.zarr"])
    before = bytes_of(store)
    with pytest.raises(StoreError, match="another source"):
        merge(store, [tmp_path / "other.zarr"])
    assert bytes_of(store) == before


def test_a_store_that_is_not_finished_is_not_merged(store, tmp_path):
    writer = StoreWriter(tmp_path / "half.zarr")
    append(writer.stream(FRAMES), 1)
    writer.stream(FRAMES).seal()
    append(writer.stream(FRAMES), 2)
    writer.close(finish=False)
    with pytest.raises(StoreError, match="unfinished"):
        merge(tmp_path / "all.zarr", [store, tmp_path / "half.zarr"])
    with pytest.raises(StoreError, match="unfinished"):
        merge(tmp_path / "half.zarr", [store])


@pytest.mark.parametrize("inside", ["s.zarr", "s.zarr/x", "."])
def test_a_store_is_not_merged_into_itself(store, tmp_path, inside):
    with pytest.raises((ConfigError, StoreError), match="name (another|a new) folder"):
        merge(tmp_path / inside, [store])


# -- subset --------------------------------------------------------------------------------------


def test_a_subset_has_the_root_of_a_store_of_these_clips_alone(store, tmp_path, others_agree):
    write(tmp_path / "alone.zarr", (1, 2, 6))
    report = subset(store, tmp_path / "some.zarr", {"clip-1", "clip-2", "clip-6", "clip-99"})
    assert report.root == open_store(tmp_path / "alone.zarr").root
    assert contents(tmp_path / "some.zarr") == contents(tmp_path / "alone.zarr")
    assert others_agree(tmp_path / "some.zarr") == 3 * 9
    assert_whole(tmp_path / "some.zarr")
    stream = open_store(tmp_path / "some.zarr")["frames"]
    np.testing.assert_array_equal(stream["clip-6"], open_store(store)["frames"]["clip-6"])


def test_a_subset_of_streams_leaves_the_others_out(store, tmp_path):
    subset(store, tmp_path / "two.zarr", keys=[FRAMES.key, PLANES.key])
    assert open_store(tmp_path / "two.zarr").keys() == sorted([FRAMES.key, PLANES.key])
    assert_whole(tmp_path / "two.zarr")


def test_subsets_put_together_again_are_the_whole(store, tmp_path):
    ids = open_store(store)["frames"].ids
    for i in range(3):
        subset(store, tmp_path / f"{i}.zarr", ids[i::3])
    merge(tmp_path / "all.zarr", [tmp_path / f"{i}.zarr" for i in range(3)])
    assert open_store(tmp_path / "all.zarr").root == open_store(store).root
    assert_whole(tmp_path / "all.zarr")


def test_the_commands_tell_what_they_did(store, tmp_path):
    corpus = tmp_path / "m.jsonl"
    rows = [{"id": f"clip-{n}", "text": "x", "split": "train" if n < 4 else "test"}
            for n in range(9)]  # fmt: skip
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "ids.txt").write_text("clip-4\nclip-5\nclip-6\nclip-7\nclip-8\n")
    train, test = tmp_path / "train.zarr", tmp_path / "test.zarr"
    result = mmfeat("subset", store, train, "--split", "train", "--corpus", corpus)
    assert "12 entries added" in result.stdout
    mmfeat("subset", store, test, "--ids", tmp_path / "ids.txt", "--streams", "frames,tokens")
    mmfeat("subset", store, tmp_path / "p.zarr", "--streams", "planes")
    out = tmp_path / "all.zarr"
    result = mmfeat("merge", out, train, test, tmp_path / "p.zarr", "--json")
    report = json.loads(result.stdout)
    assert report["duplicates"] == 4
    assert report["root"] == open_store(store).root
    assert "3 streams, " in mmfeat("verify", out).stdout
    assert "removed _mm/tokenizer-" in mmfeat("gc", store).stdout
    assert "would be removed" in mmfeat("gc", store, "--stream", TOKENS.key, "--dry-run").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--ids", "{tmp}/none"], 2, "can't read --ids"),
        (["--split", "train"], 2, "needs the --corpus"),
        (["--streams", "logmel"], 6, "has no stream 'logmel'; it holds: "),
        (["--ids", "{tmp}/strangers"], 6, "no stream of .* has one of these clips"),
    ],
)
def test_a_mistake_is_told_and_makes_no_store(store, tmp_path, arguments, code, message):
    (tmp_path / "strangers").write_text("nobody\n")
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    result = mmfeat("subset", store, tmp_path / "x.zarr", *arguments, code=code)
    assert result.stderr.count("\n") == 1
    with pytest.raises(MissingError):
        open_store(tmp_path / "x.zarr")
