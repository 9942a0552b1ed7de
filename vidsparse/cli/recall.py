"""`vidsparse inspect --recall`: what the kept tiles hold of dense attention, in a real video."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vidsparse.cli.inspect import SAMPLED_STEPS, short_video
from vidsparse.cli.messages import live_console, sampling_bar

if TYPE_CHECKING:
    from vidsparse import Pattern


def draw_recall(png: Path, model: str, pattern: Pattern, prompt: str | None, size: tuple[int, int, int]) -> None:
    """Sample a dense video, measure the recall of a pattern, say it, and draw it.

    Args:
        size: of the video: frames, height and width. Others: see `inspect`.

    Raises: see `short_video` and `vidsparse.generation.recall.recall`.
    """
    from vidsparse.atomic import replacing
    from vidsparse.generation.recall import QUERIES, recall
    from vidsparse.patterns.names import name_of
    from vidsparse.pictures.recall_picture import recall_figure

    pipe, arguments = short_video(model, prompt, size)
    with sampling_bar() as bar:
        found = recall(pipe, pattern, arguments, on_step=lambda done, steps: bar("measuring recall", done, steps))
    for one in found:
        layer, step = one.lowest
        name = "" if len(found) == 1 else f" of {one.transformer}"
        pairs, least = float(one.densities.nanmean()), float(one.values[layer, step])
        print(
            f"recall{name}: {one.mean:.1%} of dense attention's mass is in the kept tiles, {pairs:.1%} of all pairs of "
            f"tokens; least in layer {layer}, step {step}: {least:.1%}"
        )
    title = f"recall of {name_of(pattern)} in a dense video of {model}"
    note = f"{SAMPLED_STEPS} steps; of each head {QUERIES} queries against all keys, in %"
    with live_console().status("drawing the recall"), replacing(png) as temporary:
        panels = {one.transformer: (one.values, one.densities) for one in found}
        recall_figure(panels, title, note).savefig(temporary, format="png", dpi=150)
    print(f"wrote {png}")
