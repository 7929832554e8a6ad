"""Which entries a store has already, by content: every file is read and hashed, none is decoded."""

from collections.abc import Mapping
from itertools import islice

from mmfuse.features.clip import Clip
from mmfuse.features.corpus import Corpus
from mmfuse.features.errors import ClipError
from mmfuse.features.known import Known
from mmfuse.pipeline.makers import Loaded, load_audio, load_midi, load_text
from mmfuse.pipeline.views import Views, content_of

_CHUNK = 1024  # clips
_LOAD = {"audio": load_audio, "midi": load_midi, "text": load_text}


def count_same(
    corpus: Corpus,
    count: int,
    views: Views,
    known: Mapping[str, tuple[str, Known]],
) -> dict[str, int]:
    """Entries of each stream that hold the very content of the first clips, by key."""
    same = dict.fromkeys(known, 0)
    clips = corpus.clips(0, count)
    while chunk := list(islice(clips, _CHUNK)):
        ids = [clip.id for clip in chunk]
        stored = {key: one.of(ids) for key, (_, one) in known.items()}
        for clip in chunk:
            for modality in {modality for modality, _ in known.values()}:
                contents = _contents(clip, modality, views)
                for key in (key for key, (its, _) in known.items() if its == modality):
                    found = (stored[key].get((clip.id, view)) for view in contents)
                    wanted = contents.values()
                    same[key] += sum(a == b for a, b in zip(found, wanted, strict=True))
    return same


def _contents(clip: Clip, modality: str, views: Views) -> dict[int, bytes]:
    """Hash of all that each view's entry depends on, by view; empty where there is none."""
    try:
        loaded: Loaded | None = _LOAD[modality](clip)
    except ClipError:
        loaded = None
    if loaded is None:
        return {}
    draws = views.draws(clip) if views.touches(modality) else views.draws(clip)[:1]
    return {
        view: content_of(loaded.content, drawn.of(modality)) for view, drawn in enumerate(draws)
    }
