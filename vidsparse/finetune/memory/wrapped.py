"""Tensors that are made of tensors, as torchao's quantised weights are: what is in them, and copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch


def inner_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The plain tensors that a tensor is made of; a plain one is made of itself."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
        return
    for name in flatten()[0]:
        yield from inner_tensors(getattr(tensor, name))


def rebuilt(tensor: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The same tensor of other plain tensors: `change` makes each from the one that was there."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return change(tensor)
    names, context = tensor.__tensor_flatten__()
    parts = {name: rebuilt(getattr(tensor, name), change) for name in names}
    made: torch.Tensor = type(tensor).__tensor_unflatten__(parts, context, tensor.shape, tensor.stride())
    return made


def frozen(tensor: torch.Tensor) -> torch.nn.Parameter:
    """A weight that does not learn."""
    return torch.nn.Parameter(tensor, requires_grad=False)


def bytes_of(tensor: torch.Tensor) -> int:
    """Bytes of all that a tensor is made of."""
    return sum(inner.numel() * inner.element_size() for inner in inner_tensors(tensor))
