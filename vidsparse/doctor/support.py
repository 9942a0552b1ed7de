"""The table of model families in the documentation: what adapters declare, and what the checks found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vidsparse.atomic import replacing
from vidsparse.doctor import Result
from vidsparse.runtime.registry import adapter_named

START, END = "<!-- support -->", "<!-- /support -->"


def title(name: str) -> str:
    """The title of a class of models."""
    return adapter_named(name).family or name


def support_table(found: Mapping[str, tuple[Result, ...]]) -> str:
    """A row of Markdown for each class of transformers, sorted by family."""
    rows = ["| family | class of diffusers | tasks | tokens | checked |", "|---|---|---|---|---|"]
    for name in sorted(found, key=title):
        adapter = adapter_named(name)
        rows.append(f"| {title(name)} | `{name}` | {adapter.tasks} | {adapter.layout} | {_checked(found[name])} |")
    return "\n".join(rows)


def put_support_table(path: Path, found: Mapping[str, tuple[Result, ...]]) -> None:
    """Write the table between the markers of a file, which is replaced as a whole or not at all.

    Raises:
        ValueError: the file has no markers.
    """
    before, after = around(path)
    with replacing(path) as temporary:
        temporary.write_text(f"{before}\n{support_table(found)}\n{after}", encoding="utf-8")


def around(path: Path) -> tuple[str, str]:
    """The text of a file up to and including the first marker, and from the second marker on."""
    before, start, rest = path.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{path} has no place for the table; put {START} and {END} there, each on a line")
    return before + start, end + after


def _checked(results: tuple[Result, ...]) -> str:
    failed, not_applicable = (
        [result.check for result in results if result.outcome == outcome] for outcome in ("failed", "not applicable")
    )
    text = f"all but {', '.join(not_applicable)}" if not_applicable else "all"
    return f"**failed: {', '.join(failed)}**; {text}" if failed else text
