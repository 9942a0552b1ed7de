"""The selection of key tiles by a score for each pair of tiles: writes the lists of a block map directly."""

from __future__ import annotations

import torch

from vidsparse_kernels.available import triton_lacks
from vidsparse_kernels.layout import lists_of
from vidsparse_kernels.selection.rule import Rule, list_width


def select_tiles(
    scores: torch.Tensor, rule: Rule, forced: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose key tiles for every row, without synchronising the device.

    Args:
        scores: float32 [B, H, rows, tiles], such as scaled products of pooled queries and pooled keys.
        rule: how many tiles a row keeps.
        forced: bool [B|1, H|1, rows, tiles], tiles to keep whatever their score.

    Returns:
        counts int32 [B, H, rows] and indices int32 [B, H, rows, W], ascending; entries past the count are undefined.
        W is `amount` for top_k without forced tiles, else `tiles`.

    Raises:
        TypeError, ValueError: scores of another dtype or rank, or `forced` of another dtype or shape.
    """
    if scores.dtype != torch.float32:
        raise TypeError(f"scores are {scores.dtype}, expected float32: lower precision makes ties")
    if scores.ndim != 4:
        raise ValueError(f"scores have shape {tuple(scores.shape)}, expected [B, H, rows, tiles]")
    if forced is not None and (forced.dtype != torch.bool or forced.ndim != 4 or not _fits(forced, scores)):
        raise ValueError(
            f"forced is {forced.dtype} {tuple(forced.shape)}, expected bool [B|1, H|1, rows, tiles] for scores "
            f"{tuple(scores.shape)}"
        )
    scores = scores.detach()
    if scores.device.type == "cuda" and triton_lacks(scores.device) is None:
        from vidsparse_kernels.selection import select_kernel

        return select_kernel.select_tiles(scores, rule, forced)
    kept = _kept(scores, rule, torch.zeros_like(scores, dtype=torch.bool) if forced is None else forced)
    counts, indices = lists_of(kept)
    return counts, indices[..., : list_width(rule, scores, forced)].contiguous()


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
