"""`TopBlocks` against scores computed token by token, and against what its amounts promise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from vidsparse import Context, VideoGrid
from vidsparse.patterns.top_blocks import TopBlocks
from vidsparse_kernels.layout import tile_tokens
from vidsparse_kernels.selection.pooling import pooled_scores
from vidsparse_kernels.selection.rule import forced_tiles

TILE = (2, 2, 4)
GRIDS = {
    "8x8x8": VideoGrid(8, 8, 8),
    "5x7x11": VideoGrid(5, 7, 11),
    "1x9x16": VideoGrid(1, 9, 16),
    "3+4x5x6+5": VideoGrid(4, 5, 6, prefix=3, suffix=5),
}
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
AMOUNTS: dict[str, dict[str, Any]] = {
    "density0.3": {"density": 0.3},
    "top_k3": {"top_k": 3},
    "top_p0.6": {"top_p": 0.6},
    "threshold0.05": {"threshold": 0.05},
}
every_amount = pytest.mark.parametrize("amount", AMOUNTS.values(), ids=AMOUNTS)


def content(grid: VideoGrid, batch: int = 2, heads: int = 3, head_dim: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys of different lengths, so that attention is far from uniform."""
    query, key = torch.randn(2, batch, grid.tokens, heads, head_dim) * torch.rand(2, 1, grid.tokens, heads, 1) * 4
    return query, key


def shares(query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, variance: bool) -> torch.Tensor:
    """The estimated share of each tile, from the tokens of each: float64 [B, H, tiles, tiles]."""
    q, k = (x.double().transpose(1, 2) for x in (query, key))
    scale, tiles = q.shape[-1] ** -0.5, tile_tokens(grid.view, TILE, grid.prefix)
    columns = []
    for tokens in tiles:
        mean, spread = k[:, :, tokens].mean(dim=2), k[:, :, tokens].var(dim=2, correction=0)
        mass = math.log(len(tokens)) + scale * torch.einsum("bhnd,bhd->bhn", q, mean)
        if variance:
            mass = mass + scale**2 / 2 * torch.einsum("bhnd,bhd->bhn", q.square(), spread)
        columns.append(torch.stack([mass[:, :, queries].mean(dim=2) for queries in tiles], dim=-1))
    return torch.stack(columns, dim=-1).softmax(dim=-1)


def expected(share: torch.Tensor, amount: dict[str, Any], forced: torch.Tensor) -> torch.Tensor:
    """The rules by their definition, row by row."""
    kept = torch.zeros(share.shape, dtype=torch.bool)
    ((name, value),) = amount.items()
    for b, h, row in torch.cartesian_prod(*(torch.arange(n) for n in share.shape[:3])).tolist():
        weights, must = share[b, h, row].tolist(), forced[row].tolist()
        order = sorted(range(len(weights)), key=lambda i: (-must[i], -weights[i]))
        if name in ("density", "top_k"):
            number = value if name == "top_k" else max(1, round(value * len(weights)))
            chosen = order[: max(number, sum(must))]
        elif name == "top_p":
            chosen = [i for place, i in enumerate(order) if sum(weights[j] for j in order[:place]) < value or must[i]]
        else:
            chosen = [i for i in order if weights[i] >= value or must[i] or i == order[0]]
        kept[b, h, row, chosen] = True
    return kept


@every_grid
@every_amount
@pytest.mark.parametrize("shared", [False, True], ids=["each-head", "shared"])
@pytest.mark.parametrize("variance", [False, True], ids=["means", "variance"])
def test_against_scores_token_by_token(grid: VideoGrid, amount: dict[str, Any], shared: bool, variance: bool) -> None:
    query, key = content(grid)
    pattern = TopBlocks(**amount, shared_heads=shared, neighbours=(0, 1, 0), sink=1, variance=variance, tile=TILE)
    share = shares(query, key, grid, variance)
    share = share.mean(dim=1, keepdim=True) if shared else share
    forced = forced_tiles(grid.view, TILE, TILE, (0, 1, 0), 1)[0, 0]
    block_map = pattern.select(query, key, grid, Context())
    assert torch.equal(block_map.to_dense(), expected(share, amount, forced))
    assert block_map.counts.dtype == block_map.indices.dtype == torch.int32
    assert block_map.indices.shape[-1] == block_map.counts.max() and block_map.indices.is_contiguous()


def test_on_whole_tiles_the_order_is_that_of_pooled_scores() -> None:
    grid = GRIDS["8x8x8"]
    query, key = content(grid)
    best = pooled_scores(query, key, grid.view, TILE, TILE).argmax(dim=-1, keepdim=True)
    kept = TopBlocks(top_k=2, tile=TILE).select(query, key, grid, Context()).to_dense()
    assert kept.gather(-1, best).all()


