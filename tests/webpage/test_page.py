"""What a page shows: colours, columns, and where the time went."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from page_examples import example_page

from vidsparse.webpage.page import COLOURS, memory_text, time_split


def test_the_parts_of_time_sum_to_all_of_it() -> None:
    parts = time_split(10.0, 8.0, 5.0, 1.0)
    assert parts == {
        "choosing tiles": 1.0,
        "attention layers": 4.0,
        "rest of denoising": 3.0,
        "text and decoding": 2.0,
    }
    assert time_split(10.0, None, 5.0, 1.0) == {"choosing tiles": 1.0, "attention layers": 4.0, "rest": 5.0}
    assert min(time_split(10.0, 4.999, 5.0, 1.0).values()) == 0, "two clocks that disagree"
    assert sum(parts.values()) == pytest.approx(10.0)


def test_settings_have_colours_and_columns(tmp_path: Path) -> None:
    page = example_page(tmp_path)
    colours = page.colours
    assert list(colours) == ["dense", "few", "many", "dense-3-steps", "dense-2-steps"]
    assert (colours["few"], colours["many"]) == COLOURS[:2] and colours["dense"] == "var(--ink)"
    assert colours["dense-3-steps"] != colours["dense-2-steps"], "rivals can be told apart"
    assert page.headings == ["seconds", "PSNR"]
    many = tuple(replace(page.settings[1], name=str(number)) for number in range(2 * len(COLOURS)))
    assert replace(page, settings=many).colours["6"] == COLOURS[0]


def test_memory() -> None:
    assert memory_text(1_250_000_000) == "1.25 GB" and memory_text(None) == ""
