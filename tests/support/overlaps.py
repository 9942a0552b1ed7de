"""Whether texts of a figure overlap, or leave it."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text


def overlapping(figure: Any) -> list[str]:
    """The pairs of texts that overlap, and the texts that leave the figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    outside = {text for axes in figure.get_axes() for axis in (axes.xaxis, axes.yaxis) for text in _outside(axis)}
    shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    shown = [text for text in shown if text not in outside]
    boxes = [(text.get_text(), text.get_window_extent(renderer).padded(-1)) for text in shown]
    boxes = [(text, box) for text, box in boxes if box.width > 0 and box.height > 0]
    width, height = figure.get_size_inches() * figure.dpi
    out = [text for text, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height]
    return out + [f"{a!r} and {b!r}" for (a, first), (b, second) in combinations(boxes, 2) if first.overlaps(second)]


def _outside(axis: Any) -> list[Text]:
    """The labels of ticks that are not in view, and so not drawn."""
    low, high = sorted(axis.get_view_interval())
    ticks = zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=False)  # a shared axis has no labels
    return [label for place, label in ticks if not low <= place <= high]
