"""TemporalBias as a pattern: its matrix, which calls are due, what it forwards; and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from vidsparse import Context, Dense, PerLayer, Radial, StepBudget, StepSchedule, TemporalBias, TopBlocks, VideoGrid

SPARSE = Radial(density=0.3)


def test_the_matrix_is_the_published_bell_of_height_one_times_the_strength() -> None:
    density = [math.exp(-((apart / 4) ** 2) / 2) / (4 * math.sqrt(2 * math.pi)) for apart in range(7)]
    matrix = TemporalBias(SPARSE, strength=1.5, width=4.0).matrix(7)
    for i in range(7):
        for j in range(7):
            assert matrix[i, j].item() == pytest.approx(1.5 * density[abs(i - j)] / density[0], rel=1e-14)


def test_it_is_due_in_its_layers_and_at_its_noise_levels() -> None:
    def due(layer: int, sigma: float, **fields: Any) -> bool:
        return TemporalBias(SPARSE, **fields).is_due(Context(layer=layer, layers=4, sigma=sigma))

    assert [due(0, sigma) for sigma in (1.0, 0.5, 0.49)] == [True, True, False]
    assert due(0, 0.1, sigmas=None)
    assert [due(layer, 1.0, layers=(0, -1)) for layer in range(4)] == [True, False, False, True]
    assert not due(0, 1.0, layers=()) and not due(0, 1.0, strength=0)


def test_maps_are_those_of_its_pattern() -> None:
    grid, context = VideoGrid(3, 8, 8), Context(heads=2)
    assert TemporalBias(SPARSE).plan(grid) is SPARSE.plan(grid) and not TemporalBias(SPARSE).reads_content
    content, pattern = torch.randn(1, grid.tokens, 2, 8), TopBlocks(density=0.3)
    assert TemporalBias(pattern).reads_content
    chosen = pattern.select(content, content, grid, context)
    assert TemporalBias(pattern).select(content, content, grid, context) == chosen


def test_dense_calls_that_are_due_keep_all_tiles() -> None:
    grid, schedule = VideoGrid(3, 8, 8), StepSchedule(SPARSE, dense_steps=2)
    pattern = TemporalBias(schedule)
    due, late, sparse = Context(step=0), Context(step=1, sigma=0.2), Context(step=2)
    assert [pattern.is_dense(context) for context in (due, late, sparse)] == [False, True, False]
    assert pattern.plan(grid) is SPARSE.plan(grid)
    assert pattern.plan(grid, due) is Dense().plan(grid) and pattern.plan(grid, sparse) is SPARSE.plan(grid)
    assert pattern.at(due) == Dense() and pattern.at(sparse) == SPARSE


def test_it_forwards_skipped_steps_and_checks() -> None:
    pattern = TemporalBias(StepBudget(SPARSE, budget=0.8, skipped=0.5))
    inner = pattern.pattern
    contexts = [Context(step=step, steps=10) for step in range(10)]
    assert [pattern.skips(c) for c in contexts] == [inner.skips(c) for c in contexts]
    with pytest.raises(ValueError, match="model has"):
        TemporalBias(PerLayer((Dense(),), (0,) * 3)).check_model(2, 1)
    with pytest.raises(ValueError, match=r"layers \[2\] do not exist: the model has layers 0 to 1"):
        TemporalBias(SPARSE, layers=(-2, 2)).check_model(2, 1)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"pattern": "radial"}, TypeError, "pattern='radial' must be a pattern"),
        ({"pattern": TemporalBias(SPARSE)}, ValueError, "has a temporal bias already"),
        ({"pattern": StepSchedule(TemporalBias(SPARSE))}, ValueError, "has a temporal bias already"),
        ({"strength": -1.0}, ValueError, "strength=-1.0 must be a finite number of at least 0"),
        ({"strength": math.inf}, ValueError, "strength=inf must be a finite number"),
        ({"width": 0}, ValueError, "width=0 must be a finite number greater than 0"),
        ({"layers": (0.5,)}, ValueError, "must be a tuple of indices"),
        ({"sigmas": (0.9, 0.1)}, ValueError, "must be .low, high."),
    ],
    ids=["pattern", "twice", "twice-inside", "negative", "infinite", "no-width", "layers", "sigmas"],
)
def test_bad_fields_are_refused(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TemporalBias(**({"pattern": SPARSE} | fields))
