"""`LightForcing`: growth and choice by hand and by the published rule, token by token; attention to what it chose."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from vidsparse import BlockMap, Context, LightForcing, StepSchedule, VideoGrid, sparse_attention
from vidsparse.serialize import from_data, to_data
from vidsparse_kernels.layout import tile_tokens

# Frames, height and width of a chunk; frames that are kept; prefix and suffix of queries and keys; tile.
CALLS: dict[str, tuple[VideoGrid, VideoGrid, tuple[int, int, int]]] = {
    "3 of 12 frames": (VideoGrid(3, 8, 8), VideoGrid(12, 8, 8), (1, 4, 4)),
    "ragged": (VideoGrid(2, 5, 7), VideoGrid(9, 5, 7), (1, 2, 4)),
    "1 of 8, one row": (VideoGrid(1, 1, 11), VideoGrid(8, 1, 11), (1, 1, 4)),
    "text": (VideoGrid(2, 4, 6, suffix=3), VideoGrid(8, 4, 6, prefix=2, suffix=5), (1, 2, 2)),
}
every_call = pytest.mark.parametrize(("queries", "keys", "tile"), CALLS.values(), ids=CALLS)


def content(queries: VideoGrid, keys: VideoGrid, batch: int = 2, heads: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Random query and key [batch, tokens, heads, 8]."""
    return torch.randn(batch, queries.tokens, heads, 8), torch.randn(batch, keys.tokens, heads, 8)


