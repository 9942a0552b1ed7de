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
    "ConsisIDTransformer3DModel": ("vidsparse_pipelines.cogvideox", "ConsisIDAdapter"),
    "Cosmos3OmniTransformer": ("vidsparse_pipelines.cosmos3", "Cosmos3Adapter"),
    "CosmosTransformer3DModel": ("vidsparse_pipelines.cosmos", "CosmosAdapter"),
    "HunyuanVideo15Transformer3DModel": ("vidsparse_pipelines.hunyuan_video_15", "HunyuanVideo15Adapter"),
    "HunyuanVideoFramepackTransformer3DModel": ("vidsparse_pipelines.framepack", "FramepackAdapter"),
    "HunyuanVideoTransformer3DModel": ("vidsparse_pipelines.hunyuan_video", "HunyuanVideoAdapter"),
    "Kandinsky5Transformer3DModel": ("vidsparse_pipelines.kandinsky5", "Kandinsky5Adapter"),
    "LTX2VideoTransformer3DModel": ("vidsparse_pipelines.ltx2", "LTX2Adapter"),
    "LTXVideoTransformer3DModel": ("vidsparse_pipelines.ltx", "LTXAdapter"),
    "MiniMaxH3Transformer3DModel": ("vidsparse_pipelines.minimax_h3", "MiniMaxH3Adapter"),
    "MochiTransformer3DModel": ("vidsparse_pipelines.mochi", "MochiAdapter"),
    "SkyReelsV2Transformer3DModel": ("vidsparse_pipelines.skyreels_v2", "SkyReelsV2Adapter"),
    "WanTransformer3DModel": ("vidsparse_pipelines.wan", "WanAdapter"),
    "WanVACETransformer3DModel": ("vidsparse_pipelines.wan_vace", "WanVACEAdapter"),
}


_REGISTERED: dict[str, type[Adapter]] = {}


def register_adapter(transformer: str, adapter: type[Adapter]) -> None:
    """Let `sparsify` serve one more class of transformers, or serve a class in another way than ours.

    Args:
        transformer: name of the class, such as "WanTransformer3DModel"; classes derived from it are served too.
        adapter: a subclass of `vidsparse_pipelines.base.Adapter` that takes no arguments.

    Raises:
        TypeError: something else than a class name, or than an adapter class without abstract methods.
    """
    from vidsparse_pipelines.base import Adapter

    if not isinstance(transformer, str):
        raise TypeError(f"transformer={transformer!r} must be the name of a class, such as 'WanTransformer3DModel'")
    if not (isinstance(adapter, type) and issubclass(adapter, Adapter)):
        raise TypeError(f"adapter={adapter!r} must be a subclass of vidsparse_pipelines.base.Adapter, not an instance")
    if missing := sorted(adapter.__abstractmethods__):
        raise TypeError(f"{adapter.__name__} must define {', '.join(missing)}; see vidsparse_pipelines.base.Adapter")
    _REGISTERED[transformer] = adapter


def adapter_for(transformer: torch.nn.Module) -> Adapter:
    """The adapter of a transformer, by the name of its class or of a class it derives from.

    Raises:
        NotImplementedError: no adapter serves it; lists those that there are.
    """
    return adapter_of(type(transformer))


def adapter_of(transformer_class: type) -> Adapter:
    """The adapter of a class of transformers, as `adapter_for`."""
    for cls in transformer_class.__mro__:
        if cls.__name__ in served():
            return adapter_named(cls.__name__)
    raise NotImplementedError(
        f"no adapter for {transformer_class.__name__}; vidsparse serves {', '.join(served())}; "
        "vidsparse.register_adapter adds others"
    )


def adapter_named(transformer: str) -> Adapter:
    """The adapter of the class of transformers with this name, one of `served()`."""
    if transformer in _REGISTERED:
        return _REGISTERED[transformer]()
    module, name = ADAPTERS[transformer]
    adapter: Adapter = getattr(import_module(module), name)()
    return adapter


def served() -> list[str]:
    """The names of all transformer classes that have an adapter."""
    return sorted({*ADAPTERS, *_REGISTERED})
