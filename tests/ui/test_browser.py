"""A person's way through the page: from a click to a video that plays, in a headless browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from needs import browser, needs_browser, needs_gradio, needs_weights
from served import served

pytestmark = [needs_gradio, needs_browser, needs_weights]
SECONDS = 1000  # of playwright's milliseconds


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page for `shapes` that is served."""
    with served(tmp_path_factory.mktemp("page")) as (found, _):
        yield found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        running = started.chromium.launch(executable_path=browser(), args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def page(chromium: Any, address: str) -> Iterator[Any]:
    """The page, in a window of its own, with its forecast."""
    opened = chromium.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(120 * SECONDS)
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(address)
    opened.wait_for_selector("#forecast p")
    yield opened
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == [], "other servers were asked"
    opened.close()


def fill(page: Any, **values: str) -> None:
    for label, value in values.items():
        page.get_by_label(label.replace("_", " ").capitalize(), exact=True).fill(value)


def small(page: Any) -> None:
    """A video of a second or two."""
    fill(page, frames="5", height="32", width="32", steps="3", dense_steps="1")
    page.wait_for_function("document.querySelector('#forecast').innerText.includes('of 3 steps sparse')")


def test_from_a_click_to_videos_that_play(page: Any) -> None:
    small(page)
    page.get_by_role("button", name="Compare with dense").click()
    page.wait_for_selector("#numbers table")
    for side in ("dense", "sparse"):
        page.wait_for_function(f"document.querySelector('#{side} video').currentTime > 0.1")
        video = page.query_selector(f"#{side} video")
        assert video.evaluate("v => [v.error, v.videoWidth, v.videoHeight]") == [None, 128, 128]
    assert "PSNR to dense" in page.inner_text("#numbers")
    assert page.inner_text("#status").startswith("dense and sparse: 5 frames of 32x32")


def test_the_forecast_follows_the_fields(page: Any) -> None:
    before = page.inner_text("#forecast")
    assert before.startswith("shapes on cpu, float32: 9,216 tokens, radial of density 0.20")
    fill(page, density="0.3")
    page.wait_for_function("document.querySelector('#forecast').innerText.includes('density 0.3')")
    fill(page, frames="0")
    page.wait_for_selector("#forecast .error")
    assert "--frames" in page.inner_text("#forecast")


def test_a_pattern_without_a_density_disables_the_field(page: Any) -> None:
    page.get_by_label("Attention").click()
    page.get_by_role("option", name="dense", exact=True).click()
    page.wait_for_function("document.querySelector('#density textarea, #density input').disabled")


def test_a_bad_prompt_is_a_line_of_the_page(page: Any) -> None:
    fill(page, prompt="a fox in the snow")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.wait_for_selector("#status .error")
    assert "Traceback" not in page.inner_text("body")
    page.wait_for_function("!document.querySelector('.buttons button').disabled")


def test_stop(page: Any) -> None:
    fill(page, steps="400")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_text("sparse - ").or_(page.get_by_text("/400")).first.wait_for()
    page.get_by_role("button", name="Stop").click()
    page.wait_for_function("document.querySelector('#status').innerText.includes('stopped')")


def test_a_narrow_window_needs_no_scrolling_sideways(page: Any) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
