"""The site is complete: its menu, the pages of families, the pictures of patterns, every public name."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from pages import ROOT
from twins import ignores_warnings

import vidsparse
from vidsparse.generation.frames import families, geometry
from vidsparse.patterns.names import pattern_classes

pytestmark = ignores_warnings
DOCS = ROOT / "docs"
MARK = re.compile(r"^<!-- generated: (.+) -->$", re.M)
FAMILIES = sorted((DOCS / "families").glob("*.md"))
SIZE = (5, 6, 8)  # tokens of a twin's video


@pytest.fixture(scope="module")
def hooks() -> Iterator[SimpleNamespace]:
    """The modules that generate what the site has besides its pages."""
    sys.path.insert(0, str(DOCS / "hooks"))
    import command_options
    import families as of_families
    import gallery

    yield SimpleNamespace(commands=command_options, families=of_families, gallery=gallery)
    sys.path.remove(str(DOCS / "hooks"))


def generated(page: Path) -> list[list[str]]:
    """The words of each mark on a page that stands for something generated."""
    return [mark.split() for mark in MARK.findall(page.read_text())]


def test_every_page_is_in_the_menu_and_the_readme_leads_to_it() -> None:
    menu = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    assert [page.name for page in DOCS.rglob("*.md") if f" {page.relative_to(DOCS).as_posix()}\n" not in menu] == []
    assert "](docs/index.md)" in (ROOT / "README.md").read_text()


def test_every_public_name_is_documented_once() -> None:
    shown = [
        name
        for page in (DOCS / "api").glob("*.md")
        for name in re.findall(r"^::: vidsparse\.(\w+)$", page.read_text(), re.M)
    ]
    public = [name for name in vidsparse.__all__ if not name.startswith("__")]
    assert sorted(shown) == sorted(public)
    own = {name: getattr(vidsparse, name) for name in public if callable(getattr(vidsparse, name))}
    # A dataclass without a docstring of its own gets its signature for one.
    assert [name for name, x in own.items() if not x.__doc__ or x.__doc__.startswith(f"{name}(")] == []


# Families


def test_every_family_has_a_page() -> None:
    assert [page.stem for page in FAMILIES] == sorted(families())
    for page in FAMILIES:
        example, (kind, short, *_) = generated(page)
        assert (kind, short) == ("family", page.stem)
        assert example == ["example", f"families/{page.stem}.py"]
        assert page.read_text().startswith(f"# {geometry(short).adapter.family}\n")


@pytest.mark.parametrize("page", FAMILIES, ids=lambda page: page.stem)
def test_the_facts_of_a_family(page: Path, hooks: SimpleNamespace) -> None:
    _, short, *size = generated(page)[1]
    known, text = geometry(short), hooks.families.facts(short, *size)
    assert f"= {known.grid(*map(int, size)).video_tokens:,} tokens" in text and known.adapter.layout in text
    assert "caches" in text and "* `" in text


# Patterns


def test_every_pattern_has_a_picture(hooks: SimpleNamespace) -> None:
    text = (DOCS / "gallery.md").read_text()
    drawn = [name for kind, name in generated(DOCS / "gallery.md") if kind == "picture"]
    assert sorted(drawn) == sorted(hooks.gallery.patterns()) == sorted(p.stem for p in hooks.gallery.PICTURES.glob("*"))
    classes = [*pattern_classes().values(), vidsparse.GriddedHeads, vidsparse.StepSchedule, vidsparse.StepBudget]
    classes += [vidsparse.TemporalBias, vidsparse.PerLayer, vidsparse.PerHead, vidsparse.PerPhase]
    without = [cls.__name__ for cls in classes if cls.__name__ not in drawn and f"`{cls.__name__}`" not in text]
    assert without == ["Dense"]
    assert [p.name for p in hooks.gallery.PICTURES.glob("*") if p.stat().st_size > 40 * 1024] == []


def test_the_pictures_are_those_of_the_patterns(hooks: SimpleNamespace) -> None:
    for name, pattern in hooks.gallery.patterns().items():
        known = hooks.gallery.measured(name)
        assert known["pattern"] == repr(pattern)
        if not pattern.reads_content:
            block_map, _, where = hooks.gallery._planned(pattern)
            assert (known["density"], known["where"]) == (pytest.approx(block_map.density), where)
        assert f"arXiv {re.findall(r'arXiv (.{10})', type(pattern).__doc__ or '')[0]}" in hooks.gallery.picture(name)


# Commands


def test_every_option_is_on_the_page_of_commands(hooks: SimpleNamespace) -> None:
    from typer.main import get_command

    from vidsparse.cli import app

    assert ["commands"] in generated(DOCS / "command_line.md")
    text, program = hooks.commands.reference(), get_command(app)
    for name, command in program.commands.items():  # type: ignore[attr-defined]
        _, found, section = text.partition(f"### `vidsparse {name}`")
        section = section.partition("\n### ")[0]
        assert found and [p.opts[-1] for p in command.params if p.opts[-1] not in section] == []
