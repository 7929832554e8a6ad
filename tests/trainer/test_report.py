"""`mmtrain report`: figures are the numbers of the runs, and nothing comes through as markup."""

import json

import numpy as np
import polars as pl
import pytest
from browser import DESKTOP, EVIL, PHONE, seen
from test_report import Parsed
from typer.testing import CliRunner

from mmfuse.features.errors import ConfigError
from mmfuse.features.page import write_page
from mmfuse.trainer import run_figures as figures
from mmfuse.trainer.calibration import ece
from mmfuse.trainer.cli import app
from mmfuse.trainer.compare import compare
from mmfuse.trainer.run import train
from mmfuse.trainer.run_page import differing, run_page
from mmfuse.trainer.tasks import SingleLabel

MADE = {}
LONG = 90 * "x"
# every shade of a confusion, whether these runs have it or not
SHADES = """() => document.querySelector(".matrix tbody tr").append(
  ...Array.from({length: 11}, (_, q) => Object.assign(
    document.createElement("td"), {className: `q${q}`, textContent: q})))"""


@pytest.fixture
def runs(plant, configure):
    """Folders of a gated run of all modalities and of one of text alone; labels are markup."""
    if not MADE:
        planted = plant(
            lambda bits: f"{EVIL} {bits['midi']}{LONG}",
            fusion="gated",
            group_of=lambda n: f"g{n // 3}",
        )
        train(planted.config, (), planted.folder / "gated")
        configure(planted.folder, ("text",))
        train(planted.config, ("train.seed=1",), planted.folder / "text")
        MADE["runs"] = [planted.folder / "gated", planted.folder / "text"]
    return MADE["runs"]


