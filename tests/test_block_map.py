"""Block maps: to and from dense masks, what is undefined in them, and the text in a mask of tokens."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vidsparse import BlockMap, Dense, VideoGrid


def test_map_with_another_key_tile_and_one_map_for_each_sample_and_head() -> None:
    grid = VideoGrid(5, 7, 11)
    kept = torch.rand(2, 3, 24, 12) < 0.3
    kept[0, 1, 5] = False
    block_map = BlockMap.from_dense(kept, grid, query_tile=(2, 2, 6), key_tile=(4, 4, 4))
    assert torch.equal(block_map.to_dense(), kept)
    assert torch.equal(block_map.transpose().to_dense(), kept.mT)
    assert block_map.density == pytest.approx(kept.double().mean().item())
    assert block_map.token_density == pytest.approx(block_map.token_mask().double().mean().item())


@pytest.mark.parametrize("garbage", [0, -123456, 2**31 - 1])
def test_entries_past_the_count_mean_nothing(garbage: int) -> None:
    kept = torch.rand(7, 12) < 0.5
    kept[:, 0] = False
    block_map = BlockMap.from_dense(kept, VideoGrid(7, 4, 3), (1, 4, 3), (7, 1, 1))
    indices = block_map.indices.clone()
    past = torch.arange(indices.shape[-1]) >= block_map.counts[..., None]
    assert past.any()
    indices[past] = garbage
    changed = dataclasses.replace(block_map, indices=indices)
    assert torch.equal(changed.to_dense()[0, 0], kept)
    assert changed.token_density == block_map.token_density


def test_a_map_that_keeps_nothing() -> None:
    block_map = BlockMap.from_dense(torch.zeros(5, 5, dtype=torch.bool), VideoGrid(5, 4, 4), (1, 4, 4))
    assert block_map.indices.shape[-1] == 1
    assert not block_map.to_dense().any()
    assert block_map.density == block_map.token_density == 0


def test_token_mask_clears_the_padding_of_the_text() -> None:
    grid = VideoGrid(1, 2, 2, prefix=2, suffix=2)
    mask = Dense().plan(grid).token_mask(torch.tensor([4, 3, 1]))
    assert mask.shape == (3, 1, 8, 8)
    # Valid tokens are counted through the prefix first, then through the suffix.
    assert mask[:, 0].all(dim=1).tolist() == [
        [True] * 8,
        [True, True, True, True, True, True, True, False],
        [True, False, True, True, True, True, False, False],
    ]


@pytest.mark.parametrize(
    "kept",
    [torch.ones(4, 5, dtype=torch.bool), torch.ones(5, 5), torch.ones(1, 5, 5, dtype=torch.bool)],
    ids=["four-rows", "float", "three-dimensions"],
)
def test_from_dense_says_what_it_expects(kept: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected bool \[\.\.\., 5, 5\]"):
        BlockMap.from_dense(kept, VideoGrid(5, 4, 4), (1, 4, 4))
