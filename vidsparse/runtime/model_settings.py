"""The settings of a transformer, by which a file that was made for one model refuses another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch


def settings_of(transformer: torch.nn.Module) -> dict[str, Any]:
    """The settings of a transformer as plain data, without those that say where it was loaded from."""
    config: Any = transformer.config
    settings = {key: value for key, value in dict(config).items() if not key.startswith("_")}
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return plain


def is_model(transformer: torch.nn.Module, name: str, settings: Mapping[str, Any]) -> bool:
    """Whether a transformer has this class and these settings.

    A setting that one version of diffusers has and another lacks tells nothing; experts may differ in their patches.
    """
    found = settings_of(transformer)
    shared = (found.keys() & settings.keys()) - {"patch_size"}
    return type(transformer).__name__ == name and all(found[key] == settings[key] for key in shared)
