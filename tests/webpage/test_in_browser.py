"""A page in a headless browser, from a file: videos in step, wipe, difference, worst frame, charts, copying."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from needs import browser, needs_browser
from page_examples import FPS, FRAMES, WORST, example_page

from vidsparse.webpage.render import write_page

pytestmark = needs_browser
SECONDS = 60
TIMES = "[...document.querySelectorAll('.scene:not([hidden]) video')].map((video) => video.currentTime)"
PIXELS = """(id) => {
    const shown = document.getElementById(id), copy = document.createElement('canvas');
    [copy.width, copy.height] = [shown.width, shown.height];
    const context = copy.getContext('2d', { willReadFrequently: true });
    context.drawImage(shown, 0, 0);
    const bytes = context.getImageData(0, 0, copy.width, copy.height).data;
    let sum = 0, most = 0;
    bytes.forEach((byte, at) => { if (at % 4 < 3) { sum += byte; most = Math.max(most, byte); } });
    return [sum / (bytes.length * 0.75), most, bytes.join()];
}"""


def until(page: Any, holds: str) -> None:
    """Waits for an expression to hold. Playwright's own way evaluates text in the page, which its policy forbids."""
    end = time.monotonic() + SECONDS
    while not page.evaluate(holds):
        assert time.monotonic() < end, f"not within {SECONDS} seconds: {holds}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        running = started.chromium.launch(executable_path=browser(), args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    write_page(folder / "page.html", example_page(folder))
    for video in folder.glob("*.mp4"):
        video.unlink()  # the page has its own
    return folder / "page.html"


