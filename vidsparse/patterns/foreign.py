"""Patterns that are not part of vidsparse: a class of a module or of a Python file, which the user names."""

from __future__ import annotations

import re
import sys
import traceback
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from vidsparse.patterns.base import Pattern

MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def foreign_class(name: str | None) -> type[Pattern] | None:
    """Import the class of a pattern that a user names, which runs the code of its module.

    A file is imported under its own name without ".py", so that "examples/custom_pattern.py:Mine" and
    "custom_pattern:Mine" are the same class.

    Args:
        name: "module:Class" or "path/file.py:Class".

    Returns:
        The class; None for a name without a colon, which means no class of a module.

    Raises:
        ValueError: no such module, file or class; a module whose import fails; something else than a pattern.
    """
    if name is None or ":" not in name:
        return None
    place, _, cls = name.rpartition(":")
    try:
        module = _file(Path(place)) if place.endswith(".py") else _module(place)
    except ValueError as error:
        raise ValueError(f"pattern {name!r}: {error}") from error
    found = getattr(module, cls, None)
    if not (isinstance(found, type) and issubclass(found, Pattern)):
        what = f"{module.__name__} has no {cls}" if found is None else f"{cls} is not derived from vidsparse.Pattern"
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        others = [key for key in own if isinstance(value := getattr(module, key), type) and issubclass(value, Pattern)]
        raise ValueError(f"pattern {name!r}: {what}; patterns of this module: {', '.join(others) or 'none'}")
    if missing := sorted(found.__abstractmethods__):
        raise ValueError(f"pattern {name!r} must define {', '.join(missing)}; see vidsparse.Pattern")
    # An undecorated class inherits the mark of a dataclass, but not its own fields.
    if not ("__dataclass_fields__" in vars(found) and found.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise ValueError(f"pattern {name!r} must be a frozen dataclass; write @dataclass(frozen=True) before its class")
    return found


def _module(name: str) -> ModuleType:
    if not MODULE.fullmatch(name):
        raise ValueError(f"{name!r} is neither the name of a module nor a file that ends in .py")
    try:
        known = find_spec(name) is not None
    except ModuleNotFoundError:  # of a package that it would be in
        known = False
    except (Exception, SystemExit) as error:  # importing that package runs any code
        raise _failed(name, error) from error
    if not known:
        raise ValueError(f"there is no module {name}; name a file by its path, such as folder/{name}.py:Class")
    try:
        return import_module(name)
    except (Exception, SystemExit) as error:  # whatever the user's code raises is shown to the user
        raise _failed(name, error) from error


def _file(path: Path) -> ModuleType:
    name, path = path.stem, path.resolve()
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if not MODULE.fullmatch(name) or "." in name:
        raise ValueError(f"{path.name} cannot be imported; name it with letters, digits and underscores")
    loaded = sys.modules.get(name)
    if loaded is not None and _origin(loaded) == path:
        return loaded
    other = _origin(loaded or find_spec(name))
    if other not in (None, path):
        raise ValueError(f"{path.name} has the name of another module, {other}; rename it")
    spec: Any = spec_from_file_location(name, path)
    module = sys.modules[name] = module_from_spec(spec)  # first, because dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's code raises is shown to the user
        del sys.modules[name]
        raise _failed(str(path), error) from error
    return module


def _origin(found: Any) -> Path | None:
    """The file of a module, or of the spec of one."""
    origin = getattr(found, "__file__", None) or getattr(found, "origin", None)
    return None if origin is None else Path(origin).resolve()


def _failed(what: str, error: BaseException) -> ValueError:
    """The user's error, with the last line of code that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename != __file__ and "importlib" not in frame.filename]
    place = f" (line {own[-1].lineno} of {own[-1].filename})" if own else ""
    return ValueError(f"importing {what} failed: {type(error).__name__}: {error}{place}")
