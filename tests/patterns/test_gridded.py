"""Grid heads against brute force over tokens, the published mask, and what tiles may add to it."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import Any

import pytest
import torch

from vidsparse import BlockMap, Context, VideoGrid, head_groups, sparse_attention
from vidsparse.patterns.gridded import Gridded, GriddedHeads

ONE = (1, 1, 1)
PATTERNS = {
    "default": Gridded(),
    "published": Gridded(phases=((0, 0, 0),)),
    "lattice": Gridded(stride=(1, 3, 4), local_frames=0, sink=0),
    "lattice-in-time": Gridded(stride=(2, 3, 99), local_frames=0, sink=0),
    "columns": Gridded(stride=(1, 1, 5), local_frames=0, sink=2),
    "two-phases": Gridded(stride=(2, 3, 4), phases=((0, 1, 2), (1, 2, 0)), local_frames=2, sink=0),
    "phase-beyond-the-grid": Gridded(phases=((0, 50, 50), (0, 1, 0)), local_frames=2),
    "no-lines": Gridded(phases=(), local_frames=2, sink=1),
    "everything": Gridded(stride=ONE, local_frames=0, sink=0),
}
GRIDS = {
    "5x7x11": VideoGrid(5, 7, 11),
    "1x8x9": VideoGrid(1, 8, 9),
    "7x1x1": VideoGrid(7, 1, 1),
    "3+3x5x2+5": VideoGrid(3, 5, 2, prefix=3, suffix=5),
    "4x6x10": VideoGrid(4, 6, 10),
}
every_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)


def with_tile(pattern: Gridded, tile: tuple[int, int, int]) -> Gridded:
    return Gridded(pattern.stride, pattern.phases, pattern.local_frames, pattern.sink, tile)


@lru_cache(maxsize=64)
def brute_force(pattern: Gridded, grid: VideoGrid) -> torch.Tensor:
    """The rule of the docstring, pair by pair: bool [video tokens, video tokens]."""
    stride = pattern.stride or (1, grid.height, grid.width)
    places = list(itertools.product(*map(range, grid.view)))
    phases = [tuple(p % s for p, s in zip(place, stride, strict=True)) for place in places]
    kept = torch.zeros(len(places), len(places), dtype=torch.bool)
    for i, j in itertools.product(range(len(places)), repeat=2):
        if pattern.phases is None:
            line = phases[i] == phases[j]
        else:
            line = phases[i] in pattern.phases or phases[j] in pattern.phases
        near = abs(places[i][0] - places[j][0]) < pattern.local_frames
        kept[i, j] = line or near or places[j][0] < pattern.sink
    return kept


def video_mask(block_map: BlockMap) -> torch.Tensor:
    first = block_map.grid.prefix
    video = slice(first, first + block_map.grid.video_tokens)
    return block_map.token_mask()[0, 0, video, video]


@every_grid
@every_pattern
def test_tiles_of_one_token_are_the_rule(pattern: Gridded, grid: VideoGrid) -> None:
    assert torch.equal(video_mask(with_tile(pattern, ONE).plan(grid)), brute_force(pattern, grid))


@pytest.mark.parametrize("tile", [None, (2, 2, 4), (4, 2, 1), (1, 4, 4)], ids=str)
@every_grid
@every_pattern
def test_a_pair_of_tiles_is_kept_when_one_of_its_pairs_of_tokens_is(
    pattern: Gridded, grid: VideoGrid, tile: tuple[int, int, int] | None
) -> None:
    block_map = (pattern if tile is None else with_tile(pattern, tile)).plan(grid)
    exact = brute_force(pattern, grid)
    assert not (exact & ~video_mask(block_map)).any()
    owner = block_map.key_tile_of_token
    touched = torch.zeros(block_map.key_tiles, block_map.key_tiles, dtype=torch.bool)
    rows, columns = exact.nonzero(as_tuple=True)
    touched[owner[rows], owner[columns]] = True
    assert torch.equal(block_map.to_dense()[0, 0], touched)


@every_grid
@every_pattern
def test_the_default_tile_computes_least(pattern: Gridded, grid: VideoGrid) -> None:
    chosen = pattern.plan(grid)
    assert math.prod(chosen.query_tile) == 128
    for tile in [(1, 8, 16), (8, 4, 4), (32, 2, 2), (2, 8, 8), (4, 32, 1), (128, 1, 1)]:
        assert chosen.counts.sum() <= with_tile(pattern, tile).plan(grid).counts.sum()


def test_the_default_tile_lies_along_the_lines() -> None:
    grid = VideoGrid(32, 12, 20)
    lines = Gridded(stride=(1, 4, 4), local_frames=0, sink=0)
    assert lines.tile_for(grid) == (32, 2, 2)
    assert lines.plan(grid).density == pytest.approx(1 / 4)
    assert Gridded().tile_for(VideoGrid(21, 45, 80)) == (1, 8, 16)  # a longer one would widen the window of frames


@every_grid
@every_pattern
def test_every_query_tile_sees_itself_and_text_is_exact(pattern: Gridded, grid: VideoGrid) -> None:
    block_map = pattern.plan(grid)
    assert block_map.grid is grid
    assert block_map.to_dense().diagonal(dim1=-2, dim2=-1).all()
    mask = block_map.token_mask()[0, 0]
    for text in (slice(0, grid.prefix), slice(grid.tokens - grid.suffix, grid.tokens)):
        assert mask[text].all() and mask[:, text].all()
    assert pattern.plan(VideoGrid(*grid.view, grid.prefix, grid.suffix), Context(layer=3, heads=7)) is block_map


@every_grid
@pytest.mark.parametrize(
    ("stride", "phases"),
    # A chosen phase in time counts from the first frame, so only all of them together have no direction.
    [((2, 2, 3), None), *itertools.product([None, (1, 3, 4)], [None, ((0, 0, 0),), ((0, 1, 1), (0, 0, 1))])],
    ids=str,
)
def test_without_a_sink_time_has_no_direction(
    stride: tuple[int, int, int] | None, phases: tuple[tuple[int, int, int], ...] | None, grid: VideoGrid
) -> None:
    mask = video_mask(Gridded(stride, phases, local_frames=1, sink=0, tile=ONE).plan(grid))
    assert torch.equal(mask, mask.T)
    backwards = torch.arange(grid.video_tokens).view(grid.view).flip(0).flatten()
    assert torch.equal(mask[backwards][:, backwards], mask)


@pytest.mark.parametrize("local", [1, 3])
@pytest.mark.parametrize("sink", [0, 2])
def test_the_past_is_the_published_mask_between_frames(sink: int, local: int) -> None:
    grid = VideoGrid(6, 3, 4)
    stride = grid.height * grid.width
    window, first, tokens = local * stride, sink * stride, grid.video_tokens
    published = torch.zeros(tokens, tokens, dtype=torch.bool)
    for i, j in itertools.product(range(tokens), repeat=2):
        # Rows after the sink and the window, keys after the sink; phases of a frame's first token, as in the kernel.
        row = i >= first + window and (i - first - window) % stride == -(first + window) % stride
        column = j >= first and (j - first) % stride == -first % stride
        published[i, j] = i >= j and (i - j < window or j < first or row or column)
    ours = video_mask(Gridded(phases=((0, 0, 0),), local_frames=local, sink=sink, tile=ONE).plan(grid))
    frame = torch.arange(tokens) // stride
    apart = frame[:, None] - frame
    # Their window is counted in tokens: it ends within the frame that is `local` frames back, ours before it.
    assert torch.equal(ours[apart > local], published[apart > local])
    inside = (apart < local) & (torch.arange(tokens)[:, None] >= torch.arange(tokens))
    assert ours[inside].all() and published[inside].all()


def test_heads_with_the_same_settings_share_a_map() -> None:
    grid = GRIDS["3+3x5x2+5"]
    lines, columns = PATTERNS["lattice"], PATTERNS["columns"]
    pattern = GriddedHeads((lines, columns, Gridded(stride=(1, 3, 4), local_frames=0, sink=0)))
    plan = pattern.plan(grid, Context(heads=3, layer=5))
    assert [group.heads for group in plan] == [(0, 2), (1,)]
    assert [group.block_map for group in plan] == [lines.plan(grid), columns.plan(grid)]
    assert head_groups(plan, 3) == pattern.plan(grid)
    assert hash(pattern) == hash(GriddedHeads(pattern.heads))


@pytest.mark.parametrize("name", ["published", "lattice"])
def test_attention_is_the_same_in_all_implementations(name: str) -> None:
    grid = GRIDS["3+3x5x2+5"]
    q, k, v = torch.randn(3, 1, grid.tokens, 2, 8)
    block_map = with_tile(PATTERNS[name], (2, 2, 2)).plan(grid)
    expected = sparse_attention(q, k, v, block_map, impl="reference")
    torch.testing.assert_close(sparse_attention(q, k, v, block_map, impl="cpu"), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stride": (1, 8)}, r"stride=\(1, 8\) must be"),
        ({"stride": (0, 8, 8)}, r"stride=\(0, 8, 8\) must be"),
        ({"tile": (0, 8, 8)}, r"tile=\(0, 8, 8\) must be"),
        ({"local_frames": -1}, "local_frames=-1 must be a whole number"),
        ({"sink": -1}, "sink=-1 must be a whole number"),
        ({"phases": ((0, 0, 0),), "local_frames": 0}, "leaves tokens off these lines nothing"),
        ({"phases": ((1, 0, 0),)}, r"phases=\(\(1, 0, 0\),\) must be .* below the stride \(1, height, width\)"),
        ({"phases": ((0, 8, 0),), "stride": (1, 8, 8)}, r"below the stride \(1, 8, 8\)"),
        ({"phases": ((0, 0),)}, "must be whole triples"),
        ({"phases": [(0, 0, 0)]}, "must be whole triples"),
        ({"phases": ((0, 0.5, 0),)}, "must be whole triples"),
    ],
    ids=str,
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gridded(**arguments)


@pytest.mark.parametrize("heads", [(), [Gridded()], (Gridded(), None)], ids=["none", "list", "no-pattern"])
def test_heads_must_be_settings(heads: Any) -> None:
    with pytest.raises(ValueError, match=r"must be a tuple of one Gridded\(\.\.\.\) for each head"):
        GriddedHeads(heads)


def test_a_layer_of_another_number_of_heads() -> None:
    with pytest.raises(ValueError, match="settings for 1 heads, but a layer has 4"):
        GriddedHeads((Gridded(),)).plan(GRIDS["7x1x1"], Context(layer=2, heads=4))
