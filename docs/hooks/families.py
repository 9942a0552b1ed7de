"""What a page of a model family says of it: read from its adapter, its presets and the table of what composes."""

from __future__ import annotations

from pathlib import Path

COMPOSING = Path(__file__).parents[1] / "composing.md"
DENSITY = 0.3  # of the map whose memory is given


def facts(short: str, frames: str, height: str, width: str) -> str:
    """The facts of a family as lists in Markdown, for the size of video that its pipeline makes by default.

    Args:
        short: its short name, such as "wan". frames, height, width: numbers as words, in frames and pixels.
    """
    from vidsparse import Radial
    from vidsparse.generation.frames import families, geometry

    cls, known = families()[short], geometry(short)
    adapter, grid = known.adapter, known.grid(int(frames), int(height), int(width))
    found = Radial(density=DENSITY).plan(grid)
    mebibytes = (found.indices.nbytes + found.counts.nbytes) / 2**20
    layers = _layers(cls)
    gibibytes = layers * grid.video_tokens * known.heads * known.head_dim * 2 / 2**30  # two bytes a number
    checks = "[checks](../families.md#what-the-checks-do)"
    command = f"vidsparse inspect --model {short} --frames {frames} --height {height} --width {width}"
    rows = {
        "Transformer": f"`{cls}`, {layers} layers of video self-attention, {known.heads} heads of {known.head_dim}",
        "Tasks": adapter.tasks,
        "Starts from": _inputs(cls),
        "Tokens": adapter.layout,
        "Default size": f"{frames} frames of {width}x{height}, {'x'.join(map(str, grid.view))} = "
        f"{grid.video_tokens:,} tokens",
        "Memory": f"the map of `Radial(density={DENSITY})` takes {mebibytes:.2g} MiB. With `Reshaped()`, "
        f"{gibibytes:.1f} GiB are kept for each call of a step, in bfloat16",
        "Checked": f"a small random copy, on a CPU ({checks}). No pretrained checkpoint has run yet",
        "Composes with": _composes(adapter.family),
        "Refused caches": "; ".join(
            f"{name.removesuffix('Config')}, because {why}" for name, why in adapter.refused_caches.items()
        ),
    }
    listed = "\n".join(f"* **{name}**: {text}." for name, text in rows.items() if text)
    return f"{listed}\n\n```\n{command}\n```\n\n## Recommended settings\n\n{_presets(cls)}"


def _layers(name: str) -> int:
    """How many attention modules become sparse, in a model with the settings that the class has by default."""
    from vidsparse.generation.transformers import configured_transformers, without_weights
    from vidsparse.runtime.registry import adapter_of

    cls, settings = next(iter(configured_transformers(name).values()))
    return len(adapter_of(cls).self_attentions(without_weights(cls, settings)))


def _inputs(name: str) -> str:
    """What the pipelines of diffusers with a class of transformers start from, as options of the command line."""
    from vidsparse.generation.pipeline_inputs import option_of, pipelines_of, taken

    found = {cls.__name__: taken(cls) for cls in pipelines_of(name) if taken(cls)}
    listed = (f"`{cls}`: {', '.join(f'`{option_of(option)}`' for option in options)}" for cls, options in found.items())
    link = " ([from an image or a video](../command_line.md#from-an-image-or-a-video))"
    return f"{'; '.join(listed)}{link}" if found else ""


def _composes(family: str) -> str:
    """Its row in the table of what composes."""
    rows = [
        [cell.strip() for cell in row.split("|")[1:-1]] for row in COMPOSING.read_text(encoding="utf-8").splitlines()
    ]
    columns = next(row for row in rows if row[:2] == ["family", "caches"])
    cells = next(row for row in rows if row[:1] == [family])
    named = ", ".join(f"{column} {cell}" for column, cell in zip(columns[1:], cells[1:], strict=True))
    return f"{named} ([composing](../composing.md))"


def _presets(cls: str) -> str:
    from vidsparse import PRESETS

    own = [known for known in PRESETS if known.transformer == cls and known.models]
    return "\n".join(f"* `{p.name}`: {p.summary}. {p.note} Source: {p.source or 'none'}." for p in own or PRESETS[-1:])
