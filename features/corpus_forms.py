"""Which form a corpus has, told by what lies there; other libraries' are read without them.

X.parquet, X.jsonl(.gz), X.csv      a manifest; a JSONL of cuts is lhotse's
X.tar, x-{000..012}.tar             WebDataset
folder with
    manifest.{parquet,jsonl,csv}    the first of these
    dataset_dict.json               Hugging Face datasets, a folder of Arrow files a split
    state.json, dataset_info.json   one of these folders
    *.parquet                       shards; below data/ or another folder where a name of
                                    theirs has a split: `data/train-00000-of-00002.parquet`
    *cuts*.jsonl(.gz)               lhotse
    *.tar                           WebDataset
any other folder                    clips by stem
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmfuse.features.arrow_rows import STATE, ArrowRows
from mmfuse.features.errors import ConfigError
from mmfuse.features.lhotse_rows import CutRows, is_cuts
from mmfuse.features.rows import CsvRows, FolderRows, JsonRows, ParquetRows, Rows
from mmfuse.features.splits import SplitRows, split_in
from mmfuse.features.tar_rows import TarRows, expand

_DICT, _INFO = "dataset_dict.json", "dataset_info.json"
_SHARD = re.compile(r"-\d{5}-of-\d{5}(-[0-9a-f]+)?$")


def open_rows(path: Path) -> tuple[Path, Rows]:
    """The folder below which a corpus' files lie, and the rows of its manifest.

    Raises:
        ConfigError: nothing there that can be read.
    """
    if path.is_dir():
        return _folder(path)
    if "{" in path.name and not path.exists():
        return path.parent, TarRows(_all_there(expand(path), path))
    if not path.is_file():
        raise ConfigError(
            f"no corpus at {path}; name a manifest (.parquet, .jsonl, .csv), tars, or a folder "
            "with --corpus, or make a small one with: mmfeat sample DIR"
        )
    return path.parent, _file(path)


def _file(path: Path) -> Rows:
    match [suffix.lower() for suffix in path.suffixes[-2:]]:
        case [*_, ".parquet"]:
            return _parquet([path])
        case [*_, ".jsonl"] | [*_, ".jsonl", ".gz"]:
            return CutRows([path]) if is_cuts(path) else JsonRows([path])
        case [*_, ".csv"]:
            return CsvRows([path])
        case [*_, ".tar"]:
            return TarRows([path])
    raise ConfigError(f"{path} is no manifest; expected .parquet, .jsonl, .csv, .tar, or a folder")


def _folder(path: Path) -> tuple[Path, Rows]:
    for name in ("manifest.parquet", "manifest.jsonl", "manifest.csv"):
        if (path / name).is_file():
            return path, _file(path / name)
    if (path / _DICT).is_file():
        return path, SplitRows([(name, ArrowRows(path / name)) for name in _splits_of(path)])
    if (path / STATE).is_file() and (path / _INFO).is_file():
        name = path.name if split_in(path.name) else ""
        return path, SplitRows([(name, ArrowRows(path))])
    if shards := sorted(path.glob("*.parquet")) or _named_shards(path):
        return path, _parquet(shards)
    if cuts := [file for file in _files(path, "*cuts*.jsonl*") if is_cuts(file)]:
        return path, CutRows(cuts)
    if tars := _files(path, "*.tar"):
        return path, TarRows(tars)
    return path, FolderRows(path)


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(file for file in folder.glob(pattern) if file.is_file())


def _named_shards(folder: Path) -> list[Path]:
    """Parquet files one folder below, if a name says of which split they are."""
    found = _files(folder, "*/*.parquet")
    return found if any(_split_name(file) for file in found) else []


def _split_name(file: Path) -> str:
    """`train` of `data/train-00000-of-00002.parquet` and of `train/0000.parquet`; else nothing."""
    name = _SHARD.sub("", file.stem)
    return next((word for word in (name, file.parent.name) if split_in(word)), "")


def _parquet(files: list[Path]) -> Rows:
    """Shards of one manifest, or of splits if their names say so or Hugging Face wrote them."""
    parts: dict[str, list[Path]] = {}
    for file in files:
        named = _SHARD.search(file.stem) or len(files) > 1
        parts.setdefault(_split_name(file) if named else "", []).append(file)
    if [*parts] == [""]:
        rows = ParquetRows(files)
        return SplitRows([("", rows)]) if rows.is_hugging_face else rows
    return SplitRows([(name, ParquetRows(its)) for name, its in parts.items()])


def _splits_of(folder: Path) -> list[str]:
    """Names of the folders that a `DatasetDict` has."""
    try:
        told: Any = json.loads((folder / _DICT).read_bytes())
        names = [str(name) for name in told["splits"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder / _DICT} is not what save_to_disk of Hugging Face datasets writes "
            f"({type(error).__name__}); save the dataset again"
        ) from None
    for name in names:
        if Path(name).name != name or not (folder / name).is_dir():
            raise ConfigError(f"{folder / _DICT} names a split {name!r}, which is no folder there")
    if not names:
        raise ConfigError(f"{folder / _DICT} names no splits; save the dataset again")
    return names


def _all_there(files: Iterable[Path], pattern: Path) -> list[Path]:
    found = list(files)
    absent = [file for file in found if not file.is_file()]
    if absent or not found:
        raise ConfigError(f"{pattern}: there is no {absent[0] if absent else 'file'}")
    return found
