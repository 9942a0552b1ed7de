"""SpatialTemporal: which heads are told apart, what the two masks keep, and how they share out a batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from vidsparse.attention import sparse_attention
from vidsparse.block_map import BlockMap, HeadGroup
from vidsparse.grid import VideoGrid
from vidsparse.patterns.base import Context
from vidsparse.patterns.dense import Dense
from vidsparse.patterns.spatial_temporal import SpatialTemporal, _errors, _sampled

GRIDS = {
    "9x16x16": VideoGrid(9, 16, 16),
    "5x7x11": VideoGrid(5, 7, 11),
    "1x16x16": VideoGrid(1, 16, 16),
    "7x1x1": VideoGrid(7, 1, 1),
    "3+3x5x2+5": VideoGrid(3, 5, 2, prefix=3, suffix=5),
    "17x9x12+7": VideoGrid(17, 9, 12, suffix=7),
}
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)


def planted(grid: VideoGrid, kinds: str) -> torch.Tensor:
    """Queries, or keys, of heads that look at their own frame ("s") or place ("t"): [1, tokens, heads, 32]."""
    token, area = torch.arange(grid.video_tokens), grid.height * grid.width
    code = {"s": torch.randn(grid.frames, 32)[token // area], "t": torch.randn(area, 32)[token % area]}
    heads = torch.stack([6 * torch.nn.functional.normalize(code[kind], dim=-1) for kind in kinds], dim=1)
    return torch.nn.functional.pad(heads, (0, 0, 0, 0, grid.prefix, grid.suffix))[None]


def groups(
    pattern: SpatialTemporal, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, value: torch.Tensor | None = None
) -> dict[str, HeadGroup]:
    value = torch.randn(query.shape).to(query.dtype) if value is None else value
    plan = pattern.select(query, key, grid, Context(heads=query.shape[2], value=value))
    assert isinstance(plan, tuple)
    return dict(zip("st", plan, strict=True))


@pytest.mark.parametrize("name", ["9x16x16", "17x9x12+7"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_planted_heads_are_told_apart(name: str, dtype: torch.dtype) -> None:
    grid = GRIDS[name]
    content = planted(grid, "sttst").to(dtype)
    found = groups(SpatialTemporal(), content, content, grid)
    assert (found["s"].heads, found["t"].heads) == ((0, 3), (1, 2, 4))
    assert found["s"].block_map.query_tile[0] == 1
    assert found["t"].block_map.query_tile[0] >= max(found["t"].block_map.query_tile[1:])


@pytest.mark.parametrize("kind", ["s", "t"])
def test_heads_of_one_kind_share_one_map(kind: str) -> None:
    grid = GRIDS["9x16x16"]
    content, both = planted(grid, kind * 3), planted(grid, "st")
    plan = SpatialTemporal().select(content, content, grid, Context(heads=3, value=torch.randn(content.shape)))
    assert plan is groups(SpatialTemporal(), both, both, grid)[kind].block_map


@pytest.mark.parametrize("name", ["9x16x16", "5x7x11", "17x9x12+7"])
def test_classes_are_those_of_the_smaller_error_under_the_masks(name: str) -> None:
    grid, heads = GRIDS[name], 12
    query, key, value = (3 * torch.randn(2, grid.tokens, heads, 8) for _ in range(3))
    pattern = SpatialTemporal(density=0.3, rows=7)
    found = groups(pattern, query, key, grid, value)
    rows = torch.linspace(0, grid.video_tokens - 1, 7, dtype=torch.float64).round().long() + grid.prefix
    dense = sparse_attention(query, key, value, Dense().plan(grid), impl="reference")
    errors = {
        kind: (sparse_attention(query, key, value, group.block_map, impl="reference") - dense)[:, rows].square()
        for kind, group in found.items()
    }
    temporal = errors["t"].sum(dim=(0, 1, 3)) < errors["s"].sum(dim=(0, 1, 3))
    assert found["t"].heads == tuple(temporal.nonzero().flatten().tolist())
    assert sorted(found["s"].heads + found["t"].heads) == list(range(heads))


def test_errors_are_float32_whatever_the_default_is() -> None:
    grid, pattern = GRIDS["9x16x16"], SpatialTemporal(density=0.3)
    query, key, value = (3 * torch.randn(1, grid.tokens, 2, 8) for _ in range(3))
    sampled = _sampled(pattern, grid, query.device)
    expected = _errors(query, key, value, *sampled, None)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = _errors(query, key, value, *sampled, None)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_text_that_is_not_real_decides_nothing() -> None:
    grid, heads = GRIDS["17x9x12+7"], 12
    query, key, value = (3 * torch.randn(2, grid.tokens, heads, 8) for _ in range(3))
    context = Context(heads=heads, value=value, extra_valid=torch.tensor([3, 0]))
    pattern = SpatialTemporal(density=0.3, rows=7)

    def heads_of_each() -> list[tuple[int, ...]]:
        plan = pattern.select(query, key, grid, context)
        assert isinstance(plan, tuple)
        return [group.heads for group in plan]

    before = heads_of_each()
    for x in (key, value):
        x[0, -4:] += 20 * torch.randn(4, heads, 8)
        x[1, -7:] += 20 * torch.randn(7, heads, 8)
    assert heads_of_each() == before
    context = replace(context, extra_valid=None)
    assert heads_of_each() != before


def test_without_values_it_says_what_it_needs() -> None:
    content = torch.randn(1, 7, 1, 4)
    with pytest.raises(ValueError, match=r"give the values of the call, Context\(value="):
        SpatialTemporal().select(content, content, GRIDS["7x1x1"], Context())


def test_a_batch_agrees_on_the_class_that_is_clearer() -> None:
    grid = GRIDS["9x16x16"]
    clear, faint = planted(grid, "st"), planted(grid, "ts") / 3
    for content in (torch.cat((clear, faint)), torch.cat((faint, clear))):
        found = groups(SpatialTemporal(), content, content, grid)
        assert (found["s"].heads, found["t"].heads) == ((0,), (1,))


@every_grid
@pytest.mark.parametrize("density", [0.001, 0.1, 0.25, 0.6, 1.0])
@pytest.mark.parametrize("sink", [True, False], ids=["sink", "nosink"])
def test_rows_of_both_masks_hold_the_density_and_their_own_tile(grid: VideoGrid, density: float, sink: bool) -> None:
    for block_map in maps(SpatialTemporal(density, sink=sink), grid).values():
        assert (block_map.counts == max(1, round(density * block_map.key_tiles))).all()
        assert block_map.to_dense().diagonal(dim1=-2, dim2=-1).all()
        assert block_map.grid == grid


def maps(pattern: SpatialTemporal, grid: VideoGrid) -> dict[str, BlockMap]:
    """The maps of both kinds, also on grids where no content tells them apart."""
    from vidsparse.patterns import spatial_temporal as module

    return {"s": module._spatial(pattern, grid), "t": module._temporal(pattern, grid)}


@every_grid
@pytest.mark.parametrize("sink", [True, False], ids=["sink", "nosink"])
def test_explicit_widths_against_a_brute_force(grid: VideoGrid, sink: bool) -> None:
    found = maps(SpatialTemporal(None, frames=2, radius=6, sink=sink), grid)
    place = torch.cartesian_prod(*(torch.arange(n) for n in grid.view))
    video = slice(grid.prefix, grid.prefix + grid.video_tokens)
    for kind, block_map in found.items():
        corner = place // torch.tensor(block_map.query_tile) * torch.tensor(block_map.query_tile)
        apart = (corner[:, None] - corner).abs()
        if kind == "s":
            expected = (apart[..., 0] <= 2) | ((corner[:, 0] == 0) & sink)
        else:
            expected = apart[..., 1] ** 2 + apart[..., 2] ** 2 <= 36
        assert torch.equal(block_map.token_mask()[0, 0, video, video], expected)


def test_spatial_tiles_come_frame_by_frame_and_temporal_ones_place_by_place() -> None:
    grid = VideoGrid(9, 16, 16)  # spatial tiles (1, 8, 8): 9 x 4 of them; temporal (4, 4, 4): 3 x 16
    middle = 4 * 4  # the first tile of frame 4
    for density, frames in ((4 / 36, [4]), (8 / 36, [0, 4]), (16 / 36, [0, 3, 4, 5])):
        row = maps(SpatialTemporal(density), grid)["s"].to_dense()[0, 0, middle]
        assert row.view(9, 4).all(dim=1).nonzero().flatten().tolist() == frames
    row = maps(SpatialTemporal(9 / 48), grid)["t"].to_dense()[0, 0, 16]
    assert row.view(3, 16).all(dim=0).nonzero().flatten().tolist() == [0, 1, 4]


@every_grid
@pytest.mark.parametrize("heads", [1, 3])
def test_plan_is_what_zeros_get(grid: VideoGrid, heads: int) -> None:
    pattern, zeros = SpatialTemporal(), torch.zeros(2, grid.tokens, heads, 4)
    plan = pattern.plan(grid, Context(heads=heads))
    assert isinstance(plan, BlockMap) and plan.counts.min() >= 1
    assert pattern.select(zeros, zeros, grid, Context(heads=heads, value=zeros)) is plan


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"density": None}, "density=None, frames=None, radius=None: give a density alone, or both widths"),
        ({"density": None, "frames": 2}, "frames=2, radius=None: give a density alone"),
        ({"frames": 2, "radius": 8.0}, r"density=0\.25, frames=2, radius=8\.0: give a density alone"),
        ({"density": 0.0}, r"density=0\.0 must be in \(0, 1\]"),
        ({"density": None, "frames": -1, "radius": 8}, "frames=-1 must be a whole number of at least 0, or None"),
        ({"density": None, "frames": 1, "radius": -0.5}, r"radius=-0\.5 must be a finite number"),
        ({"density": None, "frames": 1, "radius": float("nan")}, "radius=nan must be a finite number"),
        ({"rows": 0}, "rows=0 must be a whole number of at least 1"),
    ],
    ids=str,
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpatialTemporal(**arguments)
