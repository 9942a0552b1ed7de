"""The fenced blocks and the inline code of pages in Markdown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"(?P<why><!-- not run: [^>]+-->\n)?^ *```(?P<language>\w*)\n(?P<code>.*?)^ *```$", re.M | re.S)


class Block(NamedTuple):
    language: str
    code: str
    why: str | None  # it is not run


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page."""
    return [Block(found["language"], found["code"], found["why"]) for found in FENCE.finditer(text)]


def to_run(page: Path) -> list[str]:
    """The Python of a page, but for blocks that a comment before them excuses."""
    return [block.code for block in blocks(page.read_text()) if block.language == "python" and block.why is None]


def inline(text: str) -> list[str]:
    """The inline code of a page."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
