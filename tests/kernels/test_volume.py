"""Tiles that hold some voxels of their box: every token once, and the same runs for kernels of other packages."""

from __future__ import annotations

import pytest
import torch

from tests.support.blocks import listed
from tests.support.provided import lists
from vidsparse_kernels.layout import TileLayout, Tiling
from vidsparse_kernels.providers.runs import Order, Runs
from vidsparse_kernels.reference import token_mask
from vidsparse_kernels.volume import VolumeTiling

OWNER = torch.tensor([2, 0, 0, 1, 2, 2, 0])
TILE = (1, 2, 2)


def tiling(owner: torch.Tensor = OWNER, prefix: int = 2, suffix: int = 3) -> VolumeTiling:
    return VolumeTiling((1, 1, len(owner)), TILE, prefix, suffix, owner=owner)


def test_tiles_hold_each_token_once() -> None:
    side = tiling()
    assert [x.tolist() for x in side.tile_tokens] == [[3, 4, 8], [5], [2, 6, 7]]
    assert side.tiles == 3 and side.tile_sizes().tolist() == [3, 1, 3] and side.tile_of_token is OWNER
    assert (side.tokens, side.video_tokens, side.volume) == (12, 7, 4)
    assert side.extra_tokens.tolist() == [0, 1, 9, 10, 11]
    assert side.ragged and not side.boxes and Tiling((1, 1, 7), TILE).boxes


def test_sizes_are_kept_for_each_device_and_serve_a_training() -> None:
    side = tiling()
    with torch.inference_mode():
        sizes, meta, tokens = side.tile_sizes(), side.tile_sizes(torch.device("meta")), side.tile_tokens[0]
    assert side.tile_sizes() is sizes and side.tile_sizes(torch.device("meta")) is meta and meta.is_meta
    weight = torch.ones(12, requires_grad=True)
    ((weight[:3] * sizes).sum() + weight[tokens].square().sum()).backward()


@pytest.mark.parametrize("side", [tiling(), tiling(torch.zeros(4, dtype=torch.int64), 0, 0)], ids=["some", "whole"])
def test_the_map_over_runs_is_that_over_tokens(side: VolumeTiling) -> None:
    case = TileLayout(side, side)
    kept, counts, indices = lists(case)
    runs, order = Runs.of(counts, indices, case), Order.of(side, torch.device("cpu"))
    x = torch.arange(side.tokens).view(1, -1, 1)
    assert torch.equal(order.scatter(order.gather(x)), x)
    assert order.full == (side.video_tokens == 4)
    rows = order.row_of_token // order.length
    dense = listed(runs.counts, runs.indices, len(runs.key.sizes))
    assert torch.equal(dense[:, :, rows][..., rows], token_mask(kept, case))
