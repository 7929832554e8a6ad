"""A task goes the whole way: training, scores, comparison, prediction, scoring anew, export."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import f1_score, r2_score
from typer.testing import CliRunner

from mmfuse.features.errors import ConfigError
from mmfuse.trainer.attribution import shapley
from mmfuse.trainer.cli import app
from mmfuse.trainer.compare import compare
from mmfuse.trainer.export import Program, example
from mmfuse.trainer.run import train
from mmfuse.trainer.saved import load_saved

NAMES = ("text", "midi")


def several(bits):
    """Labels that text and MIDI tell by themselves; some clips have none."""
    return [name for name in NAMES if bits[name]]


def number(bits):
    return 10.0 * bits["text"] + 4.0 * bits["midi"] + 1900


LABELS = {"multilabel": several, "regression": number}


@pytest.fixture(scope="module", params=LABELS)
def finished(request, tmp_path_factory):
    """What was planted, a run `a` of two modalities and a run `b` of one, and `a`'s result."""
    plant = request.getfixturevalue("plant_in")
    planted = plant(
        tmp_path_factory.mktemp(request.param), label_of=LABELS[request.param],
        counts=(60, 24, 24), modalities=NAMES, missing=0.1, group_of=lambda n: f"g{n // 2}",
        task=request.param, epochs=12, class_weights=request.param == "multilabel",
    )  # fmt: skip
    result = train(planted.config, (), planted.folder / "a")
    configure = request.getfixturevalue("configure")
    configure(planted.folder, ("midi",), task=request.param, epochs=4)
    train(planted.config, (), planted.folder / "b")
    return request.param, planted, result


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def table(planted, run="a", split="test"):
    rows = pq.read_table(planted.folder / run / "predictions.parquet").to_pylist()
    return [row for row in rows if row["split"] == split]


def test_it_learns_and_says_so(finished):
    task, _, result = finished
    assert result["task"] == task
    score = {"multilabel": "micro_f1", "regression": "r2"}[task]
    assert result["test"][score] > 0.7
    assert result["test"][f"{score}_95"][0] <= result["test"][score]
    assert ("calibration" in result) == (task == "multilabel")


def test_scores_are_those_of_the_table(finished):
    task, planted, result = finished
    rows = table(planted)
    if task == "regression":
        truth, said = (np.array([row[key] for row in rows]) for key in ("label", "predicted"))
        assert result["test"]["r2"] == pytest.approx(r2_score(truth, said))
        assert np.abs(said - 1907).max() < 15
        return
    truth, said = (
        np.array([[name in row[key].split("|") for name in ("midi", "text")] for row in rows])
        for key in ("label", "predicted")
    )
    assert result["test"]["macro_f1"] == pytest.approx(f1_score(truth, said, average="macro"))
    p = np.array([[row["p:midi"], row["p:text"]] for row in rows])
    np.testing.assert_array_equal(p >= 0.5, said)
    assert {"|", "midi", "text", "midi|text"} >= {row["label"] for row in rows}


def test_the_best_epoch_is_the_first_with_the_best_score_on_validation(finished):
    task, planted, result = finished
    lines = (planted.folder / "a" / "metrics.jsonl").read_text().splitlines()
    select = {"multilabel": "macro_f1", "regression": "r2"}[task]
    merits = [(r[f"val_{select}"], -r["val_loss"]) for r in map(json.loads, lines)]
    assert result["best_epoch"] == 1 + merits.index(max(merits))
    assert result["val"][select] == pytest.approx(max(merits)[0])


def test_shapley_values_and_robustness_are_of_the_tasks_scores(finished):
    task, planted, result = finished
    data = planted.data(f"train.task={task}")
    truth = data.label[data.clips_of("test")]
    nothing = data.task.decide(np.tile(data.task.guess(), (len(truth), 1)))
    nothing = data.task.scores(truth, nothing)
    for score, worth in result["shapley"]["test"].items():
        value = {tuple(k.split("+")): of["test"][score] for k, of in result["subsets"].items()}
        assert worth == pytest.approx(shapley(NAMES, value | {(): nothing[score]}))
    curve = result["robustness"]["test"]["midi"]
    for score in data.task.shown:
        assert curve[score][0] == pytest.approx(result["test"][score])
        assert curve[score][-1] == pytest.approx(result["subsets"]["text"]["test"][score])


def test_runs_are_compared_by_the_tasks_score(finished):
    task, planted, result = finished
    found = compare([planted.folder / "a", planted.folder / "b"])
    assert found["against"].endswith("/b") and found["groups"] == 12
    select = {"multilabel": "macro_f1", "regression": "r2"}[task]
    row = found["runs"][0]
    assert row[select] == pytest.approx(result["test"][select])
    assert row["difference"][select]["value"] == pytest.approx(
        row[select] - found["runs"][1][select]
    )
    assert "mcnemar_p" not in row
    said = invoke("compare", planted.folder / "a", planted.folder / "b")
    assert said.exit_code == 0, said.output
    assert (
        "McNemar's test is for answers that are right or wrong, not for this task." in said.stdout
    )


