"""Block-sparse attention for a CPU: gather the listed keys, then PyTorch's flash attention on groups of query tiles.

Query tiles that see equally many keys run in one call. The backward writes the scores out, a group at a time.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import torch

from vidsparse_kernels.tiles import TileLayout, tile_tokens

SCORE_BYTES = 16 << 20  # float32 scores of one step, which only the backward writes out


class _Step(NamedTuple):
    """Query tiles of one sample and head with equally many rows and equally many keys; positions in the sequence."""

    sample: int
    head: int
    rows: torch.Tensor  # int64 [group, R]
    keys: torch.Tensor  # int64 [group, L]


class _Call(NamedTuple):
    """All arguments of a call but the tensors that have gradients."""

    counts: torch.Tensor
    indices: torch.Tensor
    layout: TileLayout
    valid: list[int] | None
    scale: float

    def steps(self, batch: int, heads: int) -> Iterator[_Step]:
        """The work of a call, cut so that the scores of a step fit `SCORE_BYTES`."""
        map_batch, map_heads = self.counts.shape[:2]
        for sample in range(batch):
            for map_head in range(map_heads):
                served = range(heads) if map_heads == 1 else (map_head,)
                for rows, keys in self._groups(sample, sample % map_batch, map_head):
                    yield from (_Step(sample, head, rows, keys) for head in served)

    def _groups(self, sample: int, map_sample: int, map_head: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Rows [group, R] and keys [group, L] of a step, for each step of one map."""
        layout = self.layout
        extra = layout.valid_extra_tokens(None if self.valid is None else self.valid[sample])
        tiles = tile_tokens(layout.view, layout.key_tile, layout.prefix)
        queries = tile_tokens(layout.view, layout.query_tile, layout.prefix)
        counts, indices = self.counts[map_sample, map_head].tolist(), self.indices[map_sample, map_head].tolist()
        lists = [(rows, tuple(index[:count])) for rows, count, index in zip(queries, counts, indices, strict=True)]
        if layout.prefix + layout.suffix:
            lists.append((layout.extra_tokens, tuple(range(len(tiles)))))
        groups: dict[tuple[int, int], list[tuple[torch.Tensor, tuple[int, ...]]]] = defaultdict(list)
        for rows, listed in lists:
            length = len(extra) + sum(len(tiles[t]) for t in listed)
            # Long rows (dense maps, text) would need much memory: fewer rows a step, but enough for a matrix product.
            for part in rows.split(max(32, SCORE_BYTES // (4 * max(1, length)))):
                groups[len(part), length].append((part, listed))
        for (count, length), members in groups.items():
            together = max(1, SCORE_BYTES // (4 * count * max(1, length)))
            for first in range(0, len(members) if length else 0, together):
                # Positions of the keys are written out for one step at a time: all of them would outweigh the keys.
                part = members[first : first + together]
                keys = [torch.cat([extra, *(tiles[t] for t in listed)]) for _, listed in part]
                yield torch.stack([rows for rows, _ in part]), torch.stack(keys)


def _gather(x: torch.Tensor, step: _Step, positions: torch.Tensor) -> torch.Tensor:
    """Rows of [B, tokens, H, D] as [group, rows, D]."""
    return x[step.sample, :, step.head].index_select(0, positions.flatten()).view(*positions.shape, -1)


def _scatter_add(target: torch.Tensor, step: _Step, positions: torch.Tensor, x: torch.Tensor) -> None:
    """The reverse of `_gather`, summed into `target`."""
    target[step.sample, :, step.head].index_add_(0, positions.flatten(), x.flatten(0, 1).to(target.dtype))


class _Scratch:
    """Buffers that live through a call: fresh ones for each step would cost more in page faults than in copying."""

    def __init__(self) -> None:
        self.buffers: dict[str, torch.Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor of this shape, in memory that an earlier one of the same name had."""
        size = math.prod(shape)
        if name not in self.buffers or self.buffers[name].numel() < size:
            self.buffers[name] = torch.empty(size, dtype=dtype)
        return self.buffers[name][:size].view(shape)

    def gather(self, name: str, x: torch.Tensor, step: _Step, positions: torch.Tensor) -> torch.Tensor:
        """`_gather` into a buffer."""
        rows = self.take(name, (positions.numel(), x.shape[-1]), x.dtype)
        torch.index_select(x[step.sample, :, step.head], 0, positions.flatten(), out=rows)
        return rows.view(*positions.shape, -1)


class _BlockSparse(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        call: _Call,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        batch, tokens, heads, _ = query.shape
        out = torch.zeros_like(query, memory_format=torch.contiguous_format)
        wide = torch.promote_types(query.dtype, torch.float32)
        lse = torch.full((batch, tokens, heads, 1), float("-inf"), dtype=wide)
        scratch = _Scratch()
        for step in call.steps(batch, heads):
            q = _gather(query, step, step.rows)
            k = scratch.gather("key", key, step, step.keys)
            v = scratch.gather("value", value, step, step.keys)
            # PyTorch's own attention kernel, the query tiles of the step as its batch: it also returns the lse.
            part, part_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q[:, None], k[:, None], v[:, None], 0.0, False, scale=call.scale
            )
            out[step.sample, :, step.head].index_copy_(0, step.rows.flatten(), part.reshape(-1, part.shape[-1]))
            lse[step.sample, :, step.head].index_copy_(0, step.rows.flatten(), part_lse.reshape(-1, 1).to(wide))
        lse = lse.squeeze(-1).transpose(1, 2)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.call = call  # type: ignore[attr-defined]
        return out, lse

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad_out: torch.Tensor, grad_lse: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors  # type: ignore[attr-defined]
        call: _Call = ctx.call  # type: ignore[attr-defined]
        wide = torch.promote_types(query.dtype, torch.float32)
        dq, dk, dv = (torch.zeros(x.shape, dtype=wide) for x in (query, key, value))
        # The softmax's own gradient and that of the lse fold into one number a row.
        delta = (grad_out.to(wide) * out.to(wide)).sum(dim=-1, keepdim=True) - grad_lse.transpose(1, 2)[..., None]
        row_lse = lse.transpose(1, 2)[..., None]
        for step in call.steps(query.shape[0], query.shape[2]):
            q, g = (_gather(x, step, step.rows) for x in (query, grad_out))
            k, v = (_gather(x, step, step.keys) for x in (key, value))
            at, shift = (_gather(x, step, step.rows) for x in (row_lse, delta))
            weights = torch.bmm(q.to(wide) * call.scale, k.to(wide).mT).sub_(at).exp_()
            scores = torch.bmm(g.to(wide), v.to(wide).mT).sub_(shift).mul_(weights).mul_(call.scale).to(q.dtype)
            _scatter_add(dv, step, step.keys, torch.bmm(weights.to(q.dtype).mT, g))
            _scatter_add(dq, step, step.rows, torch.bmm(scores, k))
            _scatter_add(dk, step, step.keys, torch.bmm(scores.mT, q))
        return dq.to(query.dtype), dk.to(key.dtype), dv.to(value.dtype), None


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    counts: torch.Tensor,
    indices: torch.Tensor,
    layout: TileLayout,
    valid: list[int] | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Block-sparse attention on CPU tensors, differentiable in out and lse.

    Args:
        query, key, value: [B, tokens, H, head_dim], any strides; float32, bfloat16, float16 or float64.
        counts: int32 [B|1, H|1, query tiles]. indices: int32 [B|1, H|1, query tiles, W].
        valid: how many prefix and suffix tokens are real keys, for each sample; None for all.

    Returns:
        out like query, and lse float32 [B, H, tokens]; rows without keys give 0 and -inf.
        Scores and their softmax are float32; the weights take the dtype of `value` for the second product, as flash
        kernels do. For float64 inputs all is float64.
    """
    call = _Call(counts, indices, layout, valid, scale)
    result: tuple[torch.Tensor, torch.Tensor]
    result = _BlockSparse.apply(query, key, value, call)  # type: ignore[no-untyped-call]
    return result
