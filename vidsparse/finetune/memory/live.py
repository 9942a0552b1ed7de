"""The bytes of tensors that are alive, and the most that there were."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vidsparse.finetune.memory.wrapped import inner_tensors


class LiveBytes(TorchDispatchMode):
    """Within the context, counts the storages of tensors that operators make, on any device, until they are freed.

    Args:
        shares: processes that divide what is counted, except what comes from the left out tensors alone, such as copies
            of weights.

    Attributes:
        now: bytes that are alive. whole: those of them that come from the left out tensors alone.
        peak: the most bytes that one process had.
    """

    def __init__(self, shares: int = 1) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.whole = self.peak = 0
        self._shares = shares
        self._known: set[int] = set()
        self._own: set[int] = set()  # storages of the left out tensors, and of what comes from them alone

    def leave_out(self, tensors: Iterable[torch.Tensor]) -> None:
        """Do not count these, which were there before, while they are alive."""
        for storage in (inner.untyped_storage() for tensor in tensors for inner in inner_tensors(tensor)):
            self._own.add(storage._cdata)
            if storage._cdata not in self._known:
                self._know(storage, 0, False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [x.untyped_storage()._cdata for x in _parts((args, kwargs))]
        whole = bool(given) and self._own.issuperset(given)
        for inner in _parts(out):
            self._add(inner.untyped_storage(), whole)
        return out

    def _add(self, storage: torch.UntypedStorage, whole: bool) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place not in self._known:
            self.now += size
            if whole:
                self._own.add(place)
                self.whole += size
            self.peak = max(self.peak, self.whole + (self.now - self.whole) // self._shares)
            self._know(storage, size, whole)

    def _know(self, storage: torch.UntypedStorage, size: int, whole: bool) -> None:
        # Until it is freed: another storage may then have its place.
        self._known.add(storage._cdata)
        weakref.finalize(storage, partial(self._free, storage._cdata, size, whole)).atexit = False

    def _free(self, place: int, size: int, whole: bool) -> None:
        self._known.discard(place)
        self._own.discard(place)
        self.now -= size
        if whole:
            self.whole -= size


def _parts(values: Any) -> Iterator[torch.Tensor]:
    """The tensors among values; of one that is made of tensors, these: its own storage takes no memory."""
    for tensor in tree_leaves(values):
        if isinstance(tensor, torch.Tensor):
            yield from inner_tensors(tensor)
