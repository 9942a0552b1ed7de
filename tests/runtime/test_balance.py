"""Heads whose maps differ in size are divided so that every GPU has as much to do."""

from __future__ import annotations

import pytest
import torch

from vidsparse import Context, HeadModes, Radial, StepSchedule, TopBlocks, VideoGrid
from vidsparse.runtime.balance import MeasuredCosts, balanced, planned_costs

GRID = VideoGrid(8, 8, 16)


def test_heads_of_one_cost_stay_in_blocks() -> None:
    assert balanced([0.3] * 6, 3) == ((0, 1), (2, 3), (4, 5))
    assert balanced([1.0] * 5, 2) == ((0, 1, 2), (3, 4))


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_every_head_is_on_one_rank_and_the_costliest_rank_is_near_the_mean(ranks: int) -> None:
    costs = torch.rand(40).square().tolist()
    shares = balanced(costs, ranks)
    assert sorted(head for share in shares for head in share) == list(range(40))
    assert {len(share) for share in shares} == {40 // ranks}
    loads = [sum(costs[head] for head in share) for share in shares]
    blocks = [sum(costs[start : start + 40 // ranks]) for start in range(0, 40, 40 // ranks)]
    # The costliest head first: no rank is above the mean by more than one head.
    assert max(loads) <= sum(costs) / ranks + max(costs)
    assert max(loads) < max(blocks)


def test_the_costs_of_a_pattern_of_shapes_are_the_densities_of_its_heads() -> None:
    table = ((("full", "stripe", "skip-zero", "diagonal"),),)
    pattern = HeadModes(table, window=1, tile=(1, 8, 8))
    costs = planned_costs(StepSchedule(pattern, dense_steps=1), GRID, Context(heads=4))
    assert costs is not None
    assert costs[0] == 1.0
    assert costs[2] == 0.0
    assert 0 < costs[1] < 1
    assert 0 < costs[3] < 1
    assert (
        planned_costs(Radial(density=0.3), GRID, Context(heads=2)) == [Radial(density=0.3).plan(GRID).token_density] * 2
    )
    assert planned_costs(TopBlocks(top_p=0.5), GRID, Context(heads=2)) is None


def test_measured_costs_come_back_as_numbers() -> None:
    assert MeasuredCosts(torch.tensor([0.5, 0.25])).read() == [0.5, 0.25]
