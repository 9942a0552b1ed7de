"""The recall of a pattern as a picture: what its tiles hold of dense attention, by layer and step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from vidsparse.pictures.map_picture import whole_numbers
from vidsparse.pictures.style import INK, SHADES, colours, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WRITTEN = 160  # cells of a panel, at most, whose numbers are written into them


def recall_figure(panels: Mapping[str, tuple[torch.Tensor, torch.Tensor]], title: str, note: str) -> Figure:
    """Draw recalls: a panel for each transformer, steps to the right, layers downwards.

    Args:
        panels: name -> recall, and density of token pairs, both float64 [layers, steps] in [0, 1]; NaN is left white.
        title: of the picture. note: below it.
    """
    layers = max(len(values) for values, _ in panels.values())
    with new_figure(min(8.0, max(2.6, 0.28 * layers + 1.2)) + 0.9, title) as figure:
        body: Any = figure.subfigures(1, 1)
        mean = sum(float(density.nanmean()) for _, density in panels.values()) / len(panels)
        body.suptitle(f"{note}; the kept tiles are {mean:.1%} of all pairs of tokens", fontsize=9.5)
        row = body.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, (name, (values, _)) in zip(row, panels.items(), strict=True):
            shown = _draw(axes, values)
            axes.set(title=name if len(panels) > 1 else "", xlabel="step", ylabel="layer" if axes is row[0] else "")
        body.colorbar(shown, ax=row.tolist(), label="share of dense attention's mass", pad=0.02)
    return figure


def _draw(axes: Any, values: torch.Tensor) -> Any:
    shown = axes.imshow(values, cmap=colours(*SHADES), vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    if values.numel() <= WRITTEN:
        for (layer, step), value in zip(
            torch.cartesian_prod(*map(torch.arange, values.shape)).tolist(), values.flatten().tolist(), strict=True
        ):
            if value == value:  # not NaN
                colour = "white" if value > 0.5 else INK
                axes.text(step, layer, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color=colour)
    whole_numbers(axes.xaxis, values.shape[1])
    whole_numbers(axes.yaxis, values.shape[0])
    return shown
