"""Block-sparse attention for a CPU: each thread takes some queries, collects their keys, and multiplies matrices.

Keys and values are copied once into the order of their tiles, so that a tile is contiguous. A few query tiles against
some thousand keys are a matrix product of a good size for one core. Weights are powers of two, which PyTorch computes
in half the time of its softmax; from bounded scores no maximum is subtracted (benchmarks/NOTES.md).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import NamedTuple

import torch

from vidsparse_kernels.cpu.rows import Chunk, Products, Row
from vidsparse_kernels.cpu.threads import divide

VIEWS = 1024  # the most views of buffers to cache
PIECES = 256  # rows divided over the threads at a time; with fewer, threads wait for the last ones
SHARES = 4  # partial sums of the gradients of a head's keys; constant, so that sums do not depend on threads
LOG2_E = 1 / math.log(2)
BOUND = 64  # of scores from which no maximum is subtracted: weights are then up to 2**64
LARGEST = 2.0**40  # norm of a value beside such weights: sums over 2**20 keys stay in the range of float32

Blocks = tuple[torch.Tensor, ...]  # one tensor per key block, [size, head_dim]


class _Scratch(threading.local):
    """Buffers of each thread, kept for its lifetime: page faults of new ones would cost more than the copies.

    They hold one product, some 5 MiB, 9 in the backward; those of the calling thread also hold the keys and values of
    some heads. Views of them are cached too, because threads wait for Python's lock after each operation.
    """

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype], torch.Tensor] = {}
        self.views: dict[tuple[str, tuple[int, ...], torch.dtype], torch.Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor of this shape, in the memory of earlier ones of the same name."""
        view = self.views.get((name, shape, dtype))
        return self._view(name, shape, dtype) if view is None else view

    def _view(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        size = math.prod(shape)
        buffer = self.buffers.get((name, dtype))
        with torch.inference_mode(False):  # calls outside that mode could not write to it otherwise
            if buffer is None or len(buffer) < size:
                buffer = self.buffers[name, dtype] = torch.empty(size, dtype=dtype)
                self.views.clear()
            elif len(self.views) >= VIEWS:
                self.views.clear()
            view = self.views[name, shape, dtype] = buffer[:size].view(shape)
        return view

    def collect(self, name: str, blocks: Blocks, chunk: Chunk) -> torch.Tensor:
        """The keys or values of a chunk: [keys, head_dim]."""
        listed = [blocks[i] for i in chunk.blocks]
        return torch.cat(listed, out=self.take(name, (chunk.keys, listed[0].shape[1]), listed[0].dtype))

    def cast(self, name: str, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`x` in another dtype; `x` itself if it has that dtype."""
        return x if x.dtype == dtype else self.take(name, tuple(x.shape), dtype).copy_(x)


_scratch = _Scratch()


def _as(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`x.to(dtype)` without its release of Python's lock if there is nothing to do."""
    return x if x.dtype == dtype else x.to(dtype)


def _key_blocks(name: str, x: torch.Tensor, sample: Products, dtype: torch.dtype) -> list[Blocks]:
    """Copy [H, tokens, head_dim] into blocks [size, head_dim] of each head, in a buffer of this name."""
    shape = len(x), len(sample.order), x.shape[2]
    copy = torch.index_select(x, 1, sample.order, out=_scratch.take(f"blocks of {name}", shape, x.dtype))
    return [of_head.split(sample.sizes) for of_head in _scratch.cast(f"wide blocks of {name}", copy, dtype)]


@lru_cache(maxsize=1)
def multiplies_bfloat16() -> bool:
    """Whether this CPU has fast products of bfloat16. Others take 40 times as long as for float32."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _product_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the second product's factors: sums of weights times values may leave the range of float16."""
    wide = dtype == torch.float16 or (dtype == torch.bfloat16 and not multiplies_bfloat16())
    return torch.float32 if wide else dtype


class _Head(NamedTuple):
    """The inputs and outputs of one head's rows, [tokens, head_dim or 1] each."""

    query: torch.Tensor
    out: torch.Tensor
    lse: torch.Tensor | None  # base 2
    scale: float  # of the scores, in base 2
    bounded: bool  # whether no score needs a maximum subtracted


class _Sums(NamedTuple):
    """Sums over some keys, with the weights 2**(score - top)."""

    out: torch.Tensor  # [rows, head_dim], of weights times values
    total: torch.Tensor  # [rows, 1], of the weights
    top: torch.Tensor | None  # [rows, 1]; None for 0

    def add(self, more: _Sums, chunk: Chunk) -> None:
        """Add the sums of a chunk to those of the rows that see it."""
        out, total = chunk.part_of(self.out), chunk.part_of(self.total)
        if self.top is None or more.top is None:
            out.add_(more.out)
            total.add_(more.total)
        else:
            top = chunk.part_of(self.top)
            joint = torch.maximum(top, more.top)
            shrink, grow = top.sub(joint).exp2_(), more.top.sub(joint).exp2_()
            out.mul_(shrink).addcmul_(more.out.to(out.dtype), grow)
            total.mul_(shrink).addcmul_(more.total, grow)
            top.copy_(joint)


def _sums(query: torch.Tensor, chunk: Chunk, keys: Blocks, values: Blocks, bounded: bool) -> _Sums:
    """The sums of one product; `out` has the dtype of the values."""
    q, k = chunk.part_of(query), _scratch.collect("key", keys, chunk)
    weights = torch.mm(q, k.T, out=_scratch.take("weights", (len(q), len(k)), q.dtype))
    top = None if bounded else weights.amax(dim=1, keepdim=True)
    if top is not None:
        weights.sub_(top)
    v = _scratch.collect("value", values, chunk)
    total = weights.exp2_().sum(dim=1, keepdim=True)
    return _Sums(torch.mm(_scratch.cast("low weights", weights, v.dtype), v), total, top)


def _forward(row: Row, keys: Blocks, values: Blocks, head: _Head) -> None:
    """Write one row's output, and its lse if the head has a tensor for it."""
    query = _as(head.query.index_select(0, row.queries), keys[0].dtype).mul_(head.scale)
    first, *others = row.chunks
    sums = _sums(query, first, keys, values, head.bounded)
    if others:
        sums = sums._replace(out=_as(sums.out, query.dtype))
    for chunk in others:
        sums.add(_sums(query, chunk, keys, values, head.bounded), chunk)
    out = torch.div(sums.out, sums.total, out=_scratch.take("out", tuple(sums.out.shape), head.out.dtype))
    head.out.index_copy_(0, row.queries, out)
    if head.lse is not None:
        lse = sums.total.log2_() if sums.top is None else sums.total.log2_().add_(sums.top)
        head.lse.index_copy_(0, row.queries, lse)


def _bounded(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> list[list[bool]]:
    """For each sample and head, whether norms bound the sums of weights to float32, so that no maximum is needed.

    False for weights in bfloat16: with a maximum the largest are 1, which rounding does not change.
    """
    if _product_dtype(query.dtype) == torch.bfloat16:
        return [[False] * query.shape[2]] * len(query)
    # The norm of a value bounds its largest number, and PyTorch finds it in a twentieth of the time.
    queries, keys, values = (torch.linalg.vector_norm(x, dim=3).amax(dim=1).float() for x in (query, key, value))
    flags: list[list[bool]] = ((queries * keys * abs(scale) <= BOUND) & (values <= LARGEST)).tolist()
    return flags


def _forward_pieces(pieces: Iterator[tuple[Row, Blocks, Blocks, _Head]]) -> None:
    """The work of one thread: compute rows until none are left."""
    for piece in pieces:
        _forward(*piece)


class _Gradients(NamedTuple):
    """The inputs and the output of one head's rows in the backward, [tokens, head_dim or 1] each."""

    query: torch.Tensor
    grad_out: torch.Tensor
    lse: torch.Tensor
    shift: torch.Tensor
    grad_query: torch.Tensor


def _backward(row: Row, keys: Blocks, values: Blocks, head: _Gradients, sums: Blocks, scale: float) -> None:
    """Write one row's query gradient, and add those of value and key (without the scale) to `sums`.

    The blocks of `sums` are [2, size, head_dim]. Two products of one shape are one call, because threads wait for
    Python's lock after each.
    """
    wide, low = keys[0].dtype, _product_dtype(head.query.dtype)
    query, grad_out, lse, shift = (x.index_select(0, row.queries) for x in head[:4])
    rights = _as(torch.stack((grad_out, query)), low)
    lefts = torch.stack((query.to(wide).mul_(scale * LOG2_E), _as(grad_out, wide)))
    terms, grad_query = torch.stack((lse, shift)), torch.zeros_like(lefts[0])
    for chunk in row.chunks:
        left, term, right = (chunk.part_of(x, dim=1) for x in (lefts, terms, rights))
        pair = _scratch.take("pair", (2, chunk.keys, left.shape[2]), wide)
        for blocks, out in zip((keys, values), pair, strict=True):
            torch.cat([blocks[i] for i in chunk.blocks], out=out)
        both = _scratch.take("scores", (2, left.shape[1], chunk.keys), wide)
        weights, scores = torch.bmm(left, pair.mT, out=both).sub_(term).unbind()
        scores.mul_(weights.exp2_())
        # The dtype of the second product of the forward.
        both = _scratch.cast("low scores", both, low)
        chunk.part_of(grad_query).add_(torch.mm(both[1], _scratch.cast("low keys", pair[0], low)))
        targets = [sums[i] for i in chunk.blocks]
        parts = _as(torch.bmm(both.mT, right), wide).split([x.shape[1] for x in targets], dim=1)
        torch._foreach_add_(targets, parts)
    head.grad_query.index_copy_(0, row.queries, grad_query.mul_(scale).to(head.grad_query.dtype))


def _backward_shares(
    rows: list[Row],
    sizes: list[int],
    keys: Blocks,
    values: Blocks,
    head: _Gradients,
    sums: torch.Tensor,
    scale: float,
    shares: Iterator[int],
) -> None:
    """The work of one thread: every `SHARES`-th row of a head, summed into its share [2, keys, head_dim] of `sums`."""
    for share in shares:
        blocks = sums[share].split(sizes, dim=1)
        for row in rows[share::SHARES]:
            _backward(row, keys, values, head, blocks, scale)


class _BlockSparse(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        products: list[Products],
        scale: float,
        with_lse: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wide = torch.promote_types(query.dtype, torch.float32)
        new = torch.empty_like if all(sample.complete for sample in products) else torch.zeros_like
        out = new(query, memory_format=torch.contiguous_format)
        lse = torch.full((*query.shape[:3], 1), float("-inf"), dtype=wide)
        bounded = _bounded(query, key, value, scale * LOG2_E)
        # A few heads at a time: copies of all keys and values would take two thirds of the memory of the inputs.
        for b, sample in enumerate(products):
            q, k, v, o, base_2 = (x[b].transpose(0, 1) for x in (query, key, value, out, lse))
            together = math.ceil(PIECES / max(1, *map(len, sample.rows)))
            for first in range(0, len(q), together):
                some = slice(first, first + together)
                of_keys = _key_blocks("keys", k[some], sample, wide)
                of_values = _key_blocks("values", v[some], sample, _product_dtype(value.dtype))
                pieces = []
                for h, (keys, values) in enumerate(zip(of_keys, of_values, strict=True), first):
                    head = _Head(q[h], o[h], base_2[h] if with_lse else None, scale * LOG2_E, bounded[b][h])
                    pieces += [(row, keys, values, head) for row in sample.rows_of(h)]
                divide(_forward_pieces, pieces)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.products, ctx.scale = products, scale  # type: ignore[attr-defined]
        return out, lse.squeeze(-1).transpose(1, 2) * math.log(2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad_out: torch.Tensor, grad_lse: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors  # type: ignore[attr-defined]
        products: list[Products] = ctx.products  # type: ignore[attr-defined]
        scale: float = ctx.scale  # type: ignore[attr-defined]
        wide = lse.dtype
        grad_query, grad_key, grad_value = (torch.zeros(x.shape, dtype=x.dtype) for x in (query, key, value))
        # The gradients of the softmax and of the lse need one number per row.
        shift = (grad_out.to(wide) * out.to(wide)).sum(dim=-1, keepdim=True) - grad_lse.transpose(1, 2)[..., None]
        inputs = query, grad_out, lse, shift, grad_query
        for b, sample in enumerate(products):
            *of_heads, k, v, to_k, to_v = (x[b].transpose(0, 1) for x in (*inputs, key, value, grad_key, grad_value))
            for h in range(len(k)):
                head = _Gradients(*(x[h] for x in of_heads))
                [keys], [values] = (
                    _key_blocks("keys", k[h : h + 1], sample, wide),
                    _key_blocks("values", v[h : h + 1], sample, wide),
                )
                sums = torch.zeros(SHARES, 2, len(sample.order), query.shape[3], dtype=wide)
                work = partial(_backward_shares, sample.rows_of(h), sample.sizes, keys, values, head, sums, scale)
                divide(work, range(SHARES))
                of_value, of_key = sums.sum(dim=0)
                to_k[h].index_copy_(0, sample.order, of_key.mul_(scale).to(key.dtype))
                to_v[h].index_copy_(0, sample.order, of_value.to(value.dtype))
        return grad_query, grad_key, grad_value, None, None, None


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    products: list[Products],
    scale: float,
    return_lse: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Block-sparse attention on CPU tensors, differentiable in out and lse.

    Args:
        query: [B, tokens, H, head_dim], any strides; float32, bfloat16, float16 or float64.
        key, value: [B, key tokens, H, head_dim], of the same dtype.
        products: the products of each sample's map, from `vidsparse_kernels.cpu.rows.products`.
        scale: factor on the logits.
        return_lse: False saves writing the lse if no gradient needs it.

    Returns:
        out like query, and lse float32 [B, H, tokens], undefined without `return_lse`; rows without keys have 0 and
        -inf. Scores and weights are float32. In the second product weights and values are bfloat16 for bfloat16 inputs,
        as in flash kernels, and float32 for float16, or where the CPU has no fast products of bfloat16. With float64
        inputs everything is float64.
    """
    with_lse = return_lse or (torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)))
    result: tuple[torch.Tensor, torch.Tensor]
    result = _BlockSparse.apply(query, key, value, products, scale, with_lse)  # type: ignore[no-untyped-call]
    return result
