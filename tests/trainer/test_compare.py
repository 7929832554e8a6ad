"""Runs are compared on the same clips only, in pairs, with the tests that pairs allow."""

import dataclasses
import json

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from mmfuse.features.errors import ConfigError
from mmfuse.trainer import metrics
from mmfuse.trainer.cli import app
from mmfuse.trainer.compare import compare
from mmfuse.trainer.summary import compare_lines, table

LABELS = ["alto", "bass", "tenor"]


@pytest.fixture
def record(tmp_path):
    """`record(name, share, modalities, seed)` writes a finished run that is right that often."""
    rng = np.random.default_rng(0)
    ids = [f"c{i}" for i in range(90)]
    truth = rng.integers(0, 3, 90)

    def write(
        name, share, modalities=("text",), seed=0, keep=90, truth=truth, of=None, group_of=None
    ):
        folder = tmp_path / name
        folder.mkdir()
        rng = np.random.default_rng([seed, round(share * 100)])
        predicted = np.where(rng.random(90) < share, truth, (truth + 1) % 3)
        order = rng.permutation(keep)  # the order of rows says nothing
        rows = {
            "id": [ids[i] for i in order] + ["v0"],
            "split": ["test"] * keep + ["validation"],
            "label": [LABELS[truth[i]] for i in order] + ["bass"],
            "predicted": [LABELS[predicted[i]] for i in order] + ["bass"],
        }
        if group_of:
            rows["group"] = [group_of(i) for i in order] + ["validation"]
        pl.DataFrame(rows).write_parquet(folder / "predictions.parquet")
        f1 = metrics.scores(truth, predicted, 3)["macro_f1"]
        result = {
            "name": of or name,
            "seed": seed,
            "modalities": modalities,
            "test": {"macro_f1": f1},
        }
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "resolved.toml").write_text(f'name = "{of or name}"\n[train]\nseed = {seed}\n')
        return folder, predicted

    write.truth = truth
    return write


def test_scores_differences_and_p_are_those_of_the_metrics(record):
    truth = record.truth
    (late, ours), (text, theirs) = record("late", 0.8, ("text", "midi")), record("text", 0.5)
    found = compare([late, text])
    assert found["clips"] == 90
    assert found["against"] == str(text)
    row, reference = found["runs"]
    assert row["accuracy"] == pytest.approx((ours == truth).mean())
    assert row["macro_f1"] == metrics.scores(truth, ours, 3)["macro_f1"]
    assert row["mcnemar_p"] == metrics.mcnemar(truth, ours, theirs)
    difference = row["difference"]["accuracy"]
    assert difference["value"] == pytest.approx((ours == truth).mean() - (theirs == truth).mean())
    assert difference["low"] < difference["value"] < difference["high"]
    assert "difference" not in reference


def test_groups_are_drawn_whole_where_a_run_knows_them(record):
    truth = record.truth

    def group_of(i):
        return f"song {i % 9}"

    one, ours = record("one", 0.8, ("text", "midi"), group_of=group_of)
    two, theirs = record("two", 0.5)
    by_group = compare([one, two])
    assert by_group["groups"] == 9
    assert compare([two, one])["groups"] == 9
    ids = sorted(range(90), key=lambda i: f"c{i}")
    groups = np.array([group_of(i) for i in ids])
    wanted = metrics.paired_bootstrap(truth[ids], ours[ids], theirs[ids], 3, groups_N=groups)
    found = by_group["runs"][0]["difference"]["accuracy"]
    assert found == pytest.approx(dataclasses.asdict(wanted["accuracy"]))
    assert compare_lines(by_group)[-3].startswith("Intervals and p draw 9 groups of clips")


def test_the_reference_is_the_best_single_modality_or_the_one_named(record):
    folders = [
        record(name, share, modalities)[0]
        for name, share, modalities in (
            ("late", 0.8, ("text", "midi")), ("text", 0.4, ("text",)), ("midi", 0.6, ("midi",)),
        )
    ]  # fmt: skip
    assert compare(folders)["against"] == str(folders[2])
    assert compare(folders, against=folders[0])["against"] == str(folders[0])
    aside = compare(folders[1:], against=folders[0])
    assert [row["run"] for row in aside["runs"]] == [str(f) for f in (*folders[1:], folders[0])]


