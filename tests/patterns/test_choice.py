"""Patterns for each layer and for each range of noise: which one is asked, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_wan import SPARSE, call, tiny

from vidsparse import (
    Context,
    Dense,
    HeadModes,
    PerHead,
    PerLayer,
    PerPhase,
    Radial,
    SlidingTile,
    StepBudget,
    StepSchedule,
    TopBlocks,
    VideoGrid,
    sparsify,
)

GRID = VideoGrid(5, 7, 11)
WIDE, NARROW = Radial(density=0.6), Radial(density=0.2)
LAYERS = PerLayer((Dense(), WIDE, TopBlocks(density=0.3)), layers=(0, 1, 2, 1))
PHASES = PerPhase((Dense(), WIDE, NARROW), sigmas=(0.9, 0.6))


@pytest.mark.parametrize(("layer", "index"), [*enumerate(LAYERS.layers)])
def test_each_layer_has_its_pattern(layer: int, index: int) -> None:
    context, content = Context(layer=layer, layers=4, heads=2), torch.randn(1, GRID.tokens, 2, 8)
    own = LAYERS.patterns[index]
    assert LAYERS.chosen(context) == own
    assert LAYERS.is_dense(context) == (index == 0)
    found, expected = (p.select(content, content, GRID, context) for p in (LAYERS, own))
    assert torch.equal(found.to_dense(), expected.to_dense())  # type: ignore[union-attr]


@pytest.mark.parametrize(("sigma", "index"), [(1.0, 0), (0.91, 0), (0.9, 1), (0.7, 1), (0.6, 2), (0.3, 2), (0.0, 2)])
def test_each_range_of_noise_has_its_pattern(sigma: float, index: int) -> None:
    context = Context(sigma=sigma)
    assert PHASES.chosen(context) is PHASES.patterns[index]
    assert PHASES.is_dense(context) == (index == 0)
    if index:
        assert PHASES.plan(GRID, context) is PHASES.patterns[index].plan(GRID)


def test_one_pattern_needs_no_noise_level() -> None:
    assert PerPhase((WIDE,), ()).plan(GRID) is WIDE.plan(GRID)


def test_content_is_read_where_one_of_the_patterns_reads_it() -> None:
    assert LAYERS.reads_content and not PHASES.reads_content
    assert StepSchedule(LAYERS).reads_content and not StepBudget(PHASES).reads_content
    assert PerPhase((PHASES, LAYERS), (0.5,)).reads_content


def test_they_hold_each_other_and_stand_in_schedules() -> None:
    pattern = StepSchedule(PerPhase((PerLayer((WIDE, NARROW), (0, 1)), NARROW), (0.5,)), dense_layers=(1,))
    assert pattern.plan(GRID, Context(layer=1, layers=2, sigma=0.8)) is NARROW.plan(GRID)
    assert pattern.plan(GRID, Context(layer=0, layers=2, sigma=0.8)) is WIDE.plan(GRID)
    assert pattern.is_dense(Context(layer=1, layers=2))


@torch.no_grad()
def test_a_model_runs_each_layer_with_its_pattern() -> None:
    transformer = tiny()
    layers = len(transformer.blocks)
    pattern = PerLayer((Dense(), SPARSE, SlidingTile(window=(2, 6, 6), tile=(1, 3, 4))), (0, 1, 2)[:layers])
    with sparsify(transformer, pattern, impl="cpu") as run:
        found = call(transformer)
    ran = {c.layer: c.reason is None for c in run.report().calls}
    assert ran == {layer: layer > 0 for layer in range(layers)}
    with sparsify(transformer, PerLayer((pattern.patterns[1],), (0,) * layers), impl="cpu"):
        same = call(transformer)
    with sparsify(transformer, pattern.patterns[1], impl="cpu"):
        assert torch.equal(call(transformer), same) and not torch.equal(found, same)


@torch.no_grad()
def test_a_model_runs_each_noise_level_with_its_pattern() -> None:
    transformer = tiny()
    with sparsify(transformer, PerPhase((Dense(), SPARSE), (0.8,))) as run:
        call(transformer, timestep=900)
        call(transformer, timestep=500)
    assert [c.reason is None for c in sorted(run.report().calls, key=lambda c: (c.step, c.layer))] == (
        [False] * len(transformer.blocks) + [True] * len(transformer.blocks)
    )


def test_they_are_printed_in_short() -> None:
    assert repr(LAYERS) == "PerLayer(1 Dense, 2 Radial, 1 TopBlocks)"
    pattern = PerPhase((Dense(), PerHead((WIDE, Dense()), (0, 1, 0))), (0.5,))
    assert repr(pattern) == "PerPhase(Dense(tile=None) above noise 0.50, PerHead(2 Radial, 1 Dense))"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PerLayer((), (0,)), r"patterns=\(\) must be a tuple of patterns"),
        (lambda: PerLayer([WIDE], (0,)), r"patterns=\[.*must be a tuple of patterns"),  # type: ignore[arg-type]
        (lambda: PerLayer((WIDE, 0.2), (0,)), r"must be a tuple of patterns"),  # type: ignore[arg-type]
        (lambda: PerLayer((WIDE,), ()), r"layers=\(\) must be a tuple of indices into patterns, each from 0 to 0"),
        (lambda: PerLayer((WIDE,), (0, 1)), r"layers=\(0, 1\) must be a tuple of indices into patterns"),
        (lambda: PerLayer((WIDE,), (-1,)), r"layers=\(-1,\) must be"),
        (lambda: PerLayer((WIDE,), (True,)), r"layers=\(True,\) must be"),
        (lambda: PerLayer((StepBudget(WIDE),), (0,)), "patterns holds a StepBudget.*put PerLayer into it"),
        (lambda: PerPhase((WIDE, NARROW), ()), r"sigmas=\(\) must be 1 falling noise levels"),
        (lambda: PerPhase((WIDE, NARROW, WIDE), (0.5, 0.6)), r"sigmas=\(0.5, 0.6\) must be 2 falling"),
        (lambda: PerPhase((WIDE, NARROW, WIDE), (0.5, 0.5)), "must be 2 falling"),
        (lambda: PerPhase((WIDE, NARROW), (1.0,)), "must be 1 falling noise levels between 0 and 1"),
        (lambda: PerPhase((WIDE, NARROW), 0.5), "must be 1 falling"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_a_model_of_another_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="layers names patterns for 4 layers, but the model has 2; give one for each"):
        sparsify(tiny(), LAYERS)
    modes = HeadModes(((("full", "diagonal"),),))
    with pytest.raises(ValueError, match="heads"):
        PerLayer((modes,), (0, 0)).check_model(2, 5)
