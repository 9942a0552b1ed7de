"""Recall against float64 attention over all queries, and by layer and step of a real video."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_wan import wan_pipeline

from vidsparse import BlockMap, Dense, Pattern, Radial, StepSchedule, TopBlocks, VideoGrid
from vidsparse.generation.recall import Recall, kept_mass, recall

ARGUMENTS: dict[str, Any] = {
    "prompt": "a red circle",
    "num_frames": 9,
    "height": 64,
    "width": 64,
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "max_sequence_length": 32,
}
TILE = (1, 4, 4)


@pytest.mark.parametrize("valid", [None, [3, 5]], ids=["all text", "padded text"])
@pytest.mark.parametrize("grid", [VideoGrid(3, 5, 7, 2, 4), VideoGrid(1, 1, 9, 0, 6)], ids=str)
def test_the_mass_of_kept_keys_is_that_of_float64_attention(grid: VideoGrid, valid: list[int] | None) -> None:
    queries, keys = 1, 1
    for sides in zip(grid.tiles((1, 2, 4)), grid.tiles((2, 4, 1)), strict=True):
        queries, keys = queries * sides[0], keys * sides[1]
    kept = torch.rand(2, 3, queries, keys) < 0.4
    kept[..., 0] = True
    block_map = BlockMap.from_dense(kept, grid, (1, 2, 4), (2, 4, 1))
    query, key = (3 * torch.randn(2, grid.tokens, 3, 8) for _ in range(2))
    extra_valid = None if valid is None else torch.tensor(valid)
    scores = torch.einsum("bqhd,bkhd->bhqk", query.double(), key.double()) / 8**0.5
    padding = block_map.layout.padding_mask(extra_valid)
    if padding is not None:
        scores = scores.masked_fill(padding[:, None, None], -torch.inf)
    expected = (scores.softmax(dim=-1) * block_map.token_mask(extra_valid)).sum(dim=-1)
    video = slice(grid.prefix, grid.prefix + grid.video_tokens)
    found = kept_mass(query, key, block_map, 1000, extra_valid)
    torch.testing.assert_close(found.double(), expected[..., video], rtol=1e-5, atol=1e-6)
    few = kept_mass(query, key, block_map, 2, extra_valid)
    torch.testing.assert_close(few, found[..., [0, -1]])


def test_a_video_is_measured_by_layer_and_step() -> None:
    pipe = wan_pipeline()
    (everything,) = recall(pipe, Dense(TILE), ARGUMENTS)
    assert everything.values.shape == (2, 3) and everything.transformer == "transformer"
    torch.testing.assert_close(everything.values, torch.ones(2, 3, dtype=torch.float64), rtol=1e-5, atol=0)
    (low,), (high,) = (recall(pipe, TopBlocks(density, tile=TILE), ARGUMENTS) for density in (0.2, 0.6))
    assert (low.densities < 0.3).all() and (low.values < high.values).all() and (high.values < 1).all()
    assert (low.values > low.densities).all(), "chosen tiles hold more than tiles at random would"
    layer, step = low.lowest
    assert low.values[layer, step] == low.values.min() and low.mean == pytest.approx(float(low.values.mean()))


def test_a_schedule_leaves_no_gap_and_experts_are_apart() -> None:
    pipe = wan_pipeline(experts=2)
    first, second = recall(pipe, StepSchedule(Radial(density=0.3, tile=TILE), dense_steps=2), ARGUMENTS)
    assert (first.transformer, second.transformer) == ("transformer", "transformer_2")
    known = [one.values.isnan().all(dim=0).logical_not() for one in (first, second)]
    assert known[0].tolist()[0] and int(sum(steps.sum() for steps in known)) == 3
    assert second.values[:, 0].isnan().all() and second.mean == second.mean


def test_what_cannot_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="queries=0 must be at least 1"):
        recall(wan_pipeline(), Radial(density=0.3), ARGUMENTS, queries=0)
    pipe = wan_pipeline()
    monkeypatch.setattr(Pattern, "is_dense", lambda self, context: True)
    with pytest.raises(ValueError, match="no recall could be measured: the pattern asks for it"):
        recall(pipe, Radial(density=0.3), ARGUMENTS)


def test_the_lowest_is_never_a_gap() -> None:
    values = torch.tensor([[torch.nan, 0.9], [0.4, torch.nan]], dtype=torch.float64)
    assert Recall("transformer", values, values).lowest == (1, 0)
