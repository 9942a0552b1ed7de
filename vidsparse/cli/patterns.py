"""`vidsparse patterns`: the patterns and corrections to choose from, and what one of them can be set to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument

if TYPE_CHECKING:
    from rich.table import Column

DENSITY_HELP = "Fraction of tile pairs to keep, for patterns that have one."
SET_HELP = "A field of the pattern, such as window=9,24,24; may be given again."
CORRECTION_HELP = (
    "What is added back for dropped tiles, with fields after a name: 'proxy-tokens box=1,8,8'. See "
    "`vidsparse patterns`."
)
PATTERN_HELP = "See `vidsparse patterns`; or FILE.json; or your own class, as FILE.py:CLASS or MODULE:CLASS."
NAME_HELP = "Show all of one pattern or correction; also of your own class, as FILE.py:CLASS or MODULE:CLASS."
SHADES = " .:-=+*#@"  # from nothing to all


def patterns(
    name: Annotated[str | None, Argument(help=NAME_HELP, show_default="list all")] = None,
) -> None:
    """List the patterns and corrections: the idea, its source, what can be set."""
    if name is not None:
        _describe(name)
        return
    from rich.console import Console
    from rich.table import Table

    from vidsparse.patterns.describe import idea_of
    from vidsparse.patterns.names import correction_classes, named_settings, pattern_classes

    headings = _columns("pattern", "idea", "source", "--set")
    table = Table(*headings, title="Patterns: which tiles see which", show_lines=True)
    for pattern, cls in pattern_classes().items():
        shown = (field if value is None else f"{field}={_text(value)}" for field, value in named_settings(cls).items())
        table.add_row(pattern, idea_of(cls), _papers(cls), "\n".join(shown))
    console = Console()
    console.print(table)
    headings = _columns("correction", "idea", "source")
    table = Table(*headings, title="Corrections: what is added back for dropped tiles", show_lines=True)
    for correction, kind in correction_classes().items():
        table.add_row(correction, idea_of(kind), _papers(kind))
    console.print(table)
    console.print(
        "`vidsparse patterns NAME` explains one of them. In Python each is a class of vidsparse, such as "
        "vidsparse.Radial(density=0.2, sink=False). --pattern FILE.py:CLASS takes a pattern of your own. --pattern "
        "FILE.json reads a pattern that words cannot give, such as settings for each "
        'head: {"class": "GriddedHeads", "heads": [{"class": "Gridded", "sink": 2}, {"class": "Gridded"}]}',
        highlight=False,
    )


def _describe(name: str) -> None:
    """Print one pattern or correction: its idea, source, fields, an example and its map."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from vidsparse import Pattern
    from vidsparse.patterns.describe import class_of, fields_of, idea_of

    cls, console = class_of(name), Console(highlight=False)
    console.print(Text(f"{name}: {cls.__name__}", "bold"))
    if idea := idea_of(cls):
        console.print(idea, markup=False)
    if papers := _papers(cls):
        console.print(f"Source: {papers}".replace("\n", ", "), markup=False)
    kind = "--set" if issubclass(cls, Pattern) else "after the name"
    table = Table(*_columns(kind, "default", "values", "meaning"), show_lines=True)
    for field in fields_of(cls):
        cells = field.name, field.default or "must be given", field.legal or field.type, field.meaning
        table.add_row(*map(Text, cells))
    if table.row_count:
        console.print(table)
    else:
        console.print("Nothing can be set.")
    console.print(f"Example: {_example(name, cls)}", markup=False, soft_wrap=True)
    for line in _picture(name):
        console.print(line, markup=False, soft_wrap=True)


def _example(name: str, cls: type[Any]) -> str:
    """A command that uses it."""
    from vidsparse import Correction
    from vidsparse.patterns.names import pattern_classes

    prompt = 'vidsparse generate "a red circle moving left on a blue background"'
    if issubclass(cls, Correction):
        return f"{prompt} --correction {name}"
    if name not in pattern_classes() and ":" not in name:
        return f"in Python, help(vidsparse.{cls.__name__})"
    fields = cls.__dataclass_fields__
    missing = cls.named_defaults.items() - {(cls.density_field, cls.named_defaults.get(cls.density_field))}
    given = ["--density 0.2"] if cls.density_field in fields else []
    return " ".join([prompt, "--pattern", name, *given, *(f"--set {field}={_text(value)}" for field, value in missing)])


def _picture(name: str) -> list[str]:
    """The shares that pairs of frames keep on a small video, as characters; nothing where shapes do not tell."""
    from vidsparse import BlockMap, VideoGrid
    from vidsparse.patterns.names import build_pattern
    from vidsparse.pictures.map_picture import frame_shares

    grid = VideoGrid(15, 16, 16)
    try:
        pattern = build_pattern(name)
    except ValueError:  # a correction, or a pattern with fields that have no default
        return []
    if pattern.reads_content:
        return ["It chooses tiles by content: `vidsparse inspect --model shapes --png map.png` draws a real choice."]
    plan = pattern.plan(grid)
    if not isinstance(plan, BlockMap):
        return []
    rows = (frame_shares(plan, grid) * (len(SHADES) - 1)).ceil().int().tolist()
    title = f"Pairs of latent frames on {grid.sides} tokens, density {plan.density:.2f}"
    drawn = ("  " + "".join(SHADES[shade] * 2 for shade in row) for row in rows)
    return [f"{title}; {SHADES[-1]} keeps all, a blank nothing:", *drawn]


def _columns(*headings: str) -> list[Column]:
    from rich.table import Column

    return [Column(heading, overflow="fold") for heading in headings]


def _papers(cls: type) -> str:
    from vidsparse.patterns.describe import papers_of

    return "\n".join(f"arXiv {paper}" for paper in papers_of(cls))


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
