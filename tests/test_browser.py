"""The pages in a real browser: nothing leaves them, the player plays, keys work, phones fit."""

import re

import pytest
from browser import DESKTOP, EVIL, PHONE, seen

from mmfuse.features.clock import FrameRate, Timecode
from mmfuse.features.page import write_page
from mmfuse.pipeline.store_page import store_page


@pytest.fixture(scope="module")
def path(hostile, tmp_path_factory):
    store, _ = hostile
    written = tmp_path_factory.mktemp("page") / "report.html"
    write_page(written, store_page(store, count=2, wanted=[f"a {EVIL}", 300 * "y"]).html)
    return written


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_page_is_quiet_fits_and_can_be_read(chromium, path, size, scheme):
    with seen(chromium, path, size, scheme) as found:
        found.page.wait_for_function("[...document.images].every((i) => i.complete)")
        for details in found.page.locator("details").all():
            details.evaluate("(d) => { d.open = true; }")
        assert not found.scrolls_sideways()
        assert [(c, text) for c, text in found.contrasts() if c < 4.5] == []
        assert found.console == []
        assert found.outside() == []
        assert found.dialogs == []


def test_markup_in_names_is_text_and_the_browser_would_refuse_it_anyway(chromium, path):
    with seen(chromium, path) as found:
        assert found.page.locator("main script").count() == 0
        assert EVIL in found.page.locator(".clip h3").first.inner_text()
        assert EVIL in found.page.locator(".clip blockquote").first.inner_text()
        failure = found.page.locator("#failures details")
        failure.evaluate("(d) => { d.open = true; }")
        assert "<script>alert(3)<.flac" in failure.inner_text()
        assert found.console == []
        found.page.evaluate("(html) => document.body.append(document.createRange()"
                            ".createContextualFragment(html))", EVIL)  # fmt: skip
        found.page.evaluate("document.body.insertAdjacentHTML('beforeend', "
                            "'<img src=http://127.0.0.1:9/x.png onerror=alert(4)>')")  # fmt: skip
        assert (
            found.page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'held')")
            == "held"
        )
        found.page.wait_for_timeout(100)
        assert found.dialogs == []
        assert any("Content Security Policy" in text for text in found.console)


def test_the_cursor_follows_the_sound(chromium, path):
    with seen(chromium, path) as found:
        clip = found.page.locator(".clip").first
        cursor, button = clip.locator(".cursor"), clip.locator(".play")
        left = cursor.bounding_box()["x"]
        button.click()
        assert button.get_attribute("aria-label").startswith("Pause")
        found.page.wait_for_function(
            "() => document.querySelector('.clip audio').currentTime > 0.5", timeout=10_000
        )
        assert cursor.bounding_box()["x"] > left + 10
        button.click()
        now = clip.locator("audio").evaluate("(a) => a.currentTime")
        seconds = float(clip.get_attribute("data-seconds"))
        space = clip.locator(".cursor-space").bounding_box()
        expected = space["x"] + space["width"] * now / seconds
        assert cursor.bounding_box()["x"] == pytest.approx(expected, abs=3)
        assert float(clip.locator(".clock b").inner_text()) == pytest.approx(now, abs=0.01)
        assert clip.locator("audio").evaluate("(a) => a.duration") == pytest.approx(
            seconds, abs=0.05
        )
        other = found.page.locator(".clip .play").nth(1)
        button.click()
        other.click()  # one at a time
        assert clip.locator("audio").evaluate("(a) => a.paused")


def test_keys_and_pointer_seek(chromium, path):
    with seen(chromium, path) as found:
        clip = found.page.locator(".clip").first
        score, audio = clip.locator(".score"), clip.locator("audio")
        at = lambda: audio.evaluate("(a) => a.currentTime")  # noqa: E731
        seconds = float(clip.get_attribute("data-seconds"))
        over, under = map(int, clip.get_attribute("data-fps").split("/"))
        for _ in range(60):  # reached by the keyboard alone
            found.page.keyboard.press("Tab")
            if score.evaluate("(s) => s === document.activeElement"):
                break
        score.press("ArrowRight")
        score.press("ArrowRight")
        assert at() == pytest.approx(2)
        score.press("Shift+ArrowLeft")
        assert at() == pytest.approx(2 - under / over, abs=1e-3)
        assert score.get_attribute("aria-valuenow") == f"{2 - under / over:.3f}"
        score.press("End")
        assert at() == pytest.approx(seconds, abs=0.02)
        score.press("Home")
        assert at() == 0
        score.press(" ")
        assert not audio.evaluate("(a) => a.paused")
        score.press(" ")
        assert audio.evaluate("(a) => a.paused")
        box = clip.locator(".roll").bounding_box()
        found.page.mouse.click(box["x"] + box["width"] / 4, box["y"] + 50)
        assert at() == pytest.approx(seconds / 4, abs=0.02)
        assert re.search(r"\d+ Hz", clip.locator(".under").inner_text())


