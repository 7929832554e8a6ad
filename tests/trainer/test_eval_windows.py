"""An answer by windows is the mean of the answers for windows that are cut by hand."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mmfuse.features.errors import ConfigError
from mmfuse.trainer.batch import Batch
from mmfuse.trainer.cli import app
from mmfuse.trainer.loop import predict, predict_all, reproducible
from mmfuse.trainer.run import build_model, train
from mmfuse.trainer.windows import WHOLE_CLIPS, Windows, windows_of

CROP_S = np.float32(0.25)


def by_hand(data, clip, start_s):
    """A batch of the rows of a clip between two times; a modality without any is not there."""
    x, mask, times, present = {}, {}, {}, []
    for name, stream in data.streams.items():
        entry = int(data.entry[name][clip])
        rows, seconds = np.zeros((0, *stream.spec.item)), np.zeros(0)
        if entry >= 0:
            rows, seconds = stream.at(entry), stream.frame_times_s(entry).astype(np.float32)
            if stream.spec.timing.kind != "none":
                inside = (seconds >= start_s) & (seconds < start_s + CROP_S)
                rows, seconds = rows[inside], seconds[inside]
        present.append(len(rows) > 0)
        if not len(rows):
            rows, seconds = np.zeros((1, *stream.spec.item)), np.full(1, np.nan)
        kind = np.int64 if stream.spec.timing.kind == "none" else np.float32
        x[name] = torch.from_numpy(rows.astype(kind))[None]
        mask[name] = torch.full((1, len(rows)), present[-1])
        times[name] = torch.from_numpy(seconds.astype(np.float32))[None]
    label = torch.from_numpy(data.target[[clip]])
    return Batch(np.array([clip]), x, mask, times, torch.tensor([present]), label)


@pytest.mark.parametrize(
    ("mapped", "count", "task"),
    [(False, 3, "single"), (True, 4, "single"), (False, 1, "single"), (False, 2, "regression")],
)
def test_the_average_is_that_of_windows_cut_by_hand(plant, mapped, count, task):
    labels = {"single": lambda bits: str(bits["text"]), "regression": lambda bits: bits["midi"]}
    planted = plant(labels[task], missing=0.3, counts=(12, 4, 4), task=task)
    data = planted.data()
    if mapped:
        vars(data)["_fits"] = False
    with reproducible(0, 1):
        model = build_model(planted.run_config(), data)
    clips, told = np.arange(12), 0
    found = predict_all(model, data, clips, windows=Windows(count, float(CROP_S)))
    for clip in clips:
        timed = [name for name in ("audio", "midi") if data.entry[name][clip] >= 0]
        if not timed:
            continue
        seconds = data.streams[timed[0]].frame_times_s(int(data.entry[timed[0]][clip]))
        seconds = seconds.astype(np.float32)  # as in batches: ends are rounded alike
        room = seconds[-1] - seconds[0] - CROP_S
        assert room > 0
        shares = [0.5] if count == 1 else np.linspace(0, 1, count)
        batches = [by_hand(data, clip, seconds[0] + np.float32(s) * room) for s in shares]
        with torch.no_grad():
            outputs = [model(batch) for batch in batches]
        said = [data.task.answer(output.logits_BC.double())[0] for output in outputs]
        expected = torch.stack(said).mean(dim=0).numpy()
        np.testing.assert_allclose(found["whole"][clip], expected, atol=1e-5)
        heads = [
            data.task.answer(output.unimodal["midi"].double())[0]
            for output, batch in zip(outputs, batches, strict=True)
            if batch.present_BM[0, 2]
        ]
        if heads:
            head = torch.stack(heads).mean(dim=0).numpy()
            np.testing.assert_allclose(found["midi"][clip], head, atol=1e-5)
            told += len(heads) < count
    assert count < 3 or told, "no clip had windows without notes"


def test_windows_in_which_nothing_is_do_not_count_unless_all_are_such(plant):
    planted = plant(missing=0.3, counts=(12, 4, 4))
    data = planted.data()
    with reproducible(0, 1):
        model = build_model(planted.run_config(), data)
    clips, keep = np.arange(12), (False, False, True)
    found = predict(model, data, clips, keep, windows=Windows(3, float(CROP_S)))
    whole = predict(model, data, clips, keep)
    without = data.entry["midi"][clips] < 0
    np.testing.assert_allclose(found[without], whole[without])
    empty = 0
    for clip in clips[~without]:
        here, said = [], []
        for place in (0.0, 0.5, 1.0):
            batch = data.batch(np.array([clip]), float(CROP_S), place)
            here.append(bool(batch.present_BM[0, 2]))
            with torch.no_grad():
                logits_BC = model(batch, torch.tensor([keep])).logits_BC
            said.append(logits_BC.double().softmax(dim=1)[0])
        kept = [one for one, has in zip(said, here, strict=True) if has] or said
        np.testing.assert_allclose(found[clip], torch.stack(kept).mean(dim=0).numpy(), atol=1e-5)
        empty += not all(here)
    assert empty


def test_one_window_as_long_as_every_clip_is_the_whole_clip(plant):
    planted = plant(counts=(20, 8, 8))
    data = planted.data()
    with reproducible(0, 1):
        model = build_model(planted.run_config(), data)
    whole = predict(model, data, np.arange(20))
    for count in (1, 3):
        found = predict(model, data, np.arange(20), windows=Windows(count, 60.0))
        np.testing.assert_allclose(found, whole, atol=1e-6)
    assert Windows(3, 1.0).places == [0.0, 0.5, 1.0]
    assert Windows(1, 1.0).places == [0.5]


def test_training_evaluation_and_prediction_take_the_same_windows(plant):
    planted = plant(counts=(24, 12, 12), crop_s=float(CROP_S))
    out = planted.folder / "a"
    result = train(planted.config, ("eval.windows=3",), out)
    whole = train(planted.config, (), planted.folder / "b")
    assert result["test"]["nll"] != whole["test"]["nll"]
    lines = (out / "metrics.jsonl").read_text().splitlines()
    best = json.loads(lines[result["best_epoch"] - 1])
    assert best["val_loss"] == pytest.approx(result["val"]["nll"], abs=1e-6)
    told = CliRunner().invoke(app, ["eval", str(out), "--json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)["test"]["nll"]
    assert found == pytest.approx(result["test"]["nll"], abs=1e-6)


def test_windows_need_their_length(plant):
    planted = plant(counts=(4, 2, 2))
    with pytest.raises(ConfigError, match="eval.windows = 3: needs train.crop_s above 0"):
        planted.run_config("eval.windows=3")
    assert windows_of(planted.run_config("train.crop_s=2", "eval.windows=3")) == Windows(3, 2.0)
    assert windows_of(planted.run_config("train.crop_s=2")) == WHOLE_CLIPS
