"""The preset of a pipeline."""

from __future__ import annotations

from typing import Any

from vidsparse.presets import Preset, choose
from vidsparse.runtime.pipeline import TRANSFORMERS, transformers_of


def preset_for(pipe_or_transformer: object) -> Preset:
    """The settings that `sparsify` uses where it is given no pattern.

    Args:
        pipe_or_transformer: a diffusers pipeline or a transformer; of any class, since one preset serves all others.

    Raises:
        TypeError: something that has no transformer.
    """
    transformers = transformers_of(pipe_or_transformer)
    first: Any = next(iter(transformers.values()))
    return choose(type(first), first.config, TRANSFORMERS[1] in transformers)