def test_the_timecode_under_the_cursor_is_that_of_the_clock(chromium, path):
    with seen(chromium, path) as found:
        clip = found.page.locator(".clip").first
        over, under = map(int, clip.get_attribute("data-fps").split("/"))
        drop = clip.get_attribute("data-drop") is not None
        (rate,) = (
            one for one in map(FrameRate.parse, ("23.976", "24", "25", "29.97", "29.97df", "30"))
            if (one.fps.numerator, one.fps.denominator, one.drop) == (over, under, drop)
        )  # fmt: skip
        start = float(clip.get_attribute("data-start"))
        for _ in range(5):
            clip.locator(".score").press("Shift+ArrowRight")
            told_s = float(clip.locator(".clock b").inner_text())
            frame = int((start + told_s + 0.0006) * over / under)
            near = {Timecode(n, rate).label for n in (frame - 1, frame)}
            assert clip.locator(".clock i").inner_text() in near


@pytest.mark.parametrize("name", ["23.976", "25", "29.97", "29.97df", "59.94df"])
def test_the_pages_own_count_of_timecode_is_the_clocks(chromium, path, name, tmp_path):
    rate = FrameRate.parse(name)
    html = path.read_text(encoding="utf-8")
    head = re.search(r'<article class="clip" data-seconds="([\d.]+)"[^>]*>', html)
    fps = f"{rate.fps.numerator}/{rate.fps.denominator}"
    drop = f'data-drop="{rate.dropped_per_minute}"' if rate.drop else ""
    other = (
        f'<article class="clip" data-seconds="{head[1]}" data-start="0" data-fps="{fps}" {drop}>'
    )
    (tmp_path / "page.html").write_text(html.replace(head[0], other), encoding="utf-8")
    frames = [0, 1, 1797, 1798, 1799, 1800, 17981, 17982, 107891, rate.day_frames - 1]
    with seen(chromium, tmp_path / "page.html") as found:
        shown = found.page.evaluate(
            """(starts) => starts.map((start) => {
              const clip = document.querySelector(".clip");
              clip.dataset.start = start;
              clip.dispatchEvent(new KeyboardEvent("keydown", {key: "Home"}));
              return clip.querySelector(".clock i").textContent;
            })""",
            [float(frame / rate.fps) for frame in frames],
        )
    assert shown == [Timecode(frame, rate).label for frame in frames]


def test_the_check_of_contrast_finds_pale_text(chromium, path):
    with seen(chromium, path, scheme="dark") as found:
        assert len(found.contrasts()) > 100
        found.page.evaluate("document.querySelector('h1').style.color = '#444'")
        worst, text = found.contrasts()[0]
        assert worst < 4.5
        assert text == "s.zarr"


def test_the_theme_is_the_systems_until_it_is_chosen(chromium, path):
    with seen(chromium, path, scheme="dark") as found:
        paper = lambda: found.page.evaluate("getComputedStyle(document.body).backgroundColor")  # noqa: E731
        dark, switch = paper(), found.page.locator(".theme")
        assert switch.inner_text() == "Theme: auto"
        switch.click()
        assert switch.inner_text() == "Theme: light"
        assert paper() != dark
        switch.click()
        assert paper() == dark


def test_without_scripts_the_page_shows_all_and_the_sound_has_the_browsers_own_player(
    chromium, path
):
    with seen(chromium, path, java_script_enabled=False) as found:
        assert found.page.locator(".clip .note-bar").count() > 10
        assert found.page.locator(".clip audio[controls]").count() == 2
        assert not found.page.locator(".play").first.is_visible()
