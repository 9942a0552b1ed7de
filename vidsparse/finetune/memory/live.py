"""The bytes of tensors that are alive, and the most that there were."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vidsparse.finetune.memory.wrapped import inner_tensors


class LiveBytes(TorchDispatchMode):
    """Within the context, counts the storages of tensors that operators make, on any device, until they are freed.

    Attributes:
        now: bytes that are alive. peak: the most that were.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def leave_out(self, tensors: Iterable[torch.Tensor]) -> None:
        """Do not count these, which were there before."""
        self._known |= {inner.untyped_storage()._cdata for tensor in tensors for inner in inner_tensors(tensor)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                for inner in inner_tensors(tensor):  # the storage of what is made of tensors takes no memory
                    self._add(inner.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place not in self._known:
            self._known.add(place)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, partial(self._free, place, size)).atexit = False

    def _free(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.now -= size
