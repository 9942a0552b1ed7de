"""Which key tiles a query tile keeps, from a score for each pair: the lists of a block map, written directly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from vidsparse_kernels.available import triton_lacks
from vidsparse_kernels.tiles import Triple


@dataclass(frozen=True)
class Rule:
    """How many tiles a row keeps.

    Attributes:
        kind: "top_k": the `amount` highest. "top_p": the fewest, highest first, whose softmax weights sum up to
            `amount`. "threshold": those with a softmax weight of at least `amount`, and the highest in any case.
        amount: a whole number for top_k, a number in (0, 1] otherwise.

    Of equal scores the lower index goes first. Forced tiles rank before all others: they are always kept, and count in
    `amount`. A score of -inf is never kept unless forced.

    Raises:
        ValueError: an unknown kind or an amount out of range.
    """

    kind: Literal["top_k", "top_p", "threshold"]
    amount: float

    def __post_init__(self) -> None:
        if self.kind not in ("top_k", "top_p", "threshold"):
            raise ValueError(f"kind={self.kind!r} is unknown; choose top_k, top_p or threshold")
        if self.kind == "top_k" and (self.amount < 1 or int(self.amount) != self.amount):
            raise ValueError(f"top_k keeps a whole number of tiles of at least 1, not {self.amount}")
        if self.kind != "top_k" and not 0 < self.amount <= 1:
            raise ValueError(f"{self.kind}={self.amount} must be in (0, 1]")


@lru_cache(maxsize=64)
def forced_tiles(
    view: Triple, query_tile: Triple, key_tile: Triple, reach: Triple = (0, 0, 0), sink: int = 0
) -> torch.Tensor:
    """The tiles that a rule must keep: a query tile's own, its neighbours, and the first frames.

    Args:
        view, query_tile, key_tile: (frames, height, width) in tokens.
        reach: how many key tiles further along each axis are neighbours.
        sink: how many rows of tiles along time, from the first frame on, everybody sees.

    Returns:
        bool [1, 1, query tiles, key tiles], on the CPU, shared by all callers: do not write to it.
    """
    near = []
    for size, side, key_side, further in zip(view, query_tile, key_tile, reach, strict=True):
        first = torch.arange(0, size, side)[:, None]
        last = (first + side).clamp(max=size) - 1
        column = torch.arange(math.ceil(size / key_side))
        near.append((column >= first // key_side - further) & (column <= last // key_side + further))
    frames, height, width = near
    kept = torch.einsum("ab,cd,ef->acebdf", *(axis.to(torch.uint8) for axis in (frames, height, width))).bool()
    kept[..., :sink, :, :] = True
    return kept.flatten(3).flatten(0, 2)[None, None]


def select_tiles(
    scores: torch.Tensor, rule: Rule, forced: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose key tiles for every row. Does not wait for the device.

    Args:
        scores: float32 [B, H, rows, tiles], such as pooled queries times pooled keys, scaled.
        forced: bool [B|1, H|1, rows, tiles], tiles to keep whatever their score.

    Returns:
        counts int32 [B, H, rows] and indices int32 [B, H, rows, W], ascending; entries past the count are undefined.
        W is `amount` for top_k without forced tiles, else `tiles`.

    Raises:
        TypeError, ValueError: scores of another dtype or rank, forced of another dtype or shape.
    """
    if scores.dtype != torch.float32:
        raise TypeError(f"scores are {scores.dtype}; lower precision makes ties, which favour low indices: use float32")
    if scores.ndim != 4:
        raise ValueError(f"scores have shape {tuple(scores.shape)}, expected [B, H, rows, tiles]")
    if forced is not None and (forced.dtype != torch.bool or forced.ndim != 4 or not _fits(forced, scores)):
        raise ValueError(
            f"forced is {forced.dtype} {tuple(forced.shape)}, expected bool [B|1, H|1, rows, tiles] for scores "
            f"{tuple(scores.shape)}"
        )
    scores = scores.detach()
    if scores.device.type == "cuda" and triton_lacks(scores.device) is None:
        from vidsparse_kernels import select_kernel

        return select_kernel.select_tiles(scores, rule, forced)
    kept = _kept(scores, rule, torch.zeros_like(scores, dtype=torch.bool) if forced is None else forced)
    # A stable sort of "not kept" puts the kept columns first and leaves them in order.
    indices = (~kept).to(torch.uint8).argsort(dim=-1, stable=True).to(torch.int32)
    return kept.sum(dim=-1, dtype=torch.int32), indices[..., : width(rule, scores, forced)].contiguous()


def width(rule: Rule, scores: torch.Tensor, forced: torch.Tensor | None) -> int:
    """Entries of a list that no row exceeds."""
    tiles = scores.shape[-1]
    return min(int(rule.amount), tiles) if rule.kind == "top_k" and forced is None else tiles


def _fits(forced: torch.Tensor, scores: torch.Tensor) -> bool:
    same = forced.shape[2:] == scores.shape[2:]
    return same and all(a in (1, b) for a, b in zip(forced.shape[:2], scores.shape[:2], strict=True))


def _kept(scores: torch.Tensor, rule: Rule, forced: torch.Tensor) -> torch.Tensor:
    forced = forced.expand_as(scores)
    candidates = forced | (scores > float("-inf"))
    ranked = torch.where(forced, float("inf"), scores)
    order = ranked.argsort(dim=-1, descending=True, stable=True)
    weights = scores.softmax(dim=-1).nan_to_num(0.0)  # a row of -inf alone has no weights
    if rule.kind == "threshold":
        kept = weights >= rule.amount
        kept = kept.scatter(-1, order[..., :1], True)
    elif rule.kind == "top_k":
        number = forced.sum(dim=-1, keepdim=True).clamp(min=int(rule.amount))
        first = torch.arange(scores.shape[-1], device=scores.device) < number
        kept = torch.zeros_like(forced).scatter(-1, order, first)
    else:
        ordered = weights.gather(-1, order)
        before = ordered.cumsum(dim=-1) - ordered
        kept = torch.zeros_like(forced).scatter(-1, order, before < rule.amount)
    return candidates & (kept | forced)
