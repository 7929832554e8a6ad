"""The page about a store: what is in it, what is missing, how it was made, and clips to look at."""

import importlib.metadata
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmfuse.features import page
from mmfuse.features.census import files_of
from mmfuse.features.clip import Clip
from mmfuse.features.corpus import Corpus, open_corpus
from mmfuse.features.errors import MissingError
from mmfuse.features.store import FeatureStore, open_store
from mmfuse.pipeline import inspect
from mmfuse.pipeline import store_figures as figures
from mmfuse.pipeline.clip_picture import LONGEST_S, Picture, names_of, picture, spread
from mmfuse.pipeline.record import read_record

_SHOWN = 50  # failures that are listed
_TEMPLATES = Path(__file__).with_name("templates")


@dataclass(slots=True)
class Page:
    """The page, and what it shows."""

    html: str
    clips: list[str]
    notes: list[str] = field(default_factory=list)  # what could not be shown, and why

    def to_json(self, out: Path, written: int) -> dict[str, Any]:
        """One object, for `--json`."""
        return {"out": str(out), "bytes": written, "clips": self.clips, "notes": self.notes}


def store_page(
    path: Path,
    corpus_path: Path | None = None,
    alignment: Path | None = None,
    count: int = 4,
    wanted: Sequence[str] = (),
) -> Page:
    """Look at a store, its corpus and its alignment.

    Args:
        corpus_path: where the corpus is, if not where the store says.
        alignment: table of `mmfeat align`; `alignment.parquet` here, where it is of this corpus.
        count: clips to draw, of as many labels as can be.
        wanted: clips to draw first.

    Raises:
        MissingError: there is no such store, or no such clip in it.
        StoreError: the store is damaged.
        ConfigError: the corpus or the table that was named can't be read.
    """
    store = open_store(path)
    notes: list[str] = []
    record = _record(store, notes)
    corpus = _corpus(corpus_path, record, notes)
    labels = None if corpus is None else corpus.labels()
    here = _presence(store)
    if unknown := [clip_id for clip_id in wanted if clip_id not in here]:
        raise MissingError(
            f"no stream of {path} has a clip {unknown[0]!r}; mmfeat inspect {path} --failures "
            "tells whether it failed"
        )
    document, _ = inspect.overview(store)
    drawn = _pictures(store, corpus, labels, here, count, wanted, notes)
    aligned = figures.alignment(alignment, labels, notes)
    total_bytes = sum(status.st_size for status in files_of(path).values())
    context = {
        "kind": "store report",
        "title": f"{path.name}: mmfuse store report",
        "heading": path.name,
        "version": importlib.metadata.version("mmfuse"),
        "store": document,
        "made": max((how["finished"] for how in record.values()), default=""),
        "clips": len(labels) if labels is not None else len(here),
        "total_bytes": total_bytes,
        "longest_s": round(LONGEST_S),
        "pictures": drawn,
        "presence": figures.subsets(here, labels),
        "classes": figures.classes(labels),
        "lengths": figures.lengths(store),
        "streams": figures.streams(document, files_of(path)),
        "runs": figures.runs(record),
        "failures": inspect.failures(store)[0]["failures"][:_SHOWN],
        "reasons": figures.shares(document["failures"]),
        "alignment": aligned,
        "record": record,
        "notes": notes,
        "again": _again(path, corpus_path, alignment, count, wanted),
        "sections": [],
    }
    shown = {
        "clips": ("Clips", drawn), "corpus": ("Corpus", True), "streams": ("Streams", True),
        "speed": ("Speed", context["runs"]), "alignment": ("Alignment", True),
        "failures": ("Failures", True), "origin": ("Origin", True),
    }  # fmt: skip
    context["sections"] = [(name, title) for name, (title, there) in shown.items() if there]
    html = page.render(_TEMPLATES, "store.html", context, ["player.js"])
    return Page(html, [one.clip.id for one in drawn], notes)


def _record(store: FeatureStore, notes: list[str]) -> dict[str, dict[str, Any]]:
    try:
        return read_record(store.path)
    except MissingError as error:
        notes.append(str(error))
        return {}


def _corpus(
    path: Path | None, record: Mapping[str, Mapping[str, Any]], notes: list[str]
) -> Corpus | None:
    """The corpus that was named, else that which the store was last made of, if it is there."""
    columns: dict[str, str] = {}
    told = [(how["finished"], how["corpus"], how["columns"]) for how in record.values()]
    if told:
        _, place, columns = max(told, key=lambda one: one[0])
        if path is None and not Path(place).exists():
            notes.append(
                f"the corpus {place} is not there: no sound, labels and timecode; name its place "
                "with --corpus PATH"
            )
            return None
        path = path or Path(place)
    if path is None:
        return None
    corpus = open_corpus(path, columns)
    corpus.check()
    return corpus


def _presence(store: FeatureStore) -> dict[str, int]:
    """By clip, the modalities that it has features of: a bit each, in their order."""
    found: dict[str, int] = {}
    for key, spec in store.specs().items():
        bit = 1 << figures.MODALITIES.index(spec.modality)
        for clip_id in store[key].ids:
            found[clip_id] = found.get(clip_id, 0) | bit
    return found


def _pictures(
    store: FeatureStore,
    corpus: Corpus | None,
    labels: Sequence[Clip] | None,
    here: Mapping[str, int],
    count: int,
    wanted: Sequence[str],
    notes: list[str],
) -> list[Picture]:
    """The wanted clips, and so many of those that have the most modalities."""
    most = max((mask.bit_count() for mask in here.values()), default=0)
    rich = [clip_id for clip_id, mask in here.items() if mask.bit_count() == most]
    named = {clip.id: " ".join(names_of(clip)) for clip in labels or ()}
    more = max(count - len(wanted), 0)
    chosen = list(dict.fromkeys([*wanted, *spread(rich, named, count)]))[: len(wanted) + more]
    left, clips = set(chosen), {}
    for clip in corpus.clips() if corpus is not None else ():
        if clip.id in left:
            clips[clip.id] = clip
            left.discard(clip.id)
        if not left:
            break
    keys = {
        name: key
        for key in store.specs()
        for name in ("logmel", "notes")
        if key.startswith(f"{name}-")
    }
    return [picture(store, clips.get(clip_id, Clip(clip_id)), keys) for clip_id in chosen]


def _again(
    path: Path, corpus: Path | None, alignment: Path | None, count: int, wanted: Sequence[str]
) -> str:
    words = ["mmfeat", "report", str(path)]
    words += ["--corpus", str(corpus)] if corpus else []
    words += ["--alignment", str(alignment)] if alignment else []
    words += ["--clips", str(count)]
    words += [word for clip_id in wanted for word in ("--clip", clip_id)]
    return shlex.join(words)
