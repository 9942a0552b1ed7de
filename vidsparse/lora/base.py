"""The model that a LoRA was trained on, where the one at hand is the model that ships."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from vidsparse.lora.files import HEADER
from vidsparse.shapes.shipped import DEFAULT, FOLDER


def check_base(source: str | Path, base: str | None, model: str | None) -> None:
    """Refuse a LoRA of another model for `shapes`: where its layers have the same shapes, it would only spoil videos.

    Args:
        source: of the LoRA.
        base: what its recipe says that it was trained on; None: not known.
        model: what it is asked for, by name or by where its transformer was loaded from; None: not known.

    Raises:
        ValueError: the model is the one that ships, and the base is another one.
    """
    if base is not None and _ships(model) and not _ships(base):
        raise ValueError(
            f"the LoRA {source} was trained on {base}, and {DEFAULT} is another model; load it into {base}, or leave "
            "the LoRA out"
        )


def base_in(header: Mapping[str, str]) -> str | None:
    """The model that the header of a file names, also where the rest of its recipe cannot be read."""
    try:
        recipe = json.loads(header.get(HEADER, "{}"))
    except ValueError:
        return None
    base = recipe.get("base") if isinstance(recipe, dict) else None
    return base if isinstance(base, str) else None


def _ships(place: str | None) -> bool:
    return place is not None and (place == DEFAULT or Path(place).is_relative_to(FOLDER))
