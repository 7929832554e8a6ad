"""What settings are worth without a look at test: folds of train and validation clips.

    python tests/benchmarks/folds.py --corpus MANIFEST --store STORE [--set train.lr=1e-3]...
        [--without audio]... [CONFIG]

trains a configuration (`configs/descriptors.toml`) on all folds but one, all its epochs (or
`--epochs` of them) and without a look at the one, and scores what it says of that one; clips of a
group are in one fold, and classes are spread evenly. Prints macro-F1 and NLL over the clips of all
folds.
"""

import argparse
import json
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from sklearn.model_selection import StratifiedGroupKFold

from mmfuse.trainer import calibration, metrics
from mmfuse.trainer.config import load_run_config
from mmfuse.trainer.load import load_dataset
from mmfuse.trainer.loop import fit, predict, reproducible
from mmfuse.trainer.run import build_model

CONFIG = Path(__file__).parents[2] / "configs" / "descriptors.toml"


def score(
    config_path: Path, overrides: list[str], folds: int, epochs: int, seed: int
) -> dict[str, Any]:
    """Macro-F1 and NLL over the held-out clips of all folds; `seed` cuts folds and trains.

    Of the epochs that the rates are made for, `epochs` are trained; 0: all.
    """
    config = load_run_config(config_path, [*overrides, f"train.seed={seed}"])
    data = load_dataset(config, config_path, overrides)[0]
    clips = np.flatnonzero(data.split != "test")
    groups = data.groups_of(clips)
    cut = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    said_NC = np.zeros((len(data), len(data.classes)))
    for kept, held in cut.split(clips, data.label[clips], clips if groups is None else groups):
        data.split[clips[kept]], data.split[clips[held]] = "train", "held"
        with reproducible(seed, config.train.threads):
            model = build_model(config, data)
            fit(model, data, config.train, epochs=epochs or config.train.epochs)
            said_NC[clips[held]] = predict(model, data, clips[held])
    truth_N, said_NC = data.label[clips], said_NC[clips]
    found = metrics.scores(truth_N, said_NC.argmax(axis=1), len(data.classes))
    return {"macro_f1": found["macro_f1"], "nll": calibration.nll(truth_N, said_NC)}


def main() -> None:
    """Score and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, nargs="?", default=CONFIG)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--without", action="append", default=[], help="a modality")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=0, help="stop after so many")
    parser.add_argument("--seeds", type=int, default=1)
    chosen = parser.parse_args()
    document = tomllib.loads(chosen.config.read_text(encoding="utf-8"))
    for name in chosen.without:
        del document["model"][f"{name}_encoder"]
    document["data"] = {"corpus": str(chosen.corpus), "store": str(chosen.store)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.toml"
        path.write_text(tomli_w.dumps(document), encoding="utf-8")
        every = [
            score(path, chosen.overrides, chosen.folds, chosen.epochs, seed)
            for seed in range(chosen.seeds)
        ]
    print(json.dumps({key: float(np.mean([one[key] for one in every])) for key in every[0]}))


if __name__ == "__main__":
    main()
