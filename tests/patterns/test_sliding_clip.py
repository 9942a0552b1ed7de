"""SlidingClip: what a query sees of a long video is what its pattern has in a clip, at the query's place there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from vidsparse import (
    Context,
    Dense,
    FreeSwim,
    MixtureOfBlocks,
    Pattern,
    PerHead,
    PerLayer,
    PerPhase,
    Radial,
    RadialRaster,
    Reuse,
    SlidingClip,
    SlidingTile,
    SpatialTemporal,
    StepSchedule,
    TopBlocks,
    VideoGrid,
)
from vidsparse.block_map import BlockMap, head_groups
from vidsparse.finetune.noise import by_noise
from vidsparse.patterns.names import build_pattern
from vidsparse.patterns.scale import scaled

FRAME = (6, 10)
TILE = (1, 4, 4)
PATTERNS: dict[str, Pattern] = {
    "dense": Dense(TILE),
    "radial": Radial(density=0.3, tile=TILE),
    "radial-tiles-of-2": Radial(density=0.3, tile=(2, 4, 4)),
    "heads": PerHead((SlidingTile((3, 6, 6), tile=TILE), Radial(density=0.2, tile=(2, 4, 4))), (0, 1, 1)),
}


def starts(frames: int, clip: int, unit: int) -> list[int]:
    """The first unit of the clip of each unit of the video."""
    units, length = -(-frames // unit), clip // unit
    return [min(max(u - length // 2, 0), units - length) for u in range(units)]


def content(grid: VideoGrid, batch: int = 2, heads: int = 3) -> torch.Tensor:
    return torch.randn(batch, grid.tokens, heads, 8, generator=torch.Generator().manual_seed(0))


def map_of(plan: object, head: int, heads: int = 3) -> BlockMap:
    """The map of one head, with that head alone."""
    for group in head_groups(plan, heads):  # type: ignore[arg-type]
        if head in group.heads:
            block_map = group.block_map
            at = group.heads.index(head) if block_map.counts.shape[1] > 1 else 0
            return replace(
                block_map, counts=block_map.counts[:, at : at + 1], indices=block_map.indices[:, at : at + 1]
            )
    raise AssertionError(f"no group has head {head}")


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("frames", [10, 17, 18])
def test_each_query_has_the_row_that_its_place_has_in_a_clip(pattern: Pattern, frames: int) -> None:
    grid = VideoGrid(frames, *FRAME, prefix=3, suffix=2)
    for head in range(3):
        found = map_of(SlidingClip(pattern, 8).plan(grid, Context(heads=3)), head)
        clip = map_of(pattern.plan(replace(grid, frames=8), Context(heads=3)), head)
        side = max(map_of(pattern.plan(grid, Context(heads=3)), each).query_tile[0] for each in range(3))
        own = found.query_tile[0]
        kept, whole = (x.to_dense()[0, 0].unflatten(1, (-1, 6)).unflatten(0, (-1, 6)) for x in (clip, found))
        expected = torch.zeros_like(whole)
        for unit, start in enumerate(starts(frames, 8, side)):
            for row in range(side // own):
                if (at := unit * side // own + row) < len(whole):
                    first = start * side // own
                    seen = kept[at - first]
                    room = expected[at, :, first : first + seen.shape[1]]
                    room |= seen[:, : room.shape[1]]
        assert torch.equal(whole, expected)


def test_dense_clips_are_the_windows_of_sliding_tile() -> None:
    grid = VideoGrid(17, *FRAME)
    assert SlidingClip(Dense(TILE), 9).plan(grid) == SlidingTile((9, 99, 99), tile=TILE).plan(grid)


@pytest.mark.parametrize("frames", [1, 5, 8])
def test_a_short_video_has_the_map_of_the_pattern(frames: int) -> None:
    grid, pattern = VideoGrid(frames, *FRAME), Radial(density=0.3)
    assert SlidingClip(pattern, 8).plan(grid) is pattern.plan(grid)
    top, query = TopBlocks(density=0.2), content(grid)
    context = Context(heads=3)
    assert SlidingClip(top, 8).select(query, query, grid, context) == top.select(query, query, grid, context)


@pytest.mark.parametrize("tile", [TILE, (2, 4, 4)])
def test_a_pattern_of_content_chooses_in_each_clip(tile: tuple[int, int, int]) -> None:
    grid, top = VideoGrid(11, *FRAME, prefix=3, suffix=2), TopBlocks(density=0.3, tile=tile)
    query, key = content(grid), content(grid).flip(1)
    found = SlidingClip(top, 6).select(query, key, grid, Context(heads=3))
    assert isinstance(found, BlockMap) and found.counts.shape[:2] == (2, 3)
    whole, clip, side = found.to_dense(), replace(grid, frames=6), tile[0]
    size, per = FRAME[0] * FRAME[1], 6
    for unit, start in enumerate(starts(11, 6, side)):
        frames = (torch.arange(6) + start * side).clamp(max=10)
        video = (3 + frames[:, None] * size + torch.arange(size)).flatten()
        tokens = torch.cat((torch.arange(3), video, 3 + 11 * size + torch.arange(2)))
        own = top.select(query[:, tokens], key[:, tokens], clip, Context(heads=3))
        assert isinstance(own, BlockMap)
        rows = own.to_dense()[:, :, (unit - start) * per : (unit - start + 1) * per]
        expected = torch.zeros_like(whole[:, :, :per])
        expected[..., start * per : start * per + rows.shape[-1]] = rows
        assert torch.equal(whole[:, :, unit * per : (unit + 1) * per], expected)


def test_the_choice_of_a_sample_does_not_depend_on_the_others() -> None:
    grid, pattern = VideoGrid(12, *FRAME), SlidingClip(TopBlocks(density=0.3, tile=TILE), 5)
    query = content(grid)
    both = pattern.select(query, query, grid, Context(heads=3))
    for sample in (0, 1):
        alone = pattern.select(query[sample : sample + 1], query[sample : sample + 1], grid, Context(heads=3))
        assert isinstance(both, BlockMap) and isinstance(alone, BlockMap)
        assert torch.equal(both.to_dense()[sample], alone.to_dense()[0])


def test_queries_and_valid_tokens_go_to_the_pattern_clip_by_clip() -> None:
    grid, seen = VideoGrid(9, *FRAME, suffix=2), []

    @dataclass(frozen=True)
    class Watching(TopBlocks):
        def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> BlockMap:
            if context.extra_valid is not None:
                seen.append((query.shape, key.shape, context.extra_valid.tolist(), grid))
            return super().select(query, key, grid, context)

    x = content(grid)
    context = Context(heads=3, value=x, extra_valid=torch.tensor([1, 2]))
    SlidingClip(Watching(density=0.3, tile=TILE), 5).select(x, x, grid, context)
    clip = replace(grid, frames=5)
    [(query, key, valid, own)] = seen
    assert query == key == (2 * 5, clip.tokens, 3, 8) and own == clip
    assert valid == [1] * 5 + [2] * 5


def test_what_a_pattern_keeps_is_kept_for_all_clips() -> None:
    grid, query, context = VideoGrid(12, *FRAME), content(VideoGrid(12, *FRAME)), Context(heads=3)
    pattern = SlidingClip(Reuse(TopBlocks(density=0.3, tile=TILE)), 5)
    first = pattern.select(query, query, grid, context)
    assert pattern.select(-query, query.flip(1), grid, replace(context, step=1)) == first


def test_calls_come_to_the_pattern_of_their_layer_and_noise() -> None:
    grid = VideoGrid(17, *FRAME)
    layers = PerLayer((Radial(density=0.2, tile=TILE), Dense(TILE)), (0, 1))
    pattern = SlidingClip(StepSchedule(layers, sigmas=(0.0, 0.8)), 9)
    assert pattern.at(Context(sigma=0.5)) == SlidingClip(Radial(density=0.2, tile=TILE), 9)
    assert pattern.at(Context(layer=1, layers=2, sigma=0.5)).pattern == Dense(TILE)
    assert pattern.plan(grid, Context(sigma=0.5)) == SlidingClip(Radial(density=0.2, tile=TILE), 9).plan(grid)
    assert pattern.plan(grid, Context(sigma=0.9)) == SlidingClip(Dense(TILE), 9).plan(grid)


def test_dense_steps_are_dense_in_a_short_video_and_see_their_clip_in_a_long_one() -> None:
    pattern, noise = SlidingClip(StepSchedule(Radial(density=0.2), sigmas=(0.0, 0.8)), 9), Context(sigma=0.9)
    assert pattern.is_dense(noise) and pattern.is_dense(replace(noise, grid=VideoGrid(9, *FRAME)))
    assert not pattern.is_dense(replace(noise, grid=VideoGrid(10, *FRAME)))
    assert not pattern.is_dense(Context(sigma=0.5, grid=VideoGrid(9, *FRAME)))


def test_one_map_object_serves_all_layers() -> None:
    grid, pattern = VideoGrid(17, *FRAME), SlidingClip(Radial(density=0.3, tile=TILE), 9)
    assert pattern.plan(grid, Context(layer=1, layers=2)) is pattern.plan(grid)


def test_a_pattern_without_a_tile_gets_one_that_leaves_clips_an_overlap() -> None:
    grid = VideoGrid(18, 6, 10)
    assert Dense().plan(replace(grid, frames=9)).query_tile[0] > 3
    found = SlidingClip(Dense(), 9).plan(grid)
    assert isinstance(found, BlockMap) and found.query_tile[0] == 1
    assert found == SlidingTile((9, 99, 99), tile=found.query_tile).plan(grid)


def test_tiles_longer_than_clips_can_move_by_are_refused() -> None:
    grid = VideoGrid(18, *FRAME)
    with pytest.raises(ValueError, match=r"clips of 8 latent frames do not overlap.*have 8 frames; give it a tile"):
        SlidingClip(Radial(density=0.3, tile=(8, 2, 2)), 9).plan(grid)

    @dataclass(frozen=True)
    class Line(Radial):
        def plan(self, grid: VideoGrid, context: Context | None = None) -> BlockMap:
            return Dense((1, 1, 30)).plan(grid.raster)

    with pytest.raises(ValueError, match=r"needs maps of .*but its pattern gives one of .*frames, rows and columns"):
        SlidingClip(Line(density=0.3, tile=TILE), 9).plan(grid)

    @dataclass(frozen=True)
    class Undecided(TopBlocks):
        def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> BlockMap:
            return Dense((1, 4, 4) if len(query) == 1 else (4, 4, 4)).plan(grid)

    query = content(grid)
    with pytest.raises(ValueError, match=r"a tile of its pattern is \(4, 4, 4\), longer in time"):
        SlidingClip(Undecided(density=0.3, tile=TILE), 9).select(query, query, grid, Context(heads=3))


def test_kept_frames_are_refused_where_content_decides() -> None:
    grid, keys = VideoGrid(2, *FRAME), VideoGrid(12, *FRAME)
    context = Context(heads=3, key_grid=keys)
    query, key = content(grid), content(keys)
    for frames in (1, 5):  # shorter and longer than the chunk
        with pytest.raises(NotImplementedError, match="cannot choose among kept frames with TopBlocks"):
            SlidingClip(TopBlocks(density=0.3, tile=TILE), frames).select(query, key, grid, context)
    pattern = SlidingClip(Radial(density=0.3, tile=TILE), 5)
    whole = pattern.plan(keys)
    assert isinstance(whole, BlockMap)
    last = pattern.select(query, key, grid, context)
    assert isinstance(last, BlockMap) and torch.equal(last.to_dense()[0, 0], whole.to_dense()[0, 0, -12:])


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_tiles_of_the_layer_decide_the_clips(layer: int) -> None:
    grid, context = VideoGrid(17, 16, 16), Context(layer=layer, layers=3, heads=3)
    query = content(grid)
    found = SlidingClip(MixtureOfBlocks.trained(), 9).select(query, query, grid, context)
    for head in range(3):
        block_map = map_of(found, head)
        tiles = grid.tiles(block_map.query_tile)
        near = block_map.to_dense().any(dim=0)[0].nonzero() // (tiles[1] * tiles[2])
        assert int((near[:, 0] - near[:, 1]).abs().max()) * block_map.query_tile[0] < 9


def test_wrong_patterns_are_refused() -> None:
    with pytest.raises(TypeError, match="pattern=9 must be a pattern"):
        SlidingClip(9)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"pattern holds a FreeSwim, .* put SlidingClip into it"):
        SlidingClip(FreeSwim(Dense()))
    for pattern in (RadialRaster(), StepSchedule(SpatialTemporal())):
        with pytest.raises(ValueError, match=r"pattern holds a \w+, whose tiles do not fit a clip; give it Radial"):
            SlidingClip(pattern)
    with pytest.raises(ValueError, match="frames=0"):
        SlidingClip(Dense(), 0)


def test_names_build_it() -> None:
    assert build_pattern("sliding-clip") == SlidingClip(Dense(), 21)
    assert build_pattern("sliding-clip", 0.2, ["pattern=radial", "frames=9"]) == SlidingClip(Radial(density=0.2), 9)


def test_clips_stay_as_long_in_a_longer_video_and_their_windows_grow_with_the_frame() -> None:
    pattern = SlidingClip(SlidingTile((3, 8, 8)), 9)
    assert scaled(pattern, VideoGrid(9, 16, 16), VideoGrid(36, 32, 16)) == SlidingClip(SlidingTile((3, 16, 8)), 9)


def test_a_training_turns_the_schedule_within_into_noise() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    schedule = StepSchedule(Radial(density=0.2), dense_steps=2)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    assert by_noise(SlidingClip(schedule, 9), scheduler, 20) == SlidingClip(by_noise(schedule, scheduler, 20), 9)
    phases = PerPhase((SlidingClip(Dense(), 9), SlidingClip(Radial(density=0.2), 9)), (0.8,))
    assert by_noise(phases, scheduler, 20) == phases
