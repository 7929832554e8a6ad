"""Cut sets of lhotse, `cuts.jsonl` and `cuts.jsonl.gz`, read without lhotse.

A cut that is a whole recording is that file, byte for byte; another is a stretch of it. Nothing is
run or fetched: only recordings in one file each are read, and no transforms.

Source: `MonoCut.to_dict` and `MultiCut.to_dict` of lhotse.
"""

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import islice
from math import floor
from pathlib import Path
from typing import Any

from mmfuse.features.clip import Source
from mmfuse.features.errors import ConfigError
from mmfuse.features.parts import Stretch
from mmfuse.features.rows import Row, Rows, read_jsonl
from mmfuse.features.splits import split_in

_CUTS = ("MonoCut", "MultiCut", "MixedCut", "PaddingCut")
_LOOKED_AT = 1000  # cuts whose custom fields become columns
_MEND = "save plain cuts: cuts.save_audios(DIR).to_file('cuts.jsonl.gz')"


def is_cuts(file: Path) -> bool:
    """Whether the first line of a JSONL file is a cut."""
    first = next(read_jsonl(file), None)
    return first is not None and first[1].get("type") in _CUTS


class CutRows(Rows):
    """Cuts of files, one behind the other; a split comes from `custom` or from a file's name.

    Columns are those of a manifest: `text` is what the supervisions say, `audio_path` the recording
    or a stretch of it. What a cut has in `custom`, or its first supervision, are columns, too.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self.columns = {"id", "text", "audio_path", "duration_s"}
        for row in islice(self.read([]), _LOOKED_AT):
            self.columns |= set(row)

    def read(self, columns: list[str]) -> Iterator[Row]:
        """See `Rows.read`."""
        for file in self._files:
            split = split_in(file.name)
            for number, cut in read_jsonl(file):
                try:
                    row = _row_of(cut)
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    raise ConfigError(
                        f"{file}, line {number}: no cut as lhotse writes it "
                        f"({type(error).__name__}: {error})"
                    ) from None
                except ConfigError as error:
                    raise ConfigError(f"{file}, line {number}: {error}") from None
                yield row if "split" in row or split is None else {**row, "split": split}


def _row_of(cut: Mapping[str, Any]) -> Row:
    kind = cut.get("type")
    if kind not in ("MonoCut", "MultiCut"):
        raise ConfigError(f"a cut of type {kind!r} has no recording of its own; {_MEND}")
    spoken = sorted(cut.get("supervisions") or (), key=lambda one: float(one["start"]))
    texts = [str(one["text"]) for one in spoken if one.get("text")]
    told = spoken[0].get("custom") if spoken else None
    custom = _fields(told) | _fields(cut.get("custom"))
    custom.pop("audio", None)
    row = {**custom, "id": cut["id"], "duration_s": float(cut["duration"])}
    row["audio_path"] = _audio_of(cut)
    if texts:
        row["text"] = " ".join(texts)
    return row


def _fields(custom: Mapping[str, Any] | None) -> Row:
    return {k: v for k, v in (custom or {}).items() if isinstance(v, str | int | float | list)}


def _audio_of(cut: Mapping[str, Any]) -> Source | None:
    """The recording's file, or the stretch of it that the cut is; None where it has none."""
    recording = cut.get("recording")
    if recording is None:
        return None
    if recording.get("transforms"):
        raise ConfigError(f"the recording of cut {cut['id']!r} has transforms; {_MEND}")
    kinds = [str(source["type"]) for source in recording["sources"]]
    if kinds != ["file"]:
        raise ConfigError(
            f"the recording of cut {cut['id']!r} is of type {' and '.join(kinds)}, and only one of "
            f"type file is read; {_MEND}"
        )
    (source,) = recording["sources"]
    path, there = str(source["source"]), [int(channel) for channel in source["channels"]]
    start_s, duration_s = _seconds(cut["start"]), _seconds(cut["duration"])
    asked = cut["channel"] if isinstance(cut["channel"], list) else [cut["channel"]]
    channels = tuple(there.index(int(channel)) for channel in asked)
    rate_hz = int(recording["sampling_rate"])
    all_of_it = not start_s and floor(duration_s * rate_hz + Fraction(1, 2)) >= int(
        recording["num_samples"]
    )
    if start_s < 0 or duration_s <= 0:
        raise ConfigError(
            f"cut {cut['id']!r} begins at {float(start_s)} s and lasts {float(duration_s)} s"
        )
    if sorted(channels) == list(range(len(there))):
        if all_of_it:
            return Source("", Path(), path)
        return Stretch("", Path(), path, None, start_s, duration_s)
    return Stretch("", Path(), path, None, start_s, duration_s, channels)


def _seconds(value: Any) -> Fraction:
    """The decimal number that stands in the file, exactly."""
    return Fraction(repr(value))
