"""Attention of a layer inside graphs of `torch.compile`: one operator, which looks up the layer when the graph runs.

What differs between layers and steps, such as an index or a map, is no part of a graph: all layers share one graph for
sparse calls and one for dense calls. The operator hides from the compiler what a pattern and a correction do.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch

from vidsparse.grid import VideoGrid
from vidsparse.runtime.heads import Operands

PLANNED = "decided before the forward pass"  # stands in a graph for the reason, which the layer has


class Attends(Protocol):
    """An attention layer as graphs see it.

    Attributes:
        handle: int64 [], what graphs hold of the layer.
    """

    handle: torch.Tensor

    @property
    def grid(self) -> VideoGrid:
        """The token grid of the present call."""

    def attend(self, given: Operands, lowered: Operands) -> torch.Tensor:
        """Attention of the present call: maps are chosen by the operands as given, attention is of the lowered ones."""


_layers = WeakValueDictionary[int, Attends]()
_recorded = WeakValueDictionary[int, "_Recording"]()
_numbers = itertools.count()


@torch.inference_mode(False)  # a training may use it later
def handle_of(layer: Attends) -> torch.Tensor:
    """A new handle for a layer: int64 [] on the CPU. It does not keep the layer alive."""
    number = next(_numbers)
    _layers[number] = layer
    return torch.tensor(number, device="cpu")


class CompiledCall:
    """A call inside a graph.

    Attributes:
        unsupported: why the processor cannot run it sparse, or None.
        reason: why it is dense; `PLANNED` where the layer knows why. None where it is sparse.
    """

    def __init__(self, layer: Attends, sparse: bool, unsupported: str | None):
        self.layer, self.unsupported = layer, unsupported
        self.reason = None if sparse and unsupported is None else unsupported or PLANNED

    @property
    def grid(self) -> VideoGrid:
        """The token grid of the forward pass."""
        return self.layer.grid

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extra_valid: torch.Tensor | None = None,
        gate: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention under the map, or maps, of the pattern: see `Call.attend`."""
        kind = query.device.type
        # Autocast is off while a graph runs, so its dtype is a constant of the graph.
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
        inputs = (query, key, value) if gate is None else (query, key, value, gate)
        needs = [x.requires_grad for x in inputs]
        if torch.is_grad_enabled() and any(needs):
            differentiable: torch.Tensor = _Differentiable.apply(  # type: ignore[no-untyped-call]
                self.layer.handle, extra_valid, low, needs, *inputs
            )
            return differentiable
        out: torch.Tensor = torch.ops.vidsparse.attend(self.layer.handle, inputs, extra_valid, low)
        return out


class _Recording(bytearray):
    """Attention that autograd has recorded, in the memory of the tensor that names it: it ends with that tensor."""

    out: torch.Tensor
    inputs: list[torch.Tensor]


