"""What a pattern or correction is, read from its class: the idea, its papers, its fields with their legal values."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import MISSING, fields
from typing import Any, NamedTuple

from vidsparse.patterns import Dense
from vidsparse.patterns.foreign import foreign_class
from vidsparse.patterns.names import nearest, words_of


class FieldInfo(NamedTuple):
    """One field of a pattern or correction.

    Attributes:
        name: of the field. type: its annotation.
        default: in Python's words, that of the command line where Python has none; "" where both have none.
        meaning: from "Attributes:" in the docstring of the class; "" where that says nothing.
        legal: which values the class accepts, as its own check says; "" where it does not say so.
    """

    name: str
    type: str
    default: str
    meaning: str
    legal: str


def class_of(name: str) -> type[Any]:
    """The class of a pattern or correction.

    Args:
        name: as on the command line, such as "top-blocks", or "module:Class", whose module is imported.

    Raises:
        ValueError: an unknown name, with those that are like it; or a class that cannot be imported.
    """
    known = words_of()
    if (found := foreign_class(name) or known.get(name)) is not None:
        return found
    raise ValueError(f"{name!r} is neither a pattern nor a correction; {nearest(name, known)}")


def idea_of(cls: type) -> str:
    """The first line of the module of a class of vidsparse; of another class, its own."""
    own = cls.__module__.startswith("vidsparse.")
    text = (sys.modules[cls.__module__].__doc__ if own else cls.__doc__) or ""
    idea = text.strip().split("\n")[0]
    return "" if idea.startswith(f"{cls.__name__}(") else idea  # what a dataclass without a docstring has


def papers_of(cls: type) -> list[str]:
    """The papers that the docstring of a class names, such as "2506.19852", each once."""
    return list(dict.fromkeys(re.findall(r"arXiv\s+(\d{4}\.\d{5})", cls.__doc__ or "")))


def fields_of(cls: type[Any]) -> list[FieldInfo]:
    """The fields of a pattern or correction."""
    meanings, named = _meanings(cls), getattr(cls, "named_defaults", {})
    found = []
    for field in fields(cls):
        value = named.get(field.name, field.default)
        default = "" if value is MISSING else repr(value)
        kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
        found.append(FieldInfo(field.name, kind, default, meanings.get(field.name, ""), _legal(cls, field.name)))
    return found


def _meanings(cls: type) -> dict[str, str]:
    """Field -> what "Attributes:" says of it."""
    _, _, text = inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:\n")
    section = re.split(r"\n(?=\S)", text)[0]
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?= {4}\S)", "\n" + section)[1:]:
        names, _, meaning = entry.partition(":")
        found |= dict.fromkeys((name.strip() for name in names.split(",")), " ".join(meaning.split()))
    return found


class _Value:
    """No class takes it; in errors it is called VALUE."""

    def __repr__(self) -> str:
        return "VALUE"


def _legal(cls: type[Any], field: str) -> str:
    """What the class says when it gets something else for a field."""
    rivals = getattr(cls, "named_alternatives", ())
    defaults: dict[str, Any] = {} if field in rivals else dict(getattr(cls, "named_defaults", {}))
    inner = {f.name: Dense() for f in fields(cls) if f.type == "Pattern"}
    given = {**defaults, **inner, field: _Value()}
    try:
        cls(**given)
    except (TypeError, ValueError) as error:
        said = re.match(rf"{field}=VALUE (?:must be|is unknown; choose) (.+)", str(error), re.DOTALL)
        return "" if said is None else " ".join(said[1].split())
    return ""
