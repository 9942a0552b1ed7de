"""The rule of a selection: how many tiles each row keeps, and which tiles it keeps whatever their score."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from vidsparse_kernels.layout import Triple


@dataclass(frozen=True)
class Rule:
    """How many tiles a row keeps.

    Attributes:
        kind: "top_k": the `amount` highest. "top_p": the fewest, highest first, whose softmax weights add up to
            `amount`. "threshold": those with a softmax weight of at least `amount`, and the highest in any case.
        amount: a whole number for top_k, a number in (0, 1] otherwise.

    Of equal scores the one with the lower index ranks first. Forced tiles rank before all others: they are always kept,
    and count towards `amount`. A tile with a score of -inf is kept only if it is forced.

    Raises:
        ValueError: an unknown kind or an amount out of range.
    """

    kind: Literal["top_k", "top_p", "threshold"]
    amount: float

    def __post_init__(self) -> None:
        if self.kind not in ("top_k", "top_p", "threshold"):
            raise ValueError(f"kind={self.kind!r} is unknown; choose top_k, top_p or threshold")
        if self.kind == "top_k" and (self.amount < 1 or int(self.amount) != self.amount):
            raise ValueError(f"top_k={self.amount} must be a whole number of at least 1")
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
        sink: how many tiles along time, from the first frame on, all queries see.

    Returns:
        bool [1, 1, query tiles, key tiles] on the CPU, shared by all callers: do not write to it.
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


def list_width(rule: Rule, scores: torch.Tensor, forced: torch.Tensor | None) -> int:
    """The number of entries that no list exceeds."""
    tiles = scores.shape[-1]
    return min(int(rule.amount), tiles) if rule.kind == "top_k" and forced is None else tiles