@every_grid
@pytest.mark.parametrize("amount", [{"density": 1.0}, {"top_k": 999}, {"threshold": 1e-30}], ids=str)
def test_the_largest_amount_keeps_all(grid: VideoGrid, amount: dict[str, Any]) -> None:
    block_map = TopBlocks(**amount, tile=TILE).select(*content(grid), grid, Context())
    assert block_map.density == block_map.token_density == 1


@every_grid
def test_the_smallest_amount_keeps_the_own_tile(grid: VideoGrid) -> None:
    block_map = TopBlocks(density=1e-9, tile=TILE).select(*content(grid), grid, Context())
    assert torch.equal(block_map.to_dense()[0, 0], torch.eye(block_map.key_tiles, dtype=torch.bool))


@every_grid
@every_amount
def test_a_plan_is_the_answer_to_zeros(grid: VideoGrid, amount: dict[str, Any]) -> None:
    pattern = TopBlocks(**amount, tile=TILE)
    zeros = torch.zeros(1, grid.tokens, 3, 8)
    planned = pattern.plan(grid, Context(heads=3))
    assert torch.equal(planned.to_dense(), pattern.select(zeros, zeros, grid, Context()).to_dense())  # type: ignore[union-attr]


def test_a_sink_of_part_of_a_tile_is_the_whole_tile() -> None:
    grid = GRIDS["8x8x8"]
    kept = TopBlocks(top_k=1, sink=3, tile=TILE).select(*content(grid), grid, Context()).to_dense()
    assert torch.equal(kept[0, 0, -1].nonzero().flatten(), torch.tensor([*range(16), 31]))


def test_variance_finds_the_tile_where_few_keys_match() -> None:
    grid, tile = VideoGrid(1, 1, 12), (1, 1, 4)
    query, key = torch.zeros(2, 1, 12, 1, 4)
    query[:, :4] = 3.0
    key[:, 4:8] = 0.5  # all keys match a little
    key[:, 8:12:2], key[:, 9:12:2] = 4.0, -4.0  # half of them match well, and the mean is zero
    for variance, found in ((False, 1), (True, 2)):
        block_map = TopBlocks(top_k=2, variance=variance, tile=tile).select(query, key, grid, Context())
        assert block_map.indices[0, 0, 0].tolist() == [0, found]


def test_shared_heads_do_not_lose_tiles_whose_shares_vanish() -> None:
    grid = GRIDS["8x8x8"]
    query, key = content(grid)
    counts = TopBlocks(top_k=9, shared_heads=True, tile=TILE).select(100 * query, key, grid, Context()).counts
    assert counts.shape == (2, 1, 32) and (counts == 9).all()


def test_no_gradient_and_low_precision() -> None:
    grid = GRIDS["5x7x11"]
    query, key = (x.bfloat16().requires_grad_() for x in content(grid))
    pattern = TopBlocks(top_p=0.5, variance=True, tile=TILE)
    found = pattern.select(query, key, grid, Context())
    assert not found.counts.requires_grad
    exact = pattern.select(query.float(), key.float(), grid, Context())
    assert torch.equal(found.to_dense(), exact.to_dense())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"give one of density, top_k, top_p, threshold, such as TopBlocks\(density=0\.2\), not none"),
        ({"density": 0.2, "top_p": 0.9}, r"not density=0\.2 and top_p=0\.9"),
        ({"density": 0.0}, r"density=0\.0 must be in \(0, 1\]"),
        ({"density": 1.1}, r"density=1\.1 must be in"),
        ({"top_k": 0}, "top_k=0 must be a whole number of at least 1"),
        ({"top_k": 2.5}, r"top_k=2\.5 must be a whole number of at least 1"),
        ({"top_p": 0.0}, r"top_p=0\.0 must be in \(0, 1\]"),
        ({"threshold": 1.5}, r"threshold=1\.5 must be in \(0, 1\]"),
        ({"top_k": 1, "neighbours": (1, 1)}, r"neighbours=\(1, 1\) must be a tuple of three"),
        ({"top_k": 1, "neighbours": (0, -1, 0)}, r"neighbours=\(0, -1, 0\) must be"),
        ({"top_k": 1, "sink": -1}, "sink=-1 must be a whole number of at least 0"),
        ({"top_k": 1, "tile": (0, 8, 8)}, r"tile=\(0, 8, 8\) must be"),
    ],
    ids=str,
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TopBlocks(**arguments)
