"""What choosing a map from the content costs, beside attention under it."""

from __future__ import annotations

import math

import torch

from on_gpu.plan import Plan, Problem
from on_gpu.speed import ONCE, by_kernels
from vidsparse import bench
from vidsparse.block_map import BlockMap
from vidsparse_kernels.selection.pooling import pooled_scores
from vidsparse_kernels.selection.rule import Rule, forced_tiles
from vidsparse_kernels.selection.select import select_tiles

VOLUME, DENSITY = 128, 0.1


def share(plan: Plan, problem: Problem) -> dict[str, float]:
    """Milliseconds of choosing, of attention under what was chosen, and the former by the latter."""
    grid, tile, device = problem.grid, plan.tiles[VOLUME], plan.device
    query, key, value = bench.inputs(grid.tokens, problem.heads, problem.head_dim, torch.bfloat16, device)
    rule = Rule("top_k", round(DENSITY * math.prod(grid.tiles(tile))))
    forced = forced_tiles(grid.view, tile, tile, reach=(1, 1, 1), sink=1).to(device)

    def select() -> tuple[torch.Tensor, torch.Tensor]:
        return select_tiles(pooled_scores(query, key, grid.view, tile, tile), rule, forced)

    with torch.no_grad():
        choosing = bench.seconds(select, device, ONCE)
        attention = by_kernels(BlockMap(grid, tile, tile, *select()))
        attending = bench.seconds(lambda: attention(query, key, value), device, ONCE)
    figures = {"selection_ms": 1000 * choosing, "attention_ms": 1000 * attending, "share": choosing / attending}
    return {name: float(f"{figure:.4g}") for name, figure in figures.items()}