def test_a_report_of_two_runs_is_written_without_their_comparison(finished, tmp_path):
    task, planted, _ = finished
    out = tmp_path / "page.html"
    outcome = invoke("report", planted.folder / "a", planted.folder / "b", "--out", out)
    assert outcome.exit_code == 0, outcome.output
    assert f"not drawn for {task} runs: see mmtrain compare" in out.read_text()


def test_it_predicts_and_scores_anew(finished, tmp_path):
    task, planted, result = finished
    out = tmp_path / "p.parquet"
    outcome = invoke("predict", planted.folder / "a", "--split", "test", "--out", out, "--json")
    assert outcome.exit_code == 0, outcome.output
    again = {row["id"]: row for row in pq.read_table(out).to_pylist()}
    for row in table(planted):
        assert again[row["id"]]["label"] == row["label"]
        numbers = row.keys() if task == "multilabel" else {"label", "predicted"}
        for name in numbers - {"group"}:
            same = row[name] if isinstance(row[name], str) else pytest.approx(row[name], rel=1e-4)
            assert again[row["id"]][name] == same, name
    assert invoke("predict", planted.folder / "a", "--split", "test").exit_code == 0
    scored = invoke("eval", planted.folder / "a", "--json")
    assert scored.exit_code == 0, scored.output
    found = json.loads(scored.stdout)["test"]
    for name in result["test"].keys() - {"drawn", "clips"}:
        assert found[name] == pytest.approx(result["test"][name], abs=1e-6), name
    assert invoke("eval", planted.folder / "a").exit_code == 0


def test_the_card_is_the_tasks(finished, tmp_path):
    task, planted, _ = finished
    outcome = invoke("export", planted.folder / "a", "--out", tmp_path / "e")
    assert outcome.exit_code == 0, outcome.output
    card = (tmp_path / "e" / "README.md").read_text()
    assert {"multilabel": "which of 2 labels", "regression": "predicts a number"}[task] in card
    assert {"multilabel": "mAP", "regression": "Spearman"}[task] in card


@pytest.mark.slow
def test_a_program_gives_logits_of_labels_and_numbers_in_their_unit(finished, tmp_path):
    task, planted, _ = finished
    words = ["--format", "torch-export", "--out", tmp_path / "e"]
    outcome = invoke("export", planted.folder / "a", *words)
    assert outcome.exit_code == 0, outcome.exception
    inputs = json.loads((tmp_path / "e" / "inputs.json").read_text())
    assert inputs["output"] == {"multilabel": "logits", "regression": "value"}[task]
    saved = load_saved(tmp_path / "e")
    program = torch.export.load(tmp_path / "e" / "model.pt2").module()
    with torch.no_grad():
        given = example(saved, 3)
        said = program(*given)
        torch.testing.assert_close(said, Program(saved.model, saved.task)(*given))
    if task == "regression":
        assert 1850 < float(said.mean()) < 1960


def test_a_sweep_queues_it_and_says_why(finished, tmp_path):
    task, planted, _ = finished
    words = ["--seeds", "2", "--set", "train.epochs=1", "--out", tmp_path / "s"]
    outcome = invoke("sweep", planted.config, *words)
    assert outcome.exit_code == 0, outcome.output
    assert "train.task is not stacked" in outcome.stdout
    assert {"multilabel": "macro-F1", "regression": "R2"}[task] + " of 2 runs" in outcome.stdout


def test_labels_that_the_task_can_not_read_are_one_line(plant):
    planted = plant(label_of=number, counts=(4, 2, 2), task="regression")
    file = planted.folder / "manifest.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for task, label, message in (
        ("regression", "tango", r"label 'tango' of clip 'c0' is no number"),
        ("single", ["a", "b"], r"label of clip 'c0' is a list, \['a', 'b'\]; set train.task"),
    ):
        rows[0]["label"] = label
        file.write_text("\n".join(map(json.dumps, rows)))
        with pytest.raises(ConfigError, match=message):
            planted.data(f"train.task={task}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ['train.task="regression"', "train.class_weights=true"],
            "class_weights = true: needs classes or labels",
        ),
        (['train.task="multilabel"', 'train.balance="ogm_ge"'], "compares classes; it needs"),
        (["train.huber=1"], 'huber = 1.0: needs train.task = "regression"'),
        (['train.task="rank"'], "train.task"),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(plant, overrides, message):
    with pytest.raises(ConfigError, match=message):
        plant(counts=(4, 2, 2)).run_config(*overrides)


def test_runs_of_two_tasks_are_not_compared(finished, tmp_path):
    task, planted, _ = finished
    other = tmp_path / "other"
    other.mkdir()
    result = {"name": "x", "seed": 0, "modalities": ["text"], "test": {"macro_f1": 1}}
    (other / "result.json").write_text(json.dumps(result))
    with pytest.raises(ConfigError, match=rf"other has train.task = 'single' and .*/a '{task}'"):
        compare([planted.folder / "a", other])
