"""A gate learns what means cannot say, from attention that ran dense."""

from __future__ import annotations

import pytest
import torch

from vidsparse import Context, Dense, LearnedGate, VideoGrid
from vidsparse.finetune.gate.teacher import GateTeacher
from vidsparse.patterns.gate_weights import GateWeights

GRID, TILE = VideoGrid(2, 8, 8), (1, 2, 4)


def needles(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries that look for one key of a tile, whose other keys say the opposite: the mean of the tile is 0."""
    query, key = 0.1 * torch.randn(2, 1, GRID.tokens, 2, 8, generator=generator)
    query[..., 0] += 6
    tiles = torch.randint(0, 16, (4,), generator=generator).unique()
    frames = key[0].view(2, 4, 2, 2, 4, 2, 8)  # frames, rows, of a tile, columns, of a tile, heads, channels
    for tile in tiles.tolist():
        box = frames[tile // 8, tile // 2 % 4, :, tile % 2]
        box[..., 0] -= 5.0 / 7
        box[0, 0, :, 0] += 5.0 + 5.0 / 7
    return query, key


def test_it_learns_what_means_miss() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [GateWeights(*(torch.nn.Parameter(x) for x in GateWeights.untrained(2, 8)))]
    gate = LearnedGate("none", density=6 / 16, tile=TILE)
    teacher = GateTeacher(gate.keep, TILE, weights, 1.0, 16, generator)
    optimizer = torch.optim.Adam([*weights[0]], lr=0.02)
    first = None
    for _ in range(150):
        query, key = needles(generator)
        optimizer.zero_grad()
        with torch.no_grad():  # as in a frozen model
            plan = teacher.select(query, key, GRID, Context(heads=2))
        optimizer.step()
        first = first or teacher.lesson.means()["divergence"]
    assert plan == Dense().plan(GRID), "the model's attention stays dense"
    teacher.lesson.clear()
    for _ in range(5):  # which it has not seen
        teacher.select(*needles(generator), GRID, Context(heads=2))
    found = teacher.lesson.means()
    assert teacher.lesson.layers == 5
    assert found["divergence"] < 0.5 * first
    assert found["recall"] > 0.9 and found["recall"] > found["untrained"] + 0.1


def test_the_gradient_is_that_of_the_mean_over_rows() -> None:
    """Finite differences of the divergence that it says, by one weight; the factor multiplies the gradient alone."""
    generator = torch.Generator().manual_seed(1)
    query, key = needles(generator)

    def taught(change: float) -> tuple[float, torch.Tensor]:
        weights = GateWeights(*(torch.nn.Parameter(x) for x in GateWeights.untrained(2, 8)))
        with torch.no_grad():
            weights.key[1, 0, 8] += change
        teacher = GateTeacher(LearnedGate("none", density=0.5).keep, TILE, [weights], 0.5, 99, torch.Generator())
        teacher.select(query, key, GRID, Context(heads=2))
        assert weights.key.grad is not None
        return teacher.lesson.means()["divergence"], weights.key.grad[1, 0, 8]

    step = 1e-2
    slope = (taught(step)[0] - taught(-step)[0]) / (2 * step)
    assert float(taught(0.0)[1]) == pytest.approx(0.5 * slope, rel=2e-2)


def test_rows_are_drawn_by_the_generator() -> None:
    query, key = needles(torch.Generator().manual_seed(2))

    def divergence(seed: int, rows: int) -> float:
        weights = [GateWeights(*(torch.nn.Parameter(x) for x in GateWeights.untrained(2, 8)))]
        keep = LearnedGate("none", density=0.5).keep
        teacher = GateTeacher(keep, TILE, weights, 1.0, rows, torch.Generator().manual_seed(seed))
        teacher.select(query, key, GRID, Context(heads=2))
        return teacher.lesson.means()["divergence"]

    assert divergence(0, 2) == divergence(0, 2) != divergence(1, 2)
    assert divergence(0, 16) == pytest.approx(divergence(1, 99), rel=1e-6)
