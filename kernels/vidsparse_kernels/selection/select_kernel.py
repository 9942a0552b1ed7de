"""`select.select_tiles` in one launch: a program holds a row of scores, finds its threshold by bisection, and compacts.

Scores are compared as integers that sort like them, so thirty-two steps find the threshold exactly, without a sort.

Names, each [BLOCK], one entry per key tile of the row:
    score, rank       float32, and the int64 that sorts like it; forced tiles have the highest rank
    real, must, keep  bool: has a score above -inf or is forced; is forced; is kept
    weight            float32, the softmax of the scores
    share             what a tile counts towards `amount`: 1 for top_k, its weight for top_p
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vidsparse_kernels.selection.rule import Rule, list_width


@triton.jit
def select_kernel(
    scores,
    forced,
    counts,
    indices,
    forced_strides,
    rows,
    heads,
    tiles,
    list_width,
    amount,
    KIND: tl.constexpr,
    FORCED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (batch * heads * rows,). `forced_strides` are those of [batch, heads, rows]."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    # [BLOCK]
    score = tl.load(scores + row * tiles + i, mask=i < tiles, other=float("-inf"))
    real = score > float("-inf")
    bits = score.to(tl.int32, bitcast=True)
    rank = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    if FORCED:
        group = row // rows
        at = group // heads * forced_strides[0] + group % heads * forced_strides[1] + row % rows * forced_strides[2]
        must = tl.load(forced + at + i, mask=i < tiles, other=0) != 0
        real = real | must
        rank = tl.where(must, 0x7FFFFFFF, rank)
    highest = tl.max(score, 0)
    weight = tl.where(i < tiles, tl.exp(score - tl.where(highest == float("-inf"), 0.0, highest)), 0.0)
    weight = weight / tl.maximum(tl.sum(weight, 0), 1e-30)

    if KIND == "threshold":
        best = tl.where(real & (rank == tl.max(tl.where(real, rank, -0x80000000), 0)), i, BLOCK)
        keep = (weight >= amount) | (i == tl.min(best, 0))
    else:
        # Find the highest level such that the tiles at or above it reach `amount`, one bit after the other.
        share = tl.where(real, 1.0, 0.0) if KIND == "top_k" else tl.where(real, weight, 0.0)
        if FORCED and KIND == "top_k":
            amount = tl.maximum(amount, tl.sum(must.to(tl.float32), 0))
        level = tl.full([], -0x80000000, tl.int64)
        for bit in tl.static_range(31, -1, -1):
            higher = level + (1 << bit)
            level = tl.where(tl.sum(tl.where(rank >= higher, share, 0.0), 0) >= amount, higher, level)
        above = tl.sum(tl.where(rank > level, share, 0.0), 0)
        ties = tl.where(rank == level, share, 0.0)
        keep = (rank > level) | ((rank == level) & (above + tl.cumsum(ties, 0) - ties < amount))
    keep = keep & real
    if FORCED:
        keep = keep | must
    place = tl.cumsum(keep.to(tl.int32), 0) - 1
    tl.store(indices + row * list_width + place, i, mask=keep)
    tl.store(counts + row, tl.sum(keep.to(tl.int32), 0))


@torch.library.custom_op("vidsparse::select_tiles", mutates_args=())
def _select_tiles(
    scores: torch.Tensor, forced: torch.Tensor | None, kind: str, amount: float, list_width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads, rows, tiles = scores.shape
    counts = scores.new_empty((batch, heads, rows), dtype=torch.int32)
    indices = scores.new_empty((batch, heads, rows, list_width), dtype=torch.int32)
    steps: tuple[int, ...] = (0, 0, 0)
    if forced is not None:
        forced = forced.contiguous().view(torch.uint8).expand(scores.shape)
        steps = forced.stride()[:3]
    block = triton.next_power_of_2(tiles)
    with torch.cuda.device_of(scores):
        select_kernel[(counts.numel(),)](
            # inputs
            scores.contiguous(),
            forced,
            # outputs
            counts,
            indices,
            # geometry
            steps,
            rows,
            heads,
            tiles,
            list_width,
            # rule
            amount,
            KIND=kind,
            FORCED=forced is not None,
            BLOCK=block,
            num_warps=8 if block > 1024 else 4,
        )
    return counts, indices


@_select_tiles.register_fake
def _(scores, forced, kind, amount, list_width):
    lists = (*scores.shape[:3], list_width)
    return scores.new_empty(lists[:3], dtype=torch.int32), scores.new_empty(lists, dtype=torch.int32)


def select_tiles(
    scores: torch.Tensor, rule: Rule, forced: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `select.select_tiles`."""
    found: tuple[torch.Tensor, torch.Tensor]
    found = _select_tiles(scores, forced, rule.kind, float(rule.amount), list_width(rule, scores, forced))
    return found
