"""The cache that is on in a transformer: what it is called, and which layers it measures."""

from __future__ import annotations

from typing import Any

import torch

from vidsparse.runtime.adapter import Adapter

MEASURED = "first block cache measures this layer"


def cache_name(transformer: torch.nn.Module) -> str | None:
    """The name of the cache that is on, such as "FirstBlockCache" or "cache-dit"; None where there is none."""
    config = getattr(transformer, "_cache_config", None)
    if config is not None:
        return type(config).__name__.removesuffix("Config")
    return "cache-dit" if getattr(transformer, "_is_cached", False) else None


def measured_layers(transformer: torch.nn.Module, adapter: Adapter) -> frozenset[int]:
    """The indices of the attention layers in the block whose residual decides what FirstBlockCache skips."""
    if cache_name(transformer) != "FirstBlockCache":
        return frozenset()
    names = adapter.self_attentions(transformer)
    return frozenset(index for index, name in enumerate(names) if _leads(transformer, name))


def _leads(transformer: torch.nn.Module, attention: str) -> bool:
    """Whether a block around an attention module leads."""
    parts = attention.split(".")
    around = [transformer.get_submodule(".".join(parts[:depth])) for depth in range(1, len(parts))]
    registries: list[Any] = [getattr(block, "_diffusers_hook", None) for block in around]
    return any("fbc_leader_block_hook" in registry.hooks for registry in registries if registry is not None)
