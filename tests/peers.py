"""A manifest of files as other libraries write it: Hugging Face datasets, lhotse, WebDataset."""

import json
import os

import pyarrow.parquet as pq

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

TIMES = ("smpte_rate", "audio_smpte_start", "midi_smpte_start")


def rows_of(corpus):
    return pq.read_table(corpus / "manifest.parquet").to_pylist()


def bytes_of(corpus, path):
    return (corpus / path).read_bytes() if path else None


def hf_dataset(corpus):
    """A DatasetDict with `Audio`, bytes of MIDI, and `ClassLabel`."""
    from datasets import Audio, Dataset, DatasetDict

    rows = rows_of(corpus)
    splits = {}
    for split in ("train", "validation", "test"):
        chosen = [row for row in rows if row["split"] == split]
        columns = {name: [row[name] for row in chosen] for name in ("id", "text", "group", *TIMES)}
        columns["audio"] = [
            {"bytes": bytes_of(corpus, row["audio_path"]), "path": row["audio_path"]}
            if row["audio_path"] else None for row in chosen
        ]  # fmt: skip
        columns["midi"] = [bytes_of(corpus, row["midi_path"]) for row in chosen]
        columns["label"] = [row["label"] for row in chosen]
        splits[split] = Dataset.from_dict(columns).cast_column("audio", Audio())
    names = sorted({row["label"] for row in rows})
    from datasets import ClassLabel

    return DatasetDict(splits).cast_column("label", ClassLabel(names=names))


def save_hf_arrow(corpus, out):
    hf_dataset(corpus).save_to_disk(out, num_shards={"train": 3, "validation": 1, "test": 2})
    return out


def save_hf_parquet(corpus, out):
    """As `push_to_hub` lays it out: data/train-00000-of-00002.parquet."""
    (out / "data").mkdir(parents=True)
    for split, dataset in hf_dataset(corpus).items():
        for index in range(2):
            name = f"{split}-{index:05d}-of-00002.parquet"
            dataset.shard(2, index).to_parquet(out / "data" / name)
    return out


def save_webdataset(corpus, out, samples=20):
    """Tars of so many samples, a few with a class number only."""
    import webdataset

    out.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        chosen = [row for row in rows_of(corpus) if row["split"] == split]
        for number, start in enumerate(range(0, len(chosen), samples)):
            with webdataset.TarWriter(str(out / f"clips-{split}-{number:03d}.tar")) as writer:
                for row in chosen[start : start + samples]:
                    writer.write(_sample(corpus, row))
    return out


def _sample(corpus, row):
    told = {name: row[name] for name in ("label", "group", *TIMES) if row[name]}
    sample = {"__key__": row["id"], "json": json.dumps(told).encode()}
    if row["text"]:
        sample["txt"] = row["text"]
    for name in ("audio_path", "midi_path"):
        if row[name]:
            sample[row[name].rpartition(".")[2]] = bytes_of(corpus, row[name])
    return sample


def save_lhotse(corpus, name="cuts.jsonl.gz"):
    """A CutSet of whole recordings beside the manifest; clips without audio can be no cuts."""
    from lhotse import CutSet, Recording, SupervisionSegment

    cuts = []
    for row in rows_of(corpus):
        cut = Recording.from_file(corpus / row["audio_path"], recording_id=row["id"]).to_cut()
        cut.id = row["id"]
        if row["text"]:
            spoken = SupervisionSegment(row["id"], row["id"], 0, cut.duration, text=row["text"])
            cut.supervisions.append(spoken)
        cut.midi = row["midi_path"]
        for field in ("label", "split", "group", *TIMES):
            setattr(cut, field, row[field])
        cuts.append(cut)
    CutSet.from_cuts(cuts).to_file(corpus / name)
    return corpus / name
