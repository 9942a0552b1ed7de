"""A page as a file: one file that asks for nothing, holds the very videos and figures, and shows any text as text."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from page_examples import HOSTILE, example_page, read

from vidsparse.webpage.page import Page
from vidsparse.webpage.render import ROOM, SCRIPTS, render, write_page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return example_page(tmp_path_factory.mktemp("videos"))


def test_it_holds_the_videos_and_the_figures(page: Page) -> None:
    found = read(render(page))
    assert found.videos == [clip.file.read_bytes() for scene in page.scenes for clip in scene.clips]
    assert found.island("report") == page.report
    data = found.island("data")
    assert data["scenes"][0]["clips"][1]["curves"]["PSNR, dB"] == list(page.scenes[0].clips[1].psnr)
    assert data["scenes"][0]["clips"][1]["worst"] == page.scenes[0].clips[1].worst
    assert [one["name"] for one in data["settings"]] == [one.name for one in page.settings]
    assert data["settings"][1]["heat"]["transformers"][0]["cells"] and data["settings"][2]["heat"] is None
    policy = next(a["content"] for _, a in found.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none';")


def test_text_stays_text(page: Page) -> None:
    html = render(page)
    found = read(html)
    assert HOSTILE in found.text and "vidsparse generate 'a <fox>' --density 0.1" in found.text
    assert "<script>window.hurt" not in html and "</b>" not in html
    scripts = [tag for tag, _ in found.tags if tag == "script"]
    assert len(scripts) == 2 + len(SCRIPTS)
    for attributes in (a for _, a in found.tags):
        assert not [name for name in attributes if name.startswith("on")]


def test_scripts_never_make_elements_of_text() -> None:
    for name in SCRIPTS:
        text = (ROOM / name).read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|fetch\(|XMLHttp", text)


def test_every_element_that_scripts_name_is_there(page: Page) -> None:
    named = {word for name in SCRIPTS for word in re.findall(r'byId\("([\w-]+)"\)', (ROOM / name).read_text())}
    assert len(named) > 20 and named <= {str(a["id"]) for _, a in read(render(page)).tags if "id" in a}


def test_every_input_has_a_name(page: Page) -> None:
    html = render(page)
    for tag, attributes in read(html).tags:
        if tag in ("input", "select", "video", "canvas"):
            inside = re.search(rf'<label[^>]*>[^<]*<{tag}[^>]*id="{attributes.get("id")}"', html)
            assert attributes.get("aria-label") or inside, attributes


def test_a_file_is_whole_or_not_there(
    page: Page, tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    with full_disk(), pytest.raises(OSError) as failed:
        write_page(tmp_path / "a.html", page)
    assert failed.value.errno == errno.EFBIG and not list(tmp_path.iterdir())
    write_page(tmp_path / "a.html", page)
    assert (tmp_path / "a.html").read_text() == render(page)


def test_a_page_without_videos_or_attention(page: Page) -> None:
    from dataclasses import replace

    bare: Any = replace(page, scenes=(), settings=page.settings[2:3], facts={}, another_seed=None)
    found = read(render(bare))
    assert not found.videos and "many" in found.text