def test_without_a_single_modality_nothing_is_subtracted(record):
    folders = [record(name, 0.5, ("text", "midi"))[0] for name in ("one", "two")]
    found = compare(folders)
    assert found["against"] is None
    assert "difference" not in found["runs"][0]
    *_, missing, _, after = compare_lines(found)
    assert "--against RUN names a reference" in missing
    assert after == f"Next: mmtrain report {folders[0]} {folders[1]}"


def test_the_order_of_the_runs_changes_no_number(record):
    a, b = record("a", 0.7, ("text", "midi"))[0], record("b", 0.5)[0]
    one, two = compare([a, b])["runs"], compare([b, a])["runs"]
    assert one == two[::-1]


def test_seeds_of_one_configuration_have_a_mean(record):
    folders = [record(f"late-{s}", 0.7, ("text", "midi"), s, of="late")[0] for s in range(3)]
    folders.append(record("text", 0.5)[0])
    found = compare(folders)
    scores = [row["macro_f1"] for row in found["runs"][:3]]
    (mean,) = found["seeds"]
    assert (mean["name"], mean["runs"]) == ("late", 3)
    assert mean["macro_f1"] == pytest.approx(np.mean(scores))
    assert mean["macro_f1_sd"] == pytest.approx(np.std(scores, ddof=1))


def test_other_clips_are_refused(record):
    whole, part = record("whole", 0.7)[0], record("part", 0.7, keep=80)[0]
    with pytest.raises(
        ConfigError, match=r"part was tested on 80 clips, .*whole on 90, .*share 80"
    ):
        compare([whole, part])
    with pytest.raises(ConfigError, match=r"compare runs of one corpus and split"):
        compare([part, whole])


def test_other_labels_are_refused(record):
    one = record("one", 0.7)[0]
    other = record("other", 0.7, truth=(record.truth + 1) % 3)[0]
    with pytest.raises(ConfigError, match=r"clip 'c\d+' is labelled '\w+' in .*one and '\w+' in"):
        compare([one, other])


def test_unfinished_damaged_and_repeated_runs_are_refused(record, tmp_path):
    one, two = record("one", 0.7)[0], record("two", 0.7)[0]
    with pytest.raises(ConfigError, match=r"named twice"):
        compare([one, tmp_path / "two" / ".." / "one"])
    with pytest.raises(ConfigError, match=r"one run only"):
        compare([one])
    with pytest.raises(ConfigError, match=r"nowhere holds no run; train one with: mmtrain run"):
        compare([one, tmp_path / "nowhere"])
    (two / "metrics.jsonl").write_text("")
    (two / "result.json").rename(two / "result.json.tmp")
    with pytest.raises(ConfigError, match=r"two holds an unfinished run; train one with"):
        compare([one, two])
    (two / "result.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"result.json is not what mmtrain wrote"):
        compare([one, two])
    (two / "result.json.tmp").rename(two / "result.json")
    (two / "predictions.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"can't read .*predictions.parquet"):
        compare([one, two])


def test_the_command_prints_a_table_or_json(record):
    folders = [str(record("late", 0.8, ("text", "midi"))[0]), str(record("text", 0.5)[0])]
    outcome = CliRunner().invoke(app, ["compare", *folders])
    assert outcome.exit_code == 0
    assert "90 test clips, the same for every run" in outcome.stdout
    assert "McNemar p" in outcome.stdout
    outcome = CliRunner().invoke(app, ["compare", *folders, "--json", "--against", folders[0]])
    assert json.loads(outcome.stdout)["against"] == folders[0]
    outcome = CliRunner().invoke(app, ["compare", folders[0]])
    assert outcome.exit_code == 2
    assert (
        outcome.stderr
        == f"mmtrain: one run only, {folders[0]}; name two or more: mmtrain compare RUN RUN\n"
    )


def test_a_table_lines_up():
    assert table([["a", "bcd", "e"], ["long", "1", "22"]]) == ["a     bcd   e", "long    1  22"]
