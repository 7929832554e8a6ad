"""Batches hold what the store holds; what is missing is said with the command that makes it."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch

from mmfuse.features.errors import ConfigError, MissingError
from mmfuse.features.spec import Entry
from mmfuse.features.store import open_store
from mmfuse.features.writer import StoreWriter
from mmfuse.trainer import resident
from mmfuse.trainer.dataset import Dataset
from mmfuse.trainer.gather import spread_halves
from mmfuse.trainer.loop import fit, reproducible
from mmfuse.trainer.run import build_model


def test_order_is_a_function_of_seed_and_epoch_alone(plant):
    data = plant().data()
    clips = data.clips_of("train")

    def order(seed, epoch):
        return [batch.tolist() for batch in data.order(clips, 16, seed, epoch)]

    first = order(0, 1)
    data.order(clips, 16, 3, 3)
    assert order(0, 1) == first
    assert order(0, 2) != first
    assert order(1, 1) != first


def test_an_epoch_sees_every_clip_once(plant):
    data = plant().data()
    clips = data.clips_of("train")
    seen = np.concatenate(data.order(clips, 16, 0, 1))
    assert sorted(seen) == sorted(clips)
    assert {len(batch) for batch in data.order(clips, 16, 0, 1)} == {16, 8}


def test_clips_of_like_length_share_a_batch(plant):
    data = plant(counts=(160, 4, 4)).data()
    rows = data.rows["audio"] / 60 + data.rows["text"] / 16 + data.rows["midi"] / 40
    spread = [np.ptp(rows[batch]) for batch in data.order(data.clips_of("train"), 16, 0, 1)]
    assert np.median(spread) < 0.5 * np.ptp(rows)


def test_a_batch_holds_the_rows_of_the_store_and_zeros_behind_them(plant):
    planted = plant(missing=0.4)
    data = planted.data()
    streams = {
        name: open_store(planted.folder / "s.zarr")[data.specs[name].key] for name in data.specs
    }
    batch = data.batch(np.arange(12))
    for m, (name, stream) in enumerate(streams.items()):
        for b in range(12):
            here = f"c{b}" in stream
            assert bool(batch.present_BM[b, m]) == here
            rows = len(stream[f"c{b}"]) if here else 0
            assert int(batch.mask[name][b].sum()) == rows
            assert not batch.x[name][b, rows:].any()
            if here:
                wanted = torch.from_numpy(stream[f"c{b}"].copy()).to(batch.x[name].dtype)
                assert torch.equal(batch.x[name][b, :rows], wanted)
    assert not batch.present_BM.all()


def test_times_are_those_of_the_stream(plant):
    data = plant().data()
    batch = data.batch(np.arange(3))
    rows = int(batch.mask["audio"][0].sum())
    np.testing.assert_allclose(
        batch.times_s["audio"][0, :rows], 0.032 + 0.02 * np.arange(rows), 1e-6
    )
    assert batch.times_s["text"].isnan().all()


def test_a_crop_is_the_same_span_of_every_timed_stream(plant):
    data = plant().data()
    batch = data.batch(np.arange(30), crop_s=0.3, place=np.random.default_rng(0))
    whole = data.batch(np.arange(30)).mask["text"].sum()
    batch = data.batch(np.arange(30), crop_s=0.3, place=np.random.default_rng(0))
    for b in range(30):
        times = batch.times_s["audio"][b][batch.mask["audio"][b]]
        notes = batch.times_s["midi"][b][batch.mask["midi"][b]]
        assert len(times) in (15, 16)
        assert not len(notes) or times[0] - 0.021 <= notes[0] <= notes[-1] <= times[-1] + 0.021
    assert batch.mask["text"].sum() == whole


@pytest.fixture
def viewed(plant, specs):
    """Two views of all train clips but some; each holds its own number in every row."""
    planted = plant(counts=(30, 10, 10), views=True)
    config = planted.config.read_text()
    planted.config.write_text(config.replace("[data]", "[preprocessing]\nviews = 2\n[data]", 1))
    with StoreWriter(planted.folder / "s.zarr") as writer:
        for name in ("audio", "midi"):
            for view in (1, 2):
                for number in range(30):
                    if (name, number) in {("midi", 3), ("audio", 4)}:
                        continue
                    rows = np.full((6, *specs[name].item), view, specs[name].dtype)
                    entry = Entry(rows, windows=((Fraction(0), 6),))
                    writer.stream(specs[name]).append(f"c{number}", bytes(32), entry, view)
    return planted


def test_a_view_is_shown_in_all_modalities_or_in_none(viewed):
    data = viewed.data()
    clips = np.arange(30)
    plain = data.batch(clips)
    for view in (0, 1, 2):
        batch = data.batch(clips, views=np.full(30, view))
        for b in range(30):
            shown = {
                name: bool((batch.x[name][b][batch.mask[name][b]] == view).all())
                for name in ("audio", "midi")
            }
            assert set(shown.values()) == {view > 0 and b not in (3, 4)}
            assert torch.equal(
                batch.x["text"][b][batch.mask["text"][b]], plain.x["text"][b][plain.mask["text"][b]]
            )


def test_views_are_drawn_by_seed_epoch_and_clip(viewed):
    data = viewed.data()
    clips = data.clips_of("train")
    drawn = data.draw_views(clips, seed=0, epoch=1)
    assert set(drawn) == {0, 1, 2}
    assert np.array_equal(data.draw_views(clips[::-1], 0, 1), drawn[::-1])
    assert not np.array_equal(data.draw_views(clips, 0, 2), drawn)
    assert not np.array_equal(data.draw_views(clips, 1, 1), drawn)
    assert viewed.data("train.views=false").draw_views(clips, 0, 1) is None


def test_training_on_views_sees_them_and_validation_does_not(viewed, monkeypatch):
    seen = []
    whole = Dataset.plan

    def watched(self, clips, crop_s=0.0, rng=None, views=None):
        seen.append((set(self.split[clips]), None if views is None else set(views)))
        return whole(self, clips, crop_s, rng, views)

    monkeypatch.setattr(Dataset, "plan", watched)
    data, config = viewed.data(), viewed.run_config()
    with reproducible(0, 1):
        fit(build_model(config, data), data, config.train)
    assert {frozenset(splits) for splits, views in seen if views} == {frozenset({"train"})}
    assert set().union(*(views for _, views in seen if views)) == {0, 1, 2}
    assert any(splits == {"validation"} and views is None for splits, views in seen)


def test_views_that_are_not_there_are_told(plant):
    planted = plant(views=True)
    with pytest.raises(ConfigError, match="preprocessing.views = 0; set it to the number"):
        planted.data()
    with pytest.raises(MissingError, match=r"no views in .*mmfeat run .*preprocessing.views=2"):
        planted.data("preprocessing.views=2")


def test_one_clip_is_a_dict_of_what_it_has(plant):
    data = plant(missing=0.5).data()
    for clip in range(8):
        item = data[clip]
        assert item["id"] == f"c{clip}"
        assert item["label"] in data.classes
        assert {name for name, here in item["present"].items() if here} == set(item) & set(
            data.specs
        )


def test_moments_are_those_of_the_train_split(plant):
    data = plant(missing=0.2).data()
    clips = data.clips_of("train")
    rows = [data[clip]["audio"] for clip in clips if "audio" in data[clip]]
    every = np.concatenate(rows).astype(np.float64)
    mean, deviation = data.moments("audio", clips)
    torch.testing.assert_close(mean, torch.from_numpy(every.mean(0)).float())
    torch.testing.assert_close(deviation, torch.from_numpy(every.std(0)).float())


def test_a_configuration_without_corpus_or_store_says_what_to_add(plant):
    planted = plant()
    text = planted.config.read_text()
    planted.config.write_text("\n".join(line for line in text.splitlines() if "store" not in line))
    with pytest.raises(
        ConfigError, match=r"data.store is missing; add it, or --set data.store=PATH"
    ):
        planted.data()


def test_no_store_gives_the_line_that_makes_it(plant):
    planted = plant()
    line = (
        f"mmfeat run {planted.config} --corpus {planted.folder}/manifest.jsonl --store nowhere.zarr"
    )
    with pytest.raises(MissingError) as caught:
        planted.data("data.store=nowhere.zarr")
    assert str(caught.value).endswith(f"make it with: {line}")
    assert caught.value.exit_code == 6


def test_another_setting_is_named_and_goes_into_the_line(plant):
    with pytest.raises(
        MissingError, match=r"logmel with n_mels = 8, the configuration says 9"
    ) as caught:
        plant().data("preprocessing.audio.n_mels=9", "train.seed=4")
    assert str(caught.value).endswith("--set preprocessing.audio.n_mels=9")


def test_a_stream_that_is_not_there_is_named(plant, tmp_path):
    planted = plant()
    from mmfuse.features.writer import StoreWriter

    with StoreWriter(tmp_path / "empty.zarr"):
        pass
    with pytest.raises(
        MissingError, match=r"has no stream 'text_tokens'; make it with: mmfeat run"
    ):
        planted.data(f"data.store={tmp_path / 'empty.zarr'}")


def relabel(planted, change):
    file = planted.folder / "manifest.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("\n".join(json.dumps(change(row)) for row in rows))


def test_a_store_of_another_corpus_is_seen(plant):
    planted = plant()
    relabel(planted, lambda row: row | {"id": f"other-{row['id']}"})
    with pytest.raises(
        MissingError, match=r"holds none of the 40 train clips.*make it with: mmfeat"
    ):
        planted.data()


def test_a_split_without_labels_is_named(plant):
    planted = plant()
    relabel(planted, lambda row: row | ({"label": None} if row["split"] == "test" else {}))
    with pytest.raises(ConfigError, match=r"no labelled clips in split 'test'; give every clip"):
        planted.data()


def test_clips_without_label_are_left_out(plant):
    planted = plant()
    relabel(planted, lambda row: row | ({"label": None} if row["id"] == "c0" else {}))
    assert len(planted.data()) == 75


def test_one_label_is_nothing_to_tell_apart(plant):
    with pytest.raises(ConfigError, match=r"one label only in its train split, 'same'"):
        plant(label_of=lambda bits: "same").data()


def test_ids_that_occur_twice_are_refused(plant):
    planted = plant()
    relabel(planted, lambda row: row | ({"id": "c1"} if row["id"] == "c0" else {}))
    with pytest.raises(ConfigError, match=r"ids that occur twice; `mmfeat scan"):
        planted.data()


def test_an_encoder_needs_its_preprocessing_section(plant):
    planted = plant()
    text = planted.config.read_text().replace("[preprocessing.midi]\nmax_events = 256", "")
    planted.config.write_text(text)
    with pytest.raises(ConfigError, match=r"model.midi_encoder needs \[preprocessing.midi\]"):
        planted.data()


def test_every_float16_becomes_its_float32_to_the_bit():
    bits = np.arange(1 << 16, dtype=np.uint16)
    found = np.empty(len(bits), np.float32)
    first, rows = np.array([0]), np.array([len(bits) // 32])
    times, mask = np.empty((1, rows[0]), np.float32), np.empty((1, rows[0]), np.bool_)
    whole, clock = found.view(np.uint32), (np.zeros(rows[0], np.float32), times, mask)
    spread_halves(bits, 32, first, rows, found, whole, *clock)
    expected = bits.view(np.float16).astype(np.float32)
    assert np.array_equal(found, expected, equal_nan=True)
    assert np.array_equal(np.signbit(found), np.signbit(expected))


def test_batches_are_the_same_where_nothing_is_compiled(plant, monkeypatch):
    planted = plant(missing=0.3)
    compiled, plain = planted.data(), planted.data()
    rows = compiled.clips_of("train")[:16]
    one = compiled.batch(rows, 0.4, np.random.default_rng(1))
    monkeypatch.setattr(resident, "COMPILED", False)
    for name in ("spread", "crop"):
        monkeypatch.setattr(resident, name, getattr(resident, name).py_func)
    other = plain.batch(rows, 0.4, np.random.default_rng(1))
    for name in compiled.streams:
        assert torch.equal(one.x[name], other.x[name])
        assert torch.equal(one.mask[name], other.mask[name])
        assert torch.equal(one.times_s[name].nan_to_num(-1), other.times_s[name].nan_to_num(-1))
