"""`vidsparse presets`: the recommended settings, and where their numbers come from."""

from __future__ import annotations


def presets() -> None:
    """List the recommended settings for models, and where their numbers come from."""
    from rich.console import Console
    from rich.table import Column, Table

    from vidsparse.presets import PRESETS

    columns = [Column(heading, overflow="fold") for heading in ("preset", "settings", "source", "models")]
    table = Table(*columns, title="Presets: settings for a model", show_lines=True)
    for known in PRESETS:
        source = f"{known.note}\n{known.source}".strip()
        table.add_row(known.name, known.summary.replace("; ", "\n"), source, "\n".join(known.models))
    console = Console()
    console.print(table)
    console.print(
        "generate and compare use the preset of the model where no pattern is asked for; in Python, "
        "vidsparse.sparsify(pipe) does. None of them has run here with the model that it is for, except for shapes.",
        highlight=False,
    )
