"""Making features: every clip of a corpus through every maker, into a store.

What is there already, by hash of content and fingerprint of spec, is skipped before decoding. A
bad clip goes to the failures table and the run goes on. Whenever the process dies, the next run
takes up where it was.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from blake3 import blake3

from mmfuse.features import layout
from mmfuse.features.clip import Clip
from mmfuse.features.config import FeatureConfig, TextPreprocessing
from mmfuse.features.corpus import Corpus
from mmfuse.features.encoders import CPU, Compute
from mmfuse.features.errors import ConfigError
from mmfuse.features.writer import StoreWriter
from mmfuse.pipeline.makers import (
    AudioMaker,
    Maker,
    MidiMaker,
    TextMaker,
    TextModelMaker,
    text_params,
)
from mmfuse.pipeline.progress import Progress
from mmfuse.pipeline.record import note_run
from mmfuse.pipeline.report import Report
from mmfuse.pipeline.views import Views
from mmfuse.pipeline.work import Ledger, run_task


def make_features(
    corpus: Corpus,
    store: Path,
    config: FeatureConfig,
    progress: Progress,
    *,
    limit: int | None = None,
    retry_failed: bool = False,
    compute: Compute = CPU,
) -> Report:
    """Bring a store up to date with a corpus.

    Args:
        limit: only the first clips of the manifest.
        retry_failed: try clips again whose very content failed before.
        compute: where encoders run.

    Raises:
        ConfigError: the manifest is wrong, or the configuration asks for no stream, or for views
            that differ in nothing.
        LockedError: another process writes to the store.
    """
    began = time.monotonic()
    views = Views.of(config.preprocessing)
    count = corpus.check()
    count = count if limit is None else min(limit, count)
    report = Report(clips=count, store=str(store))
    with StoreWriter(store) as writer:
        makers = build_makers(config, corpus, store, compute)
        for spec in (spec for maker in makers for spec in maker.specs):
            writer.stream(spec)  # before threads ask for it
        progress.start(count)
        ledger = Ledger(writer, report, retry_failed=retry_failed)
        for task in tasks(islice(corpus.clips(), count), count):
            run_task(task, makers, ledger, report, progress, batch=compute.batch, views=views)
            ids = [clip.id for clip in task]
            for maker in makers:
                for spec in maker.specs:
                    writer.stream(spec).seal(only_with=ids)
            writer.failures.save()
        report.seconds = time.monotonic() - began
        note_run(store, corpus, config, makers, compute, report)
    report.root = writer.manifest["root"]
    report.seconds = time.monotonic() - began
    return report


def tasks(clips: Iterable[Clip], count: int) -> Iterator[Sequence[Clip]]:
    """Cut a corpus into tasks, each of which fills shards of its own.

    The cut is a function of the number of clips alone: at least sixteen tasks once there are 1024
    clips, so that many workers have something to do, and at most 1024 clips in a task.
    """
    number = max(-(-count // 1024), min(16, -(-count // 64)), 1)
    size = max(-(-count // number), 1)
    iterator = iter(clips)
    while task := list(islice(iterator, size)):
        yield task


def build_makers(
    config: FeatureConfig, corpus: Corpus, store: Path, compute: Compute = CPU
) -> list[Maker]:
    """One maker for each modality that a configuration asks for.

    Raises:
        ConfigError: it asks for none, or an encoder refuses its settings.
    """
    wanted = config.preprocessing
    makers: list[Maker] = []
    if wanted.audio is not None:
        makers.append(AudioMaker(wanted.audio, compute))
    if wanted.midi is not None:
        makers.append(MidiMaker(wanted.midi))
    if wanted.text is not None and wanted.text.encoder != "bpe":
        makers.append(TextModelMaker(wanted.text, compute))
    elif wanted.text is not None and (tokenizer := _tokenizer(wanted.text, corpus, store)):
        makers.append(TextMaker(wanted.text, tokenizer))
    if not makers:
        raise ConfigError(
            "the configuration asks for no stream; add a section such as [preprocessing.audio]"
        )
    return makers


def _tokenizer(config: TextPreprocessing, corpus: Corpus, store: Path) -> str | None:
    """The store's tokenizer for these very training texts, trained where there is none yet."""
    texts = sorted(corpus.texts("train"))
    if not texts:
        return None
    key = f"{text_params(config)}|" + "\0".join(texts)
    name = f"tokenizer-{blake3(key.encode('utf-8', errors='replace')).hexdigest()[:16]}.json"
    path = store / layout.META / name
    if not path.exists():
        from mmfuse.features.text import train_bpe

        trained = train_bpe(texts, config.vocab_size)
        layout.write_durably(path, trained.encode())
    layout.require_regular(store, path)
    return path.read_text(encoding="utf-8")
