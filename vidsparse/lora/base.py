"""The model that a LoRA was trained on, where both it and the model at hand ship with the package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from vidsparse.generation.models import ships
from vidsparse.lora.files import HEADER


def check_base(source: str | Path, base: str | None, model: str | None) -> None:
    """Refuse a LoRA of another model that ships: its layers have the same shapes, and it would load and spoil videos.

    Args:
        source: of the LoRA.
        base: what its recipe says that it was trained on.
        model: what it is asked for; None: not known.

    Raises:
        ValueError: both ship, and they differ.
    """
    if base != model and ships(base) and ships(model):
        raise ValueError(
            f"the LoRA {source} was trained on {base}, and {model} is another model; take --model {base}, in Python "
            f"load_pipeline(model={base!r}), or leave the LoRA out"
        )


def base_in(header: Mapping[str, str]) -> str | None:
    """The model that the header of a file names, also where the rest of its recipe cannot be read."""
    try:
        recipe = json.loads(header.get(HEADER, "{}"))
    except ValueError:
        return None
    base = recipe.get("base") if isinstance(recipe, dict) else None
    return base if isinstance(base, str) else None
