"""A study as a picture: what each setting costs, and how near it stays to the dense video."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidsparse.atomic import replacing

if TYPE_CHECKING:
    from vidsparse.generation.study import Row

# Okabe and Ito's colours without the yellow, which is faint on white; with markers, colour alone says nothing.
COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"
MARKERS = "o", "s", "^", "D", "v", "P", "X", "<", ">"
INK, GREY = "#2b2f36", "#8a929b"


def draw_pareto(path: Path, rows: Mapping[str, Row], rivals: Collection[str]) -> bool:
    """Write a PNG with a point for each setting: seconds of denoising against PSNR to the dense video.

    Dense videos in fewer steps are a grey line. Another seed, and the seconds of the dense video, are lines too.

    Args:
        path: of the picture.
        rows: see `vidsparse.generation.study.summarise`.
        rivals: the settings that are dense in fewer steps.

    Returns:
        Whether there was a point to draw.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from vidsparse.generation.study import ANOTHER_SEED, DENSE

    points = {s: row for s, row in rows.items() if row.seconds is not None and "psnr" in row.measures}
    if not points:
        return False
    with rc_context({"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GREY}):
        figure = Figure(figsize=(9, 5), dpi=130, facecolor="white", layout="constrained")
        axes: Any = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#eef1f5")
        axes.set_axisbelow(True)
        fewer = sorted((row for s, row in points.items() if s in rivals), key=lambda row: _seconds(row))
        if fewer:
            spans = [_half(row) for row in fewer]
            at = [_seconds(row) for row in fewer], [row.measures["psnr"].mean for row in fewer]
            axes.errorbar(*at, yerr=spans, color=GREY, marker=".", capsize=3, label="dense, fewer steps")
        ours = [setting for setting in points if setting not in rivals]
        for number, setting in enumerate(ours):
            row = points[setting]
            seconds: Any = row.seconds
            axes.errorbar(
                seconds.median,
                row.measures["psnr"].mean,
                yerr=_half(row),
                xerr=[[seconds.median - seconds.low], [seconds.high - seconds.median]],
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                markersize=8,
                elinewidth=1,
                capsize=3,
                linestyle="none",
                label=setting,
            )
        if (dense := rows.get(DENSE)) is not None and dense.seconds is not None:
            axes.axvline(dense.seconds.median, color=INK, linewidth=1, linestyle="--", label="dense, its seconds")
        if (apart := rows.get(ANOTHER_SEED)) is not None and "psnr" in apart.measures:
            axes.axhline(apart.measures["psnr"].mean, color=GREY, linewidth=1, linestyle=":", label="another seed")
        axes.set_xlim(left=0)
        axes.set(xlabel="seconds denoising a video (median, least to greatest)")
        axes.set(ylabel="PSNR to the dense video, dB (mean, 95 % interval)")
        figure.legend(loc="outside right upper", frameon=False)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png")
    return True


def _seconds(row: Row) -> float:
    return row.seconds.median if row.seconds is not None else 0.0


def _half(row: Row) -> float:
    return row.measures["psnr"].half or 0.0
