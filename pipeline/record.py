"""`_mm/run.json`: how each stream of a store was last made, so that it can be made again.

For every stream: corpus, settings of its modality, device, versions of what touched the numbers,
the host, what the run took (seconds by stage, and the memory of the largest process), failures by
reason, and the root of the store at its end. Nothing in here is part of a root; paths and speeds
differ.
"""

import importlib.metadata
import importlib.util
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmfuse.features import layout
from mmfuse.features.config import FeatureConfig
from mmfuse.features.corpus import Corpus
from mmfuse.features.encoders import Compute
from mmfuse.features.errors import MissingError, StoreError
from mmfuse.pipeline.makers import Maker
from mmfuse.pipeline.report import Report, peak_rss_bytes

_NAME = "run.json"
_PACKAGES = (
    "mmfuse", "blake3", "librosa", "numba", "numpy", "soundfile", "soxr", "tokenizers", "torch",
    "torchaudio", "transformers",
)  # fmt: skip
_EXTRAS = ("onnxruntime", "onnxscript")


def note_run(
    root: Path,
    corpus: Corpus,
    config: FeatureConfig,
    makers: Sequence[Maker],
    compute: Compute,
    report: Report,
    workers: int = 1,
) -> None:
    """Write down how the streams of these makers were made; the speed, of those that were."""
    sections = config.preprocessing.model_dump(mode="json")
    common = {
        "corpus": str(corpus.path.resolve()),
        "columns": corpus.renamed,
        "estimates": corpus.has_estimates,
        "device": compute.device,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": _host(),
        "versions": _versions(),
        "seconds": round(report.seconds, 3),
        "clips": report.clips,
        "audio_s": round(report.audio_s, 3),
        "stage_s": {name: round(seconds, 3) for name, seconds in report.stage_s.items()},
        "failed": {f"{stage}: {why}": n for (stage, why), n in sorted(report.failed.items())},
        "peak_rss_bytes": max(report.peak_rss_bytes, peak_rss_bytes()),
        "store_root": report.root,
    }
    path = root / layout.META / _NAME
    streams = _read(root).get("streams", {}) if path.exists() else {}
    speed = {name: common[name] for name in ("finished", "seconds", "audio_s", "device")}
    for maker in makers:
        settings = {maker.modality: sections[maker.modality]}
        for spec in maker.specs:
            before = streams.get(spec.key, {}).get("speed")
            made = report.made[spec.name]
            now = {**speed, "entries": made, "workers": workers} if made else before
            streams[spec.key] = {**common, "preprocessing": settings, "speed": now}
    layout.write_durably(path, layout.to_sealed_json({"streams": streams}))


def read_record(root: Path) -> dict[str, dict[str, Any]]:
    """How each stream was made, by key.

    Raises:
        MissingError: the store does not say.
        StoreError: the record is damaged.
    """
    if not (root / layout.META / _NAME).exists():
        raise MissingError(
            f"store {root} does not say how it was made; run its mmfeat command once more"
        )
    return dict(_read(root)["streams"])


def _read(root: Path) -> dict[str, Any]:
    path = root / layout.META / _NAME
    raw = layout.read_bytes(root, path)
    if fault := layout.seal_fault(raw):
        raise StoreError(f"{path} is damaged: {fault}; remove it and run the mmfeat command again")
    return dict(layout.parse_json(path, raw))


def _versions() -> dict[str, str]:
    extras = [name for name in _EXTRAS if importlib.util.find_spec(name)]
    return {name: importlib.metadata.version(name) for name in (*_PACKAGES, *extras)}


def _host() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
