"""Colours that colour-blind readers can tell apart, and the style of all pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DROPPED, KEPT, QUERY, INK, EDGE = "#eef1f5", "#1f5f8b", "#f28e2b", "#2b2f36", "#9aa3ad"
SHADES = (DROPPED, "#8fb8d4", KEPT, "#0b2c45")  # from no density to all
REASONS = ("#f28e2b", "#b5179e", "#009e73", "#8c564b")  # why calls were dense; the last is for all others
WIDTH = 8.0  # inches: 800 pixels at `DPI`
DPI = 100
STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.0,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": EDGE,
    "xtick.color": INK,
    "ytick.color": INK,
    "hatch.color": EDGE,
    "hatch.linewidth": 0.6,
}


@contextmanager
def new_figure(height: float, title: str) -> Iterator[Figure]:
    """An empty figure with a title, of a height in inches; what is drawn within the context has the style."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
        figure.set_layout_engine("constrained", rect=(0.01, 0.005, 0.975, 0.985), w_pad=0.05, h_pad=0.05)
        title = wrapped(title, 80)
        figure.suptitle(title, fontsize=9.5 if "\n" in title else 12, fontweight="bold")
        yield figure


def wrapped(text: str, columns: int) -> str:
    """Text in lines of at most so many columns; lines that are there stay."""
    import textwrap

    return "\n".join(textwrap.fill(line, columns, break_long_words=False) for line in text.splitlines())


def colours(*shades: str) -> Any:
    """A colour map that goes from the first shade to the last."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("vidsparse", list(shades))


def legend(figure: Figure, entries: Sequence[tuple[str, dict[str, Any]]], columns: int) -> None:
    """A legend below everything: the text and the patch of each entry."""
    from matplotlib.patches import Patch

    patches = [Patch(**({"edgecolor": "#c5ccd3"} | patch), label=text) for text, patch in entries]
    figure.legend(handles=patches, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)
