"""Methods that `torch.compile` calls instead of tracing them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

Method = TypeVar("Method", bound=Callable[..., Any])

# In the errors of `fullgraph=True`.
REASON = "vidsparse reads Python state here; compile the transformer before sparsify, or compile its blocks alone"

_waiting: list[_Untraced] = []


def untraced(method: Method) -> Method:
    """Mark a method as `torch.compiler.disable` does, but not before `disable_tracing`.

    `torch.compiler.disable` imports `torch._dynamo`, which takes about as long as importing torch itself.
    """
    return cast(Method, _Untraced(method))


def disable_tracing() -> None:
    """Apply `torch.compiler.disable` to every marked method; call it before the first of them runs."""
    while _waiting:
        _waiting.pop().apply()


class _Untraced:
    """Takes the place of a method in its class until `apply`."""

    def __init__(self, method: Callable[..., Any]):
        self.method = method

    def __set_name__(self, owner: type, name: str) -> None:
        self.owner, self.name = owner, name
        _waiting.append(self)

    def apply(self) -> None:
        setattr(self.owner, self.name, torch.compiler.disable(self.method, reason=REASON))

    def __get__(self, instance: object, owner: type) -> Any:
        return self.method.__get__(instance, owner)
