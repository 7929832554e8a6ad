"""Whether tokenizers and augmentations keep their promises: for their authors, as `conformance.py`.

`mmfeat tokenizers --check NAME` and `mmfeat augmentations --check NAME` run these on made notes and
on seeded noise; none looks inside.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from mmfuse.features.audio import Audio
from mmfuse.features.augment_plugins import Augmentation, Options
from mmfuse.features.conformance import Finding
from mmfuse.features.errors import ConfigError
from mmfuse.features.midi_tokens import Tokenization, midi_tokens_spec
from mmfuse.features.notes import COLUMN, FIELDS
from mmfuse.features.spec import Array

_QUARTER_S, _TICKS = 0.5, 480
_DRAWS = 8


def check_tokenizer(build: Callable[[], Tokenization], most: int) -> list[Finding]:
    """Run every check; `build` is called twice, and at most `most` rows of a clip are kept."""
    one, again = build(), build()
    spec = midi_tokens_spec(one)
    given, kept = made_notes(300), made_notes(300)
    rows = one.encode(given).values
    others = [one.encode(made_notes(count)).values for count in (1, 2)]
    long = one.encode(made_notes(2 * most + 9))
    every = [rows, long.values, *others]
    vocabulary = one.spec_params.get("vocabulary", {})
    shapes = "onset_s" in one.fields and all(v.shape[1:] == (len(one.fields),) for v in every)
    off = _off(rows[:, one.fields.index("onset_s")]) if shapes else "no such field"
    counted = len(long.values) <= most and bool(long.note)
    return [
        Finding("spec is the same whenever built", spec == midi_tokens_spec(again)),
        Finding("spec is plain JSON", _plain(one.spec_params)),
        Finding("vocabulary has a name and a version", {"name", "version"} <= set(vocabulary)),
        Finding("rows have the fields, onset_s among them", shapes),
        Finding("times are those of notes, not of a grid", not off, off),
        Finding("values are finite", all(bool(np.isfinite(v).all()) for v in every)),
        Finding("twice the same", np.array_equal(rows, one.encode(made_notes(300)).values)),
        Finding("built anew, the same", np.array_equal(rows, again.encode(kept).values)),
        Finding("notes are left as they were", np.array_equal(given, kept)),
        Finding("max_events is kept, and a note says what is cut", counted),
    ]


def check_augmentation(plugin: Augmentation, options: Options) -> list[Finding]:
    """Run every check with these options."""
    given = made_audio() if plugin.modality == "audio" else made_notes(300)
    kept = _values(given).copy()
    draws, made = zip(*(_view(plugin, options, given, seed) for seed in range(_DRAWS)), strict=True)
    _, again = zip(*(_view(plugin, options, given, seed) for seed in range(_DRAWS)), strict=True)
    as_many = all(values.shape == kept.shape for values in made)
    findings = [
        Finding("version is a whole number", isinstance(plugin.version, int)),
        Finding("draws are plain JSON", all(map(_plain, draws))),
        Finding("what is given is left as it was", np.array_equal(_values(given), kept)),
        Finding("as much comes out as goes in", as_many),
        Finding("values are finite", all(bool(np.isfinite(values).all()) for values in made)),
        Finding("one seed, one result", all(map(np.array_equal, made, again))),
        Finding("something changes", any(not np.array_equal(values, kept) for values in made)),
        Finding("options that it does not know are refused", _refuses(plugin, options)),
    ]
    if not as_many:
        return findings
    if plugin.modality == "midi":
        order = all(np.array_equal(_in_order(values), values) for values in made)
        return [*findings, Finding("rows stay in the order of ticks and pitches", order)]
    moved_s = max(_moved_s(plugin, drawn, seed) for seed, drawn in enumerate(draws))
    text = f"a click moves by {1000 * moved_s:.1f} ms"
    return [*findings, Finding("sound stays where it was, to 5 ms", moved_s <= 0.005, text)]


def _view(plugin: Augmentation, options: Options, given: Any, seed: int) -> tuple[Options, Array]:
    """What one seed draws, and what it makes of what is given."""
    drawn = plugin.draw(options, np.random.default_rng(seed))
    return drawn, np.asarray(plugin.apply(given, drawn, np.random.default_rng(seed)))


def _off(onsets_s: Array) -> str:
    """How many of these are neither onset nor offset of a made note; "" if none."""
    notes = made_notes(300)
    seconds = np.append(notes[:, COLUMN["onset_s"]], notes[:, COLUMN["offset_s"]])
    strange = int((~np.isin(np.round(onsets_s, 9), np.round(seconds, 9))).sum())
    return f"{strange} of {len(onsets_s)} rows are not" if strange else ""


def made_notes(count: int) -> Array:
    """Rows of the `notes` stream: a random walk of so many notes in 4/4, (count, 15)."""
    rng = np.random.default_rng(7)
    values = np.zeros((count, len(FIELDS)))
    ticks = np.cumsum(rng.integers(0, _TICKS, count))
    length = rng.integers(30, 2 * _TICKS, count)
    named: dict[str, Any] = {
        "tick": ticks, "offset_tick": ticks + length,
        "onset_s": ticks / _TICKS * _QUARTER_S, "offset_s": (ticks + length) / _TICKS * _QUARTER_S,
        "pitch": np.clip(60 + rng.integers(-12, 13, count), 0, 127),
        "velocity": rng.integers(1, 128, count), "bar": ticks // (4 * _TICKS),
        "beat_in_bar": ticks % (4 * _TICKS) / _TICKS, "bar_length": 4,
        "ticks_per_quarter": _TICKS, "quarter_s": _QUARTER_S,
    }  # fmt: skip
    for name, column in named.items():
        values[:, COLUMN[name]] = column
    return _in_order(values)


def made_audio() -> Audio:
    """A second of noise at 22050 Hz."""
    samples_N = 0.1 * np.random.default_rng(7).standard_normal(22_050)
    return Audio(samples_N.astype(np.float32), 22_050, 1, len(samples_N), "WAV")


def _moved_s(plugin: Augmentation, drawn: Options, seed: int) -> float:
    """By how many seconds the middle of a click is elsewhere afterwards."""
    audio = made_audio()
    samples_N = np.zeros_like(audio.samples_N)
    samples_N[9000:9030] = 0.8
    made = plugin.apply(replace(audio, samples_N=samples_N), drawn, np.random.default_rng(seed))
    power_N = np.square(made, dtype=np.float64) + 1e-30
    return abs(float(np.average(np.arange(len(made)), weights=power_N)) - 9014.5) / audio.rate_hz


def _refuses(plugin: Augmentation, options: Options) -> bool:
    try:
        plugin.draw({**options, "no_such_option": 1}, np.random.default_rng(0))
    except (ConfigError, TypeError, ValueError, KeyError):
        return True
    return False


def _values(given: Any) -> Array:
    return np.asarray(given.samples_N if isinstance(given, Audio) else given)


def _in_order(values: Array) -> Array:
    return values[np.lexsort((values[:, COLUMN["pitch"]], values[:, COLUMN["tick"]]))]


def _plain(value: Any) -> bool:
    try:
        kept = json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return False
    return bool(kept == json.loads(json.dumps(kept)))
