"""What is wrong with an installation, and one mend for each finding.

Libraries are tried in processes of their own: one that crashes when it is imported is a finding,
not the end. Nothing is changed but for a folder of probes beside the store, which is removed again.
"""

import importlib.metadata
import io
import json
import mmap
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmfuse.features.errors import MMFuseError
from mmfuse.pipeline.report import SCHEMA_VERSION

OK, NOTE, FAULT = "ok", "note", "FAULT"
_EXTRAS = {
    "onnxruntime": "onnx",
    "distributed": "dask",
    "pretty_midi": "pretty-midi",
    "obstore": "s3",
}
_ROOM_BYTES = 2**30
_IMPORT_S = 120
_CODECS = (("WAV", "PCM_24"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"),
           ("MP3", "MPEG_LAYER_III"))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: its state, what was seen, and what to type where something is wrong."""

    what: str
    state: str
    seen: str
    mend: str = ""


def examine(store: Path) -> list[Finding]:
    """Look at everything; `store` is where a store lies or will lie."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python, _versions, _torch, _codecs, _resampler, _loops, _models, _extras,
        lambda: _file_system(store),
    )  # fmt: skip
    return [finding for check in checks for finding in check()]


def view(findings: list[Finding]) -> tuple[dict[str, Any], list[str]]:
    """The findings as a document and as lines."""
    faults = sum(finding.state == FAULT for finding in findings)
    width = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<5}  {finding.what:<{width}}  {finding.seen}")
        if finding.mend:
            lines.append(f"{'':7}{'':{width}}  mend: {finding.mend}")
    lines.append(f"{faults} fault{'s' * (faults != 1)}" if faults else "all is well")
    document = {
        "schema_version": SCHEMA_VERSION,
        "ok": not faults,
        "findings": [asdict(finding) for finding in findings],
    }
    return document, lines


def _python() -> Iterator[Finding]:
    seen = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("python", OK, f"{seen}, {os.cpu_count()} cores")


def _versions() -> Iterator[Finding]:
    """Every requirement of mmfuse against what is installed."""
    from packaging.requirements import Requirement

    for line in importlib.metadata.requires("mmfuse") or ():
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
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


def _torch() -> Iterator[Finding]:
    """Whether torch loads, torchaudio beside it, and which cards it finds."""
    code = (
        "import json, torch; c = torch.cuda.is_available(); m = torch.backends.mps.is_available();"
        "print(json.dumps([torch.__version__, torch.cuda.device_count() if c else 0, bool(m)]))"
    )
    seen, error = _tried(code)
    if error:
        yield Finding("import torch", FAULT, error, "pip install --force-reinstall torch")
        return
    version, cards, mps = json.loads(seen)
    found = [f"{cards} CUDA device{'s' * (cards > 1)}"] * bool(cards) + ["MPS"] * mps
    driver = any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/dxg"))
    if driver and not cards:
        yield Finding(
            "card", NOTE, f"there is an NVIDIA driver, but torch {version} can't use it",
            "install the torch for your CUDA: https://pytorch.org/get-started/locally",
        )  # fmt: skip
    else:
        yield Finding("card", OK, ", ".join(found) or "none; models run on the processor")
    _, error = _tried("import torch, torchaudio.transforms")
    if error:
        mend = "pip install --upgrade mmfuse torchaudio"
        yield Finding("torch + torchaudio", FAULT, f"do not load together: {error}", mend)
    else:
        yield Finding("torch + torchaudio", OK, "load together")


def _codecs() -> Iterator[Finding]:
    """Each kind of file written and read back."""
    import numpy as np

    try:
        import soundfile

        from mmfuse.features.audio import read_audio
    except (ImportError, OSError) as error:
        yield Finding("audio files", FAULT, str(error), "pip install --force-reinstall soundfile")
        return
    tone = (0.5 * np.sin(np.arange(16_000) * 0.1)).astype(np.float32)
    lacking = []
    for kind, subtype in _CODECS:
        buffer = io.BytesIO()
        try:
            soundfile.write(buffer, tone, 16_000, format=kind, subtype=subtype)
            if abs(read_audio(buffer.getvalue()).duration_s - 1) > 0.1:
                lacking.append(kind)
        except (soundfile.SoundFileError, RuntimeError, ValueError, MMFuseError):
            lacking.append(f"{kind}/{subtype}")
    version = soundfile.__libsndfile_version__
    if lacking:
        mend = "pip install --upgrade --force-reinstall soundfile"
        yield Finding("audio files", FAULT, f"libsndfile {version} lacks {lacking}", mend)
    else:
        names = ", ".join(dict.fromkeys(kind for kind, _ in _CODECS))
        yield Finding("audio files", OK, f"{names} decoded, libsndfile {version}")


