"""Rules for tokens of each axis, widened to tiles, against the pairs of tokens themselves."""

from __future__ import annotations

import pytest
import torch

from vidsparse import VideoGrid
from vidsparse.grid import Tile
from vidsparse.patterns.axes import Rule, pairs, widened_map


@pytest.mark.parametrize("tile", [(1, 1, 1), (1, 2, 4), (2, 4, 1), (4, 8, 8)], ids=str)
@pytest.mark.parametrize("view", [(3, 5, 7), (1, 8, 8), (4, 1, 3)], ids=str)
def test_a_pair_of_tiles_is_kept_if_a_pair_of_tokens_is(view: Tile, tile: Tile) -> None:
    generator = torch.Generator().manual_seed(0)
    t, h, w = (torch.rand(n, n, generator=generator) < 0.3 for n in view)
    t, h, w = (axis | torch.eye(len(axis), dtype=torch.bool) for axis in (t, h, w))
    rule: Rule = (t, h, w)
    block_map = widened_map(rule, VideoGrid(*view), tile)
    tokens = torch.einsum("ad,be,cf->abcdef", t.double(), h.double(), w.double()).flatten(0, 2).flatten(1)
    owner = torch.nn.functional.one_hot(block_map.query_tile_of_token).double()
    expected = owner.T @ tokens @ owner > 0
    assert torch.equal(block_map.to_dense()[0, 0], expected)
    assert pairs(rule, tile) == int(expected.sum())
