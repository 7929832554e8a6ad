"""Pages to look at: one HTML file each that loads nothing, sends nothing and escapes everything.

A page is a template of the package that writes it, on top of `templates/page.html`, with the macros
of `templates/charts.html`. The content security policy names the very style sheet and script of
the page by their hashes and allows pictures and sound from inside the page; all else is refused by
the browser: markup from a clip's text would stay without effect even if it came through.
"""

import base64
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmfuse.features.chart import plain
from mmfuse.features.errors import ConfigError
from mmfuse.features.layout import write_durably

_SHARED = Path(__file__).with_name("templates")
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def render(folder: Path, template: str, context: Mapping[str, Any], scripts: Sequence[str]) -> str:
    """The page as HTML.

    Args:
        folder: where the template and its scripts lie; the shared ones are found too.
        template: its name.
        context: what it shows; every string is escaped.
        scripts: names of files that become the page's one script, in this order.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    places = (folder, _SHARED)
    environment = Environment(
        loader=FileSystemLoader(places),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    style = _read(places, "style.css")
    script = "".join(_read(places, name) for name in ("page.js", *scripts))
    shell = {
        "policy": policy(style, script),
        "style": Markup(style),  # noqa: S704 - a file of ours
        "script": Markup(script),  # noqa: S704
    }
    return environment.get_template(template).render({**context, **shell})


def write_page(path: Path, html: str) -> int:
    """Write a page; its size in bytes. What no UTF-8 can hold is written as its escape.

    Raises:
        ConfigError: the place is a folder.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file with --out report.html")
    path.parent.mkdir(parents=True, exist_ok=True)
    data = html.encode("utf-8", "backslashreplace")
    write_durably(path, data)
    return len(data)


def policy(style: str, script: str) -> str:
    """The content security policy: this style, this script, pictures and sound from inside."""
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "img-src data:; media-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _read(places: Sequence[Path], name: str) -> str:
    file = next(place / name for place in places if (place / name).is_file())
    return file.read_text(encoding="utf-8")


def size(count: float) -> str:
    """Bytes in the unit that leaves one to three digits before the point."""
    power = min(int(math.log10(max(count, 1)) // 3), len(_UNITS) - 1)
    value = count / 1000**power
    digits = 0 if power == 0 or value >= 99.95 else 1
    return f"{value:.{digits}f} {_UNITS[power]}"


def span(seconds: float) -> str:
    """A length of time: `0.42 s`, `12.3 s`, `4:05 min`, `3:20 h`."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02} min"
    return f"{minutes // 60}:{minutes % 60:02} h"


def number(count: float) -> str:
    """A count, its thousands apart by thin spaces."""
    return f"{count:,.0f}".replace(",", "\u202f")


def fixed(value: float, digits: int = 3) -> str:
    """So many digits behind the point."""
    return plain(value, f".{digits}f")


def signed(value: float, digits: int = 3) -> str:
    """As `fixed`, with its sign."""
    return plain(value, f"+.{digits}f")


def short(value: float, digits: int = 3) -> str:
    """So many digits that count."""
    return plain(value, f".{digits}g")


def percent(share: float, digits: int = 0) -> str:
    """A share in percent."""
    return f"{100 * share:.{digits}f}\u202f%"


FILTERS: dict[str, Callable[..., str]] = {
    one.__name__: one for one in (size, span, number, fixed, signed, short, percent)
}
