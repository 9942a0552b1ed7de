"""What a page of a model family says of it: read from its adapter, its presets and the table of what composes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COMPOSING = Path(__file__).parents[1] / "composing.md"
MAP = 0.3  # the density whose map is measured


def facts(short: str, frames: str, height: str, width: str) -> str:
    """The table of a family in Markdown, for the size of video that its pipeline makes by default.

    Args:
        short: its short name, such as "wan". frames, height, width: numbers as words, in frames and pixels.
    """
    from vidsparse import Radial
    from vidsparse.generation.frames import families, geometry

    size, cls, known = (int(frames), int(height), int(width)), families()[short], geometry(short)
    adapter, grid = known.adapter, known.grid(int(frames), int(height), int(width))
    found = Radial(density=MAP).plan(grid)
    held = found.indices.nbytes + found.counts.nbytes
    output = grid.video_tokens * known.heads * known.head_dim * 2
    layers = _layers(cls)
    command = f"vidsparse inspect --model {short} --frames {frames} --height {height} --width {width}"
    rows = {
        "transformer": f"`{cls}`, {layers} layers of video self-attention with {known.heads} heads of {known.head_dim}",
        "tasks": adapter.tasks,
        "tokens": adapter.layout,
        "default size": f"{size[0]} frames of {size[2]}x{size[1]}: {'x'.join(map(str, grid.view))} = "
        f"{grid.video_tokens:,} tokens",
        "memory": f"the block map of `Radial(density={MAP})` {held / 2**20:.2g} MiB; "
        f"`Reshaped()` {layers * output / 2**30:.1f} GiB for each call of a step, in bfloat16",
        "checked": "a small random copy, on a CPU ([what the checks do](../families.md#what-the-checks-do)); no pretrained "
        "checkpoint has run yet",
        "composes with": _composes(adapter.family),
        "refused caches": "; ".join(f"{cache}: {why}" for cache, why in adapter.refused_caches.items())
        or "see [what works where](../composing.md#what-works-where)",
    }
    table = ["| | |", "|---|---|", *(f"| **{name}** | {text} |" for name, text in rows.items())]
    return "\n".join([*table, "", *_presets(cls), "", "```", command, "```"])


def _layers(name: str) -> int:
    """How many attention modules become sparse, in a model with the settings that the class has by default."""
    from vidsparse.generation.transformers import configured_transformers, without_weights
    from vidsparse.runtime.registry import adapter_of

    cls, settings = next(iter(configured_transformers(name).values()))
    return len(adapter_of(cls).self_attentions(without_weights(cls, settings)))


def _composes(family: str) -> str:
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in COMPOSING.read_text().splitlines()]
    columns = next(row for row in rows if row[:2] == ["family", "caches"])
    cells = next(row for row in rows if row[:1] == [family])
    return ", ".join(f"{column}: {cell}" for column, cell in zip(columns[1:], cells[1:], strict=True))


def _presets(cls: str) -> list[str]:
    from vidsparse import PRESETS

    own: list[Any] = [known for known in PRESETS if known.transformer == cls and known.models]
    rows = [f"| `{p.name}` | {p.summary} | {p.source or 'nobody'} | {p.note} |" for p in own or PRESETS[-1:]]
    return ["| preset | settings | published by | |", "|---|---|---|---|", *rows]
