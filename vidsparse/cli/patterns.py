"""`vidsparse patterns`: what there is to choose from; and a pattern from its name and settings."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from vidsparse import Correction, Pattern


@dataclass(frozen=True)
class Entry:
    """A pattern on the command line.

    Attributes:
        cls: its name in vidsparse.
        settings: values for fields that have no default there.
        density: the field that --density sets, if there is one.
        instead: fields that, when they are set, take the place of `settings`.
    """

    cls: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    density: str | None = None
    instead: tuple[str, ...] = ()


PATTERNS = {
    "dense": Entry("Dense"),
    "exact-blocks": Entry("ExactBlocks", density="ratio"),
    "gridded": Entry("Gridded"),
    "head-modes": Entry("HeadModes", {"table": "FILE.json"}),
    "mixture-of-blocks": Entry("MixtureOfBlocks", {"top_k": (2, 10, 9), "scope": "query"}, instead=("threshold",)),
    "power-of-two": Entry("PowerOfTwo"),
    "radial": Entry("Radial", {"density": 0.3}, "density", ("decay",)),
    "radial-raster": Entry("RadialRaster"),
    "reuse": Entry("Reuse", {"pattern": "exact-blocks"}, "density"),
    "sliding-tile": Entry("SlidingTile"),
    "spatial-temporal": Entry("SpatialTemporal", density="density"),
    "top-blocks": Entry("TopBlocks", {"density": 0.3}, "density", ("top_k", "top_p", "threshold")),
    "video-sparse": Entry("VideoSparse", density="density"),
}


CORRECTIONS = {"none": None, "pooled-complement": "PooledComplement", "rectified": "Rectified", "reshaped": "Reshaped"}
DENSITY_HELP = "Fraction of tile pairs to keep, for patterns that have one."
SET_HELP = "A field of the pattern, such as window=9,24,24; may be given again."


def build_pattern(name: str, density: float | None = None, settings: list[str] | None = None) -> Pattern:
    """The pattern of a name, or in a file FILE.json, with settings such as "window=9,24,24" for its fields.

    Raises:
        ValueError: an unknown name or field, a setting that cannot be read, a value that the pattern refuses, or a file
            that is not there or holds no pattern.
    """
    if name.endswith(".json"):
        return change_pattern(_from_file(name), density, settings)
    if name not in PATTERNS:
        raise ValueError(f"pattern {name!r} is unknown; choose one of {', '.join(PATTERNS)}, or a FILE.json")
    import vidsparse

    entry = PATTERNS[name]
    cls: Any = getattr(vidsparse, entry.cls)
    given = _given(name, cls, density, settings)
    chosen = given if set(given) & set(entry.instead) else {**entry.settings, **given}
    try:
        if name == "head-modes":
            table = chosen.pop("table")
            return replace(vidsparse.HeadModes.from_json(table), **chosen)
        if name == "reuse":
            chosen["pattern"] = build_pattern(chosen["pattern"], density)
        pattern: Pattern = cls(**chosen)
    except TypeError as error:
        raise ValueError(f"pattern {name!r} with {given}: {error}") from None
    except FileNotFoundError as error:
        raise ValueError(f"no file {error.filename}: --set table=FILE.json names a table of head modes") from None
    return pattern


def _from_file(path: str) -> Pattern:
    """What `vidsparse.serialize.to_data` gave, as JSON."""
    import vidsparse
    from vidsparse.serialize import from_data

    try:
        pattern = from_data(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"pattern {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"pattern {path}: {error}") from None
    if isinstance(pattern, vidsparse.StepSchedule) or not isinstance(pattern, vidsparse.Pattern):
        raise ValueError(f"pattern {path} holds {type(pattern).__name__}, expected a pattern without its schedule")
    return pattern


def change_pattern(pattern: Pattern, density: float | None = None, settings: list[str] | None = None) -> Pattern:
    """A pattern with another density and other settings; what they exclude must be set to None with them.

    Raises:
        ValueError: see `build_pattern`.
    """
    name, changed = name_of(pattern), cast("Any", pattern)
    given = _given(name, type(pattern), density, settings)
    if name == "reuse" and density is not None:
        given["pattern"] = change_pattern(changed.pattern, density)
    try:
        return cast("Pattern", replace(changed, **given))
    except TypeError as error:
        raise ValueError(f"pattern {name!r} with {given}: {error}") from None


def name_of(pattern: Pattern) -> str:
    """What a pattern, in whatever schedule, is called on the command line; its class where it has no name there."""
    import vidsparse

    bare = pattern.pattern if isinstance(pattern, vidsparse.StepSchedule) else pattern
    cls = type(bare).__name__
    return next((name for name, entry in PATTERNS.items() if entry.cls == cls), cls)


def _given(name: str, cls: Any, density: float | None, settings: list[str] | None) -> dict[str, Any]:
    """The fields of a pattern that are given by --density and --set."""
    given = dict(_read(setting) for setting in settings or [])
    known = [f.name for f in fields(cls)]
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"pattern {name!r} has no {', '.join(unknown)}; --set takes {', '.join(known) or 'nothing'}")
    for f in fields(cls):
        if f.type == "bool" and f.name in given:
            given[f.name] = _truth(f.name, given[f.name])
    if density is not None:
        own = PATTERNS[name].density if name in PATTERNS else None
        if own is None:
            raise ValueError(f"pattern {name!r} takes no --density; --set takes {', '.join(known) or 'nothing'}")
        if name != "reuse":
            given[own] = density
    return given


def _truth(name: str, value: Any) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if (word := str(value).lower()) not in words:
        raise ValueError(f"--set {name}={value} must be true or false")
    return words[word]


def build_correction(name: str) -> Correction | None:
    """The correction of a name, with its defaults.

    Raises:
        ValueError: an unknown name.
    """
    if name not in CORRECTIONS:
        raise ValueError(f"correction {name!r} is unknown; choose one of {', '.join(CORRECTIONS)}")
    import vidsparse

    cls = CORRECTIONS[name]
    correction: Correction | None = None if cls is None else getattr(vidsparse, cls)()
    return correction


def _read(setting: str) -> tuple[str, Any]:
    name, equals, text = setting.partition("=")
    if not (equals and name and text):
        raise ValueError(f"--set {setting!r} must be NAME=VALUE, such as window=9,24,24")
    try:
        return name.strip(), ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return name.strip(), text  # a word


def patterns() -> None:
    """List the patterns: the idea, its source, what can be set."""
    from rich.console import Console
    from rich.table import Column, Table

    settings = Column("--set", overflow="fold")
    table = Table("pattern", "idea", "source", settings, title="Who looks at whom", show_lines=True)
    for name, entry in PATTERNS.items():
        table.add_row(name, *_describe(entry.cls), _settings(entry))
    console = Console()
    console.print(table)
    console.print(
        "In Python each is a class of vidsparse, such as vidsparse.Radial(density=0.2, sink=False); its docstring says "
        "what the fields mean. --pattern FILE.json reads one that words cannot say, such as settings for each head: "
        '{"class": "GriddedHeads", "heads": [{"class": "Gridded", "sink": 2}, {"class": "Gridded"}]}',
        highlight=False,
    )


def _describe(cls: str) -> tuple[str, str]:
    """Idea and papers, from the docstrings of the file and of the class."""
    import vidsparse

    pattern = getattr(vidsparse, cls)
    idea = (sys.modules[pattern.__module__].__doc__ or "").strip().split("\n")[0]
    papers = re.findall(r"arXiv\s+(\d{4}\.\d{5})", pattern.__doc__ or "")
    return idea, "\n".join(f"arXiv {paper}" for paper in dict.fromkeys(papers))


def _settings(entry: Entry) -> str:
    import vidsparse

    shown = []
    for f in fields(getattr(vidsparse, entry.cls)):
        value = entry.settings.get(f.name, None if f.default is MISSING else f.default)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else value
        shown.append(f.name if value is None else f"{f.name}={text}")
    return "\n".join(shown)
