"""The picture of a report: densities, the reasons of dense calls and what was skipped, each in its place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from overlaps import overlapping

from vidsparse.pictures.report_picture import report_figure
from vidsparse.pictures.style import REASONS
from vidsparse.runtime.report import LayerCall, Report, Skipped

ASKED = "the pattern asks for it"
LONG = "its processor is Mine, not WanAttnProcessor2_0: give this class a method sparse_processor that returns one"


def ran(layer: int, step: int, reason: str | None = None, density: float = 0.3, **others: Any) -> LayerCall:
    density = 1.0 if reason else density
    given = {"transformer": "transformer", "tokens": 4096, "impl": "cpu", "fallback": None, "tiles": ((1, 8, 8),)}
    return LayerCall(
        layer=layer, step=step, reason=reason, dense_flops=1e9, density=density, flops=1e9 * density, **given | others
    )


def panels(figure: Any) -> list[Any]:
    return [axes for axes in figure.get_axes() if axes.get_xlabel() == "step"]


def rectangles(axes: Any) -> dict[tuple[int, int], Rectangle]:
    """(layer, step) -> what is drawn over it."""
    found = {}
    for patch in axes.patches:
        x, y = patch.get_x() + patch.get_width() / 2, patch.get_y() + patch.get_height() / 2
        found[round(y), round(x)] = patch
    return found


def legend(figure: Any) -> list[str]:
    return [text.get_text().replace("\n", " ") for found in figure.legends for text in found.get_texts()]


def test_each_call_is_in_its_place() -> None:
    calls = [
        *(ran(0, 0, ASKED), ran(1, 0, ASKED), ran(0, 1, density=0.2), ran(0, 1, density=0.4, calls=3)),
        *(ran(1, 1, density=0.5), ran(1, 1, LONG)),
        *(ran(0, 3), ran(1, 3, LONG)),
    ]
    figure = report_figure(Report(tuple(calls), "Radial(0.3)", skipped=(Skipped("transformer", 2, 2, "the schedule"),)))
    (axes,) = panels(figure)
    shown = np.asarray(axes.get_images()[0].get_array().filled(np.nan))
    assert shown[0].tolist() == pytest.approx([np.nan, 0.35, np.nan, 0.3], nan_ok=True)
    assert shown[1].tolist() == pytest.approx([np.nan, 0.5, np.nan, np.nan], nan_ok=True)
    over = rectangles(axes)
    colours = {place: to_hex(patch.get_facecolor()) for place, patch in over.items() if patch.get_fill()}
    assert colours[0, 0] == colours[1, 0] == REASONS[0] != colours[1, 3] == REASONS[1]
    assert over[0, 2].get_hatch() and over[1, 2].get_hatch() and not over[0, 0].get_hatch()
    assert not over[1, 1].get_fill() and to_hex(over[1, 1].get_edgecolor()) == REASONS[1]  # sparse and dense
    assert set(over) == {(0, 0), (1, 0), (1, 1), (1, 3), (0, 2), (1, 2)}
    assert legend(figure) == [f"dense: {ASKED}", f"dense: {LONG}", "skipped, by the schedule"]


def test_each_transformer_has_a_panel_and_nothing_overlaps() -> None:
    calls = [ran(layer, step, LONG if layer == 7 else None) for layer in range(30) for step in range(25)]
    calls += [ran(layer, step, transformer="transformer_2") for layer in range(30) for step in range(25, 50)]
    skipped = tuple(Skipped(name, 30, 30, "FirstBlockCache") for name in ("transformer", "transformer_2"))
    pattern = "StepSchedule(pattern=Radial(density=0.3, decay=None, sink=True, tile=None), dense_steps=0.25)"
    figure = report_figure(Report(tuple(calls), pattern, skipped=skipped))
    assert [axes.get_title() for axes in panels(figure)] == ["transformer", "transformer_2"]
    assert figure.get_size_inches()[0] * figure.dpi == 800 and overlapping(figure) == []


def test_many_reasons_share_the_last_colour() -> None:
    calls = tuple(ran(0, step, f"reason {step}", calls=20 - step) for step in range(9))
    figure = report_figure(Report(calls, "Radial(0.3)"))
    assert legend(figure) == ["dense: reason 0", "dense: reason 1", "dense: reason 2", "dense: other reasons"]
    over = rectangles(panels(figure)[0])
    assert {to_hex(over[0, step].get_facecolor()) for step in range(3, 9)} == {REASONS[-1]}
    assert overlapping(figure) == []


def test_one_call() -> None:
    figure = report_figure(Report((ran(0, 0),), "Radial(0.3)"), "mine")
    assert overlapping(figure) == [] and not legend(figure)
    assert any(text.get_text() == "mine" for text in figure.texts)


def test_nothing_ran() -> None:
    with pytest.raises(ValueError, match="no attention has run, so there is nothing to draw"):
        report_figure(Report((), "Radial(0.3)"))
