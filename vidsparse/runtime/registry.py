"""Which adapter serves a transformer: those of `vidsparse_pipelines`, and those that users register."""

from __future__ import annotations

from importlib import import_module

import torch

import vidsparse_pipelines
from vidsparse.runtime.adapter import Adapter

_REGISTERED: dict[str, type[Adapter]] = {}


def register_adapter(transformer: str, adapter: type[Adapter]) -> None:
    """Let `sparsify` serve one more class of transformers, or serve a class in another way than ours.

    Args:
        transformer: name of the class, such as "WanTransformer3DModel"; classes derived from it are served too.
        adapter: a subclass of `vidsparse.runtime.adapter.Adapter` that takes no arguments.

    Raises:
        TypeError: something else than a class name, or than an adapter class without abstract methods.
    """
    if not isinstance(transformer, str):
        raise TypeError(f"transformer={transformer!r} must be the name of a class, such as 'WanTransformer3DModel'")
    if not (isinstance(adapter, type) and issubclass(adapter, Adapter)):
        raise TypeError(f"adapter={adapter!r} must be a subclass of vidsparse.runtime.adapter.Adapter, not an instance")
    if missing := sorted(adapter.__abstractmethods__):
        raise TypeError(f"{adapter.__name__} must define {', '.join(missing)}; see vidsparse.runtime.adapter.Adapter")
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
    module, name = vidsparse_pipelines.ADAPTERS[transformer]
    adapter: Adapter = getattr(import_module(module), name)()
    return adapter


def served() -> list[str]:
    """The names of all transformer classes that have an adapter."""
    return sorted({*vidsparse_pipelines.ADAPTERS, *_REGISTERED})
