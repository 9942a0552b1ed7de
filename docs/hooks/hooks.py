"""Hooks of mkdocs: lay `docs/` over the root of the repository, and add the pages that are generated."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import command_options
import families
import gallery
from mkdocs.structure.files import File, Files

from vidsparse.cli.libraries import silence

silence()  # before a generator imports them
ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(\]\()([^)#\s]+)")
GENERATED = re.compile(r"^<!-- generated: (.+) -->$", re.M)


def example(name: str) -> str:
    """A program of `examples/` as a block of Python."""
    return f"```python\n{(ROOT / 'examples' / name).read_text(encoding='utf-8')}```"


GENERATORS = {
    "commands": command_options.reference,
    "example": example,
    "family": families.facts,
    "picture": gallery.picture,
}
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md")  # of the root, for the menu


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the root, and what pages link to outside of `docs/`."""
    for name in PAGES:
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    seen: set[str] = set()
    while pages := [file for file in files if file.is_documentation_page() and file.src_uri not in seen]:
        for page in pages:
            seen.add(page.src_uri)
            for _, target in LINK.findall(page.content_string):
                place = _place(page.src_uri, target)
                if "://" not in target and place not in files.src_uris and (ROOT / place).is_file():
                    files.append(_outside(place, config))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Put in what is generated, and point links at where the site has what they name."""

    def generated(found: re.Match[str]) -> str:
        kind, *arguments = found[1].split()
        return GENERATORS[kind](*arguments)

    def moved(found: re.Match[str]) -> str:
        opening, target = found.groups()
        place = _place(page.file.src_uri, target)
        if "://" in target or page.file.src_uri not in files.src_uris:
            return found[0]
        for uri in (place, f"{place}.md"):
            if uri in files.src_uris:
                return opening + posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")
        return found[0]

    return LINK.sub(moved, GENERATED.sub(generated, markdown))


def _place(page: str, target: str) -> str:
    """Where a link of a page leads, as a path of the site: that of the repository, without `docs/`."""
    inside = page if (ROOT / page).is_file() else f"docs/{page}"
    place = posixpath.normpath(posixpath.join(posixpath.dirname(inside), target))
    return "index.md" if place == "README.md" else place.removeprefix("docs/")


def _outside(place: str, config: Any) -> File:
    """A file of the repository: a program as a page that shows it, anything else as it is."""
    if place.endswith(".py"):
        code = (ROOT / place).read_text(encoding="utf-8")
        return File.generated(config, f"{place}.md", content=f"# {place}\n\n```python\n{code}```\n")
    return File(place, str(ROOT), config.site_dir, config.use_directory_urls)
