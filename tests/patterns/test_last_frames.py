"""Maps of the last frames: the rows of the map of all frames."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from vidsparse import (
    BlockMap,
    Context,
    Dense,
    Gridded,
    InwardWindow,
    LightForcing,
    Pattern,
    PerHead,
    PowerOfTwo,
    Radial,
    RadialRaster,
    Reuse,
    ShiftedWindows,
    SlidingTile,
    StepSchedule,
    VideoGrid,
    sparse_attention,
)
from vidsparse.block_map import HeadGroup, head_groups
from vidsparse.patterns.last_frames import of_last_frames
from vidsparse.patterns.reuse import sampled_recall

KEYS = VideoGrid(7, 3, 5, prefix=2, suffix=4)


def whole(tile: tuple[int, int, int], keys: VideoGrid = KEYS) -> BlockMap:
    tiles = math.prod(keys.tiles(tile))
    torch.manual_seed(3)
    kept = torch.rand(2, 2, tiles, tiles) < 0.3
    return BlockMap.from_dense(kept | torch.eye(tiles, dtype=torch.bool), keys, tile)


@pytest.mark.parametrize("frames", range(1, 8))
@pytest.mark.parametrize("tile", [(1, 2, 2), (2, 2, 4), (3, 1, 2), (8, 2, 2)])
def test_a_query_tile_sees_what_the_tiles_see_that_share_a_token_with_it(
    tile: tuple[int, int, int], frames: int
) -> None:
    grid, block_map = VideoGrid(frames, 3, 5, suffix=1), whole(tile)
    found = of_last_frames(block_map, grid, KEYS)
    assert isinstance(found, BlockMap) and (found.query_grid, found.key_grid) == (grid, KEYS)
    of_old = block_map.query_tile_of_token.view(KEYS.view)[-frames:].flatten()
    of_new = found.query_tile_of_token
    for row in range(found.counts.shape[-1]):
        sharing = of_old[of_new == row].unique()
        assert torch.equal(found.to_dense()[:, :, row], block_map.to_dense()[:, :, sharing].any(dim=2))


def test_frames_that_begin_with_a_tile_have_its_very_rows() -> None:
    found = of_last_frames(whole((2, 2, 2)), VideoGrid(3, 3, 5), KEYS)
    assert isinstance(found, BlockMap)
    assert torch.equal(found.to_dense(), whole((2, 2, 2)).to_dense()[:, :, 2 * 2 * 3 :])


def test_a_line_in_raster_order() -> None:
    grid, pattern = VideoGrid(2, 3, 5), PowerOfTwo(raster=True, tile=(1, 1, 8))
    plan = pattern.plan(KEYS)
    found = of_last_frames(plan, grid, KEYS)
    assert isinstance(found, BlockMap) and isinstance(plan, BlockMap)
    assert (found.query_grid, found.key_grid) == (grid.raster, KEYS.raster)
    sharing = plan.query_tile_of_token[-30:]
    for row in range(4):
        rows = sharing[found.query_tile_of_token == row].unique()
        assert torch.equal(found.to_dense()[:, :, row], plan.to_dense()[:, :, rows].any(dim=2))


def test_one_map_object_for_the_same_map_and_grid() -> None:
    block_map, grid = whole((2, 2, 2)), VideoGrid(3, 3, 5)
    assert of_last_frames(block_map, grid, KEYS) is of_last_frames(block_map, VideoGrid(3, 3, 5), KEYS)
    groups = (HeadGroup((1,), block_map, "mean"), HeadGroup((0,), whole((1, 2, 2))))
    found = of_last_frames(groups, grid, KEYS)
    assert isinstance(found, tuple)
    assert [(group.heads, group.empty, group.block_map.query_tile) for group in found] == [
        ((1,), "mean", (2, 2, 2)),
        ((0,), "zero", (1, 2, 2)),
    ]


@pytest.mark.parametrize("grid", [VideoGrid(8, 3, 5), VideoGrid(2, 3, 4)])
def test_frames_that_are_not_the_last_ones_are_refused(grid: VideoGrid) -> None:
    with pytest.raises(ValueError, match=r"must be the last ones of key_grid=VideoGrid\(frames=7") as caught:
        of_last_frames(whole((2, 2, 2)), grid, KEYS)
    assert str(grid) in str(caught.value)


# In patterns

GRID = VideoGrid(2, 3, 5, suffix=4)
CONTEXT = Context(heads=2, key_grid=KEYS)
RADIAL, LIGHT = Radial(density=0.3, tile=(1, 2, 2)), LightForcing(0.4, frames=8, chunk=2, tile=(1, 2, 2))


def operands() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(4)
    return torch.randn(1, GRID.tokens, 2, 8), torch.randn(1, KEYS.tokens, 2, 8)


def test_a_pattern_of_shapes_takes_the_rows_of_its_plan_through_all_that_hold_it() -> None:
    expected = of_last_frames(RADIAL.plan(KEYS), GRID, KEYS)
    assert RADIAL.select(*operands(), GRID, CONTEXT) is expected
    assert StepSchedule(RADIAL, dense_steps=1).select(*operands(), GRID, CONTEXT) is expected
    ((heads, block_map, _),) = head_groups(PerHead((RADIAL,), (0, 0)).select(*operands(), GRID, CONTEXT), 2)
    assert heads == (0, 1) and torch.equal(
        block_map.to_dense().expand(-1, 2, -1, -1),
        head_groups(expected, 2)[0].block_map.to_dense().expand(-1, 2, -1, -1),
    )


SHAPES = (
    RADIAL,
    RadialRaster(),
    SlidingTile(window=(3, 3, 3), tile=(1, 2, 2)),
    ShiftedWindows(window=(2, 2, 4)),
    InwardWindow(scale=2.0),
    Gridded(),
    PowerOfTwo(tile=(2, 2, 2)),
    Dense(),
)


@pytest.mark.parametrize("pattern", SHAPES, ids=lambda pattern: type(pattern).__name__)
def test_every_pattern_of_shapes_attends_to_kept_frames(pattern: Pattern) -> None:
    query, key = operands()
    for group in head_groups(pattern.select(query, key, GRID, CONTEXT), 2):
        block_map = group.block_map
        assert (block_map.query_grid, block_map.key_grid) in ((GRID, KEYS), (GRID.raster, KEYS.raster))
        heads = list(group.heads)
        out = sparse_attention(query[:, :, heads], key[:, :, heads], key[:, :, heads], block_map, impl="cpu")
        expected = torch.nn.functional.scaled_dot_product_attention(
            *(x[:, :, heads].transpose(1, 2) for x in (query, key, key)), block_map.token_mask()
        )
        torch.testing.assert_close(out.transpose(1, 2), expected, rtol=1e-4, atol=1e-5)


def test_heads_that_choose_by_content_beside_dense_ones() -> None:
    plan = PerHead((LIGHT, Dense()), (0, 1)).select(*operands(), GRID, CONTEXT)
    dense = {
        head: group.block_map.to_dense()[:, group.heads.index(head)]
        for group in head_groups(plan, 2)
        for head in group.heads
    }
    assert dense[1].all() and not dense[0].all()
    assert all((group.block_map.query_grid, group.block_map.key_grid) == (GRID, KEYS) for group in head_groups(plan, 2))


def test_a_kept_map_is_for_the_frames_that_it_was_chosen_for() -> None:
    pattern, (query, key) = Reuse(LIGHT), operands()
    first = pattern.select(query, key, GRID, CONTEXT)
    assert pattern.select(query, key, GRID, replace(CONTEXT, step=1)) is first
    fewer = VideoGrid(5, 3, 5, prefix=2, suffix=4)
    shorter = torch.cat((key[:, :2], key[:, 32:]), dim=1)
    found = pattern.select(query, shorter, GRID, replace(CONTEXT, step=1, key_grid=fewer))
    assert isinstance(found, BlockMap) and found.key_grid == fewer


def test_recall_of_a_map_with_two_grids() -> None:
    query, key = operands()
    plan = LIGHT.select(query, key, GRID, CONTEXT)
    assert isinstance(plan, BlockMap)
    found = sampled_recall(query, key, plan, samples=500)
    shares = (query.transpose(1, 2)[:, :, :30] @ key.transpose(1, 2)[:, :, 2:-4].mT * 8**-0.5).softmax(dim=-1)
    kept = plan.token_mask()[:, :, :30, 2:-4]
    assert float(found) == pytest.approx(float((shares * kept).sum(dim=-1).mean()), abs=0.02)
