"""The scores of a learned gate: by hand, by brute force, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from gates import random_weights

from vidsparse import TopBlocks, VideoGrid
from vidsparse.patterns.gate_weights import GateWeights, Pooled
from vidsparse_kernels.layout import tile_tokens
from vidsparse_kernels.selection.pooling import tile_extremes


def test_a_score_by_hand() -> None:
    """One head of one channel, frames of three tokens in tiles of two: the second tile of a row is ragged."""
    grid, tile = VideoGrid(1, 1, 3), (1, 1, 2)
    query, key = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([2.0, 6.0, 7.0])
    pooled = Pooled.of(query.reshape(1, 3, 1, 1), key.reshape(1, 3, 1, 1), grid, tile)
    assert pooled.query.flatten().tolist() == [2, 5]
    assert pooled.key.reshape(2, 3).tolist() == [[4, 6, 2], [7, 7, 7]]  # mean, largest, least
    weights = GateWeights(torch.tensor([[[10.0]]]), torch.tensor([[[1.0, 2.0, -1.0]]]))
    # Keys: 4 + 12 - 2 = 14 and 7 + 14 - 7 = 14; queries: 20 and 50.
    expected = torch.tensor([[280 + math.log(2), 280.0], [700 + math.log(2), 700.0]])
    torch.testing.assert_close(weights.scores(pooled)[0, 0], expected)


@pytest.mark.parametrize("grid", [VideoGrid(3, 5, 7), VideoGrid(1, 4, 4, 2, 3), VideoGrid(5, 3, 2, 0, 1)])
def test_extremes_are_those_of_each_tile(grid: VideoGrid) -> None:
    x, tile = torch.randn(2, grid.tokens, 3, 4), (2, 2, 4)
    largest, least = tile_extremes(x, grid.view, tile, grid.prefix)
    for index, tokens in enumerate(tile_tokens(grid.view, tile, grid.prefix)):
        assert torch.equal(largest[:, :, index], x[:, tokens].amax(dim=1))
        assert torch.equal(least[:, :, index], x[:, tokens].amin(dim=1))
    assert largest.shape == least.shape == (2, 3, math.prod(grid.tiles(tile)), 4)


def test_an_untrained_gate_scores_as_means_do() -> None:
    grid, tile = VideoGrid(3, 5, 7, 1, 2), (2, 2, 4)
    query, key = torch.randn(2, 2, grid.tokens, 3, 8)
    pooled = Pooled.of(query, key, grid, tile)
    means = TopBlocks(density=0.5)._scores(query, key, grid.tiling(tile)) + pooled.log_sizes
    torch.testing.assert_close(GateWeights.untrained(3, 8).scores(pooled), means)


def test_gradients_of_the_weights() -> None:
    grid, (query, key) = VideoGrid(2, 3, 3), torch.randn(2, 2, 18, 2, 3)
    pooled = Pooled(*(x.double() for x in Pooled.of(query, key, grid, (1, 2, 2))))
    weights = [x.double().requires_grad_() for x in random_weights(2, 3)]
    assert torch.autograd.gradcheck(lambda q, k: GateWeights(q, k).scores(pooled).log_softmax(dim=-1), weights)


def test_heads_are_chosen_in_their_order() -> None:
    weights = random_weights(3, 4)
    some = weights.of_heads(torch.tensor([2, 0]))
    assert torch.equal(some.query, weights.query[[2, 0]]) and torch.equal(some.key, weights.key[[2, 0]])
