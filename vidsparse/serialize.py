"""Patterns and corrections written as plain data, for JSON, and read back."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from vidsparse import corrections, patterns
from vidsparse.corrections import Correction
from vidsparse.patterns import Pattern


def to_data(value: Pattern | Correction) -> dict[str, Any]:
    """A pattern or correction as its class's name and all its fields; tuples become lists.

        {"class": "StepSchedule", "pattern": {"class": "Radial", "density": 0.2, ...}, "dense_steps": 4, ...}

    A class that is not vidsparse's own is named with its module: "my_patterns:Mine".

    Raises:
        TypeError: a class that no other program can import, or a field that plain data cannot hold.
    """
    name = name_of_class(type(value))
    return {"class": name, **{f.name: _plain(getattr(value, f.name), f"{name}.{f.name}") for f in fields(value)}}  # type: ignore[arg-type]


def name_of_class(cls: type[Any]) -> str:
    """The name of a class of patterns or corrections in data.

    Raises:
        TypeError: a class that no other program can import.
    """
    own: str = cls.__name__
    if known_classes().get(own) is cls:
        return own
    name = f"{cls.__module__}:{cls.__qualname__}"
    if cls.__module__ == "__main__" or _loaded(name) is not cls:
        raise TypeError(
            f"{own} is not a pattern or correction of vidsparse, nor a frozen dataclass at the top of a "
            "module, so no file can name it; write None instead, and pass yours to vidsparse.sparsify wherever it is "
            "needed"
        )
    return name


class NotLoaded(ValueError):
    """Data names a class that is not part of vidsparse, and whose module nobody has imported."""


def from_data(data: object) -> Any:
    """The pattern or correction that `to_data` wrote. Fields with a default may be missing.

    Nothing is imported for it, because the data may come from anybody: the classes of `vidsparse.patterns` and
    `vidsparse.corrections` are known, and others if their module has been imported already.

    Raises:
        NotLoaded: a class of a module that has not been imported; a `ValueError`.
        ValueError: an unknown class or field, a missing field, or a value that the class refuses.
    """
    known = known_classes()
    if not isinstance(data, Mapping):
        raise ValueError(f"got {data!r}, expected an object with a class and its fields")
    # Tables of head modes were once written without their class.
    name = data.get("class", "HeadModes" if "table" in data else None)
    if isinstance(name, str) and ":" in name:
        if (foreign := _loaded(name)) is None:
            raise NotLoaded(
                f"{name!r}, which is not part of vidsparse, and its code is not imported because a file names it; if "
                f"you trust it, pass --pattern {name} or --pattern FOLDER/FILE.py:{name.rpartition(':')[2]}, or import "
                "its module before in Python"
            )
        known = {name: foreign}
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


def _loaded(name: str) -> Any:
    """The class "module:Class" of patterns or corrections, if its module has been imported already; else None."""
    module, _, cls = name.rpartition(":")
    holder = sys.modules.get(module)
    found = None if holder is None else vars(holder).get(cls)  # not getattr: a module may import when it is asked
    kinds = isinstance(found, type) and issubclass(found, (Pattern, Correction)) and not inspect.isabstract(found)
    return found if kinds and is_dataclass(found) and module != "__main__" else None


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
