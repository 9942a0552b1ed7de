"""`vidsparse patterns`: the patterns and corrections to choose from."""

from __future__ import annotations

import re
import sys

DENSITY_HELP = "Fraction of tile pairs to keep, for patterns that have one."
SET_HELP = "A field of the pattern, such as window=9,24,24; may be given again."
CORRECTION_HELP = "What is added back for dropped tiles. See `vidsparse patterns`."


def patterns() -> None:
    """List the patterns and corrections: the idea, its source, what can be set."""
    from rich.console import Console
    from rich.table import Column, Table

    from vidsparse.patterns.names import correction_classes, named_settings, pattern_classes

    def columns(*headings: str) -> list[Column]:
        return [Column(heading, overflow="fold") for heading in headings]

    headings = columns("pattern", "idea", "source", "--set")
    table = Table(*headings, title="Patterns: which tiles see which", show_lines=True)
    for pattern, cls in pattern_classes().items():
        shown = (field if value is None else f"{field}={_text(value)}" for field, value in named_settings(cls).items())
        table.add_row(pattern, *_describe(cls), "\n".join(shown))
    console = Console()
    console.print(table)
    headings = columns("correction", "idea", "source")
    table = Table(*headings, title="Corrections: what is added back for dropped tiles", show_lines=True)
    for correction, kind in correction_classes().items():
        table.add_row(correction, *_describe(kind))
    console.print(table)
    console.print(
        "In Python each is a class of vidsparse, such as vidsparse.Radial(density=0.2, sink=False); its docstring "
        "explains the fields. --pattern FILE.json reads a pattern that words cannot give, such as settings for each "
        'head: {"class": "GriddedHeads", "heads": [{"class": "Gridded", "sink": 2}, {"class": "Gridded"}]}',
        highlight=False,
    )


def _describe(cls: type) -> tuple[str, str]:
    """Idea and papers, from the docstrings of the file and of the class."""
    idea = (sys.modules[cls.__module__].__doc__ or "").strip().split("\n")[0]
    papers = re.findall(r"arXiv\s+(\d{4}\.\d{5})", cls.__doc__ or "")
    return idea, "\n".join(f"arXiv {paper}" for paper in dict.fromkeys(papers))


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
