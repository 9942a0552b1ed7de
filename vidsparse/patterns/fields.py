"""Checks for the fields of patterns and corrections, for their `__post_init__`.

Each check takes the object and the names of fields, and raises `ValueError` with the value and what is expected. With
`optional` it accepts None as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from vidsparse.grid import check_tile, is_whole
from vidsparse.patterns.base import Pattern, patterns_in


def is_number(value: object, least: float = -math.inf, most: float = math.inf) -> bool:
    """Whether a value is a finite int or float, and not a bool, from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and least <= value <= most


def check_whole(owner: object, *names: str, least: int = 0, optional: bool = False) -> None:
    """Accept ints of at least `least`."""
    for name, value in _values(owner, names, optional):
        if not is_whole(value, least):
            raise ValueError(f"{name}={value!r} must be a whole number of at least {least}{_or_none(optional)}")


def check_number(owner: object, *names: str, least: float = 0.0, above: bool = False, optional: bool = False) -> None:
    """Accept finite numbers of at least `least`, or with `above` only those that are greater."""
    for name, value in _values(owner, names, optional):
        if not is_number(value, least) or (above and value == least):
            bound = "greater than" if above else "of at least"
            raise ValueError(f"{name}={value!r} must be a finite number {bound} {least:g}{_or_none(optional)}")


def check_share(owner: object, *names: str, optional: bool = False) -> None:
    """Accept numbers in (0, 1]: a fraction of what there is."""
    for name, value in _values(owner, names, optional):
        if not is_share(value):
            raise ValueError(f"{name}={value!r} must be in (0, 1]: the fraction to keep{_or_none(optional)}")


def is_share(value: object) -> bool:
    """Whether a value is a number in (0, 1]."""
    return is_number(value, 0, 1) and value != 0


def check_flag(owner: object, *names: str) -> None:
    """Accept True and False, and not 1, 0 or words."""
    for name, value in _values(owner, names, False):
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r} must be True or False")


def check_choice(owner: object, name: str, choices: Iterable[str]) -> None:
    """Accept one of several words."""
    value, choices = getattr(owner, name), tuple(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(choices)}")


def check_sides(owner: object, *names: str, optional: bool = False) -> None:
    """Accept (frames, height, width): the sides of a tile, a window or a stride."""
    for name, value in _values(owner, names, optional):
        check_tile(value, name)


def check_wholes(
    owner: object,
    name: str,
    meaning: str,
    *,
    length: int | None = None,
    least: int | None = None,
    optional: bool = False,
) -> None:
    """Accept tuples of ints, of that length and each of at least `least`; `meaning` says what the tuple holds."""
    for _, value in _values(owner, (name,), optional):
        if not (isinstance(value, tuple) and length in (None, len(value)) and all(is_whole(n, least) for n in value)):
            bound = "" if least is None else f", each a whole number of at least {least}"
            raise ValueError(f"{name}={value!r} must be a tuple of {meaning}{bound}{_or_none(optional)}")


def check_patterns(owner: object, name: str) -> None:
    """Accept tuples of patterns, at least one, of which none is or holds one that is about the whole transformer."""
    patterns = getattr(owner, name)
    if not isinstance(patterns, tuple) or not patterns or not all(isinstance(p, Pattern) for p in patterns):
        raise TypeError(f"{name}={patterns!r} must be a tuple of patterns, such as (Dense(), Radial(density=0.2))")
    _refuse_whole(owner, name, patterns)


def check_pattern(owner: object, name: str) -> None:
    """Accept a pattern that neither is nor holds one that is about the whole transformer."""
    pattern = getattr(owner, name)
    if not isinstance(pattern, Pattern):
        raise TypeError(f"{name}={pattern!r} must be a pattern, such as Radial(density=0.2)")
    _refuse_whole(owner, name, (pattern,))


def _refuse_whole(owner: object, name: str, patterns: Iterable[Pattern]) -> None:
    inside = (inner for pattern in patterns for inner in patterns_in(pattern))
    if steps := [type(p).__name__ for p in inside if p.may_skip or p.two_passes]:
        raise ValueError(
            f"{name} holds a {steps[0]}, which is about the whole transformer; put {type(owner).__name__} into it"
        )


def check_indices(owner: object, name: str, into: str) -> None:
    """Accept tuples of indices into another field, a tuple, at least one."""
    value, most = getattr(owner, name), len(getattr(owner, into)) - 1
    if not isinstance(value, tuple) or not value or not all(is_whole(n, 0) and n <= most for n in value):
        raise ValueError(f"{name}={value!r} must be a tuple of indices into {into}, each from 0 to {most}")


def check_range(owner: object, name: str, *, whole: bool) -> None:
    """Accept None, or a pair (low, high) of numbers, or of whole numbers, with 0 <= low <= high."""
    known, kind = (is_whole, "whole numbers") if whole else (is_number, "numbers")
    for _, value in _values(owner, (name,), True):
        pair = isinstance(value, tuple) and len(value) == 2 and all(known(n, 0) for n in value)
        if not pair or value[0] > value[1]:
            raise ValueError(f"{name}={value!r} must be (low, high), two {kind} with 0 <= low <= high, or None")


def _values(owner: object, names: tuple[str, ...], optional: bool) -> Iterator[tuple[str, Any]]:
    """The fields to check: their names and values."""
    values = ((name, getattr(owner, name)) for name in names)
    return ((name, value) for name, value in values if not (optional and value is None))


def _or_none(optional: bool) -> str:
    return ", or None" if optional else ""