def mmtrain(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def result_of(run):
    return json.loads((run / "result.json").read_text())


def test_a_run_is_shown_with_all_that_it_has(runs):
    parsed = Parsed(run_page(runs[:1]).html)
    words, result = parsed.words, result_of(runs[0])
    for heading in ("Scores", "Loss", "Gradients of each encoder", "macro-F1 with only these",
                    "Worth of each modality", "As a modality goes missing",
                    "Gates: the weight of each modality", "Confusion on test",
                    "Calibration"):  # fmt: skip
        assert heading in words
    assert f"{result['test']['macro_f1']:.3f}" in words
    low, high = result["test"]["accuracy_95"]
    assert f"{low:.3f} to {high:.3f}" in words
    assert f"mmtrain run {runs[0]}/resolved.toml --out {runs[0]}-again" in words
    assert "Comparison" not in words


def test_what_a_run_lacks_is_left_out(runs):
    words = Parsed(run_page(runs[1:]).html).words
    for heading in ("Gates:", "Worth of each modality", "As a modality goes missing"):
        assert heading not in words
    assert "Confusion on test" in words


def test_runs_are_compared_as_mmtrain_compare_does(runs):
    page = run_page(runs)
    words, compared = Parsed(page.html).words, compare(runs)
    assert page.notes == []
    difference = compared["runs"][0]["difference"]["macro_f1"]
    minus = str.maketrans("-", "−")
    assert f"{difference['value']:+.3f}".translate(minus) in words
    interval = f"{difference['low']:+.3f} to {difference['high']:+.3f}".translate(minus)
    assert interval in words
    assert f"from {runs[1]}" in words
    assert "model.fusion.type" in words


def test_runs_of_other_clips_are_shown_and_not_compared(runs, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for file in runs[1].iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    rows = pl.read_parquet(other / "predictions.parquet")
    rows.head(len(rows) - 2).write_parquet(other / "predictions.parquet")
    page = run_page([runs[0], other])
    assert page.notes[0].startswith("not compared: ")
    assert "compare runs of one corpus" in Parsed(page.html).words


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_other_tasks_are_shown_by_their_own_scores(plant, task):
    label_of = {
        "multilabel": lambda bits: [name for name in ("text", "midi") if bits[name]],
        "regression": lambda bits: 1900 + 5 * bits["text"] + 2 * bits["midi"],
    }[task]
    planted = plant(label_of, task=task, epochs=1)
    train(planted.config, (), planted.folder / "a")
    words, result = (
        Parsed(run_page([planted.folder / "a"]).html).words,
        result_of(planted.folder / "a"),
    )
    score, title = {"multilabel": ("map", "mAP"), "regression": ("r2", "R2")}[task]
    assert f"{title} on test {result['test'][score]:.3f}".replace("-", "−") in words
    assert ("Calibration" in words) == (task == "multilabel")
    assert "Confusion" not in words
    if task == "multilabel":
        right, said = figures._answers(planted.folder / "a", result)
        at, share, count = figures._binned(said.max(axis=1), right, 15)
        off = sum(n * abs(a - s) for a, s, n in zip(at, share, count, strict=True)) / len(right)
        assert off == pytest.approx(result["test"]["ece"])


def test_labels_stay_text_and_nothing_points_out(runs):
    page = run_page(runs)
    parsed = Parsed(page.html)
    assert EVIL not in page.html
    assert [tag for tag, _ in parsed.tags].count("script") == 1
    assert f"{EVIL} 0{LONG}" in parsed.words
    for _, attrs in parsed.tags:
        for name in ("src", "href"):
            assert attrs.get(name, "#").startswith(("data:", "#"))
        assert "style" not in attrs
    assert len(page.html) < 300_000


def test_the_command_writes_the_page(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = mmtrain("report", *runs, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["bytes"] == (tmp_path / "report.html").stat().st_size
    none = mmtrain("report", tmp_path)
    assert none.exit_code == 2
    assert "holds no run" in none.stderr
    (tmp_path / "cut").mkdir()
    for file in runs[1].iterdir():
        (tmp_path / "cut" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "cut" / "metrics.jsonl").write_text("{")
    with pytest.raises(ConfigError, match="train again with --overwrite"):
        run_page([tmp_path / "cut"])


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_page_is_quiet_fits_and_can_be_read(chromium, runs, tmp_path, size):
    write_page(tmp_path / "runs.html", run_page(runs).html)
    for scheme in ("light", "dark"):
        with seen(chromium, tmp_path / "runs.html", size, scheme) as found:
            for details in found.page.locator("details").all():
                details.evaluate("(d) => { d.open = true; }")
            assert not found.scrolls_sideways()
            found.page.evaluate(SHADES)
            assert [(c, text) for c, text in found.contrasts() if c < 4.5] == []
            assert found.console == []
            assert found.outside() == []
            assert found.dialogs == []


# -- figures -------------------------------------------------------------------------------------


def test_dots_of_the_reliability_diagram_give_the_calibration_error(runs):
    result = result_of(runs[0])
    found = figures.reliability(runs[0], result, 15)
    rows = pl.read_parquet(runs[0] / "predictions.parquet").filter(pl.col("split") == "test")
    said = rows.select([f"p:{name}" for name in result["classes"]]).to_numpy()
    truth = np.array([result["classes"].index(name) for name in rows["label"]])
    at, share, clips = figures._binned(said.max(axis=1), said.argmax(axis=1) == truth, 15)
    off = sum(n * abs(a - s) for a, s, n in zip(at, share, clips, strict=True)) / len(rows)
    assert off == pytest.approx(result["test"]["ece"])
    assert off == pytest.approx(ece(truth, said))
    marks = found["plot"].series[1].marks
    assert [left for left, _, _, _ in marks] == pytest.approx([100 * a for a in at], abs=0.01)
    assert [up for _, up, _, _ in marks] == pytest.approx([100 * s for s in share], abs=0.01)


def test_bars_and_curves_stand_where_the_result_says(runs):
    result = result_of(runs[0])
    for row in figures.subsets(SingleLabel, result)["rows"]:
        of = result["subsets"][row["name"]]["test"]["macro_f1"]
        assert row["stop"] == pytest.approx(100 * of, abs=0.01)
        assert row["low"] <= row["stop"] <= row["high"]
    worth = figures.shapley(SingleLabel, result)
    for row in worth["rows"]:
        value = result["shapley"]["test"]["macro_f1"][row["name"]]
        assert np.sign(row["stop"] - worth["zero"]) == np.sign(value)
    curve = figures.robustness(SingleLabel, result).series[-1]
    assert curve.name == "each by itself"
    last = result["robustness"]["test"]["any"]["macro_f1"][-1]
    assert curve.marks[-1][:2] == pytest.approx((100, 100 * last), abs=0.01)
    for row in figures.gates(result):
        assert sum(share for share, _, _ in row["parts"]) == pytest.approx(100)
    matrix = figures.confusion(result)
    assert [[n for n, _ in row["cells"]] for row in matrix["rows"]] == result["test"]["confusion"]


def test_results_without_intervals_have_bars_without_whiskers(runs):
    result = {key: value for key, value in result_of(runs[0]).items() if key != "intervals"}
    assert all(row["low"] is None for row in figures.subsets(SingleLabel, result)["rows"])
    assert all(row["interval"] is None for row in figures.shapley(SingleLabel, result)["rows"])


def test_what_differs_is_told_by_key_and_whole_sections_by_their_type():
    one = {"name": "a", "train": {"lr": 1.0, "seed": 0}, "model": {"text": {"type": "t", "dim": 1}}}
    two = {"name": "b", "train": {"lr": 2.0, "seed": 0}, "model": {}}
    assert differing([one, two]) == [("train.lr", ["1.0", "2.0"]), ("model.text", ["t", ""])]
    other = {**one, "model": {"text": {"type": "u", "dim": 1}}}
    assert differing([one, other]) == [("model.text.type", ["t", "u"])]
    assert differing([one, one, one]) == []
    assert differing([one]) == []
