"""A pattern for each head: the maps of heads, their launches, and what a model computes with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_wan import call, tiny

from vidsparse import (
    Context,
    Dense,
    HeadModes,
    PerHead,
    PooledComplement,
    Radial,
    Reuse,
    SlidingTile,
    StepBudget,
    StepSchedule,
    TopBlocks,
    VideoGrid,
    head_groups,
    sparse_attention,
    sparsify,
)

GRIDS = {
    "5x7x11": VideoGrid(5, 7, 11),
    "1x8x9": VideoGrid(1, 8, 9),
    "3+3x5x2+5": VideoGrid(3, 5, 2, prefix=3, suffix=5),
}
TILE = (1, 4, 4)
WIDE, NARROW, TOP = Radial(density=0.6, tile=TILE), Radial(density=0.2, tile=TILE), TopBlocks(density=0.4, tile=TILE)
SHAPES = PerHead((WIDE, NARROW, Dense(), SlidingTile(tile=(2, 2, 4))), heads=(1, 0, 2, 3, 1))
CONTENT = PerHead((WIDE, TOP, Dense(), TopBlocks(density=0.2, tile=(2, 2, 2))), heads=(3, 1, 0, 2, 1))
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)


def content(grid: VideoGrid, heads: int = 5, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, grid.tokens, heads, 8, generator=torch.Generator().manual_seed(0))


def masks(plan: Any, heads: int, batch: int) -> torch.Tensor:
    """The token mask of each head, bool [batch, heads, tokens, tokens]."""
    found: dict[int, torch.Tensor] = {}
    for group in head_groups(plan, heads):
        mask = group.block_map.token_mask().expand(batch, len(group.heads), -1, -1)
        found.update({head: mask[:, i] for i, head in enumerate(group.heads)})
    return torch.stack([found[head] for head in range(heads)], dim=1)


@every_grid
@pytest.mark.parametrize("pattern", [SHAPES, CONTENT], ids=["shapes", "content"])
def test_each_head_has_the_map_of_its_pattern_for_it_alone(pattern: PerHead, grid: VideoGrid) -> None:
    query, key = content(grid), content(grid).flip(1)
    plan = pattern.select(query, key, grid, Context(heads=5, value=query))
    found = masks(plan, 5, 2)
    for head, index in enumerate(pattern.heads):
        own, context = pattern.patterns[index], Context(heads=1)
        if isinstance(own, Dense):
            assert found[:, head].all()
            continue
        alone = own.select(query[:, :, head : head + 1], key[:, :, head : head + 1], grid, context)
        assert torch.equal(found[:, head], masks(alone, 1, 2)[:, 0]), head


@every_grid
def test_heads_with_tiles_of_one_shape_share_a_launch(grid: VideoGrid) -> None:
    groups = head_groups(SHAPES.plan(grid), 5)
    assert sorted(group.heads for group in groups) == [(0, 1, 2, 4), (3,)]  # the dense head has the tiles of the first
    query = content(grid)
    groups = head_groups(CONTENT.select(query, query, grid, Context(heads=5)), 5)
    assert sorted(group.heads for group in groups) in ([(0,), (1, 2, 3, 4)], [(0, 3), (1, 2, 4)])


def test_plans_of_shapes_are_made_once() -> None:
    grid = GRIDS["5x7x11"]
    first, second = (SHAPES.plan(grid, Context(layer=layer, heads=5)) for layer in (0, 3))
    assert [a.block_map is b.block_map for a, b in zip(first, second, strict=True)] == [True, True]
    assert SHAPES.select(content(grid), content(grid), grid, Context(heads=5))[0].block_map is first[0].block_map
    assert not SHAPES.reads_content and CONTENT.reads_content


@pytest.mark.parametrize("impl", ["cpu", "reference", "flex"])
def test_attention_of_the_shared_map_is_that_of_each_head(impl: str) -> None:
    grid = GRIDS["3+3x5x2+5"]
    query, key, value = content(grid), content(grid).flip(1), content(grid).flip(2)
    for group in head_groups(CONTENT.select(query, key, grid, Context(heads=5)), 5):
        q, k, v = (x[:, :, list(group.heads)].transpose(1, 2) for x in (query, key, value))
        found = sparse_attention(*(x.transpose(1, 2) for x in (q, k, v)), group.block_map, impl=impl)  # type: ignore[arg-type]
        mask = group.block_map.token_mask()
        expected = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), mask)
        torch.testing.assert_close(found.double(), expected.transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_a_layer_is_dense_where_all_of_its_heads_are() -> None:
    early = StepSchedule(WIDE, dense_steps=2)
    pattern = PerHead((early, Dense()), (0, 1, 0))
    assert pattern.is_dense(Context(step=1)) and not pattern.is_dense(Context(step=2))
    assert PerHead((WIDE, Dense()), (1, 1)).is_dense(Context())  # a pattern of no head decides nothing
    mixed = PerHead((early, NARROW), (0, 1))
    found = masks(mixed.plan(GRIDS["5x7x11"], Context(step=1)), 2, 1)
    assert found[:, 0].all() and not found[:, 1].all()


def test_each_pattern_keeps_a_memory_of_its_own() -> None:
    grid, context = GRIDS["5x7x11"], Context(heads=4)
    pattern = PerHead((Reuse(TOP), Reuse(TopBlocks(density=0.2, tile=TILE))), (0, 1, 0, 1))
    first = pattern.select(content(grid, 4), content(grid, 4), grid, context)
    assert sum(x.nbytes for x in context.memory.values()) > 0
    other = content(grid, 4).flip(1)
    again = pattern.select(other, other, grid, context)
    assert torch.equal(masks(first, 4, 2), masks(again, 4, 2))
    fresh = pattern.select(other, other, grid, Context(heads=4))
    assert not torch.equal(masks(first, 4, 2), masks(fresh, 4, 2))


@every_grid
def test_some_of_the_heads_have_the_maps_that_they_have_among_all(grid: VideoGrid) -> None:
    query = content(grid)
    whole = masks(CONTENT.select(query, query, grid, Context(heads=5)), 5, 2)
    for local in ((0, 3), (4, 1), (2,), (1, 2, 4)):
        part = query[:, :, list(local)]
        plan = CONTENT.select(part, part, grid, Context(heads=5, local_heads=local))
        assert torch.equal(masks(plan, len(local), 2), whole[:, list(local)]), local


def test_heads_that_choose_together_are_refused_on_several_gpus() -> None:
    grid = GRIDS["5x7x11"]
    pattern = PerHead((TopBlocks(density=0.4, tile=TILE, shared_heads=True), WIDE), (0, 0, 1))
    query = content(grid, 3)
    pattern.select(query, query, grid, Context(heads=3))
    with pytest.raises(NotImplementedError, match="heads choose together cannot run where several GPUs share"):
        pattern.select(query[:, :, :2], query[:, :, :2], grid, Context(heads=3, local_heads=(0, 2)))


def heads_of(transformer: Any) -> int:
    return int(transformer.config.num_attention_heads)


@pytest.mark.parametrize("correction", [None, PooledComplement()], ids=["bare", "pooled"])
def test_a_model_trains_with_it(correction: Any) -> None:
    transformer = tiny()
    heads = tuple(h % 3 for h in range(heads_of(transformer)))
    with sparsify(transformer, PerHead((TOP, Radial(density=0.4), Dense()), heads), correction=correction) as run:
        call(transformer).square().mean().backward()
    assert run.report().dense_reasons == {} and 0 < run.report().density < 1
    grad = transformer.blocks[0].attn1.to_q.weight.grad
    assert grad.isfinite().all() and grad.abs().max() > 0


@torch.no_grad()
def test_heads_of_one_pattern_are_that_pattern() -> None:
    transformer = tiny()
    alone = Radial(density=0.4)
    with sparsify(transformer, PerHead((Dense(), alone), (1,) * heads_of(transformer)), impl="cpu"):
        found = call(transformer)
    with sparsify(transformer, alone, impl="cpu"):
        torch.testing.assert_close(found, call(transformer))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PerHead((WIDE,), ()), r"heads=\(\) must be a tuple of indices into patterns"),
        (lambda: PerHead((WIDE,), (1,)), r"heads=\(1,\) must be a tuple of indices into patterns, each from 0 to 0"),
        (lambda: PerHead(WIDE, (0,)), "must be a tuple of patterns"),  # type: ignore[arg-type]
        (lambda: PerHead((StepBudget(WIDE),), (0,)), "holds a StepBudget"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_a_model_with_other_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="heads names patterns for 5 heads, but a layer has"):
        sparsify(tiny(), SHAPES)
    with pytest.raises(ValueError, match="head"):
        PerHead((HeadModes(((("full", "diagonal"),),)), WIDE), (0, 1, 0, 0)).check_model(1, 4)