def _resampler() -> Iterator[Finding]:
    code = "import numpy, soxr; assert len(soxr.resample(numpy.zeros(441), 44100, 16000)) == 160"
    _, error = _tried(code)
    mend = "pip install --force-reinstall soxr"
    yield Finding("resampler", FAULT if error else OK, error or "soxr", mend if error else "")


def _loops() -> Iterator[Finding]:
    """Whether numba compiles the MIDI reader and may keep what it compiled."""
    code = "from mmfuse.features.compiled import COMPILED; print(COMPILED)"
    seen, error = _tried(code)
    if error or seen != "True":
        mend = "unset NUMBA_DISABLE_JIT; let NUMBA_CACHE_DIR name a folder that can be written"
        yield Finding("compiled MIDI reader", NOTE, error or "off: some 50 times slower", mend)
    else:
        yield Finding("compiled MIDI reader", OK, "numba compiles and keeps it")


def _models() -> Iterator[Finding]:
    """Models that lie in the local cache; nothing is fetched, ever."""
    try:
        from huggingface_hub import constants, scan_cache_dir
        from huggingface_hub.errors import CacheNotFound
    except ImportError as error:
        yield Finding("models", FAULT, str(error), "pip install --force-reinstall huggingface_hub")
        return
    try:
        repos = sorted(repo.repo_id for repo in scan_cache_dir().repos if repo.repo_type == "model")
    except CacheNotFound:
        repos = []
    place = constants.HF_HUB_CACHE
    if repos:
        yield Finding("models", OK, f"{len(repos)} in {place}: {', '.join(repos[:5])}")
    else:
        mend = "hf download facebook/wav2vec2-base, or name a folder with --model"
        yield Finding("models", NOTE, f"none in {place}", mend)


def _extras() -> Iterator[Finding]:
    for name, extra in _EXTRAS.items():
        try:
            yield Finding(f"extra {extra}", OK, f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            yield Finding(f"extra {extra}", NOTE, "not installed", f"pip install 'mmfuse[{extra}]'")


def _file_system(store: Path) -> Iterator[Finding]:
    """What a store needs of the file system below it, done once in a folder of its own."""
    place = store.resolve()
    while not place.is_dir() and place != place.parent:
        place = place.parent
    status = os.statvfs(place)
    free, inodes = status.f_bavail * status.f_frsize, status.f_favail
    scarce = free < _ROOM_BYTES or (status.f_files > 0 and inodes < 1000)
    yield Finding(
        "room", FAULT if scarce else OK,
        f"{free / 1e9:.1f} GB and {inodes} inodes free at {place}",
        "make room, or name another place with --store" if scarce else "",
    )  # fmt: skip
    try:
        folder = Path(tempfile.mkdtemp(prefix=".mmfeat-doctor-", dir=place))
    except OSError as error:
        mend = "give yourself the right to write there, or name another place with --store"
        yield Finding("write", FAULT, f"{place}: {error.strerror}", mend)
        return
    try:
        for name, probe, mend in _PROBES:
            try:
                probe(folder)
                yield Finding(name, OK, str(place))
            except OSError as error:
                yield Finding(name, FAULT, f"{place}: {error.strerror or error}", mend)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _rename(folder: Path) -> None:
    for name in ("new", "old"):
        (folder / name).write_text(name)
    (folder / "new").replace(folder / "old")
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _map(folder: Path) -> None:
    (folder / "map").write_bytes(bytes(8192))
    with (folder / "map").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
        pass


def _lock(folder: Path) -> None:
    import fcntl

    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


_LOCAL = "put the store on a local disk, and copy it when it is finished"
_PROBES: tuple[tuple[str, Callable[[Path], None], str], ...] = (
    ("rename and fsync", _rename, _LOCAL),
    ("memory map", _map, _LOCAL),
    ("lock", _lock, _LOCAL),
)


def _tried(code: str) -> tuple[str, str]:
    """(last line said, what went wrong) of a little program in a process of its own."""
    line = [sys.executable, "-W", "ignore", "-c", code]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=_IMPORT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return "", f"takes more than {_IMPORT_S} s"
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return "", said[-1] if said else f"the process died ({done.returncode})"
    return (done.stdout.strip().splitlines() or [""])[-1], ""
