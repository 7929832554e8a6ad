"""What each modality, and each set of them, is worth on a corpus: seeds, paired tests, Shapley.

    python tests/benchmarks/lieder8.py --corpus MANIFEST --out DIR

makes the features of `configs/descriptors.toml`, trains it with every set of modalities, and once
without modality dropout, several seeds each, and prints tables as Markdown; `DIR/table.json` has
all of it. What is there already is kept. Settings and epochs were chosen on folds of train and
validation clips (`folds.py`); test is only scored.
"""

import argparse
import json
import tomllib
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import tomli_w

from mmfuse.features.config import load_feature_config
from mmfuse.features.corpus import open_corpus
from mmfuse.pipeline.progress import Progress
from mmfuse.pipeline.run import make_features
from mmfuse.trainer import metrics
from mmfuse.trainer.folder import PREDICTIONS, read_result
from mmfuse.trainer.sweep import sweep

CONFIG = Path(__file__).parents[2] / "configs" / "descriptors.toml"
MODALITIES = ("text", "audio", "midi")
SETS = [kept for n in (1, 2, 3) for kept in combinations(MODALITIES, n)]
WHOLE = "+".join(MODALITIES)
BARE = f"{WHOLE}, no modality dropout"
RESAMPLES = 4000
AUDIO_DROPOUT = 0.7  # without MIDI, which knows better what audio knows


def train_all(out: Path, corpus: Path, store: Path, seeds: int) -> dict[str, list[Path]]:
    """Folders of the seeds' runs, by row of the table."""
    found = {}
    for row, kept in [("+".join(kept), kept) for kept in SETS] + [(BARE, MODALITIES)]:
        document: dict[str, Any] = tomllib.loads(CONFIG.read_text(encoding="utf-8"))
        for name in set(MODALITIES) - set(kept):
            del document["model"][f"{name}_encoder"]
        if "audio" in kept and "midi" not in kept:
            document["model"]["audio_encoder"]["dropout"] = AUDIO_DROPOUT
        document["name"] = row.replace("+", "-").replace(", ", "-").replace(" ", "-")
        document["data"] = {"corpus": str(corpus), "store": str(store)}
        if row == BARE:
            document["train"]["modality_dropout"] = 0.0
        path = out / f"{document['name']}.toml"
        path.write_text(tomli_w.dumps(document), encoding="utf-8")
        swept = sweep(path, (), seeds, (), out / document["name"])
        found[row] = [Path(run["run"]) for run in swept["runs"]]
    return found


class Row:
    """Predictions of one row's seeds on a split."""

    def __init__(self, folders: list[Path], split: str) -> None:
        tables = [pl.read_parquet(folder / PREDICTIONS).sort("id") for folder in folders]
        tables = [table.filter(pl.col("split") == split) for table in tables]
        columns = [name for name in tables[0].columns if name.startswith("p:")]
        number = {name.removeprefix("p:"): c for c, name in enumerate(columns)}
        self.classes = len(columns)
        self.truth_N = np.array([number[name] for name in tables[0]["label"]])
        self.groups_N = tables[0]["group"].to_numpy() if "group" in tables[0].columns else None
        self.probabilities_SNC = np.stack([t.select(columns).to_numpy() for t in tables])
        self.said_SN = self.probabilities_SNC.argmax(axis=2)
        self.joint_N = self.probabilities_SNC.mean(axis=0).argmax(axis=1)

    def score(self, said_N: Any) -> float:
        """Macro-F1."""
        return metrics.scores(self.truth_N, said_N, self.classes)["macro_f1"]

    def seeds(self) -> Any:
        """Macro-F1 of each seed, (S,)."""
        return np.array([self.score(said_N) for said_N in self.said_SN])


def paired(ours: Row, theirs: Row) -> dict[str, Any]:
    """Mean macro-F1 more than another row's, and McNemar of the seeds' ensembles.

    Each resample draws one seed of either row, and clips; `groups` has the same of whole groups.
    """
    every = np.arange(len(ours.truth_N))
    found: dict[str, Any] = {
        "more": float(ours.seeds().mean() - theirs.seeds().mean()),
        "clips": drawn(ours, theirs, [every[i : i + 1] for i in every]),
        "ensembles_more": ours.score(ours.joint_N) - theirs.score(theirs.joint_N),
        "mcnemar_p": metrics.mcnemar(ours.truth_N, ours.joint_N, theirs.joint_N),
    }
    if ours.groups_N is not None:
        units = [every[ours.groups_N == group] for group in np.unique(ours.groups_N)]
        found["groups"] = drawn(ours, theirs, units)
    return found


