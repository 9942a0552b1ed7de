"""HTML of what the page says; all text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def paragraphs(lines: Iterable[str]) -> str:
    """A paragraph for each line."""
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def error(reason: Exception) -> str:
    """One line that says what is wrong."""
    said = " ".join(str(reason).split()) or type(reason).__name__
    return f'<p class="error">error: {escape(said)}</p>'


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its header."""
    header, *others = rows
    head = "".join(f"<th>{escape(text)}</th>" for text in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>" for row in others)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
