"""Carries a pattern from a video of one size to one of another."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any, TypeVar, cast

from vidsparse.grid import VideoGrid
from vidsparse.patterns.base import Pattern
from vidsparse.patterns.sliding_clip import SlidingClip

Value = TypeVar("Value")


def scaled(pattern: Pattern, known: VideoGrid, wanted: VideoGrid) -> Pattern:
    """A pattern for a grid, with its windows scaled along each axis to another grid.

    The fields that a class names in `scaled_fields` keep the share of each axis that they cover, at least one token.
    Tiles keep their volume, and become the best ones of the other grid where they were the best of the first. All else
    stays, such as densities and sides of None. Patterns inside the pattern are scaled as well; those of
    a `SlidingClip` by the size of its clips, whose length stays.
    """
    return _scaled(pattern, known, wanted)


def _scaled(value: Value, known: VideoGrid, wanted: VideoGrid) -> Value:
    if isinstance(value, tuple):
        return cast("Value", tuple(_scaled(item, known, wanted) for item in value))
    if not isinstance(value, Pattern):
        return value
    if isinstance(value, SlidingClip):  # its clips are as long as before
        known, wanted = (replace(grid, frames=min(grid.frames, value.frames)) for grid in (known, wanted))
    changes: dict[str, Any] = {}
    for field in fields(cast("Any", value)):
        old = getattr(value, field.name)
        if field.name in value.scaled_fields and old is not None:
            axes = zip(old, known.view, wanted.view, strict=True)
            changes[field.name] = tuple(side and max(1, round(side * new / was)) for side, was, new in axes)
        elif field.name == "tile" and old is not None:
            volume = math.prod(old)
            is_power = volume & (volume - 1) == 0
            if is_power and old == known.best_tile(volume):
                changes[field.name] = wanted.best_tile(volume)
        else:
            changes[field.name] = _scaled(old, known, wanted)
    return cast("Value", replace(cast("Any", value), **changes))
