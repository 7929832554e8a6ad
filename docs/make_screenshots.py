"""Pictures of both reports for the pages: docs/images/NAME-{clips,runs}{,-phone}.webp.

    mmfeat report demo/store.zarr --alignment demo/alignment.parquet --out demo/store.html
    mmtrain report runs/late runs/gated runs/text_only --out demo/runs.html
    python docs/make_screenshots.py sample demo/store.html demo/runs.html

The first clip is shown with its cursor in the middle. A wide picture is light, one of a phone dark.
"""

import base64
import shutil
import sys
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).with_name("images")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
]  # fmt: skip
DESKTOP, PHONE = (1280, 1180), (390, 844)
QUALITY = 82


def shoot(browser: Any, page: Path, target: Path, *, phone: bool) -> None:
    """One picture of a page, from the top, or of a phone from what matters."""
    width, height = PHONE if phone else DESKTOP
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if phone else "light",
        device_scale_factor=1.5 if phone else 1,
    )
    tab = context.new_page()
    tab.goto(page.absolute().as_uri())
    clip = tab.locator(".clip").first
    if clip.count():
        tab.wait_for_function("document.querySelector('.clip audio').readyState > 0")
        clip.locator(".roll").click()  # its middle
        tab.evaluate("document.activeElement.blur()")
    if phone:
        first = clip if clip.count() else tab.locator("section").first
        place = "it.getBoundingClientRect().top + scrollY - 16"
        first.evaluate(f"(it) => scrollTo({{top: {place}, behavior: 'instant'}})")
    tab.wait_for_timeout(300)
    shot = context.new_cdp_session(tab).send(
        "Page.captureScreenshot", {"format": "webp", "quality": QUALITY}
    )
    target.write_bytes(base64.b64decode(shot["data"]))
    context.close()
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


def main(name: str, store_page: str, runs_page: str) -> None:
    """Write four pictures."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("no Chromium on this machine (Debian: apt-get install chromium)")
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=ARGUMENTS)
        for what, page in (("clips", Path(store_page)), ("runs", Path(runs_page))):
            shoot(browser, page, IMAGES / f"{name}-{what}.webp", phone=False)
            shoot(browser, page, IMAGES / f"{name}-{what}-phone.webp", phone=True)
        browser.close()


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(f"usage: python {sys.argv[0]} NAME STORE_PAGE RUNS_PAGE")
    main(*sys.argv[1:])
