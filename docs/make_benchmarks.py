"""Write docs/benchmarks.md and its plot from docs/bench/*.json: python docs/make_benchmarks.py."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
BUSY = 0.1  # share of the machine at other work from which it was no quiet one
INTRO = """# Benchmarks

Made by `make bench` from what `tests/benchmarks/all.py` leaves in `docs/bench`: every ratio that
the project claims, ours and the peer's in one run, in turn. A ratio above 1 is in favour of mmfuse,
where the row does not say otherwise. **noisy** marks rows that were measured while the machine did
other work as well, and says how much of it.

```text
python tests/benchmarks/all.py             # all of them: hours, on a machine that is left alone
python tests/benchmarks/all.py storage     # one
python tests/benchmarks/all.py --quick     # less of each: minutes
python docs/make_benchmarks.py             # this page
```

## Ratios

![Ratios, on a logarithmic scale](benchmarks.svg)

| what | ratio | wanted | measured on |
| --- | --- | --- | --- |
"""


class Ratio(NamedTuple):
    """One claim: what is divided by what, the number, and what was wanted ("" for nothing)."""

    what: str
    value: float
    wanted: str = ""


def read(folder: Path = HERE / "bench") -> list[dict[str, Any]]:
    """The measurements, by name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def ratios(name: str, found: dict[str, Any]) -> Iterator[Ratio]:
    """What a benchmark claims."""
    if name == "midi_reader":
        for peer, ratio in found["speed_against"].items():
            wanted = f"at least {found['targets'][peer]:g}" if peer in found["targets"] else ""
            yield Ratio(f"MIDI bytes to notes: {peer} / mmfuse", ratio, wanted)
    elif name == "midi_tokens":
        for pair, ratio in found["speed_against"].items():
            yield Ratio(f"speed of {pair}", ratio)
    elif name == "storage":
        for claim in found["targets"]:
            yield Ratio(f"storage: {claim['claim']}", claim["ratio"], f"at least {claim['target']}")
    elif name == "engine":
        workers = found["workers"]
        yield Ratio(f"engine: {workers} workers / 1", found["ratio"], "at least 1.7")
        yield Ratio(f"engine: {workers} jobs that share nothing / 1", found["ratio_apart"])
    elif name == "training":
        for key, what, wanted in TRAINING:
            if key in found:
                yield Ratio(what, found[key], wanted)
        for key, figures in found.items():
            what, _, which = key.partition(", ")
            if what == "step":
                yield Ratio(
                    f"training step / the bare one, {which}", figures["ratio"], "at most 1.1"
                )
            elif what == "sweep":
                said = f"sweep of 16 in turn / side by side, {which}"
                yield Ratio(said, figures["ratio"], "at least 3")
    elif name == "frozen_encoder":
        for key in ("stored, float16", "stored, float32"):
            said = f"epoch with {found['encoder']} / {key}"
            yield Ratio(said, found[key]["times_faster"])
    elif name == "int8":
        milliseconds = found["milliseconds"]
        yield Ratio(
            "reading as float32: float16 / int8", milliseconds["float16"] / milliseconds["int8"]
        )
    elif name == "encoders":
        for case, what in ENCODERS.items():
            if case in found:
                more = "at most" if case == "forward" else "at least"
                yield Ratio(what, found[case]["whole_wall"], f"{more} {found[case]['target']}")


TRAINING = (
    ("times_loader_0", "batches: from memory / DataLoader, no worker", "at least 5"),
    ("times_loader_2", "batches: from memory / DataLoader, 2 workers", "at least 10"),
)
ENCODERS = {
    "forward": "extract / bare forward at its best batch (1 is best)",
    "map": "datasets.map / extract",
    "onnxruntime": "torch / onnxruntime",
    "lhotse": "log-mel: lhotse / extract",
    "librosa": "log-mel: a loop of librosa / extract",
}


