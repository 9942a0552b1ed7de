"""The picture of recalls: each number in its cell, a panel for each transformer, no number where there is none."""

from __future__ import annotations

from pathlib import Path

import torch
from overlaps import overlapping

from vidsparse.pictures.recall_picture import recall_figure


def values(layers: int, steps: int) -> torch.Tensor:
    return torch.linspace(0.1, 1, layers * steps, dtype=torch.float64).view(layers, steps)


def test_cells_have_their_numbers(tmp_path: Path) -> None:
    first, second = values(3, 4), values(2, 4)
    second[0, 1] = torch.nan
    figure = recall_figure({"one": (first, first), "two": (second, second)}, "recall of radial", "a note")
    figure.savefig(tmp_path / "a.png")
    panels = [axes for axes in figure.get_axes() if axes.get_xlabel() == "step"]
    assert [axes.get_title() for axes in panels] == ["one", "two"]
    for axes, expected in zip(panels, (first, second), strict=True):
        written = {tuple(text.get_position()): text.get_text() for text in axes.texts}
        assert written == {
            (step, layer): f"{100 * float(expected[layer, step]):.0f}"
            for layer in range(len(expected))
            for step in range(4)
            if not expected[layer, step].isnan()
        }
    assert not overlapping(figure)


def test_many_cells_have_none() -> None:
    (axes,) = [
        axes
        for axes in recall_figure({"one": (values(40, 50), values(40, 50))}, "recall", "note").get_axes()
        if axes.get_xlabel() == "step"
    ]
    assert not axes.texts
