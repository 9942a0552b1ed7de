"""What gradient checkpointing keeps of the forward pass waits for the backward pass in the CPU's memory.

Gradient checkpointing keeps the hidden states before each block, of a long video more than all weights. They leave the
GPU while the next block computes, and come back while the block behind them is recomputed: the last to go is the first
to return, so each return starts the one after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import TensorWeakRef

LEAST = 1 << 20  # bytes; smaller tensors stay where they are


@dataclass
class Away:
    """A tensor that is on the CPU.

    Attributes:
        device: where it belongs.
        host: its bytes on the CPU. gone: event after which they are all there.
        place: how many left before it.
        coming: the copy on its device, until it is asked for. back: event after which the copy is whole.
        home: the copy afterwards, as long as someone else holds it.
    """

    device: torch.device
    host: torch.Tensor
    gone: Any = None
    place: int = 0
    coming: torch.Tensor | None = None
    back: Any = None
    home: TensorWeakRef | None = None


class Offload:
    """Packs and unpacks what autograd saves, for one forward pass and its backward pass.

    Attributes:
        moved: bytes that have left so far.
    """

    def __init__(self, weights: Iterator[torch.nn.Parameter], least: int = LEAST):
        self._kept = {weight.untyped_storage().data_ptr() for weight in weights}
        self._least, self.moved = least, 0
        self._order: list[Away] = []  # as they left
        self._returned: set[int] = set()  # places
        self._low = 0  # all from this place on have returned
        # The text and the time embedding are saved by each block: once is enough.
        self._known: dict[tuple[Any, ...], tuple[StorageWeakRef, Away]] = {}
        self._stream: Any = None

    def pack(self, tensor: torch.Tensor) -> torch.Tensor | Away:
        """Send a large activation away; weights, and what is on the CPU already, stay."""
        storage = tensor.untyped_storage()
        stays = tensor.device.type == "cpu" or storage.data_ptr() in self._kept
        if stays or tensor.numel() * tensor.element_size() < self._least:
            return tensor
        return self._pack_large(tensor)

    def _pack_large(self, tensor: torch.Tensor) -> Away:
        storage = tensor.untyped_storage()
        key = storage.data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor._version
        if (known := self._known.get(key)) is not None and not known[0].expired():
            return known[1]
        away = self._keep(self._send(tensor), tensor)
        self._known[key] = StorageWeakRef(storage), away
        return away

    def _keep(self, away: Away, tensor: torch.Tensor) -> Away:
        """Put what has left behind those that left before."""
        away.place = len(self._order)
        self._order.append(away)
        self._low = len(self._order)
        self.moved += tensor.numel() * tensor.element_size()
        return away

    def unpack(self, packed: torch.Tensor | Away) -> torch.Tensor:
        """The tensor on its device, which its receiver alone keeps alive; the next starts its way back."""
        if isinstance(packed, torch.Tensor):
            return packed
        found = self._fetch(packed)
        packed.coming, packed.home = None, TensorWeakRef(found)
        self._fetch_next(packed)
        if packed.back is not None:
            here = torch.cuda.current_stream(packed.device)
            here.wait_event(packed.back)
            found.record_stream(here)
        return found

    def _fetch_next(self, packed: Away) -> None:
        """Fetch what left before a tensor, unless it is one that many blocks saved: then another will come first."""
        self._returned.add(packed.place)
        in_turn = packed.place == self._low - 1
        while self._low - 1 in self._returned:
            self._low -= 1
        if in_turn and self._low:
            self._fetch(self._order[self._low - 1])

    def _send(self, tensor: torch.Tensor) -> Away:
        if tensor.device.type != "cuda":
            return Away(tensor.device, tensor.detach().to("cpu"))
        stream = self._side(tensor.device)
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        with torch.cuda.stream(stream):
            host.copy_(tensor.detach(), non_blocking=True)
            gone = stream.record_event()
        tensor.record_stream(stream)  # its memory is used again only after the copy
        return Away(tensor.device, host, gone)

    def _fetch(self, away: Away) -> torch.Tensor:
        """The copy on its device, which may be on its way."""
        found = away.coming
        if found is None and away.home is not None:
            found = away.home()
        if found is None:
            found = away.coming = self._bring(away)
        return found

    def _bring(self, away: Away) -> torch.Tensor:
        if away.device.type != "cuda":
            return away.host.to(away.device)
        stream = self._side(away.device)
        with torch.cuda.stream(stream):
            stream.wait_event(away.gone)
            found = away.host.to(away.device, non_blocking=True)
            away.back = stream.record_event()
        return found

    def _side(self, device: torch.device) -> Any:
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        return self._stream


@contextmanager
def offloading(model: torch.nn.Module, on: bool = True, least: int = LEAST) -> Iterator[Offload | None]:
    """Within the context, where `on`, large activations that autograd saves of a forward pass move to the CPU.

    The backward pass may come after the context. Gradients are the same to the bit.

    Args:
        model: its weights stay where they are.
        on: whether anything happens.
        least: bytes of the smallest tensor that moves.
    """
    if not on:
        yield None
        return
    offload = Offload(iter(model.parameters()), least)
    with saved_tensors_hooks(offload.pack, offload.unpack):
        yield offload