def place(one: dict[str, Any]) -> str:
    """Machine, versions and commit of a measurement, for a row."""
    machine, versions = one["machine"], one["versions"]
    said = [f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB"]
    said += [", ".join(f"{name} {version}" for name, version in versions.items() if version != "-")]
    noise = f"; **noisy: {one['others']:.0%}**" if one["others"] > BUSY else ""
    return f"{'; '.join(said)}; commit {one['commit']}, {one['date']}{noise}"


def document(measured: list[dict[str, Any]]) -> str:
    """The page."""
    parts = [INTRO.rstrip("\n")]
    parts += [
        _row([ratio.what, f"{ratio.value:.3g}", ratio.wanted, place(one)])
        for one in measured
        for ratio in ratios(one["benchmark"], one["found"])
    ]
    parts += ["", "## Tables", ""]
    for one in measured:
        rows = list(table(one["benchmark"], one["found"]))
        if rows:
            said = f"`{one['command']}`, {one['seconds']} s; {place(one)}"
            parts += [f"### `{one['benchmark']}`", "", said, ""]
            parts += [_row(rows[0]), _row(["---"] * len(rows[0])), *map(_row, rows[1:]), ""]
    return "\n".join(parts).rstrip("\n") + "\n"


def table(name: str, found: dict[str, Any]) -> Iterator[list[Any]]:
    """Figures behind the ratios."""
    if name == "midi_reader":
        yield ["reader", "microseconds a file"]
        yield from ([reader, us] for reader, us in found["microseconds_a_file"].items())
    elif name == "midi_tokens":
        yield ["what", "a second"]
        yield from ([what, f"{speed:,}"] for what, speed in found["per_second"].items())
    elif name == "fusions":
        yield ["fusion", "parameters", "CPU ms a step"]
        yield from ([n, of["parameters"], of["ms"]] for n, of in found["fusions"].items())
    elif name == "int8":
        yield ["frames", "int8", "worst channel", "float16"]
        for frames, row in found["errors"].items():
            errors = (f"{row[k]:.2%}" for k in ("int8", "int8_worst_channel"))
            yield [frames, *errors, f"{row['float16']:.3%}"]
    elif name == "storage":
        kinds = ("warm", "cold", "sequential", "write")
        yield ["beside np.memmap, and cp for writing", *kinds]
        every = dict.fromkeys(n for kind in kinds for n in found[kind]["ratio"])
        for reader in every:
            row = [found[kind]["ratio"].get(reader) for kind in kinds]
            yield [reader, *("" if value is None else f"{value:.3g}" for value in row)]
    elif name == "scale":
        yield ["clips", *(key for key in found["scale"][0] if key != "clips")]
        for row in found["scale"]:
            yield [f"{row['clips']:,}", *(f"{v:.3g}" for k, v in row.items() if k != "clips")]
    elif name == "encoders_cost":
        yield ["an hour of audio", "seconds", "MB"]
        for encoder, cost in found["costs"].items():
            yield [encoder, cost["seconds_an_hour"], cost["megabytes_an_hour"]]
    elif name == "engine":
        yield ["clips a second", ""]
        for key in ("one_clips_per_s", "many_clips_per_s", "apart_clips_per_s"):
            yield [key.partition("_")[0], found[key]]
    elif name == "training":
        yield ["batches", "clips a second"]
        speeds = found.get("clips_per_s", {})
        yield from ([how, f"{speed:,.0f}"] for how, speed in speeds.items())


def plot(measured: list[dict[str, Any]]) -> str:
    """Bars from 1, on a logarithmic scale, as SVG that follows light and dark."""
    import math

    rows = [r for one in measured for r in ratios(one["benchmark"], one["found"])]
    left, width, high = 400, 360, 22
    reach = max([abs(math.log10(max(r.value, 1e-3))) for r in rows] or [1]) * 1.1
    middle, tall = left + width / 2, high * len(rows)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 60} {tall + 30}" '
        'font-family="sans-serif" font-size="12" fill="#888">'
    ]
    for number, row in enumerate(rows):
        y = 10 + high * number
        length = math.log10(max(row.value, 1e-3)) / reach * width / 2
        colour = "#2a9d8f" if length >= 0 else "#c8553d"
        x, end = min(middle, middle + length), max(middle, middle + length) + 5
        size = f'width="{max(abs(length), 1):.1f}" height="15"'
        name = f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{_escaped(row.what)}</text>'
        out.append(name)
        out.append(f'<rect x="{x:.1f}" y="{y}" {size} fill="{colour}"/>')
        out.append(f'<text x="{end:.1f}" y="{y + 12}">{row.value:.3g}</text>')
    out.append(f'<path d="M{middle} 5V{tall + 10}" stroke="#888"/></svg>')
    return "\n".join(out) + "\n"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _row(cells: list[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    found = read()
    (HERE / "benchmarks.md").write_text(document(found), encoding="utf-8")
    (HERE / "benchmarks.svg").write_text(plot(found), encoding="utf-8")
