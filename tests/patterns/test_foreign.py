"""Patterns of the user's own by module or file: what is imported, what is said where it cannot be."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vidsparse import Reuse, StepSchedule, VideoGrid
from vidsparse.patterns.foreign import foreign_class
from vidsparse.patterns.names import build_pattern, change_pattern, name_of
from vidsparse.serialize import from_data, to_data

OWN = """
from dataclasses import dataclass
import vidsparse

@dataclass(frozen=True)
class Mine(vidsparse.Pattern):
    window: int
    density: float = 0.5
    inner: vidsparse.Pattern = vidsparse.Dense()
    fast: bool = False

    named_defaults = {"window": 3}

    def __post_init__(self):
        if self.window < 1:
            raise ValueError(f"window={self.window} must be at least 1")

    def plan(self, grid, context=None):
        return vidsparse.Radial(self.density).plan(grid)

@dataclass(frozen=True)
class Needy(Mine):
    named_defaults = {}

class Undecorated(Mine):
    pass

@dataclass
class Thawed(vidsparse.Pattern):
    def plan(self, grid, context=None): ...

@dataclass(frozen=True)
class Unfinished(vidsparse.Pattern):
    pass

def function(): ...
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with `own_patterns.py`; what is imported from it is forgotten."""
    (tmp_path / "own_patterns.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def test_a_file_and_a_module_are_the_same_class(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    classes = {foreign_class(f"{place}:Mine") for place in ("own_patterns.py", folder / "own_patterns.py")}
    assert classes | {foreign_class("own_patterns:Mine")} == classes and len(classes) == 1
    assert foreign_class("radial") is None and foreign_class(None) is None
    (folder / "package").mkdir()
    (folder / "package/inside.py").write_text(OWN)
    found = foreign_class("package.inside:Mine")
    assert found is not None and found.__module__ == "package.inside"


def test_words_set_its_fields() -> None:
    name = "own_patterns.py:Mine"
    pattern = build_pattern(name, 0.2, ["fast=yes", "inner=radial"])
    mine = type(pattern)
    assert pattern == mine(window=3, density=0.2, inner=build_pattern("radial", 0.2), fast=True)
    assert build_pattern(name) == mine(3)
    assert change_pattern(pattern, None, ["window=7", "fast=no"]) == mine(7, 0.2, build_pattern("radial", 0.2))
    assert name_of(StepSchedule(pattern, 1)) == "Mine"
    assert pattern.plan(VideoGrid(9, 16, 16)).density == pytest.approx(0.2, abs=0.02)  # type: ignore[union-attr]
    assert build_pattern("reuse", None, [f"pattern={name}"]) == Reuse(mine(3))


def test_its_data_names_the_module_and_is_read_once_that_is_imported(folder: Path) -> None:
    pattern = StepSchedule(build_pattern("own_patterns.py:Mine", 0.2), dense_steps=1)
    data = to_data(pattern)
    assert data["pattern"]["class"] == "own_patterns:Mine"
    assert from_data(data) == pattern
    del sys.modules["own_patterns"]
    with pytest.raises(ValueError, match=r"pass --pattern own_patterns:Mine or --pattern FOLDER/FILE\.py:Mine"):
        from_data(data)
    (folder / "pattern.json").write_text('{"class": "own_patterns:Mine", "window": 2}')
    with pytest.raises(ValueError, match=r"pattern pattern\.json: 'own_patterns:Mine', which is not part"):
        build_pattern("pattern.json")
    assert "own_patterns" not in sys.modules


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("absent.py:Mine", "there is no file .*absent.py"),
        ("no_such_module:Mine", "there is no module no_such_module; name a file by its path, such as folder/no_such"),
        ("no_such_package.inside:Mine", "there is no module no_such_package.inside"),
        ("./own_patterns:Mine", "'./own_patterns' is neither the name of a module nor a file that ends in .py"),
        (":Mine", "'' is neither"),
        ("own_patterns.py:Other", "own_patterns has no Other; patterns of this module: Mine, Needy, Undecorated, Thaw"),
        ("own_patterns.py:", "own_patterns has no ;"),
        ("own_patterns.py:function", "function is not derived from vidsparse.Pattern"),
        ("own_patterns.py:OWN", "has no OWN"),
        ("os:path", "path is not derived from vidsparse.Pattern; patterns of this module: none"),
        ("own_patterns.py:Undecorated", r"must be a frozen dataclass; write @dataclass\(frozen=True\)"),
        ("own_patterns.py:Thawed", "must be a frozen dataclass"),
        ("own_patterns.py:Unfinished", "must define plan; see vidsparse.Pattern"),
        ("own_patterns.py:Needy", "needs window: give --set window=VALUE"),
    ],
)
def test_what_is_refused(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"pattern '{name}'.*{says}"):
        build_pattern(name)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name' .line 1 of"),
        ("x = 1\n1 / 0", "ZeroDivisionError: division by zero .line 2 of .*broken.py"),
        ("def f(:", "SyntaxError: invalid syntax .*broken.py, line 1"),
        ("import sys; sys.exit('bye')", "SystemExit: bye"),
    ],
)
@pytest.mark.parametrize("place", ["broken.py", "broken"])
def test_the_users_error_is_shown(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: str, says: str, place: str
) -> None:
    monkeypatch.syspath_prepend(folder)
    (folder / "broken.py").write_text(code)
    with pytest.raises(ValueError, match=f"pattern '{place}:Mine': importing .*broken.* failed: {says}"):
        build_pattern(f"{place}:Mine")
    assert "broken" not in sys.modules
    (folder / "broken.py").write_text(OWN)  # mended: it can be imported
    assert foreign_class("broken.py:Mine") is not None


def test_a_file_does_not_take_the_name_of_another_module(folder: Path) -> None:
    (folder / "calendar.py").write_text(OWN)
    (folder / "json.py").write_text(OWN)
    (folder / "deep").mkdir()
    (folder / "deep/own_patterns.py").write_text(OWN)
    foreign_class("own_patterns.py:Mine")
    for name in ("calendar.py", "json.py", "deep/own_patterns.py"):
        with pytest.raises(ValueError, match=r"has the name of another module, .*; rename it"):
            foreign_class(f"{name}:Mine")
    assert "tmp" not in str(sys.modules["json"].__file__)
    (folder / "my-patterns.py").write_text(OWN)
    with pytest.raises(
        ValueError, match=r"my-patterns\.py cannot be imported; name it with letters, digits and unders"
    ):
        foreign_class("my-patterns.py:Mine")


def test_a_value_that_the_class_refuses() -> None:
    with pytest.raises(ValueError, match="window=0 must be at least 1"):
        build_pattern("own_patterns.py:Mine", None, ["window=0"])
    with pytest.raises(ValueError, match="has no windows; its fields are window, density, inner, fast"):
        build_pattern("own_patterns.py:Mine", None, ["windows=0"])
    with pytest.raises(ValueError, match="fast=maybe must be true or false"):
        build_pattern("own_patterns.py:Mine", None, ["fast=maybe"])
