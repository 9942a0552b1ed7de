"""`vidsparse patterns`: what there is to choose from; and a pattern from its name and options."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidsparse import Pattern

# Name on the command line -> name in vidsparse, and the options that it takes there.
PATTERNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "dense": ("Dense", ()),
    "radial": ("Radial", ("density", "decay")),
    "radial-raster": ("RadialRaster", ("decay",)),
    "sliding-tile": ("SlidingTile", ("window",)),
}
RADIAL_DENSITY = 0.3


def build_pattern(
    name: str, *, density: float | None = None, decay: float | None = None, window: str | None = None
) -> Pattern:
    """The pattern of a name.

    Raises:
        ValueError: an unknown name, an option that the pattern does not take, or a value that it refuses.
    """
    if name not in PATTERNS:
        raise ValueError(f"pattern {name!r} is unknown; choose one of {', '.join(PATTERNS)}")
    import vidsparse

    cls, takes = PATTERNS[name]
    sides = None if window is None else _sides(window)
    options: dict[str, Any] = {"density": density, "decay": decay, "window": sides}
    given = {option: value for option, value in options.items() if value is not None}
    refused = [f"--{option}" for option in given if option not in takes]
    if refused:
        allowed = " and ".join(f"--{option}" for option in takes) or "none of these"
        raise ValueError(f"pattern {name!r} takes no {' and no '.join(refused)}; it takes {allowed}")
    if name == "radial" and not given:
        given["density"] = RADIAL_DENSITY
    pattern: Pattern = getattr(vidsparse, cls)(**given)
    return pattern


def _sides(text: str) -> tuple[int, ...]:
    try:
        sides = tuple(int(side) for side in text.split(","))
    except ValueError:
        sides = ()
    if len(sides) != 3:
        raise ValueError(f"--window {text!r} must be frames,height,width in tokens, such as 9,24,24")
    return sides


def patterns() -> None:
    """List the patterns: the idea, its source, the options."""
    from rich.console import Console
    from rich.table import Table

    table = Table("pattern", "idea", "source", "options", title="Who looks at whom", show_lines=True)
    for name, (cls, takes) in PATTERNS.items():
        table.add_row(name, *_describe(cls), _options(name, takes))
    console = Console()
    console.print(table)
    console.print(
        "In Python each is a class of vidsparse with more fields, such as vidsparse.Radial(density=0.2, sink=False).",
        highlight=False,
    )


def _describe(cls: str) -> tuple[str, str]:
    """Idea and papers, from the docstrings of the file and of the class."""
    import vidsparse

    pattern = getattr(vidsparse, cls)
    idea = (sys.modules[pattern.__module__].__doc__ or "").strip().split("\n")[0]
    papers = re.findall(r"arXiv\s+(\d{4}\.\d{5})", pattern.__doc__ or "")
    return idea, "\n".join(f"arXiv {paper}" for paper in papers)


def _options(name: str, takes: tuple[str, ...]) -> str:
    import vidsparse

    defaults = dict(vars(getattr(vidsparse, PATTERNS[name][0]))) | (
        {"density": RADIAL_DENSITY} if name == "radial" else {}
    )
    shown = []
    for option in takes:
        default = defaults.get(option)
        text = ",".join(map(str, default)) if isinstance(default, tuple) else default
        shown.append(f"--{option} {text}" if default is not None else f"or --{option}")
    return "\n".join(shown)