class _Differentiable(torch.autograd.Function):
    """The operator that records, and that of its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        handle: torch.Tensor,
        extra_valid: torch.Tensor | None,
        low: torch.dtype,
        needs: list[bool],
        *inputs: torch.Tensor,
    ) -> torch.Tensor:
        out, ticket = torch.ops.vidsparse.attend_recorded(handle, inputs, extra_valid, low, needs)
        ctx.save_for_backward(ticket)
        ctx.needs, ctx.dtypes = needs, [x.dtype for x in inputs]
        found: torch.Tensor = out
        return found

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (ticket,) = ctx.saved_tensors
        found = list(torch.ops.vidsparse.attend_backward(grad, ticket, ctx.needs))
        gradients: list[torch.Tensor | None] = []
        for dtype, needed in zip(ctx.dtypes, ctx.needs, strict=True):
            gradients.append(found.pop(0).to(dtype) if needed else None)
        return None, None, None, None, *gradients


def _attend(
    handle: torch.Tensor, inputs: list[torch.Tensor], extra_valid: torch.Tensor | None, low: torch.dtype
) -> torch.Tensor:
    lowered = [x.to(low) for x in inputs]
    return _own(_of(handle, inputs, lowered, extra_valid), inputs)


def _attend_recorded(
    handle: torch.Tensor,
    inputs: list[torch.Tensor],
    extra_valid: torch.Tensor | None,
    low: torch.dtype,
    needs: list[bool],
) -> tuple[torch.Tensor, torch.Tensor]:
    # The compiler may write over inputs and output before the backward pass: what is recorded are copies.
    lowered = [x.detach().to(low, copy=True).requires_grad_(needed) for x, needed in zip(inputs, needs, strict=True)]
    with torch.enable_grad():
        out = _of(handle, [x.detach() for x in inputs], lowered, extra_valid)
    recording = _Recording((number := next(_numbers)).to_bytes(8, sys.byteorder))
    recording.out, recording.inputs = out, [x for x in lowered if x.requires_grad]
    _recorded[number] = recording
    return out.detach().clone(memory_format=torch.contiguous_format), torch.frombuffer(recording, dtype=torch.int64)


def _attend_backward(grad: torch.Tensor, ticket: torch.Tensor, needs: list[bool]) -> list[torch.Tensor]:
    recording = _recorded.get(int(ticket))
    if recording is None:
        raise RuntimeError(
            "the recorded attention of this backward pass is gone: a hook on saved tensors has put a copy in the place "
            "of the tensor that names it; train without this hook, or without torch.compile"
        )
    out, inputs = recording.out, recording.inputs
    found = torch.autograd.grad(out, inputs, grad, retain_graph=True, allow_unused=True)
    given: list[torch.Tensor] = [grad]
    for x, gradient in zip(inputs, found, strict=True):
        given.append(torch.zeros_like(x) if gradient is None else _own(gradient, given))
    return given[1:]


def _of(
    handle: torch.Tensor, inputs: list[torch.Tensor], lowered: list[torch.Tensor], extra_valid: torch.Tensor | None
) -> torch.Tensor:
    layer = _layers.get(int(handle))
    if layer is None:
        raise RuntimeError("the sparse layer of this compiled graph is gone; compile the transformer again")
    given, operands = (
        Operands(query, key, value, extra_valid, gate[0] if gate else None)
        for query, key, value, *gate in (inputs, lowered)
    )
    with torch.autocast(given.query.device.type, enabled=False):
        return layer.attend(given, operands)


def _own(x: torch.Tensor, others: list[torch.Tensor]) -> torch.Tensor:
    """`x`, contiguous, in memory that it shares with none of the others, as operators must return it."""
    x = x.contiguous()
    shared = {other.untyped_storage().data_ptr() for other in others}
    return x.clone() if x.untyped_storage().data_ptr() in shared else x


_library = torch.library.Library("vidsparse", "FRAGMENT")
# The operators read Python objects, so a CUDA graph that recorded them would repeat the map of one step.
_tags = (torch.Tag.cudagraph_unsafe,)


def _define(schema: str, body: Any, fake: Any) -> None:
    _library.define(schema, tags=_tags)
    name = schema[: schema.index("(")]
    _library.impl(name, body, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vidsparse::{name}", fake, lib=_library)


_define(
    "attend(Tensor handle, Tensor[] inputs, Tensor? extra_valid, ScalarType low) -> Tensor",
    _attend,
    lambda handle, inputs, extra_valid, low: inputs[0].new_empty(inputs[0].shape, dtype=low),
)
_define(
    "attend_recorded(Tensor handle, Tensor[] inputs, Tensor? extra_valid, ScalarType low, bool[] needs) "
    "-> (Tensor, Tensor)",
    _attend_recorded,
    lambda handle, inputs, extra_valid, low, needs: (
        inputs[0].new_empty(inputs[0].shape, dtype=low),
        torch.empty(1, dtype=torch.int64, device="cpu"),
    ),
)
_define(
    "attend_backward(Tensor grad, Tensor ticket, bool[] needs) -> Tensor[]",
    _attend_backward,
    lambda grad, ticket, needs: [grad.new_empty(grad.shape) for needed in needs if needed],
)
