"""Patterns and corrections by name: `radial` with `density=0.2`, a file of JSON, or a class of the user's own."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, cast

from vidsparse.corrections import Correction
from vidsparse.patterns import Pattern, TemporalBias
from vidsparse.patterns.foreign import foreign_class
from vidsparse.patterns.schedule import bare
from vidsparse.serialize import from_data, known_classes, required_fields

Built = TypeVar("Built")
NONE = "none"  # the name of no correction


def pattern_classes() -> dict[str, type[Pattern]]:
    """Name -> class of every pattern that a name can build, sorted by name.

    The class `TopBlocks` of `vidsparse.patterns` is called `top-blocks`. Classes with a field that has neither a
    default nor an entry in `named_defaults` are left out: a schedule needs a pattern.
    """
    return {name: cls for name, cls in _named(Pattern).items() if required_fields(cls) <= set(cls.named_defaults)}


def correction_classes() -> dict[str, type[Correction]]:
    """Name -> class of every correction, sorted by name."""
    return _named(Correction)


def words_of() -> dict[str, Any]:
    """The name in words -> class of every pattern and correction, also of those that no name can build."""
    return _named(Pattern) | _named(Correction)


def build_pattern(name: str, density: float | None = None, settings: list[str] | None = None) -> Pattern:
    """Build a pattern from its name, or read it from a file.

        build_pattern("radial", density=0.2, settings=["sink=false", "tile=1,8,8"])

    Args:
        name: a key of `pattern_classes()`; or the path of a JSON file, ending in ".json", that holds what
            `vidsparse.serialize.to_data` returned for a pattern; or "module:Class" or "path/file.py:Class", see
            `vidsparse.patterns.foreign.foreign_class`, whose module is imported.
        density: fraction of tile pairs to keep, for patterns with such a field; by default the pattern's own.
        settings: values of other fields, each "NAME=VALUE".

    Raises:
        ValueError: an unknown name or field, a setting that cannot be read, a value that the pattern refuses, a file
            that is missing or holds no pattern, or a class that cannot be imported.
    """
    if name.endswith(".json"):
        return change_pattern(_read_file(name), density, settings)
    cls = foreign_class(name) or _known(name)
    what = f"pattern {name!r}"
    given = _given(what, cls, density, settings)
    chosen = given if set(given) & set(cls.named_alternatives) else {**cls.named_defaults, **given}
    for field in set(_pattern_fields(cls)) & set(chosen):
        chosen[field] = _inner(field, chosen[field], density)
    if missing := sorted(required_fields(cls) - set(chosen)):
        raise ValueError(f"{what} needs {', '.join(missing)}: give --set {missing[0]}=VALUE")
    return _checked(what, given, lambda: cls.named(**chosen))


def _known(name: str) -> type[Pattern]:
    if name not in (known := pattern_classes()):
        raise ValueError(f"pattern {name!r} is unknown; {nearest(name, known)} (or FILE.json, or FILE.py:CLASS)")
    return known[name]


def nearest(name: str, known: Iterable[str]) -> str:
    """What to give instead of an unknown name: the names that are like it, else all."""
    near = get_close_matches(name.lower(), known, n=3, cutoff=0.7)
    return f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(known)}"


def change_pattern(pattern: Pattern, density: float | None = None, settings: list[str] | None = None) -> Pattern:
    """Change the density and other fields of a pattern; the fields that exclude a new one become None.

    Args, Raises: see `build_pattern`.
    """
    what = f"pattern {name_of(pattern)!r}"
    given = _given(what, type(pattern), density, settings)
    for field in _pattern_fields(type(pattern)):
        if field in given:
            given[field] = _inner(field, given[field], density)
        elif density is not None:
            given[field] = change_pattern(getattr(pattern, field), density)
    changes = {**_excluded(type(pattern), given), **given}
    return _checked(what, given, lambda: cast("Pattern", replace(cast("Any", pattern), **changes)))


def build_correction(name: str) -> Correction | None:
    """Build a correction from its name, with its defaults or with other values of its fields.

        build_correction("proxy-tokens box=1,8,8 learned=true")

    Args:
        name: a key of `correction_classes()`, or "none"; after it, separated by spaces, values of fields as for
            `build_pattern`.

    Raises:
        ValueError: an unknown name or field, a setting that cannot be read, or a value that the correction refuses.
    """
    known = correction_classes()
    word, *settings = name.split() or [name]
    if word not in (NONE, *known) or (word == NONE and settings):
        raise ValueError(f"correction {name!r} is unknown; choose one of {', '.join((NONE, *known))}")
    if word == NONE:
        return None
    what, cls = f"correction {word!r}", known[word]
    given = _given(what, cls, None, settings)
    return _checked(what, given, lambda: cls(**given))


def name_of(pattern: Pattern) -> str:
    """The name of a pattern, in whatever schedule; the name of its class where no name builds it."""
    own = type(bare(pattern))
    return next((name for name, cls in pattern_classes().items() if cls is own), own.__name__)


def takes_density(pattern: Pattern | type[Pattern]) -> bool:
    """Whether a density can be given to a pattern or one that it holds; of a class, to one that it holds by default."""
    cls = pattern if isinstance(pattern, type) else type(pattern)
    if cls.density_field in {f.name for f in fields(cast("Any", cls))}:
        return True
    names = _pattern_fields(cls)
    if isinstance(pattern, Pattern):
        return any(takes_density(getattr(pattern, name)) for name in names)
    held = (pattern_classes().get(cls.named_defaults.get(name, "")) for name in names)
    return any(inner is None or takes_density(inner) for inner in held)


def named_settings(cls: type[Pattern]) -> dict[str, Any]:
    """Field -> value of a pattern that was built from its name alone."""
    defaults = {f.name: None if f.default is MISSING else f.default for f in fields(cast("Any", cls))}
    return {**defaults, **cls.named_defaults}


def _named(kind: type[Any]) -> dict[str, Any]:
    """The name in words of every class of a kind, sorted: `TopBlocks` is `top-blocks`."""
    words = {re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower(): cls for name, cls in known_classes().items()}
    return {name: cls for name, cls in sorted(words.items()) if issubclass(cls, kind)}


def _pattern_fields(cls: Any) -> list[str]:
    """Fields that hold a pattern, which words give by its name."""
    return [f.name for f in fields(cls) if _is_of(f, Pattern)]


def _is_of(field: Any, kind: type) -> bool:
    """Whether a field is annotated with a class, as such or by its name."""
    return field.type is kind or str(field.type).rpartition(".")[2] == kind.__name__


def _excluded(cls: type[Pattern], given: dict[str, Any]) -> dict[str, None]:
    """None for each field that one of the given fields excludes."""
    defaults = {f.name: f.default for f in fields(cast("Any", cls))}
    alternatives = cls.named_alternatives
    rivals = {*alternatives, *(name for name in cls.named_defaults if defaults[name] is None)} if alternatives else ()
    return dict.fromkeys(rivals) if any(given.get(name) is not None for name in rivals) else {}


def _inner(field: str, name: Any, density: float | None) -> Pattern:
    if not isinstance(name, str):
        raise ValueError(f"{field}={name!r} must be the name of a pattern, such as {field}=top-blocks, or a FILE.json")
    return build_pattern(name, density)


def _read_file(path: str) -> Pattern:
    try:
        pattern = from_data(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"pattern {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"pattern {path}: {error}") from None
    if not isinstance(pattern, Pattern) or isinstance(pattern, TemporalBias) or bare(pattern) != pattern:
        raise ValueError(
            f"pattern {path} holds {type(pattern).__name__}, expected a pattern without its schedule and its bias"
        )
    return pattern


def _given(what: str, cls: Any, density: float | None, settings: list[str] | None) -> dict[str, Any]:
    """The fields that a density and settings give values for."""
    given = dict(_parse(setting) for setting in settings or [])
    known = {f.name: f for f in fields(cls)}
    takes = f"its fields are {', '.join(known)}" if known else "it has no fields"
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{what} has no {', '.join(unknown)}; {takes}")
    given = {field: _truth(field, value) if _is_of(known[field], bool) else value for field, value in given.items()}
    if density is not None and cls.density_field in known:
        given[cls.density_field] = density
    elif density is not None and not (takes_density(cls) or set(_pattern_fields(cls)) & set(given)):
        raise ValueError(f"{what} has no density; {takes}")
    return given


def _checked(what: str, given: dict[str, Any], build: Callable[[], Built]) -> Built:
    try:
        return build()
    except TypeError as error:
        raise ValueError(f"{what} with {given}: {error}") from None


def _truth(name: str, value: Any) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if (word := str(value).lower()) not in words:
        raise ValueError(f"{name}={value} must be true or false")
    return words[word]


def _parse(setting: str) -> tuple[str, Any]:
    name, equals, text = setting.partition("=")
    if not (equals and name and text):
        raise ValueError(f"setting {setting!r} must be NAME=VALUE, such as window=9,24,24")
    try:
        return name.strip(), ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return name.strip(), text  # a word
