"""A second device on a machine that has none: its tensors hold tensors of the CPU, and refuse to meet any others.

As on a GPU, a CPU tensor may only be copied from or to it, index one of its tensors, or be a single number. PyTorch
knows the device from then on, so use it in a process of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from random_proxies import give_proxies
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from vidsparse import Correction, Pattern, sparsify
from vidsparse.doctor import Twin

NAME = "elsewhere"
COPIES = {"aten::_to_copy", "aten::copy_", "aten::index.Tensor", "aten::index_put_", "aten::index_put"}


class Held(torch.Tensor):
    """A tensor on the second device."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Held:
        layout = dict(strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype)
        made: Held = torch.Tensor._make_wrapper_subclass(cls, held.shape, device=f"{NAME}:0", **layout)
        made.held = held
        return made

    def tolist(self) -> Any:  # PyTorch's own refuses subclasses
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Makes new tensors where they are asked for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Functions that ask a device for a kernel of its own: attention, and `torch.tensor`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            found = func(*tree_map(_inside, args), **tree_map(_inside, kwargs))
            return Held(found) if any(isinstance(x, Held) for x in tree_leaves((args, kwargs))) else found
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == NAME:
            return Held(func(*args, **kwargs | {"device": "cpu"}))
        return func(*args, **kwargs)


def _inside(x: Any) -> Any:
    return x.held if isinstance(x, Held) else x


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    here = any(isinstance(x, Held) for x in tensors)
    if here and func.name() not in COPIES and any(not isinstance(x, Held) and x.ndim for x in tensors):
        raise RuntimeError(f"{func} got tensors of two devices")
    if (device := kwargs.get("device")) is not None:
        here = torch.device(device).type == NAME
        kwargs = kwargs | {"device": "cpu" if here else device}
    known = {id(x.held): x for x in tensors if isinstance(x, Held)}
    out = func(*tree_map(_inside, args), **tree_map(_inside, kwargs))

    def outside(x: Any) -> Any:
        if not here or not isinstance(x, torch.Tensor):
            return x
        return known[id(x)] if id(x) in known else Held(x)  # in place: the very tensor

    return tree_map(outside, out)


@contextmanager
def second_device() -> Iterator[torch.device]:
    """Within the context, a device that computes; for calls without gradients."""
    if not hasattr(torch, NAME):
        module = backend_registration._DummyBackendModule()
        module.get_amp_supported_dtype = lambda: [torch.bfloat16]  # autocast asks for it
        backend_registration._setup_privateuseone_for_python_backend(NAME, module)
    with torch.no_grad(), _Factories(), _Functions():
        yield torch.device(NAME, 0)


def moved(x: Any, device: torch.device) -> Any:
    """The tensors in lists, tuples and dicts, on the device."""
    return tree_map(lambda y: y.to(device) if isinstance(y, torch.Tensor) else y, x)


class _Moving(ModelHook):  # type: ignore[misc]
    """Moves a model and what it is called with, as accelerate does for a model that is offloaded as a whole."""

    def __init__(self, device: torch.device):
        self.execution_device = device

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        for part in module.modules():
            for tensors in (part._parameters, part._buffers):
                tensors.update({name: moved(x, self.execution_device) for name, x in tensors.items()})
        return moved(args, self.execution_device), moved(kwargs, self.execution_device)


@dataclass(frozen=True)
class Ran:
    """What calls on the second device gave: outputs on the CPU, where the rest is, calls, seconds of each layer."""

    outputs: list[torch.Tensor]
    kept_on: set[str]
    computed_on: set[str]
    sparse_calls: int
    seconds: list[float]


def sparse_calls(name: str, pattern: Pattern, correction: Correction | None, calls: int) -> Ran:
    """Call the sparse twin of a class, whose weights and arguments are on the CPU, and which computes elsewhere."""
    it = Twin(getattr(diffusers, name))
    model = it.build()
    give_proxies(model, correction)
    with second_device() as device:
        add_hook_to_module(model, _Moving(device))
        with sparsify(model, pattern, correction=correction, impl="reference", strict=True) as run:
            outputs = [model(**it.arguments(model))[0] for _ in range(calls)]
            (clock,) = run.clocks.values()
            layers: Any = list(clock.layers)
            kept = [x for layer in layers for x in _tensors_in(layer.memories)]
            report = run.report()
    return Ran(
        [x.to("cpu") if isinstance(x, Held) else x.new_tensor(float("nan")) for x in outputs],
        {str(x.device) for x in kept},
        {str(layer.device) for layer in layers},
        report.sparse_calls,
        [call.seconds for call in report.calls],
    )


def _tensors_in(kept: Any) -> list[torch.Tensor]:
    """All tensors that patterns and corrections hold."""
    if isinstance(kept, torch.Tensor):
        return [kept]
    if hasattr(kept, "__dataclass_fields__"):
        kept = [getattr(kept, field) for field in kept.__dataclass_fields__]
    values = kept.values() if isinstance(kept, dict) else kept if isinstance(kept, (list, tuple)) else ()
    return [x for value in values for x in _tensors_in(value)]
