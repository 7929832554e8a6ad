"""Scores of a trained model on any labelled split, of its own corpus or another, without training.

Calibration is by the temperature that the run fitted on its own validation split.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmfuse.features.clip import Clip
from mmfuse.features.corpus import open_corpus
from mmfuse.features.errors import ConfigError
from mmfuse.features.store import open_store
from mmfuse.trainer import folder
from mmfuse.trainer.device import usable
from mmfuse.trainer.evaluate import evaluate
from mmfuse.trainer.loop import reproducible
from mmfuse.trainer.predictions import dataset_of
from mmfuse.trainer.raw_clips import chosen
from mmfuse.trainer.saved import Saved, load_saved
from mmfuse.trainer.task import Named


def score(
    run: Path,
    corpus: Path | None = None,
    store: Path | None = None,
    split: str = "test",
    columns: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What result.json says of a split, under the split's name, for any labelled split.

    Calibration is at the run's own temperature, or 1 where there is no result beside the model;
    `trained_on` says whether the model learned from this split of its own corpus.

    Args:
        run: folder of a run or of an export.
        corpus: manifest or folder; the run's own, where it is left out.
        store: its features; those of the run, where corpus and store are left out.
        split: whose clips.
        columns: our column name -> the manifest's, for another corpus.

    Raises:
        ConfigError: no such clips, or a label that the model does not know.
        MissingError: no such store, or its streams were made otherwise than in training.
    """
    saved = load_saved(run)
    result = folder.read_result(run) if (run / folder.RESULT).is_file() else {}
    data_config = saved.config.data
    path = corpus or data_config.corpus
    stored = store or (data_config.store if corpus is None else None)
    if path is None or stored is None:
        raise ConfigError(
            f"no {'corpus' if path is None else 'store'} to score on; name one with "
            f"{'--corpus PATH' if path is None else '--store DIR'}"
        )
    opened = open_corpus(path, data_config.columns if corpus is None else columns)
    clips = [clip for clip in chosen(opened, split, ()) if clip.label is not None]
    _known(saved, clips, f"{path}, split {split!r}")
    data = dataset_of(saved, clips, open_store(stored))
    device = usable(saved.config.train.device)
    data.place(device)
    with reproducible(saved.config.train.seed, saved.config.train.threads, device):
        scores, _ = evaluate(
            saved.model.to(device),
            data,
            saved.config,
            {split: split},
            temperature=float(result.get("calibration", {}).get("temperature", 1.0)),
        )
    return {
        "run": str(run),
        "corpus": str(path),
        "store": str(stored),
        "split": split,
        "task": saved.task.name,
        "trained_on": corpus is None
        and split in ("train", *(["validation"] if result.get("refit") else [])),
        **scores,
        "present": {name: int(data.present_NM[:, m].sum()) for m, name in enumerate(data.streams)},
    }


def _known(saved: Saved, clips: list[Clip], where: str) -> None:
    if not clips:
        raise ConfigError(f"{where}: no clip has a label; `mmtrain predict` needs none")
    saved.task.refuse([Named(clip.id, clip.label) for clip in clips], where)
    strange = saved.task.unknown([clip.label for clip in clips])
    if strange is not None:
        raise ConfigError(
            f"{where}: label {strange!r} is none of the model's classes "
            f"({', '.join(saved.task.classes)}); map labels to these, or take such clips out"
        )
