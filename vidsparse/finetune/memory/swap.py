"""Frozen weights of a transformer's blocks rest in the CPU's memory; those of a block are on the device while it runs.

diffusers' group offloading is for inference: it would move the weights that learn too, and leaves a group on the device
where gradient checkpointing ends a block's second forward pass early. Here copies take the place of a block's frozen
weights before its forward pass, also the recomputed one. After it, however it ends, the weights are back; what the
backward pass needs of a copy, autograd keeps. While a block runs, the copies of the next are on their way: in the
backward pass that is the block before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from vidsparse.finetune.memory.wrapped import bytes_of, frozen, rebuilt

Weights = list[torch.nn.Parameter]


@dataclass
class Coming:
    """Copies of a block's weights, and the event after which they are whole; None: they are."""

    weights: Weights
    whole: Any = None


class BlockSwap:
    """Swaps the frozen weights of a transformer's blocks in and out; `remove` ends it.

    Attributes:
        resting: bytes that rest in the CPU's memory.

    Args:
        transformer: of diffusers, on the CPU. Everything but the frozen weights of its blocks moves to the device.
        learned: weights that are not frozen.
        device: that computes. On a CPU the copies are made too, and only save nothing.

    Raises:
        NotImplementedError: a transformer without a list of blocks, or weights of bitsandbytes.
    """

    def __init__(self, transformer: torch.nn.Module, learned: Iterable[torch.Tensor], device: torch.device):
        check_blocks(transformer)
        stay = {id(weight) for weight in learned}
        self._module, self._device = transformer, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        blocks = blocks_of(transformer)
        self._places = [
            [
                (part, name)
                for part in block.modules()
                for name, weight in part._parameters.items()
                if weight is not None and id(weight) not in stay
            ]
            for block in blocks
        ]
        self._hosts = [[self._host(part, name) for part, name in places] for places in self._places]
        self.resting = sum(bytes_of(weight) for weights in self._hosts for weight in weights)
        self._coming: dict[int, Coming] = {}
        self._hooks: list[Any] = []
        # Without the weights that rest, `to` moves all others, and each stays the tensor that it is.
        for places in self._places:
            for part, name in places:
                part._parameters[name] = None
        _move(transformer, device)
        for index, block in enumerate(blocks):
            self._put(index, self._hosts[index])
            self._hooks.append(block.register_forward_pre_hook(lambda *_, index=index: self._before(index)))
            # Also where the recomputation is ended by an exception, once it has what the backward pass needs.
            self._hooks.append(
                block.register_forward_hook(lambda *_, index=index: self._after(index), always_call=True)
            )

    def remove(self) -> None:
        """Take the hooks off; all weights are on the CPU then."""
        for hook in self._hooks:
            hook.remove()
        self._drop_all()
        _move(self._module, torch.device("cpu"))

    def _before(self, index: int) -> None:
        here = self._coming.pop(index, None)
        self._drop_all()
        here = here or self._send(index)
        self._wait(here)
        self._put(index, here.weights)
        backward = torch._C._current_graph_task_id() != -1
        following = index - 1 if backward else index + 1
        if 0 <= following < len(self._hosts):
            self._coming[following] = self._send(following)

    def _after(self, index: int) -> None:
        self._put(index, self._hosts[index])

    def _put(self, index: int, weights: Weights) -> None:
        for (part, name), weight in zip(self._places[index], weights, strict=True):
            part._parameters[name] = weight

    def _host(self, part: torch.nn.Module, name: str) -> torch.nn.Parameter:
        """A weight on the CPU, in memory from which a GPU copies by itself."""
        weight: Any = part._parameters[name]
        if self._stream is None:
            return weight  # type: ignore[no-any-return]
        return frozen(rebuilt(weight.detach(), lambda inner: inner.cpu().pin_memory()))

    def _send(self, index: int) -> Coming:
        """Start copying a block's weights; the memory is taken on the stream that will use it."""
        copies: list[tuple[torch.Tensor, torch.Tensor]] = []

        def empty(inner: torch.Tensor) -> torch.Tensor:
            copies.append((made := torch.empty_like(inner, device=self._device), inner))
            return made

        weights = [frozen(rebuilt(weight.detach(), empty)) for weight in self._hosts[index]]
        if self._stream is None:
            for made, inner in copies:
                made.copy_(inner)
            return Coming(weights)
        # That memory may still be read by what was queued before.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for made, inner in copies:
                made.copy_(inner, non_blocking=True)
            return Coming(weights, self._stream.record_event())

    def _wait(self, coming: Coming) -> None:
        if coming.whole is not None:
            torch.cuda.current_stream(self._device).wait_event(coming.whole)

    def _drop_all(self) -> None:
        """Forget copies that nobody came for, once they are whole: their memory is used again."""
        for coming in self._coming.values():
            self._wait(coming)
        self._coming.clear()


def check_blocks(transformer: torch.nn.Module) -> None:
    """Refuse a transformer whose weights cannot be swapped.

    Raises:
        NotImplementedError: it has no list of blocks, or weights of bitsandbytes.
    """
    if not blocks_of(transformer):
        raise NotImplementedError(f"offload_base moves blocks, and {type(transformer).__name__} has no list of them")
    if any(type(weight).__name__ in ("Params4bit", "Int8Params") for weight in transformer.parameters()):
        raise NotImplementedError(
            "offload_base does not move weights of bitsandbytes, which its backward pass keeps on the GPU; leave it out"
        )


def blocks_of(transformer: torch.nn.Module) -> list[torch.nn.Module]:
    """The blocks of a transformer, in the order in which they run: what its lists of modules hold."""
    return [
        block
        for child in transformer.children()
        if isinstance(child, torch.nn.ModuleList)
        for block in child
        if next(block.parameters(), None) is not None
    ]


@contextmanager
def swapped(
    transformer: torch.nn.Module, learned: Iterable[torch.Tensor], device: torch.device, on: bool = True
) -> Iterator[BlockSwap | None]:
    """Within the context, where `on`, frozen weights of a transformer's blocks are on the device only while they run.

    Args: see `BlockSwap`.
    """
    if not on:
        yield None
        return
    swap = BlockSwap(transformer, learned, device)
    try:
        yield swap
    finally:
        swap.remove()


def _move(module: torch.nn.Module, device: torch.device) -> None:
    """Move a module, unless it is there: tensors without content cannot be moved."""
    if any(tensor.device.type != device.type for tensor in (*module.parameters(), *module.buffers())):
        module.to(device)
