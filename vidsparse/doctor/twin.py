"""A twin: a small random model with the layout of a large one, and what it computes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch._higher_order_ops.flex_attention import flex_attention
from torch.overrides import TorchFunctionMode

from vidsparse.generation.transformers import defaults
from vidsparse.grid import VideoGrid
from vidsparse.runtime.registry import adapter_of

View = tuple[int, int, int]
Results = dict[str, torch.Tensor]
VIEW: View = (2, 4, 8)


class Twin:
    """Build the twin of a transformer class at a configuration; it is the same each time.

    Attributes:
        cls: the class. adapter: its adapter. config: the settings of the twin.
    """

    def __init__(self, cls: type[Any], config: Mapping[str, Any] | None = None):
        self.cls, self.adapter = cls, adapter_of(cls)
        settings = {**defaults(cls), **(config or {})}
        self.config = settings | self.adapter.tiny(settings)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(1)
            make = getattr(cls, "from_config", None)  # diffusers' classes have it
            self._model: Any = make(self.config) if make else cls(**self.config)
            self._model.eval()
            for parameter in self._model.parameters():
                if parameter.ndim > 1:  # zeros too, which would hide everything behind them
                    parameter.normal_(std=(parameter.numel() / len(parameter)) ** -0.5)

    def build(self, dtype: torch.dtype = torch.float32) -> Any:
        """Build the model in a dtype, as `from_pretrained` does: some modules stay in float32."""
        model = copy.deepcopy(self._model)
        kept = () if dtype == torch.float64 else getattr(model, "_keep_in_fp32_modules", None) or ()
        torch.nn.Module.to(model, dtype)  # diffusers warns of what the next lines handle
        for name, module in model.named_modules():
            if any(part in name.split(".") for part in kept):
                torch.nn.Module.to(module, torch.float32)
        return model

    def arguments(self, model: Any, view: View = VIEW, batch: int = 1, dtype: torch.dtype = torch.float32) -> Any:
        """Arguments of a forward call by name: the same numbers each time, in a dtype."""
        generator = torch.Generator().manual_seed(2)

        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(dtype)

        return self.adapter.example(model, view, batch, noise)

    def grid(self, view: View = VIEW, batch: int = 1) -> VideoGrid:
        """The token grid of such a call, from the adapter."""
        return self.adapter.grid(self._model, self.arguments(self._model, view, batch))

    def key_grid(self, view: View = VIEW, batch: int = 1) -> VideoGrid | None:
        """The tokens of the keys of such a call, where they are of more frames than those of `grid`."""
        return self.adapter.key_grid(self._model, self.arguments(self._model, view, batch))

    def outputs(self, model: Any, view: View = VIEW, batch: int = 1, dtype: torch.dtype = torch.float32) -> Results:
        """The outputs of a call, in order: video, and in some families sound."""
        with torch.no_grad(), _computing_in(dtype):
            return _by_position(model(**self.arguments(model, view, batch, dtype)))

    def gradients(self, model: Any, view: View = VIEW, batch: int = 1, dtype: torch.dtype = torch.float32) -> Results:
        """The gradient of each parameter that has one, for the mean square of all outputs."""
        with _computing_in(dtype):
            parts = _by_position(model(**self.arguments(model, view, batch, dtype)))
            torch.autograd.backward([part.square().mean() for part in parts.values()])
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _by_position(out: Any, name: str = "output") -> Results:
    if isinstance(out, torch.Tensor):
        return {name: out}
    parts = [part for part in out if part is not None and not isinstance(part, dict)]  # a cache of keys: no output
    return {key: x for i, part in enumerate(parts) for key, x in _by_position(part, f"{name} {i}").items()}


def _computing_in(dtype: torch.dtype) -> AbstractContextManager[object]:
    return _InFloat64() if dtype == torch.float64 else nullcontext()


class _InFloat64(TorchFunctionMode):
    """Within the context, float64 stays float64 where models cast to float32, as for norms."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is flex_attention:  # Dynamo traces this, and cannot trace the lines below with it
            return func(*args, **kwargs)
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
        in_place = func.__name__.endswith("_")
        if in_place or all(x.dtype != torch.float64 for x in tensors):
            return func(*args, **kwargs)
        if func is torch.Tensor.float:
            return args[0]
        return func(*(_wide(x) for x in args), **{name: _wide(x) for name, x in kwargs.items()})


def _wide(x: Any) -> Any:
    if x is torch.float32 or x is torch.bfloat16:
        return torch.float64
    return x.double() if isinstance(x, torch.Tensor) and x.dtype == torch.float32 else x
