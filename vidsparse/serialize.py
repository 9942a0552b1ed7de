"""Patterns and corrections written as plain data, for JSON, and read back."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from vidsparse import corrections, patterns
from vidsparse.corrections import Correction
from vidsparse.patterns import Pattern


def to_data(value: Pattern | Correction) -> dict[str, Any]:
    """A pattern or correction as its class's name and all its fields; tuples become lists.

        {"class": "StepSchedule", "pattern": {"class": "Radial", "density": 0.2, ...}, "dense_steps": 4, ...}

    Raises:
        TypeError: a class that is not vidsparse's own, or a field that plain data cannot hold.
    """
    name = type(value).__name__
    known = known_classes()
    if known.get(name) is not type(value):
        raise TypeError(
            f"{name} is not a pattern or correction of vidsparse, so no file can name it; write None instead, and pass "
            "yours to vidsparse.sparsify wherever it is needed"
        )
    return {"class": name, **{f.name: _plain(getattr(value, f.name), f"{name}.{f.name}") for f in fields(known[name])}}


def from_data(data: object) -> Any:
    """The pattern or correction that `to_data` wrote. Fields with a default may be missing.

    Nothing is imported for it: only the classes of `vidsparse.patterns` and `vidsparse.corrections` are known.

    Raises:
        ValueError: an unknown class or field, a missing field, or a value that the class refuses.
    """
    known = known_classes()
    if not isinstance(data, Mapping):
        raise ValueError(f"got {data!r}, expected an object with a class and its fields")
    # Tables of head modes were once written without their class.
    name = data.get("class", "HeadModes" if "table" in data else None)
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f"class {name!r} is neither a pattern nor a correction of vidsparse; known are {', '.join(sorted(known))}"
        )
    cls = known[name]
    given = {name: _value(value) for name, value in data.items() if name != "class"}
    names = [f.name for f in fields(cls)]
    if unknown := sorted(set(given) - set(names)):
        raise ValueError(f"{cls.__name__} has no {', '.join(unknown)}; its fields are {', '.join(names) or 'none'}")
    if missing := sorted(required_fields(cls) - set(given)):
        raise ValueError(f"{cls.__name__} lacks {', '.join(missing)}; its fields are {', '.join(names)}")
    try:
        return cls(**given)
    except TypeError as error:
        raise ValueError(f"{cls.__name__} with {given}: {error}") from None


def known_classes() -> dict[str, Any]:
    """Name -> class of every pattern and correction of vidsparse."""
    found = [value for module in (patterns, corrections) for value in vars(module).values()]
    kinds = [cls for cls in found if isinstance(cls, type) and issubclass(cls, (Pattern, Correction))]
    return {cls.__name__: cls for cls in kinds if not inspect.isabstract(cls)}


def required_fields(cls: Any) -> set[str]:
    """The fields of a pattern or correction that have no default."""
    return {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}


def _plain(value: object, name: str) -> Any:
    if isinstance(value, (Pattern, Correction)):
        return to_data(value)
    if isinstance(value, tuple):
        return [_plain(item, name) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name}={value!r} cannot be written; use numbers, words and tuples of them")


def _value(value: object) -> Any:
    if isinstance(value, list):
        return tuple(_value(item) for item in value)
    return from_data(value) if isinstance(value, Mapping) else value
