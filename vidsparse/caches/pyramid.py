"""PyramidAttentionBroadcast with a state for each branch of guidance."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.hooks.hooks import HookRegistry, StateManager
from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastHook, PyramidAttentionBroadcastState


class BranchedBroadcast(PyramidAttentionBroadcastHook):
    """Counts and keeps for each name of `cache_context`; calls without a name are one branch.

    diffusers 0.42.1 has one state for each module. Where guidance makes two calls in a step, as in Wan, the call
    without the prompt then gets the attention of the call with it.
    """

    def initialize_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        kept: Any = PyramidAttentionBroadcastState
        self.unnamed, self.manager = kept(), StateManager(kept)
        return module

    @property
    def state(self) -> Any:  # type: ignore[override]  # diffusers sets it only in what is overridden above
        return self.unnamed if self.manager._context is None else self.manager.get_state()

    def reset_state(self, module: torch.nn.Module) -> Any:  # what diffusers annotates is not what it returns
        self.unnamed.reset()
        self.manager.reset()
        return module


def keep_branches_apart(transformer: torch.nn.Module) -> None:
    """Replace each hook of PyramidAttentionBroadcast in a transformer by a `BranchedBroadcast`."""
    for module in transformer.modules():
        registry: Any = getattr(module, "_diffusers_hook", None)
        hooks = {} if registry is None else dict(registry.hooks)
        for name, hook in hooks.items():
            if type(hook) is PyramidAttentionBroadcastHook:
                registry.remove_hook(name, recurse=False)
                settings = hook.timestep_skip_range, hook.block_skip_range, hook.current_timestep_callback
                registry.register_hook(BranchedBroadcast(*settings), name)
    HookRegistry.check_if_exists_or_initialize(transformer).invalidate_child_registries_cache()
