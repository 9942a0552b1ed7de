"""Guesses the family of a LoRA from the names in its file."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable

import torch

from vidsparse.generation.frames import families
from vidsparse.generation.transformers import defaults
from vidsparse.lora.fitted import names_in
from vidsparse.lora.names import Names
from vidsparse.lora.originals import ORIGINALS, Original
from vidsparse.runtime.registry import adapter_of
from vidsparse_pipelines import ADAPTERS

LEAST = 0.5  # of the names in a file, which a family must know


@functools.lru_cache(maxsize=len(ADAPTERS))
def names_of(family: str) -> Names:
    """The names of a family's layers, from a small model of it without weights.

    Args:
        family: class of its transformer, one of `vidsparse_pipelines.ADAPTERS`.

    Raises:
        ValueError: another name.
    """
    if family not in ADAPTERS:
        raise ValueError(f"{family!r} is not a known family; choose one of {', '.join(sorted(families()))}")
    cls = getattr(importlib.import_module("diffusers"), family)
    settings = defaults(cls)
    with torch.device("meta"):
        model = cls.from_config({**settings, **adapter_of(cls).tiny(settings)})
    known, original = names_in(model), ORIGINALS.get(family, Original())
    return Names(family, [*known.layers, *original.layers, *original.optional])


def guess_families(layers: Iterable[str]) -> list[str]:
    """The families that know most of the names in a file; none if all know few.

    Those with known original names come first, then the plainest.

    Args:
        layers: names in the file.
    """
    listed = list(layers)
    known = {family: sum(names_of(family).find(layer) is not None for layer in listed) for family in ADAPTERS}
    most = max(known.values(), default=0)
    found = [family for family, count in known.items() if count == most] if most > LEAST * len(listed) else []
    return sorted(found, key=lambda family: (family not in ORIGINALS, len(names_of(family).layers), len(family)))


def original_names(family: str, layers: Iterable[str]) -> tuple[str, ...]:
    """The original names of a family for the layers in a file; its own where the family has no such layer."""
    names = names_of(family)
    found = ((layer, names.find(layer)) for layer in layers)
    return tuple(layer if known is None else names.original_name(known.layers[0]) for layer, known in found)
