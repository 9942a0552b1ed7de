"""Objects that take the place of a method of one transformer, and can leave in any order."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Own = TypeVar("Own", bound="Substitute")


class Substitute:
    """Takes the place of a method of one module, as an attribute of the instance; a callable with its arguments.

    A hook of diffusers replaces `forward` by a function that a copy of the transformer shares, so that the copy calls
    the original's. A copy of this is bound to the copied module.

    Attributes:
        method: name of the method.
    """

    method = ""

    def __init__(self, module: torch.nn.Module):
        self._module = weakref.ref(module)
        self._beneath: Any = vars(module).get(self.method)  # another's substitute, or None: the method of the class
        self._used = True
        vars(module)[self.method] = self

    def beneath(self) -> Callable[..., Any]:
        """The method that was there before.

        Raises:
            RuntimeError: the module does not exist any more.
        """
        module = self._module()
        if module is None:
            raise RuntimeError(f"the transformer of this {self.method} is gone; call a transformer that exists")
        found: Callable[..., Any] = self._beneath or getattr(type(module), self.method).__get__(module)
        return found

    def remove(self) -> None:
        """Put back what was there before. Safe to call twice; what others have put on top stays, and passes through."""
        self._used = False
        module = self._module()
        while module is not None and isinstance(top := vars(module).get(self.method), Substitute) and not top._used:
            if top._beneath is None:
                del vars(module)[self.method]
            else:
                vars(module)[self.method] = top._beneath

    def __deepcopy__(self: Own, memo: dict[int, Any]) -> Own:
        """A copy of the module has its own substitute."""
        copied = memo[id(self)] = object.__new__(type(self))
        vars(copied).update(vars(self))
        module = self._module()
        target = memo.get(id(module), module)
        copied._module = self._module if target is None else weakref.ref(target)
        copied._beneath = copy.deepcopy(self._beneath, memo)
        copied.copied(memo)
        return copied

    def copied(self, memo: dict[int, Any]) -> None:
        """Part a fresh copy from the original, after its attributes were taken over."""
        del memo
