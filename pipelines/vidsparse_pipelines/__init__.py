"""Adapters: one file for each diffusers model family."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from vidsparse_pipelines.base import Adapter

# Class name of the transformer -> module and class of its adapter, imported when it is used.
ADAPTERS: dict[str, tuple[str, str]] = {
    "WanTransformer3DModel": ("vidsparse_pipelines.wan", "WanAdapter"),
}


def adapter_for(transformer: torch.nn.Module) -> Adapter:
    """The adapter of a transformer, by the name of its class or of a class it derives from.

    Raises:
        NotImplementedError: no adapter serves it; lists those that there are.
    """
    for cls in type(transformer).__mro__:
        if cls.__name__ in ADAPTERS:
            module, name = ADAPTERS[cls.__name__]
            adapter: Adapter = getattr(import_module(module), name)()
            return adapter
    raise NotImplementedError(f"no adapter for {type(transformer).__name__}; vidsparse serves {', '.join(ADAPTERS)}")
