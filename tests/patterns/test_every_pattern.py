"""Every pattern by every property, and each published rule against a brute force written from its definition."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch

from vidsparse import (
    BlockMap,
    Context,
    Dense,
    ExactBlocks,
    Gridded,
    GriddedHeads,
    HeadModes,
    InwardWindow,
    LearnedGate,
    MixtureOfBlocks,
    Pattern,
    PowerOfTwo,
    Radial,
    RadialRaster,
    Reuse,
    ShiftedWindows,
    SlidingClip,
    SlidingTile,
    SpatialTemporal,
    StepBudget,
    StepSchedule,
    TemporalBias,
    TopBlocks,
    VideoGrid,
    VideoSparse,
)
from vidsparse.patterns.names import build_pattern, pattern_classes

# What depends on shapes alone has one map for each grid; what depends on content plans for content that is all alike.
BY_SHAPE: dict[str, Pattern] = {
    "dense": Dense(),
    "dense-tile2x4x8": Dense(tile=(2, 4, 8)),
    "radial-density0.05": Radial(density=0.05),
    "radial-density0.2": Radial(density=0.2),
    "radial-density0.5": Radial(density=0.5),
    "radial-density1": Radial(density=1.0),
    "radial-density0.2-nosink": Radial(density=0.2, sink=False),
    "radial-density0.2-tile2x2x4": Radial(density=0.2, tile=(2, 2, 4)),
    "radial-decay0.001": Radial(decay=0.001),
    "radial-decay1-nosink": Radial(decay=1.0, sink=False),
    "raster": RadialRaster(),
    "raster-half-nosink": RadialRaster(adjacent="half", sink=False),
    "raster-decay1-block16": RadialRaster(decay=1.0, block=16),
    "raster-decay0-block48": RadialRaster(decay=0.0, block=48, sink=False),
    "clip": SlidingClip(Radial(density=0.2, tile=(1, 4, 4)), frames=4),
    "clip-full": SlidingClip(Dense(), frames=99),
    "sliding": SlidingTile(),
    "sliding-1token": SlidingTile(window=(1, 1, 1), tile=(2, 2, 4)),
    "sliding-even-stride": SlidingTile(window=(4, 8, 8), stride=(2, 4, 8), tile=(2, 2, 4)),
    "sliding-tile1x4x4": SlidingTile(window=(3, 12, 5), stride=(2, 4, 8), tile=(1, 4, 4)),
    "sliding-full": SlidingTile(window=(99, 99, 99)),
    "budget-of-radial": StepBudget(Radial(density=0.2), skipped=0.5),
    "schedule-of-radial": StepSchedule(Radial(density=0.2), dense_steps=3, dense_layers=(0,)),
    "schedule-of-schedule": StepSchedule(StepSchedule(SlidingTile(), sigmas=(0.0, 0.9)), dense_last_steps=1),
    "biased-radial": TemporalBias(StepSchedule(Radial(density=0.2), dense_last_steps=1)),
    "gridded": Gridded(),
    "gridded-phases": Gridded(phases=((0, 0, 0),)),
    "gridded-lines-alone": Gridded(stride=(1, 3, 4), local_frames=0, sink=0),
    "gridded-full": Gridded(stride=(1, 1, 1)),
    "inward": InwardWindow(scale=2.0),
    "inward-tile2x2x4": InwardWindow(scale=1.5, tile=(2, 2, 4)),
    "inward-full": InwardWindow(scale=1.0),
    "power": PowerOfTwo(),
    "power-axes3-nosink": PowerOfTwo(axes=3, sink=False),
    "power-published": PowerOfTwo.published(),
}
BY_CONTENT: dict[str, Pattern] = {
    "exact": ExactBlocks(tile=(2, 2, 4)),
    "exact-full": ExactBlocks(ratio=1.0),
    "mixture-training-free": MixtureOfBlocks.training_free(),
    "mixture-trained": MixtureOfBlocks.trained(),
    "mixture-trained-token": MixtureOfBlocks.trained(routing="token"),
    "mixture-full-threshold": MixtureOfBlocks(threshold=1.0),
    "mixture-full-top": MixtureOfBlocks(top_k=(999, 999, 999)),
    "clip-of-top": SlidingClip(TopBlocks(density=0.2, tile=(1, 4, 4)), frames=4),
    "reuse-of-top": Reuse(TopBlocks(density=0.2)),
    "spatial-temporal": SpatialTemporal(),
    "spatial-temporal-widths": SpatialTemporal(None, frames=2, radius=8.0),
    "top-density": TopBlocks(density=0.2),
    "top-full": TopBlocks(density=1.0),
    "top-p-variance": TopBlocks(top_p=0.6, variance=True, tile=(2, 2, 4)),
    "top-shared": TopBlocks(threshold=0.05, shared_heads=True, neighbours=(0, 1, 1), sink=1, tile=(2, 2, 4)),
    "video-sparse": VideoSparse(density=0.2),
    "video-sparse-full": VideoSparse(density=1.0),
}
# Groups of heads, whose maps have tiles of their own.
BY_HEAD: dict[str, Pattern] = {
    "head-modes": HeadModes(((("full", "diagonal", "temporal", "stripe", "temporal"),),)),
    "gridded-heads": GriddedHeads((Gridded(), Gridded(phases=((0, 0, 0),)), Gridded())),
}
# Another map in another layer or step.
BY_CALL: dict[str, Pattern] = {
    "shifted": ShiftedWindows(),
    "shifted-layers": ShiftedWindows(order="layers", wrap=False, tile=(2, 2, 4)),
    "shifted-units": ShiftedWindows.simplegvr(1),
}
# Patterns of vidsparse that are not named above, with the defaults of their names.
LISTED = {type(pattern) for pattern in (*BY_SHAPE.values(), *BY_CONTENT.values(), *BY_HEAD.values(), *BY_CALL.values())}
# A gate is for one model: see `test_learned_gate.py`.
OTHERS = {name: build_pattern(name) for name, cls in pattern_classes().items() if cls not in {*LISTED, LearnedGate}}
BY_SHAPE |= {name: pattern for name, pattern in OTHERS.items() if not pattern.reads_content}
BY_CONTENT |= {name: pattern for name, pattern in OTHERS.items() if pattern.reads_content}
PATTERNS = BY_SHAPE | BY_CONTENT | BY_HEAD | BY_CALL
FULL = [
    "dense",
    "dense-tile2x4x8",
    "radial-density1",
    "clip-full",
    "sliding-full",
    "gridded-full",
    "inward-full",
    "exact-full",
    "mixture-full-threshold",
    "mixture-full-top",
    "top-full",
    "video-sparse-full",
]
GRIDS = {
    "9x16x16": VideoGrid(9, 16, 16),
    "5x7x11": VideoGrid(5, 7, 11),
    "1x16x16": VideoGrid(1, 16, 16),
    "7x1x1": VideoGrid(7, 1, 1),
    "3+3x5x2+5": VideoGrid(3, 5, 2, prefix=3, suffix=5),
    "4x9x10": VideoGrid(4, 9, 10),
}
by_shape = pytest.mark.parametrize("pattern", BY_SHAPE.values(), ids=BY_SHAPE)
every_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)


def maps(pattern: Pattern, grid: VideoGrid) -> list[BlockMap]:
    """The maps of all groups of heads."""
    plan = pattern.plan(grid)
    return [plan] if isinstance(plan, BlockMap) else [group.block_map for group in plan]


# Properties of all patterns


@every_grid
@every_pattern
def test_counts_and_indices_are_well_formed(pattern: Pattern, grid: VideoGrid) -> None:
    for block_map in maps(pattern, grid):
        rows = math.prod(block_map.grid.tiles(block_map.query_tile))
        assert block_map.grid.tokens == grid.tokens
        assert (block_map.grid.prefix, block_map.grid.suffix) == (grid.prefix, grid.suffix)
        assert block_map.counts.shape[0] == 1 and block_map.counts.shape[2:] == (rows,)
        assert block_map.counts.dtype == block_map.indices.dtype == torch.int32
        assert block_map.counts.min() >= 1, "a query tile sees nothing"
        assert block_map.counts.max() == block_map.indices.shape[-1] <= block_map.key_tiles
        for count, row in zip(
            block_map.counts.flatten().tolist(), block_map.indices.flatten(0, -2).tolist(), strict=True
        ):
            assert row[0] >= 0 and row[count - 1] < block_map.key_tiles
            assert all(a < b for a, b in itertools.pairwise(row[:count])), "indices are not ascending"


@every_grid
@pytest.mark.parametrize("pattern", [p for p in PATTERNS.values() if p != VideoSparse(density=0.2)], ids=repr)
def test_every_query_tile_sees_itself(pattern: Pattern, grid: VideoGrid) -> None:
    for block_map in maps(pattern, grid):
        assert block_map.to_dense().diagonal(dim1=-2, dim2=-1).all()


@every_grid
@every_pattern
def test_density_is_the_share_of_kept_pairs(pattern: Pattern, grid: VideoGrid) -> None:
    for block_map in maps(pattern, grid):
        assert block_map.density == pytest.approx(block_map.to_dense().double().mean().item())


@every_grid
@every_pattern
def test_token_density_is_the_share_of_kept_tokens(pattern: Pattern, grid: VideoGrid) -> None:
    for block_map in maps(pattern, grid):
        mask = block_map.token_mask()
        assert mask.shape == (1, block_map.counts.shape[1], grid.tokens, grid.tokens)
        assert block_map.token_density == pytest.approx(mask.sum().item() / mask.numel())


@every_grid
@every_pattern
def test_text_sees_and_is_seen_by_everything(pattern: Pattern, grid: VideoGrid) -> None:
    for block_map in maps(pattern, grid):
        mask = block_map.token_mask()
        for text in (slice(0, grid.prefix), slice(grid.tokens - grid.suffix, grid.tokens)):
            assert mask[:, :, text].all() and mask[..., text].all()


@every_grid
@every_pattern
def test_dense_and_back_is_the_identity(pattern: Pattern, grid: VideoGrid) -> None:
    for block_map in maps(pattern, grid):
        again = BlockMap.from_dense(block_map.to_dense(), block_map.grid, block_map.query_tile, block_map.key_tile)
        assert_same_map(again, block_map)


@every_grid
@every_pattern
def test_transposed_twice_is_the_identity(pattern: Pattern, grid: VideoGrid) -> None:
    for block_map in maps(pattern, grid):
        assert torch.equal(block_map.transpose().to_dense(), block_map.to_dense().mT)
        assert_same_map(block_map.transpose().transpose(), block_map)


@every_grid
@pytest.mark.parametrize("pattern", [PATTERNS[name] for name in FULL], ids=FULL)
def test_a_full_pattern_keeps_all_pairs(pattern: Pattern, grid: VideoGrid) -> None:
    block_map = pattern.plan(grid)
    assert block_map.to_dense().all()
    assert block_map.density == block_map.token_density == 1


@every_grid
@by_shape
def test_a_plan_is_made_once_for_each_grid(pattern: Pattern, grid: VideoGrid) -> None:
    block_map = pattern.plan(grid)
    same_fields = dataclasses.replace(pattern)  # type: ignore[type-var]
    assert same_fields is not pattern
    assert same_fields.plan(dataclasses.replace(grid), Context(layer=3, step=7)) is block_map
    other = dataclasses.replace(grid, frames=grid.frames + 1)
    assert pattern.plan(other).grid.tokens == other.tokens
    assert pattern.plan(grid) is block_map


@by_shape
def test_patterns_of_shapes_alone_ignore_content(pattern: Pattern) -> None:
    grid = GRIDS["5x7x11"]
    content = torch.randn(2, grid.tokens, 3, 8)
    assert pattern.select(content, content, grid, Context()) is pattern.plan(grid)


@every_pattern
def test_patterns_are_frozen_and_hashable(pattern: Pattern) -> None:
    assert hash(dataclasses.replace(pattern)) == hash(pattern)  # type: ignore[type-var]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(pattern, dataclasses.fields(pattern)[0].name, None)  # type: ignore[arg-type]


# Bad arguments


@pytest.mark.parametrize(
    ("pattern", "arguments", "message"),
    [
        (Radial, {}, r"give one of density=None and decay=None"),
        (Radial, {"density": 0.2, "decay": 0.2}, r"give one of density=0\.2 and decay=0\.2"),
        (Radial, {"density": 0.0}, r"density=0\.0 must be in \(0, 1\]"),
        (Radial, {"density": 1.1}, r"density=1\.1 must be in"),
        (Radial, {"density": float("nan")}, r"density=nan must be in"),
        (Radial, {"decay": 0}, r"decay=0 must be a finite number greater than 0"),
        (Radial, {"decay": float("nan")}, r"decay=nan must be a finite number"),
        (Radial, {"density": 0.2, "tile": (0, 8, 8)}, r"tile=\(0, 8, 8\) must be"),
        (Radial, {"density": 0.2, "tile": [2, 8, 8]}, r"tile=\[2, 8, 8\] must be"),
        (Dense, {"tile": (8, 8)}, r"tile=\(8, 8\) must be"),
        (RadialRaster, {"decay": -0.1}, r"decay=-0\.1 must be a finite number of at least 0"),
        (RadialRaster, {"decay": float("inf")}, "decay=inf must be a finite number"),
        (RadialRaster, {"block": 0}, "block=0 must be a whole number of at least 1"),
        (RadialRaster, {"adjacent": "quarter"}, "adjacent='quarter' is unknown; choose one of full, half"),
        (SlidingTile, {"window": (3, 8)}, r"window=\(3, 8\) must be"),
        (SlidingTile, {"window": (0, 8, 8)}, r"window=\(0, 8, 8\) must be"),
        (SlidingTile, {"stride": (1, 1, 0)}, r"stride=\(1, 1, 0\) must be"),
        (SlidingTile, {"stride": (1, 1)}, r"stride=\(1, 1\) must be"),
        (SlidingTile, {"tile": (1, 1, 0)}, r"tile=\(1, 1, 0\) must be"),
        (StepSchedule, {"pattern": Dense(), "dense_steps": -1}, "dense_steps=-1"),
        (StepSchedule, {"pattern": Dense(), "dense_steps": 1.5}, "dense_steps=1.5"),
        (StepSchedule, {"pattern": Dense(), "dense_layers": 0}, "dense_layers=0 must be a tuple of indices"),
        (StepSchedule, {"pattern": Dense(), "dense_layers": [0]}, r"dense_layers=\[0\] must be a tuple of indices"),
        (StepSchedule, {"pattern": Dense(), "dense_last_steps": -1}, "dense_last_steps=-1"),
        (StepSchedule, {"pattern": Dense(), "steps": (5, 2)}, r"steps=\(5, 2\) must be \(low, high\)"),
        (StepSchedule, {"pattern": Dense(), "sigmas": (1.0, 0.5)}, r"sigmas=\(1\.0, 0\.5\) must be \(low, high\)"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_bad_arguments(pattern: type[Pattern], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pattern(**arguments)


def assert_same_map(one: BlockMap, other: BlockMap) -> None:
    """Equal but for entries past the count."""
    assert (one.grid, one.query_tile, one.key_tile) == (other.grid, other.query_tile, other.key_tile)
    assert torch.equal(one.counts, other.counts)
    assert one.indices.shape == other.indices.shape
    listed = torch.arange(one.indices.shape[-1]) < one.counts[..., None]
    assert torch.equal(one.indices[listed], other.indices[listed])
