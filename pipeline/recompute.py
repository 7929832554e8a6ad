"""Making some clips again and holding the result against what a store has, byte by byte.

The store says how each stream was made (`record.py`). Another sample in a recording, another weight
in a model, another version that changes a number: each is found, and told apart.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from mmfuse.features.augment import Draw
from mmfuse.features.clip import Clip
from mmfuse.features.config import FeatureConfig
from mmfuse.features.config_file import validate
from mmfuse.features.corpus import Corpus, open_corpus
from mmfuse.features.encoders import Compute
from mmfuse.features.errors import ClipError
from mmfuse.features.spec import Entry
from mmfuse.features.store import FeatureStore, Stream, open_store
from mmfuse.features.verify import Finding
from mmfuse.pipeline.align import read_estimates
from mmfuse.pipeline.makers import Maker
from mmfuse.pipeline.record import read_record
from mmfuse.pipeline.run import build_makers
from mmfuse.pipeline.views import content_of

_ACROSS_DEVICES = 1e-3  # relative to the largest value of an entry


def recompute(
    root: Path,
    count: int,
    compute: Compute,
    *,
    corpus: Path | None = None,
    alignment: Path | None = None,
) -> tuple[int, list[Finding]]:
    """Make clips again in every stream.

    Args:
        count: clips of each stream, those whose ids have the smallest hashes.
        compute: where models run.
        corpus: where the corpus is now, if it was moved.
        alignment: the table of estimates that was used, if one was.

    Returns:
        How many entries were compared, and what is wrong.

    Raises:
        MissingError: the store does not say how it was made, or a model is gone.
        ConfigError: the corpus or the settings can't be read.
    """
    store = open_store(root)
    estimates = read_estimates(alignment) if alignment else None
    compared, findings = 0, []
    for how, keys in _ways(store):
        settings = validate(FeatureConfig, {"preprocessing": how["preprocessing"]}, "run.json")
        clips = open_corpus(corpus or Path(how["corpus"]), how["columns"], estimates)
        for maker in build_makers(settings, clips, root, compute):
            made = {spec.key for spec in maker.specs}
            findings += [_other_settings(key, made) for key in sorted(keys - made)]
            streams = [store[key] for key in sorted(keys & made)]
            same_device = compute.device == how["device"]
            for finding in _again(maker, streams, clips, count, exact=same_device):
                compared += 1
                findings += [finding] if finding else []
    return compared, findings


def _ways(store: FeatureStore) -> list[tuple[dict[str, Any], set[str]]]:
    """The ways in which streams were made, each with the streams that were made so."""
    ways: list[tuple[dict[str, Any], set[str]]] = []
    there = set(store.keys())
    names = ("preprocessing", "corpus", "columns", "device")
    for key, how in read_record(store.path).items():
        if key not in there:
            continue
        same = (keys for other, keys in ways if all(other[n] == how[n] for n in names))
        keys = next(same, None)
        if keys is None:
            ways.append((how, {key}))
        else:
            keys.add(key)
    return ways


def _again(
    maker: Maker, streams: list[Stream], corpus: Corpus, count: int, *, exact: bool
) -> Iterator[Finding | None]:
    chosen = {stream.key: _chosen(stream.ids, count) for stream in streams}
    left = set().union(*chosen.values())
    for clip in corpus.clips():
        if clip.id not in left:
            continue
        left.discard(clip.id)
        here = [stream for stream in streams if clip.id in chosen[stream.key]]
        yield from _compare(maker, clip, here, exact=exact)
    for clip_id in sorted(left):
        yield Finding(
            f"clip {clip_id!r}", "is no longer in the corpus", "name its corpus with --corpus"
        )


def _compare(
    maker: Maker, clip: Clip, streams: list[Stream], *, exact: bool
) -> Iterator[Finding | None]:
    again = "run the mmfeat command again, and it is made anew"
    try:
        loaded = maker.load(clip)
        assert loaded is not None or not streams
        decoded: Any = None
        entries: dict[Draw, dict[str, Entry]] = {}
        for stream, view, number in _entries_of(clip.id, streams):
            where = f"{stream.key} of {clip.id!r}" + (f", view {view}" if view else "")
            row = stream.record(number)
            drawn = Draw.from_json(row["augmentation"])
            if loaded is None or row["content"] != content_of(loaded.content, drawn):
                yield Finding(where, "the corpus has other content than it was made from", again)
                continue
            if decoded is None:
                decoded = maker.decode(clip, loaded)
            if drawn not in entries:
                prepared = maker.prepare(decoded, drawn)
                outputs = [maker.encode(item[None]) for item in prepared.items]
                alone = [{name: values[0] for name, values in o.items()} for o in outputs]
                entries[drawn] = maker.join(prepared, alone)
            values = entries[drawn][stream.spec.name].values
            if blake3(np.ascontiguousarray(values).tobytes()).digest() == row["digest"]:
                yield None
                continue
            off = _distance(values, stream.stored(number))
            if not exact and off <= _ACROSS_DEVICES:
                yield None
            else:
                what = f"made again it has other values, off by {off:.1e} of the largest"
                yield Finding(where, what, "the machine or a library differs: see _mm/run.json")
    except ClipError as error:
        yield Finding(f"clip {clip.id!r}", f"can't be made again: {error}", again)


def _entries_of(clip_id: str, streams: list[Stream]) -> Iterator[tuple[Stream, int, int]]:
    """All views of a clip: (stream, view, entry), the same views of all streams together."""
    for view in sorted({int(view) for stream in streams for view in np.unique(stream.views)}):
        for stream in streams:
            number = int(stream.find([clip_id], view)[0])
            if number >= 0:
                yield stream, view, number


def _chosen(ids: Collection[str], count: int) -> set[str]:
    return set(sorted(set(ids), key=lambda clip_id: blake3(clip_id.encode()).digest())[:count])


def _distance(one: Any, other: Any) -> float:
    if one.shape != other.shape:
        return float("inf")
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return float(np.abs(one - other).max(initial=0) / max(np.abs(other).max(initial=0), 1e-30))


def _other_settings(key: str, made: Collection[str]) -> Finding:
    return Finding(
        key,
        f"its settings make {', '.join(sorted(made))} now: weights, model or code are others",
        "bring back what it was made with, or make the new stream with mmfeat",
    )