def drawn(ours: Row, theirs: Row, units: list[Any]) -> dict[str, float]:
    """95 % interval and two-sided p of the difference, units of clips and seeds being drawn."""
    rng = np.random.default_rng(0)
    differences = np.empty(RESAMPLES)
    for r in range(RESAMPLES):
        clips = np.concatenate([units[u] for u in rng.integers(len(units), size=len(units))])
        ours_f1, theirs_f1 = (
            metrics.scores(
                row.truth_N[clips], row.said_SN[rng.integers(len(row.said_SN))][clips], row.classes
            )["macro_f1"]
            for row in (ours, theirs)
        )
        differences[r] = ours_f1 - theirs_f1
    fewer = 1 + min((differences <= 0).sum(), (differences >= 0).sum())
    low, high = np.percentile(differences, [2.5, 97.5])
    p = min(1.0, 2 * float(fewer) / (RESAMPLES + 1))
    return {"low": float(low), "high": float(high), "p": p}


def table(found: dict[str, list[Path]]) -> dict[str, Any]:
    """All numbers, from finished runs."""
    rows: dict[str, Any] = {}
    test = {name: Row(folders, "test") for name, folders in found.items()}
    for name, folders in found.items():
        validation = Row(folders, "validation")
        seeds = test[name].seeds()
        rows[name] = {
            "validation": float(validation.seeds().mean()),
            "validation_nll": float(np.mean([read_result(f)["val"]["nll"] for f in folders])),
            "test": float(seeds.mean()),
            "test_sd": float(seeds.std(ddof=1)),
            "test_seeds": seeds.tolist(),
            "ensemble": test[name].score(test[name].joint_N),
        }
    pairs = ["+".join(kept) for kept in SETS if len(kept) == 2]
    best_pair = min(pairs, key=lambda name: rows[name]["validation_nll"])
    tests = {
        f"{ours} over {theirs}": paired(test[ours], test[theirs])
        for ours, theirs in (
            (WHOLE, "text"), (WHOLE, "midi"), (WHOLE, best_pair), (best_pair, "text"),
            (best_pair, "midi"), ("text+audio", "text"), ("audio+midi", "midi"), (WHOLE, BARE),
        )
    }  # fmt: skip
    results = {name: [read_result(folder) for folder in found[name]] for name in (WHOLE, BARE)}

    def mean(row: str, *keys: str) -> float:
        values: list[Any] = results[row]
        for key in keys:
            values = [value[key] for value in values]
        return float(np.mean(values))

    subsets = {
        row: {kept: mean(row, "subsets", kept, "test", "macro_f1") for kept in map("+".join, SETS)}
        for row in (WHOLE, BARE)
    }
    shapley = {
        row: {name: mean(row, "shapley", "test", "macro_f1", name) for name in MODALITIES}
        for row in (WHOLE, BARE)
    }
    runs = {name: [str(folder) for folder in folders] for name, folders in found.items()}
    return {
        "rows": rows,
        "best_pair": best_pair,
        "paired": tests,
        "subsets": subsets,
        "shapley": shapley,
        "runs": runs,
    }


def show(result: dict[str, Any]) -> None:
    """Print as Markdown."""
    print("| trained on | validation macro-F1 | its NLL | test macro-F1 | sd | ensemble of seeds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, row in result["rows"].items():
        keys = ("validation", "validation_nll", "test", "test_sd", "ensemble")
        cells = (row[key] for key in keys)
        print(f"| {name} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")
    print("\n| test macro-F1 | more | 95 % | p | p by groups | ensembles | McNemar p |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, row in result["paired"].items():
        by_clips, by_groups = row["clips"], row.get("groups")
        cells = (
            f"{row['more']:+.3f}",
            f"{by_clips['low']:+.3f} to {by_clips['high']:+.3f}",
            f"{by_clips['p']:.4f}",
            f"{by_groups['p']:.4f}" if by_groups else "",
            f"{row['ensembles_more']:+.3f}",
            f"{row['mcnemar_p']:.4f}",
        )
        print(f"| {name} | {' | '.join(cells)} |")
    print("\n| seen on test | with modality dropout | without |")
    print("| --- | --- | --- |")
    for kept, value in result["subsets"][WHOLE].items():
        print(f"| {kept} | {value:.3f} | {result['subsets'][BARE][kept]:.3f} |")
    print("\n| Shapley value | with modality dropout | without |")
    print("| --- | --- | --- |")
    for name, value in result["shapley"][WHOLE].items():
        print(f"| {name} | {value:+.3f} | {result['shapley'][BARE][name]:+.3f} |")


def main() -> None:
    """Make, train, score, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--store", type=Path, help="feature store; OUT/store.zarr")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print table.json instead")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    store = chosen.store or chosen.out / "store.zarr"
    make_features(
        open_corpus(chosen.corpus), store, load_feature_config(CONFIG), Progress(quiet=True)
    )
    result = table(train_all(chosen.out, chosen.corpus, store, chosen.seeds))
    text = json.dumps(result, indent=2)
    (chosen.out / "table.json").write_text(text + "\n", encoding="utf-8")
    print(text) if chosen.json else show(result)


if __name__ == "__main__":
    main()
