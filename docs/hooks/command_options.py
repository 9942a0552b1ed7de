"""The options of every command, as typer documents them."""

from __future__ import annotations

import re


def reference() -> str:
    """A section for each command in Markdown: usage, what it does, its arguments and options."""
    import typer
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    from vidsparse.cli import app

    program = get_command(app)
    text = get_docs_for_click(obj=program, ctx=typer.Context(program), name="vidsparse")
    _, _, commands = text.partition("## `vidsparse generate`")  # each is named in the table at the head of the page
    return re.sub(r"^## ", "### ", f"## `vidsparse generate`{commands}", flags=re.M)
