"""What ran, as a picture: the density of each layer in each step, dense calls with their reasons, skipped calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from vidsparse.pictures.map_picture import whole_numbers
from vidsparse.pictures.style import DROPPED, EDGE, REASONS, SHADES, colours, legend, new_figure, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SKIPPED = "////"
OTHER = "other reasons"


class Ran(Protocol):
    """What a picture needs of a `LayerCall`."""

    @property
    def transformer(self) -> str: ...
    @property
    def layer(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def reason(self) -> str | None: ...
    @property
    def density(self) -> float: ...
    @property
    def calls(self) -> int: ...


class LeftOut(Protocol):
    """What a picture needs of a `Skipped`."""

    @property
    def transformer(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def by(self) -> str: ...


class Reported(Protocol):
    """What a picture needs of a `Report`."""

    @property
    def pattern(self) -> str: ...
    @property
    def calls(self) -> Sequence[Ran]: ...
    @property
    def skipped(self) -> Sequence[LeftOut]: ...
    @property
    def sparse_calls(self) -> int: ...
    @property
    def dense_calls(self) -> int: ...
    @property
    def density(self) -> float: ...
    @property
    def flops_saved(self) -> float: ...
    @property
    def dense_reasons(self) -> dict[str, int]: ...


def report_figure(report: Reported, title: str | None = None) -> Figure:
    """Draw the calls of a report: a panel for each transformer, steps to the right, layers downwards.

    A place where some calls ran sparse and others dense has a frame in the colour of the reason.

    Raises:
        ValueError: no attention has run.
    """
    if not report.calls:
        raise ValueError("no attention has run, so there is nothing to draw; run the pipeline first")
    names = list(dict.fromkeys(call.transformer for call in report.calls))
    layers = max(call.layer for call in report.calls) + 1
    reasons = _reasons(report)
    height = min(6.0, max(2.4, 0.16 * layers + 1.0)) + 0.9 + 0.2 * len(reasons)
    with new_figure(height, title or report.pattern) as figure:
        body: Any = figure.subfigures(1, 1)
        body.suptitle(_summary(report), fontsize=9.5)
        panels = body.subplots(1, len(names), squeeze=False, sharey=True)[0]
        for axes, name in zip(panels, names, strict=True):
            shown = _draw_transformer(axes, report, name, reasons)
            axes.set(title=name if len(names) > 1 else "", xlabel="step", ylabel="layer" if axes is panels[0] else "")
        body.colorbar(shown, ax=panels.tolist(), label="density of pairs of tiles", pad=0.02)
        entries = [(wrapped(text, 100), {"facecolor": colour}) for text, colour in reasons.items()]
        entries = [(f"dense: {text}", patch) for text, patch in entries]
        entries += [(f"skipped, by {by}", _hatched()) for by in dict.fromkeys(s.by for s in report.skipped)]
        if entries:
            legend(figure, entries, 1)
    return figure


def _summary(report: Reported) -> str:
    calls = report.sparse_calls + report.dense_calls
    return (
        f"{report.sparse_calls} of {calls} attention calls sparse, density {report.density:.1%} of pairs of tiles in "
        f"these; {report.flops_saved:.0%} of the attention FLOPs saved"
    )


def _reasons(report: Reported) -> dict[str, str]:
    """Why calls were dense -> colour, the most frequent first; the last colour is for all that are left."""
    known = [reason for reason, _ in Counter(report.dense_reasons).most_common()]
    if len(known) > len(REASONS):
        known = [*known[: len(REASONS) - 1], OTHER]
    return dict(zip(known, REASONS, strict=False))


def _draw_transformer(axes: Any, report: Reported, name: str, reasons: dict[str, str]) -> Any:
    from matplotlib.patches import Rectangle

    calls = [call for call in report.calls if call.transformer == name]
    left_out = {skipped.step for skipped in report.skipped if skipped.transformer == name}
    layers, steps = max(call.layer for call in calls) + 1, max([call.step for call in calls] + [*left_out]) + 1
    total, sparse = torch.zeros(2, layers, steps, dtype=torch.float64)
    dense: dict[tuple[int, int], str] = {}
    for call in calls:
        place = call.layer, call.step
        if call.reason is None:
            sparse[place] += call.calls
            total[place] += call.calls * call.density
        else:
            dense[place] = reasons.get(call.reason, REASONS[-1])
    density = (total / sparse).numpy()  # NaN where nothing ran sparse
    shown = axes.imshow(density, cmap=colours(*SHADES), vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for layer in range(layers):
        for step in range(steps):
            corner, ran = (step - 0.5, layer - 0.5), bool(sparse[layer, step])
            if (colour := dense.get((layer, step))) is not None and ran:
                axes.add_patch(Rectangle((step - 0.36, layer - 0.36), 0.72, 0.72, fill=False, edgecolor=colour))
            elif colour is not None:
                axes.add_patch(Rectangle(corner, 1, 1, facecolor=colour, linewidth=0))
            elif step in left_out and not ran:
                axes.add_patch(Rectangle(corner, 1, 1, linewidth=0, **_hatched()))
    whole_numbers(axes.xaxis, steps)
    whole_numbers(axes.yaxis, layers)
    return shown


def _hatched() -> dict[str, Any]:
    return {"facecolor": DROPPED, "edgecolor": EDGE, "hatch": SKIPPED}
