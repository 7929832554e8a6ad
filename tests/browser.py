"""A page in a real Chromium: what it complains of, what it asks for, how well it can be read."""

import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
    "--autoplay-policy=no-user-gesture-required",
]  # fmt: skip
EVIL = "<script>alert(1)</script>"
PHONE, DESKTOP = (390, 844), (1280, 900)

# Every text that is seen with its contrast to what lies behind it, by WCAG 2.2; the picture of a
# clip is left out, whose background is no colour.
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (rgb) => {
    const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = rgb.map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const clear = (element) => rgba(getComputedStyle(element).backgroundColor)[3] < 255;
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || element.closest("script, style, .roll, title")) continue;
    const box = element.getBoundingClientRect();
    if (!element.checkVisibility({visibilityProperty: true}) || !box.width) continue;
    let behind = element;
    while (behind && clear(behind)) behind = behind.parentElement;
    const style = getComputedStyle(element);
    const ink = rgba(element.closest("svg") ? style.fill : style.color);
    const paper = rgba(getComputedStyle(behind ?? document.documentElement).backgroundColor);
    const [a, b] = [light(ink.slice(0, 3)), light(paper.slice(0, 3))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.data.trim().slice(0, 40)]);
  }
  return found;
}"""


@dataclass
class Seen:
    """A page, and what came of it: complaints on its console, requests, windows that popped up."""

    page: Any
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def scrolls_sideways(self) -> bool:
        return self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth")

    def contrasts(self) -> list[tuple[float, str]]:
        return sorted(map(tuple, self.page.evaluate(CONTRASTS)))

    def outside(self) -> list[str]:
        return [url for url in self.requests if not url.startswith(("data:", "file:"))]


@contextmanager
def seen(browser: Any, path: Path, size=DESKTOP, scheme: str = "light", **options):
    """A page from the disk in a window of its own, gone afterwards."""
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, **options
    )
    try:
        found = Seen(context.new_page())
        found.page.on("console", lambda message: found.console.append(message.text))
        found.page.on("pageerror", lambda error: found.console.append(str(error)))
        context.on("request", lambda request: found.requests.append(request.url))
        found.page.on(
            "dialog", lambda dialog: (found.dialogs.append(dialog.message), dialog.dismiss())
        )
        found.page.goto(path.absolute().as_uri())
        yield found
    finally:
        context.close()
