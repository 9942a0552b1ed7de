"""The rows of a whole video's map that are those of its last frames."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch

from vidsparse.block_map import BlockMap, Plan
from vidsparse.grid import VideoGrid


def of_last_frames(plan: Plan, grid: VideoGrid, key_grid: VideoGrid) -> Plan:
    """The part of a plan for a whole video that is about the queries of its last frames.

    A query tile begins at the first of these frames, where a tile of the whole video need not begin. It sees what the
    tiles of the whole video see that share a token with it: at most two, one after the other.

    Args:
        plan: of all frames of `key_grid`.
        grid: the tokens of the queries: the last frames, perhaps with another prefix and suffix.
        key_grid: the tokens of keys and values.

    Returns:
        Maps with these two grids, the same map object for the same map and grid.

    Raises:
        ValueError: the frames of `grid` are not the last ones of `key_grid`.
    """
    check_last_frames(grid, key_grid)
    if isinstance(plan, BlockMap):
        return plan.derived(("last frames", grid), partial(_of_map, plan, grid))
    return tuple(
        group._replace(
            block_map=group.block_map.derived(("last frames", grid), partial(_of_map, group.block_map, grid))
        )
        for group in plan
    )


def check_last_frames(grid: VideoGrid, key_grid: VideoGrid) -> None:
    """Refuse grids of which the first is not that of the last frames of the second.

    Raises:
        ValueError: frames of another size, or more of them.
    """
    if grid.frames > key_grid.frames or grid.view[1:] != key_grid.view[1:]:
        raise ValueError(f"the frames of {grid} must be the last ones of key_grid={key_grid}")


def _of_map(whole: BlockMap, grid: VideoGrid) -> BlockMap:
    keys, tile = cast("VideoGrid", whole.key_grid), whole.query_tile
    axis = 0
    if keys.view[1:] != grid.view[1:]:  # a map that sees the tokens as a line
        grid, axis = grid.raster, 2
    size, side = keys.view[axis], tile[axis]
    first = size - grid.view[axis] + torch.arange(grid.tiles(tile)[axis]) * side
    last = (first + side - 1).clamp(max=size - 1)
    kept = whole.to_dense().unflatten(2, keys.tiles(tile))
    before, after = ((token // side).to(kept.device) for token in (first, last))
    seen = kept.index_select(2 + axis, before) | kept.index_select(2 + axis, after)
    return BlockMap.from_dense(seen.flatten(2, 4), grid, tile, whole.key_tile, keys)
