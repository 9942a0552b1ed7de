"""The loss of a training as a picture."""

from __future__ import annotations

from pathlib import Path

from vidsparse.atomic import replacing
from vidsparse.finetune.record import log

NAME = "loss.png"
SMOOTH = 0.9  # weight of the past in the line through the points


def draw_curve(folder: Path) -> Path | None:
    """Draw the losses of a run's log into `loss.png`.

    Args:
        folder: of the run.

    Returns:
        The picture; None where the log has no losses yet.

    Raises:
        OSError: the picture cannot be written; an earlier one stays.
    """
    lines = log.read(folder)
    trained = [(line["step"], line["loss"]) for line in lines if line.get("loss") is not None]
    held_out = [(line["step"], line["validation_loss"]) for line in lines if line.get("validation_loss") is not None]
    if not trained and not held_out:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    if trained:
        steps, losses = zip(*trained, strict=True)
        axes.plot(steps, losses, "o", markersize=2.5, color="0.7", label="training, each line of the log")
        axes.plot(steps, _smooth(losses), color="C0", label="training, smoothed")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", markersize=4, color="C3", label="held-out videos")
    axes.set(xlabel="step", ylabel="loss", title=folder.resolve().name)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    path = folder / NAME
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _smooth(losses: tuple[float, ...]) -> list[float]:
    """A running average that starts unbiased."""
    smooth, total, weight = list[float](), 0.0, 0.0
    for loss in losses:
        total, weight = SMOOTH * total + (1 - SMOOTH) * loss, SMOOTH * weight + 1 - SMOOTH
        smooth.append(total / weight)
    return smooth
