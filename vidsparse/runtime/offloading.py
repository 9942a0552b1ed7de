"""Where a model computes whose weights rest elsewhere, by the hooks of accelerate and diffusers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch


def computing_device(transformer: torch.nn.Module) -> torch.device:
    """The device that computes: accelerate leaves weights on the meta device between calls, diffusers on a CPU."""
    for module in transformer.modules():
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    for hook in _group_hooks(transformer):
        return torch.device(hook.config.onload_device)
    return next(transformer.parameters()).device


def is_group_offloaded(transformer: torch.nn.Module) -> bool:
    """Whether diffusers brings the weights of groups of its modules when they run."""
    return any(True for _ in _group_hooks(transformer))


def _group_hooks(transformer: torch.nn.Module) -> Iterator[Any]:
    for module in transformer.modules():
        registry: Any = getattr(module, "_diffusers_hook", None)
        if registry is not None and (hook := registry.hooks.get("group_offloading")) is not None:
            yield hook
