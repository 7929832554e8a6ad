"""A run's result says how sure its scores are, what each modality does, and what its loss costs."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from mmfuse.trainer import calibration, metrics
from mmfuse.trainer.attribution import shapley
from mmfuse.trainer.run import train
from mmfuse.trainer.saved import load_model
from mmfuse.trainer.summary import run_lines

NAMES = ["text", "audio", "midi"]


@pytest.fixture
def ran(plant):
    """`ran(*overrides, **planted)` trains a run and gives what was planted and its result."""

    def make(*overrides, **options):
        planted = plant(**({"missing": 0.2} | options))
        result = train(planted.config, overrides, planted.folder / "a")
        assert result == json.loads((planted.folder / "a" / "result.json").read_text())
        return planted, result

    return make


def test_scores_are_those_of_the_predictions(ran):
    planted, result = ran()
    rows = pq.read_table(planted.folder / "a" / "predictions.parquet").to_pylist()
    classes = result["classes"]
    parts = {}
    for name, split in (("val", "validation"), ("test", "test")):
        mine = [row for row in rows if row["split"] == split]
        p = np.array([[row[f"p:{c}"] for c in classes] for row in mine])
        parts[name] = np.array([classes.index(row["label"]) for row in mine]), p
    temperature = result["calibration"]["temperature"]
    assert temperature == pytest.approx(calibration.fit_temperature(*parts["val"]))
    for name, (truth, p) in parts.items():
        assert result[name]["auroc"] == pytest.approx(metrics.auroc(truth, p))
        assert result[name]["nll"] == pytest.approx(calibration.nll(truth, p))
        assert result[name]["ece"] == pytest.approx(calibration.ece(truth, p))
        scaled = calibration.at_temperature(p, temperature)
        assert result["calibration"][name]["nll"] == pytest.approx(calibration.nll(truth, scaled))
        assert result["calibration"][name]["ece"] == pytest.approx(calibration.ece(truth, scaled))
    assert result["calibration"]["val"]["nll"] <= result["val"]["nll"]


def test_shapley_values_come_from_the_subsets_and_sum_to_the_gain_over_the_commonest_class(ran):
    planted, result = ran()
    data = planted.data()
    commonest = np.bincount(data.label[data.clips_of("train")]).argmax()
    for name, split in (("val", "validation"), ("test", "test")):
        truth = data.label[data.clips_of(split)]
        nothing = metrics.scores(truth, np.full(len(truth), commonest), len(data.classes))
        for score, worth in result["shapley"][name].items():
            value = {
                tuple(kept.split("+")): of[name][score] for kept, of in result["subsets"].items()
            }
            assert worth == pytest.approx(shapley(NAMES, value | {(): nothing[score]}))
            assert sum(worth.values()) == pytest.approx(result[name][score] - nothing[score])


def test_intervals_of_subsets_and_shapley_values_draw_the_same_clips_as_the_scores(ran):
    _, result = ran()
    for name in ("val", "test"):
        found = result["intervals"][name]
        assert list(found["subsets"]) == list(result["subsets"])
        for score in ("accuracy", "macro_f1"):
            assert found["subsets"]["text+audio+midi"][score] == result[name][f"{score}_95"]
            for kept, intervals in found["subsets"].items():
                low, high = intervals[score]
                assert low <= result["subsets"][kept][name][score] <= high
                assert low < high
            for modality, (low, high) in found["shapley"][score].items():
                assert low < result["shapley"][name][score][modality] < high


def test_robustness_begins_at_the_result_and_ends_at_the_subset(ran):
    _, result = ran("eval.missing_shares=[0.0, 0.4, 1.0]")
    assert result["robustness"]["missing"] == [0.0, 0.4, 1.0]
    for name in ("val", "test"):
        for modality, rest in (("text", "audio+midi"), ("midi", "text+audio")):
            curve = result["robustness"][name][modality]["macro_f1"]
            assert curve[0] == pytest.approx(result[name]["macro_f1"])
            assert curve[2] == pytest.approx(result["subsets"][rest][name]["macro_f1"])


@pytest.mark.parametrize("gate", ["softmax", "gmu"])
def test_gates_are_written_by_modality_and_class(ran, gate):
    planted, result = ran(f'model.fusion.gate="{gate}"', fusion="gated")
    model, classes = load_model(planted.folder / "a")
    data = planted.data()
    for name, split in (("val", "validation"), ("test", "test")):
        clips = data.clips_of(split)
        batch = data.batch(clips)
        weights = model.gate_weights(batch).detach().numpy()
        present = batch.present_BM.numpy()
        found = result["gates"][name]
        for m, modality in enumerate(NAMES):
            here = present[:, m]
            assert found["mean"][modality] == pytest.approx(weights[here, m].mean(), abs=1e-5)
            for c, label in enumerate(classes):
                mine = here & (data.label[clips] == c)
                if mine.any():
                    of = found["by_class"][label][modality]
                    assert of == pytest.approx(weights[mine, m].mean(), abs=1e-5)
        if gate == "softmax":
            everything = present.all(axis=1)
            assert weights[everything].sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert "gate" in "\n".join(run_lines(result))


def test_without_gates_subsets_or_other_modalities_the_result_has_no_such_part(ran):
    _, result = ran("eval.subsets=false")
    assert not {"gates", "subsets", "shapley", "intervals", "robustness"} & set(result)
    assert "worth" not in "\n".join(run_lines(result))


def test_one_modality_has_nothing_to_share(ran):
    _, result = ran(modalities=("text",))
    assert list(result["subsets"]) == ["text"]
    assert not {"shapley", "robustness"} & set(result)
    run_lines(result)


def test_groups_of_the_corpus_are_drawn_whole(ran):
    planted, result = ran(group_of=lambda number: f"song {number // 4}")
    assert result["test"]["drawn"] == {"groups": 5}
    assert "Intervals draw whole groups: 5 on test." in run_lines(result)
    data = planted.data()
    clips = data.clips_of("test")
    rows = pq.read_table(planted.folder / "a" / "predictions.parquet").to_pylist()
    mine = [row for row in rows if row["split"] == "test"]
    assert [row["group"] for row in mine] == [f"song {clip // 4}" for clip in clips]
    predicted = np.array([data.classes.index(row["predicted"]) for row in mine])
    wanted = metrics.bootstrap(
        data.label[clips], predicted, len(data.classes), 200, groups_N=data.groups_of(clips)
    )
    assert result["test"]["accuracy_95"] == [wanted["accuracy"].low, wanted["accuracy"].high]


def test_clips_are_drawn_by_choice_or_where_no_clip_has_a_group(ran):
    _, result = ran("eval.resample=clip", group_of=lambda number: "one song")
    assert result["test"]["drawn"] == {"clips": 20}


def test_a_clip_without_a_group_is_one_by_itself(plant):
    data = plant(group_of=lambda number: "song" if number % 2 else None).data()
    assert data.groups_of(np.arange(4)).tolist() == ["clip c0", "song", "clip c2", "song"]
    data.groups = [None] * len(data)
    assert data.groups_of(np.arange(4)) is None
