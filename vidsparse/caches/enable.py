"""Enables one of diffusers' caches on a pipeline or transformer, or says why it cannot work there."""

from __future__ import annotations

import re
import weakref
from dataclasses import replace
from typing import Any

import torch
from diffusers.hooks.taylorseer_cache import _TRANSFORMER_BLOCK_IDENTIFIERS

from vidsparse.caches.pyramid import keep_branches_apart
from vidsparse.runtime.blocks import register_blocks
from vidsparse.runtime.caches import cache_name
from vidsparse.runtime.pipeline import transformers_of
from vidsparse.runtime.registry import adapter_for
from vidsparse.runtime.skip import StepSkip

# Those that serve video; diffusers 0.36 lacks some.
CONFIGS = (
    *("FirstBlockCacheConfig", "MagCacheConfig", "SeaCacheConfig", "TaylorSeerCacheConfig"),
    *("PyramidAttentionBroadcastConfig", "FasterCacheConfig"),
)

# Transformers whose latents diffusers reads for SeaCache by itself.
SEA_CACHE_READS = ("WanTransformer3DModel", "Cosmos3OmniTransformer")


def enable_cache(pipe_or_transformer: object, config: object) -> None:
    """Enable a cache of diffusers, before or after `sparsify`; in all transformers of a pipeline or in none.

        from diffusers import FirstBlockCacheConfig

        vidsparse.enable_cache(pipe, FirstBlockCacheConfig(threshold=0.1))
        ...
        pipe.transformer.disable_cache()  # and that of transformer_2, if there is one

    It does what `pipe.transformer.enable_cache(config)` does, and besides:

    * registers the blocks of families that diffusers' caches do not know;
    * gives TaylorSeerCache the names of the video self-attentions, which in many families its own patterns miss;
    * gives PyramidAttentionBroadcast and FasterCache the timestep of the pipeline, unless the config has a callback;
    * lets PyramidAttentionBroadcast keep the calls with and without the prompt apart;
    * refuses what would do nothing or fail.

    Args:
        pipe_or_transformer: a diffusers pipeline or a transformer of a supported class.
        config: a configuration of `diffusers`, such as `MagCacheConfig(mag_ratios=..., num_inference_steps=50)`.

    Raises:
        TypeError: something else than a configuration of a cache for video, or something that has no transformer.
        NotImplementedError: a transformer that no adapter serves, that takes no cache, or not this one.
        ValueError: a cache or a schedule that skips steps is on already; a config that would do nothing.
    """
    kind = type(config).__name__
    if kind not in CONFIGS or not type(config).__module__.startswith("diffusers."):
        given = f"the class {config.__name__}" if isinstance(config, type) else f"a {kind}"
        raise TypeError(f"config must be a configuration of diffusers, one of {', '.join(CONFIGS)}; not {given}")
    targets = transformers_of(pipe_or_transformer)
    prepared = {name: _prepare(transformer, name, config, pipe_or_transformer) for name, transformer in targets.items()}
    enabled: list[Any] = []
    try:
        for name, transformer in targets.items():
            model: Any = transformer
            model.enable_cache(prepared[name])
            enabled.append(model)
            if not _hooked(model):
                raise ValueError(f"{kind} matches nothing in {name}, a {type(model).__name__}: it would do nothing")
            keep_branches_apart(model)
    except BaseException:
        for model in enabled:
            model.disable_cache()
        raise


def _prepare(transformer: torch.nn.Module, name: str, config: Any, owner: object) -> Any:
    """The config for one transformer, after all that can be refused was refused."""
    adapter, cls, kind = adapter_for(transformer), type(transformer).__name__, type(config).__name__
    if not hasattr(transformer, "enable_cache"):
        raise NotImplementedError(f"{name} is a {cls}, which takes no cache in diffusers (it has no CacheMixin)")
    if (cache := cache_name(transformer)) is not None:
        raise ValueError(f"{name} has {cache} on already, and takes one cache; disable that one first")
    if isinstance(vars(transformer).get("forward"), StepSkip):
        raise ValueError(
            f"{name} was sparsified with a schedule that skips steps; call run.restore(), or leave {kind} out"
        )
    if (reason := adapter.refused_caches.get(kind)) is not None:
        raise NotImplementedError(f"{kind} does not work with {cls}: {reason}")
    register_blocks(transformer, adapter.block_states)
    changes: dict[str, Any] = {}
    if kind == "SeaCacheConfig" and config.raw_vision_callback is None and cls not in SEA_CACHE_READS:
        raise ValueError(f"SeaCacheConfig does not know where a {cls} has its latents; give raw_vision_callback=...")
    if kind == "TaylorSeerCacheConfig" and config.cache_identifiers is None and not config.use_lite_mode:
        # Its own patterns match names that end in "attn", which in many families no video self-attention does.
        own = [re.escape(module) for module in adapter.self_attentions(transformer)]
        changes["cache_identifiers"] = [*_TRANSFORMER_BLOCK_IDENTIFIERS, *own]
    if getattr(config, "current_timestep_callback", 0) is None:
        if not hasattr(type(owner), "current_timestep"):
            raise ValueError(
                f"{kind} needs to know the timestep, and {type(owner).__name__} does not tell it; pass a pipeline that "
                "has current_timestep, or give current_timestep_callback=..."
            )
        changes["current_timestep_callback"] = _Timestep(owner)
    return replace(config, **changes)


def _hooked(transformer: torch.nn.Module) -> bool:
    """Whether a hook of diffusers leaves work out in a transformer; FasterCache's outermost alone leaves out none."""
    registries: list[Any] = [getattr(module, "_diffusers_hook", None) for module in transformer.modules()]
    hooks = [hook for registry in registries if registry is not None for hook in registry.hooks.values()]
    modules = [type(hook).__module__ for hook in hooks if type(hook).__name__ != "FasterCacheDenoiserHook"]
    return any(name.endswith(("_cache", "_broadcast")) for name in modules)


class _Timestep:
    """The timestep that a pipeline is at, from 1000. Does not keep the pipeline alive."""

    def __init__(self, pipeline: object):
        self._pipeline = weakref.ref(pipeline)

    def __call__(self) -> float:
        timestep = getattr(self._pipeline(), "_current_timestep", None)
        return -1.0 if timestep is None else float(timestep)
