"""What notebooks show of a pattern, a map and a report: a table and a picture, in HTML without scripts or links."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING

from vidsparse.grid import VideoGrid
from vidsparse.pictures.map_picture import Map, map_figure
from vidsparse.pictures.report_picture import Reported, report_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLE = VideoGrid(9, 32, 32)  # of the picture of a pattern
BY_CONTENT = (
    "This pattern chooses tiles by content: its map needs the queries and keys of a video. run.record(layers=..., "
    "steps=...) keeps what it chooses, and vidsparse.plot draws it."
)


def map_html(block_map: Map) -> str:
    """A block map: its numbers, and the picture of its first sample and head if it is on the CPU and has one grid."""
    densities = f"{block_map.density:.3f} of pairs of tiles, {block_map.token_density:.3f} of pairs of tokens"
    if not (block_map.square and isinstance(block_map.query_grid, VideoGrid)):
        grids = {"queries": block_map.query_grid, "keys": block_map.key_grid}
        rows = {name: f"{grid.sides}, {grid.tokens:,} tokens" for name, grid in grids.items()}
        why = "are some voxels of a grid" if block_map.square else "have two grids"
        return html("BlockMap", rows | {"density": densities}, f"no picture: queries and keys {why}")
    rows = {"grid": f"{block_map.grid.sides}, {block_map.grid.tokens:,} tokens", "density": densities}
    name = "the map of sample 0, head 0"
    return html("BlockMap", rows, name, lambda: map_figure(block_map, block_map.grid, name))


def pattern_html(title: str, fields: Mapping[str, object], block_map: Map | None, note: str = BY_CONTENT) -> str:
    """A pattern: its fields, and the picture of its map on `EXAMPLE`; a note where there is none."""
    rows = {name: repr(value) for name, value in fields.items()}
    if block_map is None:
        return html(title, rows, note)
    where = f"on a video of {EXAMPLE.sides} tokens"
    return html(title, rows, where, lambda: map_figure(block_map, EXAMPLE, f"{title} {where}"))


def report_html(report: Reported) -> str:
    """A report: what it says, line by line, and its picture."""
    first, *lines = str(report).splitlines()
    rows: dict[str, str] = {}
    for line in lines:
        name, _, text = line.partition(": ")
        rows[name] = f"{rows[name]}\n{text}" if name in rows else text
    return html(first, rows, "density by step and layer", (lambda: report_figure(report)) if report.calls else None)


def html(title: str, rows: Mapping[str, str], caption: str, draw: Callable[[], Figure] | None = None) -> str:
    """A heading, a table of names and texts, and a picture with a caption; without matplotlib no picture."""
    cells = "".join(
        f'<tr><th style="text-align:left;vertical-align:top">{escape(name)}</th>'
        f'<td style="text-align:left;white-space:pre-wrap">{escape(text)}</td></tr>'
        for name, text in rows.items()
    )
    head = f"<div><strong>{escape(title)}</strong><table>{cells}</table>"
    if draw is None:
        return f"{head}<p>{escape(caption)}</p></div>"
    try:
        figure = draw()
    except ImportError:
        return f"{head}<p>{escape(caption)}: the picture needs matplotlib</p></div>"
    written = io.BytesIO()
    figure.savefig(written, format="png")
    data = base64.b64encode(written.getvalue()).decode("ascii")
    picture = f'<img alt="{escape(caption)}" style="max-width:100%" src="data:image/png;base64,{data}">'
    return f"{head}{picture}</div>"