def published(
    query: torch.Tensor, key: torch.Tensor, queries: VideoGrid, keys: VideoGrid, pattern: LightForcing
) -> torch.Tensor:
    """The rule by its definition, one query tile after the other: bool [B, H, query tiles, key tiles]."""
    assert pattern.tile is not None
    rows, columns = (tile_tokens(grid.view, pattern.tile, grid.prefix) for grid in (queries, keys))
    per_frame, past = len(columns) // keys.frames, keys.frames - queries.frames
    amount = max(1, int(pattern.density_of_chunk(keys.frames) * len(columns)))
    kept = torch.zeros(query.shape[0], query.shape[2], len(rows), len(columns), dtype=torch.bool)
    for b, h, row in torch.cartesian_prod(*(torch.arange(n) for n in kept.shape[:3])).tolist():
        mean = query[b, rows[row], h].double().mean(dim=0)
        scores = [float(mean @ key[b, tokens, h].double().mean(dim=0)) for tokens in columns]
        seen = set(range(keys.frames))
        if past > pattern.keep_frames:
            frames = [torch.cat(columns[f * per_frame : (f + 1) * per_frame]) for f in range(past)]
            middle = range(pattern.sink, past - pattern.near)
            best = sorted(middle, key=lambda f: -float(mean @ key[b, frames[f], h].double().mean(dim=0)))
            seen -= set(best[pattern.keep_frames - pattern.sink - pattern.near :])
        eligible = [i for i in range(len(columns)) if i // per_frame in seen]
        kept[b, h, row, sorted(eligible, key=lambda i: -scores[i])[:amount]] = True
    return kept


# Growth


def test_the_growth_is_the_published_one() -> None:
    """By the published schedule: 21 frames, chunks of 3, sparsity 0.88 with a base of 0.98."""
    found = [round(1 - LightForcing().density_of_chunk(n), 3) for n in range(6, 22, 3)]
    assert found == [0.827, 0.855, 0.872, 0.883, 0.892, 0.898]


def test_the_growth_by_hand() -> None:
    """Chunks that see 4 and 9 frames: 0.1 of 13 frames above the base, shared out by the roots 2 and 3."""
    pattern = LightForcing(density=0.3, base_density=0.2, frames=9, chunk=4, window=None)
    assert pattern.density_of_chunk(8) == pytest.approx(0.3), "the only chunk after the first takes all"
    pattern = LightForcing(density=0.3, base_density=0.2, frames=6, chunk=2)
    beta = 0.1 * (4 + 6) / (2 + math.sqrt(6))
    assert pattern.density_of_chunk(4) == pytest.approx(0.2 + beta / 2)
    assert pattern.density_of_chunk(6) == pytest.approx(0.2 + beta / math.sqrt(6))


@pytest.mark.parametrize("window", [None, 6, 12], ids=str)
def test_the_chunks_keep_the_density_together(window: int | None) -> None:
    pattern = LightForcing(density=0.15, base_density=0.05, frames=60, window=window)
    seen = [min(n, window or n) for n in range(6, 61, 3)]
    assert sum(pattern.density_of_chunk(n) * n for n in seen) == pytest.approx(0.15 * sum(seen))
    kept = [pattern.density_of_chunk(n) for n in sorted(set(seen))]
    assert kept == sorted(kept, reverse=True) and kept[-1] > 0.05


def test_without_growth_all_chunks_keep_the_same() -> None:
    pattern = LightForcing(density=0.25, base_density=0.25)
    assert [pattern.density_of_chunk(n) for n in (6, 12, 99)] == pytest.approx([0.25] * 3)


def test_no_chunk_keeps_more_than_all() -> None:
    assert LightForcing(density=1.0, base_density=1e-3, frames=60).density_of_chunk(6) == 1.0


# Selection


def test_frames_first_then_tiles_by_hand() -> None:
    """Four kept frames and one of the chunk, two tiles of one token in each, keys of one channel, one query of 1.

    The means of the kept frames are 3, 4, 5 and 1: two frames may be seen, which are the second and the third. Of their
    tiles and those of the chunk, 6, 2, 5, 5, 7 and 0, three of ten are kept: 7, 6, and the first of the two 5s. The
    first frame's 9 is the highest score of all, but its frame is not seen.
    """
    queries, keys = VideoGrid(1, 1, 2), VideoGrid(5, 1, 2)
    key = torch.tensor([9.0, -3.0, 6.0, 2.0, 5.0, 5.0, 1.0, 1.0, 7.0, 0.0]).view(1, 10, 1, 1)
    query = torch.ones(1, 2, 1, 1)
    pattern = LightForcing(0.3, 0.3, frames=5, chunk=1, keep_frames=2, tile=(1, 1, 1))
    block_map = pattern.select(query, key, queries, Context(key_grid=keys))
    assert block_map.indices.tolist() == [[[[2, 4, 8]] * 2]]
    whole = LightForcing(0.3, 0.3, frames=5, chunk=1, keep_frames=4, tile=(1, 1, 1))
    assert whole.select(query, key, queries, Context(key_grid=keys)).indices.tolist() == [[[[0, 2, 8]] * 2]]
    ends = LightForcing(0.3, 0.3, frames=5, chunk=1, keep_frames=2, sink=1, near=1, tile=(1, 1, 1))
    assert ends.select(query, key, queries, Context(key_grid=keys)).indices.tolist() == [[[[0, 6, 8]] * 2]]


@every_call
@pytest.mark.parametrize("ends", [(0, 0), (1, 0), (1, 2)], ids=str)
@pytest.mark.parametrize("keep_frames", [3, 99], ids=["hierarchy", "all frames"])
def test_against_the_rule_token_by_token(
    queries: VideoGrid, keys: VideoGrid, tile: tuple[int, int, int], ends: tuple[int, int], keep_frames: int
) -> None:
    query, key = content(queries, keys)
    pattern = LightForcing(0.3, 0.1, frames=12, keep_frames=keep_frames, sink=ends[0], near=ends[1], tile=tile)
    block_map = pattern.select(query, key, queries, Context(key_grid=keys))
    assert torch.equal(block_map.to_dense(), published(query, key, queries, keys, pattern))
    assert (block_map.query_grid, block_map.key_grid) == (queries, keys)
    block_map.check_rows()
    block_map.check_lists()


def test_a_query_tile_whose_frames_have_few_tiles_keeps_those_alone() -> None:
    """One earlier frame and the chunk, of nine: 2 of 9 tiles are left, where 8 could be kept."""
    queries, keys = VideoGrid(1, 4, 4), VideoGrid(9, 4, 4)
    pattern = LightForcing(0.9, 0.9, keep_frames=1, tile=(1, 4, 4))
    block_map = pattern.select(*content(queries, keys), queries, Context(key_grid=keys))
    assert (block_map.counts == 2).all() and (block_map.to_dense()[..., 8]).all()


# Calls


@every_call
def test_attention_to_the_chosen_tiles(queries: VideoGrid, keys: VideoGrid, tile: tuple[int, int, int]) -> None:
    query, key = content(queries, keys)
    value = torch.randn_like(key)
    pattern = LightForcing(0.3, 0.1, frames=12, keep_frames=3, tile=tile)
    block_map = pattern.select(query, key, queries, Context(key_grid=keys))
    out = sparse_attention(query, key, value, block_map)
    q, k, v = (x.double().transpose(1, 2) for x in (query, key, value))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, block_map.token_mask()).transpose(1, 2)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=2e-6)


