"""Writes a page as one file: style, scripts, data and videos are inside, and it asks for nothing from elsewhere."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from vidsparse.atomic import replacing
from vidsparse.webpage.page import Page

ROOM = Path(__file__).parent
SCRIPTS = "players.js", "charts.js", "page.js"
# In JSON inside of HTML: what could end the element, or begin a comment.
ESCAPED = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}


def write_page(path: Path, page: Page) -> None:
    """Write a page.

    Raises:
        OSError: the file cannot be written, or a video cannot be read.
    """
    html = render(page)
    with replacing(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def render(page: Page) -> str:
    """The HTML of a page. Raises: see `write_page`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    rooms = FileSystemLoader(ROOM)
    jinja = Environment(loader=rooms, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.filters |= {"island": _island, "video": _video}
    style = _trusted((ROOM / "page.css").read_text(encoding="utf-8"))
    scripts = [_trusted((ROOM / name).read_text(encoding="utf-8")) for name in SCRIPTS]
    return jinja.get_template("page.html").render(page=page, style=style, scripts=scripts)


def _island(data: Any) -> Any:
    """Data as JSON for an element `script`."""
    return _trusted(json.dumps(data, allow_nan=False).translate(ESCAPED))


def _video(path: Path) -> Any:
    """An MP4 as an address that holds it."""
    return _trusted("data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode("ascii"))


def _trusted(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)
