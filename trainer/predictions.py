"""What a trained model says of clips: those of a store, or raw ones, whose features are made first.

Shapes: N clip, K output of the task.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmfuse.features.clip import Clip
from mmfuse.features.corpus import open_corpus
from mmfuse.features.errors import ConfigError
from mmfuse.features.layout import write_durably
from mmfuse.features.store import FeatureStore, open_store
from mmfuse.trainer.dataset import Dataset
from mmfuse.trainer.device import usable
from mmfuse.trainer.load import streams_like
from mmfuse.trainer.loop import predict, reproducible
from mmfuse.trainer.raw_clips import Made, Reasons, chosen, make_features, write_selection
from mmfuse.trainer.saved import Saved, load_saved
from mmfuse.trainer.task import Task
from mmfuse.trainer.windows import windows_of

FORMATS = (".parquet", ".csv", ".jsonl")


@dataclass(frozen=True, slots=True)
class Asked:
    """Which clips: of a corpus and a store, of a corpus alone, or given ones.

    Without `store` their features are made, into `keep` or a folder that is removed afterwards.
    """

    corpus: Path | None = None
    store: Path | None = None
    split: str | None = None
    ids: Sequence[str] = ()
    columns: Mapping[str, str] | None = None
    clips: Sequence[Clip] = ()
    keep: Path | None = None


@dataclass(frozen=True, slots=True)
class Predictions:
    """One row a clip: `id`, `split` and `label` where known, `predicted`, of classes `probability`,
    `saw` (the modalities in use), `reason` (what could not be used; "" if all could), and of
    classes and labels `p:<class>` of each.

    A clip of which nothing could be used has no prediction.
    """

    rows: list[dict[str, Any]]
    task: Task
    made: Made | None

    @property
    def failed(self) -> int:
        """Clips with a reason."""
        return sum(bool(row["reason"]) for row in self.rows)

    def to_json(self, run: Path, out: Path | None = None) -> dict[str, Any]:
        """One object; the rows stand in it where they are not in a file."""
        return {
            "run": str(run),
            "clips": len(self.rows),
            "failed": self.failed,
            "task": self.task.name,
            "classes": list(self.task.classes),
            "features": self.made
            and {"commands": self.made.commands, "seconds": round(self.made.seconds, 3)},
            **({"predictions": self.rows} if out is None else {"out": str(out)}),
        }


def predict_clips(run: Path, asked: Asked) -> Predictions:
    """What a model says of clips, from whole clips.

    Args:
        run: folder of a run or of an export.
        asked: which clips. Without corpus and clips they are the run's own corpus and store.

    Raises:
        ConfigError: there is no model, or there are no such clips.
        MissingError: the store or a stream is not there, or was made otherwise than in training.
    """
    saved = load_saved(run)
    with TemporaryDirectory(prefix="mmfuse-") as folder:
        work = Path(folder)
        if asked.clips:
            return _of_raw(saved, list(asked.clips), None, asked, work)
        own = asked.corpus is None
        path = asked.corpus or saved.config.data.corpus
        if path is None:
            raise ConfigError("no corpus; name one with --corpus PATH")
        columns = saved.config.data.columns if own else asked.columns
        corpus = open_corpus(path, columns)
        clips = chosen(corpus, asked.split, asked.ids)
        store = asked.store or (saved.config.data.store if own and not asked.keep else None)
        if store is not None:
            return _asked(saved, clips, open_store(store), {}, None)
        whole = None if asked.split or asked.ids else (path, corpus.renamed)
        return _of_raw(saved, clips, whole, asked, work)


def _of_raw(
    saved: Saved,
    clips: list[Clip],
    whole: tuple[Path, Mapping[str, str]] | None,
    asked: Asked,
    work: Path,
) -> Predictions:
    """Make features of clips, of `whole` (corpus, columns) where they are all of it, and ask."""
    store, reasons = asked.keep or work / "store.zarr", Reasons()
    if whole is None:
        whole = work / "clips.parquet", {}
        reasons = write_selection(whole[0], clips)
    made = make_features(saved, *whole, store, work)
    return _asked(saved, clips, open_store(store), reasons, made)


def _asked(
    saved: Saved, clips: list[Clip], store: FeatureStore, reasons: Reasons, made: Made | None
) -> Predictions:
    data = dataset_of(saved, clips, store)
    everything = np.arange(len(data))
    device = usable(saved.config.train.device)
    data.place(device)
    with reproducible(saved.config.train.seed, saved.config.train.threads, device):
        asked_N = everything[data.present_NM.any(axis=1)]
        found_NK = np.full((len(data), saved.task.outputs), np.nan)
        found_NK[asked_N] = predict(
            saved.model.to(device),
            data,
            asked_N,
            batch_size=saved.config.eval.batch_size,
            windows=windows_of(saved.config),
        )
    why = _reasons(clips, data, store, reasons)
    rows = []
    for n, clip in enumerate(clips):
        said_K, seen = found_NK[n], data.present_NM[n]
        verdict: dict[str, Any] = saved.task.verdict(said_K)
        parts: dict[str, Any] = saved.task.parts(said_K)
        if not seen.any():
            verdict, parts = dict.fromkeys(verdict), dict.fromkeys(parts)
        rows.append(
            {
                "id": clip.id,
                "split": clip.split,
                "label": saved.task.shown_label(clip.label),
                **verdict,
                "saw": "+".join(m for m, here in zip(data.streams, seen, strict=True) if here),
                "reason": why[n],
                **parts,
            }
        )
    return Predictions(rows, saved.task, made)


def dataset_of(saved: Saved, clips: Sequence[Clip], store: FeatureStore) -> Dataset:
    """Clips with the streams that a model reads; labels that it does not know are none."""
    return Dataset(
        [clip.id for clip in clips],
        [clip.split or "" for clip in clips],
        [clip.label for clip in clips],
        streams_like(store, saved.config, saved.specs),
        [clip.group for clip in clips],
        task=saved.task,
    )


def _reasons(
    clips: Sequence[Clip], data: Dataset, store: FeatureStore, reasons: Reasons
) -> list[str]:
    """Why what a clip has of the model's modalities could not be used; "" where all could."""
    keys = {stream.key: name for name, several in data.layers.items() for stream in several}
    failures: Reasons = {}
    for row in store.failures().to_pylist():
        if row["stream"] in keys and not row["view"]:
            told = failures.setdefault(row["clip_id"], {})
            told[keys[row["stream"]]] = f"{row['reason']}: {row['detail']}"
    found = []
    for n, clip in enumerate(clips):
        has = {"text": clip.text, "audio": clip.audio, "midi": clip.midi}
        told = failures.get(clip.id, {}) | reasons.get(clip.id, {})
        parts = [
            f"{name}: {told.get(name, f'not_made: not in {store.path}')}"
            for name in data.streams
            if has[name] is not None and data.entry[name][n] < 0
        ]
        if not parts and not data.present_NM[n].any():
            parts = [f"nothing: it has no {', '.join(data.streams)}"]
        found.append("; ".join(parts))
    return found


def check_out(path: Path | None) -> None:
    """Refuse an `--out` that `write_table` can't write, before any work.

    Raises:
        ConfigError: its name ends otherwise.
    """
    if path is not None and path.suffix not in FORMATS:
        raise ConfigError(f"--out {path}: name a file that ends with {', '.join(FORMATS)}")


def write_table(path: Path, found: Predictions) -> None:
    """Write the rows as Parquet, CSV or JSONL, by the name's ending; as one step."""
    check_out(path)
    names = list(found.rows[0])
    if path.suffix == ".jsonl":
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in found.rows)
        write_durably(path, "".join(lines).encode())
    elif path.suffix == ".csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        writer.writerows(found.rows)
        write_durably(path, text.getvalue().encode())
    else:
        numbers = {"probability", *(f"p:{name}" for name in found.task.classes)}
        numbers |= found.task.numbers
        schema = pa.schema([(n, pa.float64() if n in numbers else pa.string()) for n in names])
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(found.rows, schema=schema), sink, compression="zstd")
        write_durably(path, sink.getvalue().to_pybytes())
