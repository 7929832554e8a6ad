"""What is wrong with an installation, and one mend for each finding.

Libraries are tried in processes of their own: one that crashes when it is imported is a finding,
not the end. Nothing is changed but for a folder of probes beside the store, which is removed again.
"""

import importlib.metadata
import io
import json
import os
import platform
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mmfuse.features.errors import MMFuseError
from mmfuse.pipeline.findings import FAULT, NOTE, OK, Finding, tried
from mmfuse.pipeline.probes import examine_disk

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_EXTRAS = {
    "onnxruntime": "onnx",
    "distributed": "dask",
    "pretty_midi": "pretty-midi",
    "obstore": "s3",
}
_CODECS = (("WAV", "PCM_24"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"),
           ("MP3", "MPEG_LAYER_III"))  # fmt: skip
_ELSEWHERE = {"torch", "torchaudio", "soundfile", "soxr", "numba"}  # have checks of their own
_WHEELS = "https://download.pytorch.org/whl"


def examine(store: Path) -> list[Finding]:
    """Look at everything; `store` is where a store lies or will lie."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python, _versions, _imports, _torch, _codecs, _resampler, _loops, _models, _extras,
        lambda: examine_disk(store),
    )  # fmt: skip
    return [finding for check in checks for finding in check()]


def _python() -> Iterator[Finding]:
    seen = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("python", OK, f"{seen}, {os.cpu_count()} cores")


def _requirements() -> "list[Requirement]":
    """What mmfuse can't do without, as its package says."""
    from packaging.requirements import Requirement

    every = [Requirement(line) for line in importlib.metadata.requires("mmfuse") or ()]
    return [r for r in every if r.marker is None or r.marker.evaluate({"extra": ""})]


def _versions() -> Iterator[Finding]:
    """Every requirement of mmfuse against what is installed."""
    try:
        requirements = _requirements()
    except ImportError as error:
        yield Finding("packaging", FAULT, str(error), "pip install --force-reinstall packaging")
        return
    for wanted in requirements:
        mend = f"pip install '{wanted.name}{wanted.specifier}'"
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(wanted.name, FAULT, f"not installed; {wanted.specifier} wanted", mend)
            continue
        if wanted.specifier.contains(version, prereleases=True):
            yield Finding(wanted.name, OK, version)
        else:
            yield Finding(wanted.name, FAULT, f"{version}; {wanted.specifier} wanted", mend)


def _imports() -> Iterator[Finding]:
    """Whether what is installed can be imported: one process, and another after each death."""
    try:
        names = [r.name for r in _requirements() if r.name not in _ELSEWHERE]
    except ImportError:
        return
    left, broken = names, 0
    while left:
        said, error = tried(_IMPORTING.format(names=left))
        found = [json.loads(line) for line in said if line.startswith('["')]
        for name, fault in found:
            if fault:
                broken += 1
                yield _does_not_load(name, fault)
        left = left[len(found) :]
        if left and error:  # it died in the first of them
            broken += 1
            yield _does_not_load(left[0], error)
            left = left[1:]
    if not broken:
        yield Finding("imports", OK, f"{len(names)} libraries load")


_IMPORTING = """
import importlib, json
for name in {names}:
    fault = ""
    try:
        importlib.import_module(name.replace("-", "_"))
    except Exception as error:
        fault = type(error).__name__ + ": " + str(error)
    print(json.dumps([name, fault]), flush=True)
"""


def _does_not_load(name: str, fault: str) -> Finding:
    mend = f"pip install --force-reinstall {name}"
    return Finding(f"import {name}", FAULT, fault.splitlines()[0], mend)


def _pair(version: str) -> str:
    """What to type for a torchaudio of the same build as this torch: `2.14.1+cpu` says `cpu`."""
    build = version.partition("+")[2]
    wanted = {r.name: f"'{r.name}{r.specifier}'" for r in _requirements()}
    # wheels of PyPI say a build as well, the one that PyPI has; theirs is in the same index
    place = f" --index-url {_WHEELS}/{build}" if build else ""
    return f"pip install --force-reinstall {wanted['torch']} {wanted['torchaudio']}{place}"


def _torch() -> Iterator[Finding]:
    """Whether torch loads, torchaudio beside it, and which cards it finds."""
    code = (
        "import json, torch; c = torch.cuda.is_available(); m = torch.backends.mps.is_available();"
        "print(json.dumps([torch.__version__, torch.cuda.device_count() if c else 0, bool(m)]))"
    )
    said, error = tried(code)
    if error:
        yield Finding("import torch", FAULT, error, "pip install --force-reinstall torch")
        return
    version, cards, mps = json.loads(said[-1])
    found = [f"{cards} CUDA device{'s' * (cards > 1)}"] * bool(cards) + ["MPS"] * mps
    driver = any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/dxg"))
    if driver and not cards:
        yield Finding(
            "card", NOTE, f"there is an NVIDIA driver, but torch {version} can't use it",
            "install the torch for your CUDA: https://pytorch.org/get-started/locally",
        )  # fmt: skip
    else:
        yield Finding("card", OK, ", ".join(found) or "none; models run on the processor")
    _, error = tried("import torch, torchaudio.transforms")
    if error:
        seen = f"{version} and {_installed('torchaudio')} do not load together: {error}"
        yield Finding("torch + torchaudio", FAULT, seen, _pair(version))
    else:
        seen = f"{version} and {_installed('torchaudio')} load together"
        yield Finding("torch + torchaudio", OK, seen)


def _codecs() -> Iterator[Finding]:
    """Each kind of file written and read back, where a damaged library ends no more than that."""
    said, error = tried("from mmfuse.pipeline.doctor import decode_all; decode_all()")
    if error:
        yield Finding("audio files", FAULT, error, _reinstall("soundfile", error))
        return
    version, lacking = json.loads(said[-1])
    if lacking:
        seen = f"libsndfile {version} lacks {', '.join(lacking)}"
        mend = "pip install --upgrade --force-reinstall soundfile"
        yield Finding("audio files", FAULT, seen, mend)
    else:
        names = ", ".join(dict.fromkeys(kind for kind, _ in _CODECS))
        yield Finding("audio files", OK, f"{names} decoded, libsndfile {version}")


def decode_all() -> None:
    """Print libsndfile's version, and which kinds of file it can't write and read back."""
    import numpy as np
    import soundfile

    from mmfuse.features.audio import read_audio

    tone = (0.5 * np.sin(np.arange(16_000) * 0.1)).astype(np.float32)
    lacking = []
    for kind, subtype in _CODECS:
        buffer = io.BytesIO()
        try:
            soundfile.write(buffer, tone, 16_000, format=kind, subtype=subtype)
            right = abs(read_audio(buffer.getvalue()).duration_s - 1) < 0.1
        except (soundfile.SoundFileError, RuntimeError, ValueError, MMFuseError):
            right = False
        lacking += [] if right else [f"{kind}/{subtype}"]
    print(json.dumps([soundfile.__libsndfile_version__, lacking]))


def _resampler() -> Iterator[Finding]:
    code = "import numpy, soxr; assert len(soxr.resample(numpy.zeros(441), 44100, 16000)) == 160"
    _, error = tried(code)
    mend = "pip install --force-reinstall soxr"
    yield Finding("resampler", FAULT if error else OK, error or "soxr", mend if error else "")


def _loops() -> Iterator[Finding]:
    """Whether numba compiles the MIDI reader and may keep what it compiled."""
    code = "from mmfuse.features.compiled import COMPILED; print(COMPILED)"
    said, error = tried(code)
    if error or said[-1:] != ["True"]:
        mend = "unset NUMBA_DISABLE_JIT; let NUMBA_CACHE_DIR name a folder that can be written"
        yield Finding("compiled MIDI reader", NOTE, error or "off: some 50 times slower", mend)
    else:
        yield Finding("compiled MIDI reader", OK, "numba compiles and keeps it")


def _models() -> Iterator[Finding]:
    """Models that lie in the local cache; nothing is fetched, ever."""
    said, error = tried("from mmfuse.pipeline.doctor import list_models; list_models()")
    if error:
        yield Finding("models", FAULT, error, _reinstall("huggingface_hub", error))
        return
    place, repos, torn = json.loads(said[-1])
    if torn:
        seen = f"{len(torn)} in {place} can't be used: {torn[0]}"
        yield Finding("model cache", NOTE, seen, "remove that folder, and fetch the model again")
    if repos:
        yield Finding("models", OK, f"{len(repos)} in {place}: {', '.join(repos[:5])}")
    else:
        mend = "hf download facebook/wav2vec2-base, or name a folder with --model"
        yield Finding("models", NOTE, f"none in {place}", mend)


def list_models() -> None:
    """Print the folder of the cache, the models in it, and what is wrong with others."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir()
        repos = sorted(repo.repo_id for repo in cache.repos if repo.repo_type == "model")
        torn = [str(warning) for warning in cache.warnings]
    except CacheNotFound:
        repos, torn = [], []
    print(json.dumps([str(constants.HF_HUB_CACHE), repos, torn]))


def _extras() -> Iterator[Finding]:
    for name, extra in _EXTRAS.items():
        try:
            yield Finding(f"extra {extra}", OK, f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            yield Finding(f"extra {extra}", NOTE, "not installed", f"pip install 'mmfuse[{extra}]'")


def _reinstall(name: str, error: str) -> str:
    """The mend of a library that fails, or of the one that it can't find."""
    missing = re.search(r"No module named '(\w+)", error)
    return f"pip install --force-reinstall {missing[1] if missing else name}"


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "no " + name