def test_a_call_without_kept_keys_is_dense() -> None:
    grid, keys, pattern = VideoGrid(3, 8, 8), VideoGrid(6, 8, 8), LightForcing()
    text = VideoGrid(3, 8, 8, suffix=3)
    whole: Any = pattern.select(*content(grid, text), grid, Context(key_grid=text))
    assert (whole.key_grid, whole.density) == (text, 1.0), "a first chunk whose keys are more tokens"
    assert pattern.is_dense(Context()) and not pattern.is_dense(Context(key_grid=keys))
    assert pattern.plan(grid).to_dense().all()  # type: ignore[union-attr]
    assert pattern.plan(grid, Context(key_grid=grid)).to_dense().all()  # type: ignore[union-attr]
    scheduled = StepSchedule(pattern, dense_steps=1)
    assert scheduled.is_dense(Context(step=0, key_grid=keys)) and not scheduled.is_dense(Context(step=1, key_grid=keys))


def test_a_plan_has_the_grids_of_its_call() -> None:
    grid, keys = VideoGrid(3, 8, 8), VideoGrid(9, 8, 8)
    planned = LightForcing(0.5, tile=(1, 4, 4)).plan(grid, Context(heads=2, key_grid=keys))
    assert isinstance(planned, BlockMap)
    assert (planned.query_grid, planned.key_grid, planned.counts.shape) == (grid, keys, (1, 2, 12))


@pytest.mark.parametrize(
    ("keys", "queries"), [((2, 8, 8), (3, 8, 8)), ((6, 8, 4), (3, 8, 8)), ((6, 4, 8), (3, 8, 8))], ids=str
)
def test_keys_of_other_frames_are_refused(keys: tuple[int, int, int], queries: tuple[int, int, int]) -> None:
    grid, key_grid = VideoGrid(*queries), VideoGrid(*keys)
    with pytest.raises(ValueError, match=r"VideoGrid\(.*\) must be the last ones of key_grid=VideoGrid"):
        LightForcing().select(*content(grid, key_grid), grid, Context(key_grid=key_grid))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"density": 0.1, "base_density": 0.2}, r"base_density=0\.2 must be at most density=0\.1"),
        ({"density": 0.0}, r"density=0\.0 must be in \(0, 1\]"),
        ({"frames": 5}, r"frames=5 must be at least two chunks of chunk=3 frames"),
        ({"sink": 4, "near": 3}, r"sink=4 and near=3 must be at most keep_frames=6 together"),
        ({"keep_frames": 0}, "keep_frames=0 must be a whole number of at least 1"),
        ({"window": 0}, "window=0 must be a whole number of at least 1, or None"),
        ({"tile": (2, 8, 8)}, r"tile=\(2, 8, 8\) must be \(1, height, width\)"),
    ],
    ids=str,
)
def test_fields_that_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LightForcing(**fields)


def test_the_default_tile_is_of_one_frame() -> None:
    assert LightForcing().tile_for(VideoGrid(3, 30, 52)) == (1, 32, 4), "two of 32 rows are empty"
    assert LightForcing().tile_for(VideoGrid(3, 16, 16)) == (1, 8, 8)
    assert LightForcing(tile=(1, 4, 4)).tile_for(VideoGrid(3, 30, 52)) == (1, 4, 4)


def test_it_is_written_and_read() -> None:
    pattern = LightForcing(0.2, window=9, tile=(1, 4, 8))
    assert from_data(to_data(pattern)) == pattern
