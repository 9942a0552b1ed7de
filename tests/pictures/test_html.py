"""What notebooks show: complete HTML without scripts, with a picture where there is one, escaped text."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest
import torch
from html_pages import parsed
from tiny_wan import SPARSE, call, tiny

from vidsparse import (
    BlockMap,
    Context,
    Dense,
    Pattern,
    Radial,
    Reuse,
    StepSchedule,
    TopBlocks,
    VideoGrid,
    plot,
    sparsify,
)
from vidsparse.patterns.names import build_pattern, pattern_classes
from vidsparse.runtime.report import Report

EVERY = [build_pattern(name) for name in pattern_classes() if name != "head-modes"]


@dataclass(frozen=True)
class Awkward(Pattern):
    """Names that HTML reads otherwise, and a plan that fails."""

    text: str = '<script>alert("1")</script> & co'

    def plan(self, grid: VideoGrid, context: Context | None = None) -> BlockMap:
        raise KeyError("<b>")


@pytest.mark.parametrize("pattern", EVERY, ids=lambda p: type(p).__name__)
def test_every_pattern(pattern: Pattern) -> None:
    found = parsed(pattern._repr_html_())
    assert type(pattern).__name__ in found.text
    assert len(found.pictures) == (not pattern.reads_content)
    assert ("needs the queries and keys" in found.text) == pattern.reads_content


def test_fields_are_rows_and_wrappers_show_what_they_hold() -> None:
    found = parsed(StepSchedule(Radial(0.2), dense_steps=3)._repr_html_())
    assert ["pattern", repr(Radial(0.2))] in found.rows and ["dense_steps", "3"] in found.rows
    assert found.pictures[0].width == 800
    assert not parsed(StepSchedule(Reuse(TopBlocks(0.2)))._repr_html_()).pictures


def test_text_is_escaped_and_a_plan_that_fails_is_no_failure() -> None:
    html = Awkward()._repr_html_()
    found = parsed(html)
    assert "<script" not in html and "<b>" not in html
    assert found.rows == [["text", repr(Awkward().text)]] and "KeyError" not in found.text
    assert "no picture for one head on" in found.text and not found.pictures


def test_a_map() -> None:
    found = parsed(Radial(0.3).plan(VideoGrid(5, 8, 8, suffix=3))._repr_html_())
    assert found.rows[0] == ["grid", "5x8x8, 323 tokens"] and found.rows[1][1].startswith("0.3")
    assert len(found.pictures) == 1


def test_a_map_of_two_grids_has_no_picture() -> None:
    kept = torch.eye(2, 5, dtype=torch.bool)
    block_map = BlockMap.from_dense(kept, VideoGrid(2, 8, 8), (1, 8, 8), key_grid=VideoGrid(5, 8, 8, suffix=3))
    found = parsed(block_map._repr_html_())
    assert found.rows[:2] == [["queries", "2x8x8, 128 tokens"], ["keys", "5x8x8, 323 tokens"]]
    assert "two grids" in found.text and not found.pictures
    with pytest.raises(ValueError, match="the map has no single grid"):
        plot(block_map)


def test_a_run_and_its_report() -> None:
    transformer = tiny()
    with sparsify(transformer, StepSchedule(SPARSE, dense_layers=(0,))) as run:
        assert "no attention has run" in parsed(run._repr_html_()).text
        call(transformer)
        found = parsed(run._repr_html_())
        assert found.text == parsed(run.report()._repr_html_()).text
    assert ["dense", "1 calls, the pattern asks for it"] in found.rows
    assert "1 of 2 attention calls sparse" in found.text and len(found.pictures) == 1
    assert parsed(Report((), "<i>", lost=("a < b",))._repr_html_()).rows == [["lost", "a < b"]]


def test_without_matplotlib_tables_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"] + ["matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    found = parsed(Dense()._repr_html_())
    assert found.rows == [["tile", "None"]] and "the picture needs matplotlib" in found.text and not found.pictures
    with pytest.raises(ImportError, match="matplotlib"):
        from vidsparse import plot

        plot(Dense(), grid=VideoGrid(2, 4, 4))
