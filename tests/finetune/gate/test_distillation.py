"""What a gate learns: attention between tiles against float64, and the divergence by hand."""

from __future__ import annotations

import math

import pytest
import torch
from gates import random_weights

from vidsparse import VideoGrid
from vidsparse.finetune.gate.distillation import divergence, kept_attention
from vidsparse.patterns.exact_blocks import pooled_attention
from vidsparse.patterns.gate_weights import GateWeights, Pooled
from vidsparse_kernels.layout import tile_of_token, tile_tokens


def test_the_divergence_by_hand() -> None:
    attention, scores = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[3.0, 1.0, 1e-12]]).log()
    # The gate says 3/4, 1/4, and almost nothing: 0.5 log(0.5 / 0.75) + 0.5 log(0.5 / 0.25).
    expected = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    assert float(divergence(attention, scores)) == pytest.approx(expected, rel=1e-6)
    assert float(divergence(attention, attention.log().clamp(min=-40))) == pytest.approx(0, abs=1e-6)
    kept = torch.tensor([[True, False, True]])
    assert float(kept_attention(attention, kept)) == 0.5


@pytest.mark.parametrize("grid", [VideoGrid(3, 5, 7, 2, 1), VideoGrid(1, 3, 4), VideoGrid(2, 4, 4, 0, 3)])
def test_pooled_attention_against_float64(grid: VideoGrid) -> None:
    tile = (2, 2, 4)
    query, key = 3 * torch.randn(2, 2, grid.tokens, 3, 8)
    video = slice(grid.prefix, grid.prefix + grid.video_tokens)
    q, k = (x[:, video].transpose(1, 2).double() for x in (query, key))
    weights = (q @ k.mT * 8**-0.5).softmax(dim=-1)
    owner = torch.nn.functional.one_hot(tile_of_token(grid.view, tile)).double()
    expected = owner.T @ weights @ owner / owner.sum(dim=0)[:, None]
    rows = [0, len(tile_tokens(grid.view, tile)) - 1]
    found = pooled_attention(query, key, grid, tile, rows)
    torch.testing.assert_close(found, expected[:, :, rows].float(), atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(2, 3, 2))


def test_gradients_of_the_divergence() -> None:
    grid, (query, key) = VideoGrid(2, 4, 4), torch.randn(2, 1, 32, 2, 4)
    pooled = Pooled(*(x.double() for x in Pooled.of(query, key, grid, (1, 2, 2))))
    attention = pooled_attention(query, key, grid, (1, 2, 2), range(8)).double()
    weights = [x.double().requires_grad_() for x in random_weights(2, 4)]
    assert torch.autograd.gradcheck(lambda q, k: divergence(attention, GateWeights(q, k).scores(pooled)), weights)
