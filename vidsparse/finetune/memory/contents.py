"""What small tensors hold in a run on tensors that have a size and no content, for models that ask for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

aten = torch.ops.aten
MOST = 1 << 20  # numbers of a tensor whose content is kept
# What they make depends on their arguments alone, and not on the content of the tensor that gives the kind.
CREATING = tuple(
    getattr(aten, name)
    for name in ("zeros", "ones", "full", "arange", "scalar_tensor", "new_zeros", "new_ones", "new_full")
)
LIKE = {aten.zeros_like: torch.zeros, aten.ones_like: torch.ones}
# Their results are Python values, or have a size that depends on content.
ASKING = (aten._local_scalar_dense, aten.is_nonzero, aten.equal)
INDEXED = (aten.index, aten.index_put, aten.index_put_)


class Contents(TorchDispatchMode):
    """Computes masks and indices beside their stand-ins of a `FakeTensorMode`, in which it must be entered.

    A transformer that cuts the padding off its text asks a mask for its sum. Here it gets the answer, as long as all
    that the mask was made from is small and known: made by `torch.ones` and the like, not by `torch.empty`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        packet = func.overloadpacket
        if packet in INDEXED:
            args = args[0], self._by_number(args[1]), *args[2:]
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        known = all(self._content(x) is not None for x in given) and bool(given or packet in CREATING)
        if known and packet in ASKING:
            return self._compute(func, args, kwargs)
        if known and packet is aten.nonzero:
            return self._stand_in(self._compute(func, args, kwargs))
        out = func(*args, **kwargs)
        made = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        small = bool(made) and all(x.numel() <= MOST for x in made)
        if packet in LIKE and small:
            with no_dispatch():
                self._known[out] = LIKE[packet](out.shape, dtype=out.dtype)
        elif known and small and torch.Tag.nondeterministic_seeded not in func.tags:
            contents = tree_leaves(self._compute(func, args, kwargs))
            self._known.update(zip(made, (x for x in contents if isinstance(x, torch.Tensor)), strict=True))
        elif func._schema.is_mutable:
            for tensor in given:
                self._known.pop(tensor, None)
        return out

    def _content(self, tensor: torch.Tensor) -> torch.Tensor | None:
        found: torch.Tensor | None = self._known.get(tensor)
        if found is None and type(tensor) is torch.Tensor and tensor.numel() <= MOST:
            return tensor  # of the model itself, not of this run
        return found

    def _compute(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        def content(x: Any) -> Any:
            return self._content(x) if isinstance(x, torch.Tensor) else x

        with no_dispatch():
            return func(*tree_map(content, args), **tree_map(content, kwargs))

    def _stand_in(self, content: torch.Tensor) -> torch.Tensor:
        """A tensor of this run for a content."""
        made = torch.empty(content.shape, dtype=content.dtype)
        self._known[made] = content
        return made

    def _by_number(self, indices: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Indices with those of masks, whose content is known, as numbers."""
        found: list[torch.Tensor | None] = []
        for index in indices:
            content = None if index is None or index.dtype != torch.bool else self._content(index)
            if content is None:
                found.append(index)
            else:
                with no_dispatch():
                    numbers = content.nonzero().unbind(1)
                found += map(self._stand_in, numbers)
        return found