@pytest.fixture(params=["light"])
def page(chromium: Any, file: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, in a window of its own, with all videos there."""
    scheme: Any = request.param
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened = context.new_page()
    opened.set_default_timeout(1000 * SECONDS)
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda asked: said.append(asked.url) if not asked.url.startswith(("file:", "data:")) else None)
    opened.goto(file.as_uri())
    until(opened, "document.querySelectorAll('.scene:not([hidden]) video').length === 3")
    until(opened, "[...document.querySelectorAll('.scene:not([hidden]) video')].every((v) => v.readyState > 1)")
    yield opened
    assert not said, said
    assert not opened.evaluate("window.hurt"), "text of a prompt has run"
    context.close()


def at_frame(page: Any, frame: int) -> None:
    """Waits until every video shows a frame, and checks what the page says."""
    until(page, f"{TIMES}.every((time) => Math.floor(time * {FPS}) === {frame})")
    until(page, "[...document.querySelectorAll('.scene:not([hidden]) video')].every((v) => !v.seeking)")
    assert page.inner_text("#place") == f"{frame} of {FRAMES - 1}" and page.input_value("#frame") == str(frame)


def slide(page: Any, name: str, value: int) -> None:
    page.locator(f"#{name}").evaluate(
        "(slider, to) => { slider.value = to; slider.dispatchEvent(new Event('input')); }", value
    )


def test_videos_play_in_step(page: Any) -> None:
    page.uncheck("#loop")
    page.get_by_role("button", name="Play all").click()
    until(page, f"{TIMES}[0] > 4 / {FPS}")
    until(page, f"{TIMES}.every((time) => Math.abs(time - {TIMES}[0]) < 1 / {FPS})")
    until(page, f"{TIMES}[0] > 8 / {FPS}")
    page.get_by_role("button", name="Pause all").click()
    frame = int(page.input_value("#frame"))
    assert frame >= 8
    at_frame(page, frame)
    page.get_by_role("button", name="Play all").click()
    until(page, "document.getElementById('play').textContent === 'Play'")  # the end
    at_frame(page, FRAMES - 1)


def test_a_loop_begins_again_and_speed_is_one_for_all(page: Any) -> None:
    page.select_option("#speed", "2")
    assert (
        page.evaluate("[...document.querySelectorAll('.scene:not([hidden]) video')].map((v) => v.playbackRate)")
        == [2] * 3
    )
    slide(page, "frame", FRAMES - 4)
    page.get_by_role("button", name="Play all").click()
    until(page, f"{TIMES}.every((time) => time > 1 / {FPS} && time < 12 / {FPS})")


def test_the_scrubber_the_keys_and_the_worst_frame(page: Any) -> None:
    slide(page, "frame", 7)
    at_frame(page, 7)
    page.get_by_role("button", name="One frame forward").click()
    at_frame(page, 8)
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    at_frame(page, 6)
    page.keyboard.press("w")
    at_frame(page, WORST)
    page.keyboard.press("ArrowRight")
    at_frame(page, WORST + 1)
    page.get_by_role("button", name=f"Worst frame of few: {WORST}").click()
    at_frame(page, WORST)
    page.locator("#curve-panels svg").first.click(position={"x": 60, "y": 60})
    at_frame(page, 0)
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press(" ")
    until(page, f"{TIMES}[0] > 2 / {FPS}")
    page.keyboard.press(" ")
    assert page.inner_text("#play") == "Play"


def test_the_wipe_shows_one_video_then_the_other(page: Any) -> None:
    slide(page, "frame", WORST)
    at_frame(page, WORST)
    shown = {}
    for share in (0, 500, 1000):
        slide(page, "split", share)
        shown[share] = page.evaluate(PIXELS, "wipe")[2]
    assert len(set(shown.values())) == 3
    page.select_option("#right", label="many")
    slide(page, "split", 1000)
    assert page.evaluate(PIXELS, "wipe")[2] == shown[1000], "all of the left video"
    slide(page, "split", 0)
    assert page.evaluate(PIXELS, "wipe")[2] != shown[0]
    assert page.inner_text("#wipe-text") == "Left of the line: dense. Right of it: many. Drag it."
    box = page.locator("#wipe").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 10)
    page.mouse.up()
    assert 740 <= int(page.input_value("#split")) <= 760


def test_the_difference_is_amplified_and_black_where_videos_are_equal(page: Any) -> None:
    slide(page, "frame", WORST)
    at_frame(page, WORST)
    means = []
    for times in (1, 2, 8):
        slide(page, "amplify", times)
        means.append(page.evaluate(PIXELS, "difference")[0])
    assert 0 < means[0] < 0.7 * means[1] < 0.7 * means[2]
    assert page.inner_text("#amplified") == "x8"
    page.select_option("#right", label="dense")
    assert page.evaluate(PIXELS, "difference")[1] == 0


def test_another_scene(page: Any) -> None:
    page.get_by_role("button", name="best: second").click()
    until(page, "document.querySelectorAll('.scene')[0].hidden && !document.querySelectorAll('.scene')[1].hidden")
    at_frame(page, 0)
    page.keyboard.press("Tab")
    slide(page, "frame", 5)
    at_frame(page, 5)


def test_charts_tell_their_numbers(page: Any) -> None:
    page.locator("[data-point=few]").focus()
    assert page.inner_text("#plot-text") == "few: 1.00 seconds (0.90 to 1.20), 20.0 \u00b1 1.5 dB"
    assert page.locator("tr.chosen").get_attribute("data-setting") == "few"
    page.locator("[data-point=many]").hover()
    assert page.inner_text("#plot-text") == "many: 1.50 seconds, 28.0 dB"
    assert page.locator("#plot .fewer").count() == page.locator("#plot .seed").count() == 1
    heat = page.locator("#heat svg")
    assert heat.locator(".cell").count() == 4 * 3
    heat.focus()
    assert page.inner_text("#heat-text") == "step 0, layer 0: 2 dense calls: the pattern </b> asks"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#heat-text") == "step 1, layer 1: density 0.250 in 2 sparse calls"
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.inner_text("#heat-text") == "step 3: 6 calls skipped, by the schedule"
    legend = page.inner_text("#heat-legend")
    assert "dense, 6 calls: the pattern </b> asks" in legend and "skipped, by the schedule" in legend
    assert "choosing tiles 0.10 s, 5.0 %" in page.inner_text("#time")


def test_copying(page: Any) -> None:
    page.get_by_text("Copy few").click()
    page.get_by_role("button", name="Copy the options of few").click()
    until(page, "document.getElementById('said').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == "vidsparse generate 'a <fox>' --density 0.1"
    page.get_by_role("button", name="Copy the Python of few").click()
    until(page, "navigator.clipboard.readText().then((text) => text === 'run = 1')")


@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_a_narrow_window_needs_no_scrolling_sideways(page: Any) -> None:
    for width in (400, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        until(page, f"document.documentElement.scrollWidth <= {width}")
        until(page, f"document.querySelector('#plot svg').getBoundingClientRect().width <= {width}")
