"""Pictures of what patterns keep: `python docs/hooks/gallery.py` draws all of them, or those that it is given."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PICTURES = Path(__file__).parents[1] / "pictures"
WAN = (81, 480, 832)  # frames, height and width of the video whose maps depend on its size alone
COLOURS, WIDTH = 24, 900  # of a picture: below 40 KB
TILE = (1, 4, 4)  # for maps of `shapes`, whose frames are only 16x16 tokens


def patterns() -> dict[str, Any]:
    """Name of a class -> the pattern that is drawn."""
    import vidsparse as v

    modes = (("temporal", "full", "temporal"),)
    shown = (
        *(
            v.Radial(density=0.3),
            v.RadialRaster(),
            v.SlidingTile(),
            v.ShiftedWindows(),
            v.InwardWindow(scale=2.0),
            v.Gridded(),
            v.PowerOfTwo(),
        ),
        *(v.HeadModes(table=(modes,), radius=4), v.SpatialTemporal(), v.MixtureOfBlocks.training_free()),
        *(v.TopBlocks(density=0.3, tile=TILE), v.VideoSparse(density=0.3), v.ExactBlocks(tile=(1, 4, 8))),
    )
    return {type(pattern).__name__: pattern for pattern in shown}


def picture(name: str) -> str:
    """The picture of a pattern in Markdown, with its density, its cost and its source."""
    import vidsparse
    from vidsparse.patterns.describe import papers_of

    known = measured(name)
    papers = papers_of(getattr(vidsparse, name))
    rows = {
        "Drawn": f"`{known['pattern']}` on {known['where']}",
        "Density": f"{known['density']:.3f} of tile pairs, {known['token_density']:.3f} of token pairs",
        "Cost": f"{1 / known['bound']:.2f} of the products of dense attention",
        "Source": ", ".join(f"[arXiv {paper}](https://arxiv.org/abs/{paper})" for paper in papers),
    }
    listed = "\n".join(f"* **{row}**: {text}." for row, text in rows.items())
    path = f"pictures/{name}.png"
    return f"[![The map of {name}]({path})]({path})\n\n{listed}"


def measured(name: str) -> dict[str, Any]:
    """What a picture says of itself: pattern, where, density, token_density, bound."""
    from PIL import Image

    with Image.open(PICTURES / f"{name}.png") as image:
        found: dict[str, Any] = json.loads(image.info["vidsparse"])
    return found


def draw(names: list[str]) -> None:
    """Draw the pictures of some patterns; without names, of all. It takes two minutes on a CPU."""

    for name in names or patterns():
        pattern = patterns()[name]
        found, grid, where = _chosen(pattern) if pattern.reads_content else _planned(pattern)
        _write(PICTURES / f"{name}.png", name, pattern, found, grid, where)
        print(name, (PICTURES / f"{name}.png").stat().st_size)


def _planned(pattern: Any) -> tuple[Any, Any, str]:
    """The map of a pattern that needs the size of a video only: of its largest group of heads, sparse ones first."""
    from vidsparse import Context, head_groups
    from vidsparse.generation.frames import geometry

    grid = geometry("wan").grid(*WAN)
    groups = head_groups(pattern.plan(grid, Context(heads=3)), 3)
    sparsest = min(groups, key=lambda group: group.block_map.density)
    return sparsest.block_map, grid, f"{WAN[0]} frames of {WAN[2]}x{WAN[1]} of Wan, {grid.video_tokens:,} tokens"


def _chosen(pattern: Any) -> tuple[Any, Any, str]:
    """The map that a pattern chose by content in a video of `shapes`, in the middle layer and step.

    It is of one head: the first of the largest group.
    """
    from vidsparse.generation.chosen_map import chosen_map
    from vidsparse.shapes.model import SAMPLING, load_pipeline

    pipe, steps = load_pipeline(), 10
    layer, step = len(pipe.transformer.blocks) // 2, steps // 2
    prompt = "a red circle moving left on a blue background"
    arguments = {**SAMPLING, "num_inference_steps": steps, "prompt": prompt}
    found = chosen_map(pipe, pattern, arguments, layer=layer, step=step)
    where = f"a video of `shapes`, {found.grid.video_tokens:,} tokens, layer {layer}, step {step} of {steps}"
    if isinstance(found.plan, tuple):
        return max(found.plan, key=lambda group: len(group.heads)).block_map, found.grid, where
    return found.plan, found.grid, where


def _write(path: Path, name: str, pattern: Any, found: Any, grid: Any, where: str) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    import vidsparse
    from vidsparse.atomic import replacing
    from vidsparse.generation.forecast import bound

    numbers = {"density": found.density, "token_density": found.token_density, "bound": bound(found)}
    with replacing(path) as temporary:
        vidsparse.plot(found, grid=grid, title=name).savefig(temporary, format="png", dpi=WIDTH / 8)
        information = PngInfo()
        information.add_text("vidsparse", json.dumps({"pattern": repr(pattern), "where": where, **numbers}))
        with Image.open(temporary) as image:
            small = image.convert("RGB").quantize(COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        small.save(temporary, format="png", optimize=True, pnginfo=information)


if __name__ == "__main__":
    draw(sys.argv[1:])
