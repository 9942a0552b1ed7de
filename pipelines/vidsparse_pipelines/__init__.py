"""Adapters: one file for each diffusers model family."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from vidsparse_pipelines.base import Adapter

# Class name of the transformer -> module and class of its adapter, imported when it is used.
ADAPTERS: dict[str, tuple[str, str]] = {
    "AllegroTransformer3DModel": ("vidsparse_pipelines.allegro", "AllegroAdapter"),
    "CogVideoXTransformer3DModel": ("vidsparse_pipelines.cogvideox", "CogVideoXAdapter"),
    "ConsisIDTransformer3DModel": ("vidsparse_pipelines.cogvideox", "CogVideoXAdapter"),
    "CosmosTransformer3DModel": ("vidsparse_pipelines.cosmos", "CosmosAdapter"),
    "HunyuanVideo15Transformer3DModel": ("vidsparse_pipelines.hunyuan_video_15", "HunyuanVideo15Adapter"),
    "HunyuanVideoFramepackTransformer3DModel": ("vidsparse_pipelines.framepack", "FramepackAdapter"),
    "HunyuanVideoTransformer3DModel": ("vidsparse_pipelines.hunyuan_video", "HunyuanVideoAdapter"),
    "Kandinsky5Transformer3DModel": ("vidsparse_pipelines.kandinsky5", "Kandinsky5Adapter"),
    "LTX2VideoTransformer3DModel": ("vidsparse_pipelines.ltx2", "LTX2Adapter"),
    "LTXVideoTransformer3DModel": ("vidsparse_pipelines.ltx", "LTXAdapter"),
    "MochiTransformer3DModel": ("vidsparse_pipelines.mochi", "MochiAdapter"),
    "SkyReelsV2Transformer3DModel": ("vidsparse_pipelines.skyreels_v2", "SkyReelsV2Adapter"),
    "WanTransformer3DModel": ("vidsparse_pipelines.wan", "WanAdapter"),
    "WanVACETransformer3DModel": ("vidsparse_pipelines.wan_vace", "WanVACEAdapter"),
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
