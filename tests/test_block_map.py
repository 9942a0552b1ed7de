"""Block maps: to and from dense masks, what is undefined in them, and the text in a mask of tokens."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable

import pytest
import torch

from vidsparse import BlockMap, Dense, HeadGroup, VideoGrid, sparse_attention
from vidsparse.block_map import plan_of_heads

QUERIES = VideoGrid(5, 7, 11)
EVERY_KEY_GRID = [
    *(None, VideoGrid(3, 9, 4), VideoGrid(1, 1, 1, prefix=2)),
    *(VideoGrid(9, 7, 11, suffix=3), VideoGrid(5, 7, 11, prefix=4, suffix=1)),
]
every_pair_of_grids = pytest.mark.parametrize(
    ("queries", "keys"),
    [(grid, keys) for grid in (QUERIES, VideoGrid(5, 7, 11, prefix=2, suffix=6)) for keys in EVERY_KEY_GRID],
    ids=str,
)


@every_pair_of_grids
def test_map_with_another_key_tile_and_one_map_for_each_sample_and_head(
    queries: VideoGrid, keys: VideoGrid | None
) -> None:
    columns = torch.Size((keys or queries).tiles((4, 4, 4))).numel()
    kept = torch.rand(2, 3, 24, columns) < 0.3
    kept[0, 1, 5] = False
    block_map = BlockMap.from_dense(kept, queries, query_tile=(2, 2, 6), key_tile=(4, 4, 4), key_grid=keys)
    assert torch.equal(block_map.to_dense(), kept)
    assert block_map.density == pytest.approx(kept.double().mean().item())
    mask = block_map.token_mask()
    assert mask.shape == (2, 3, queries.tokens, (keys or queries).tokens)
    assert block_map.token_density == pytest.approx(mask.double().mean().item())
    transposed = block_map.transpose()
    assert torch.equal(transposed.to_dense(), kept.mT) and torch.equal(transposed.token_mask(), mask.mT)
    assert (transposed.query_grid, transposed.key_grid) == (keys or queries, queries)
    assert transposed.transpose() == block_map
    assert transposed.token_density == pytest.approx(block_map.token_density)


@pytest.mark.parametrize("garbage", [0, -123456, 2**31 - 1])
def test_entries_past_the_count_mean_nothing(garbage: int) -> None:
    kept = torch.rand(7, 12) < 0.5
    kept[:, 0] = False
    block_map = BlockMap.from_dense(kept, VideoGrid(7, 4, 3), (1, 4, 3), (7, 1, 1))
    indices = block_map.indices.clone()
    past = torch.arange(indices.shape[-1]) >= block_map.counts[..., None]
    assert past.any()
    indices[past] = garbage
    changed = dataclasses.replace(block_map, indices=indices)
    assert torch.equal(changed.to_dense()[0, 0], kept)
    assert changed.token_density == block_map.token_density


def test_a_map_that_keeps_nothing() -> None:
    block_map = BlockMap.from_dense(torch.zeros(5, 5, dtype=torch.bool), VideoGrid(5, 4, 4), (1, 4, 4))
    assert block_map.indices.shape[-1] == 1
    assert not block_map.to_dense().any()
    assert block_map.density == block_map.token_density == 0


def test_token_mask_clears_the_padding_of_the_text() -> None:
    grid = VideoGrid(1, 2, 2, prefix=2, suffix=2)
    mask = Dense().plan(grid).token_mask(torch.tensor([4, 3, 1]))
    assert mask.shape == (3, 1, 8, 8)
    # Valid tokens are counted through the prefix first, then through the suffix.
    assert mask[:, 0].all(dim=1).tolist() == [
        [True] * 8,
        [True, True, True, True, True, True, True, False],
        [True, False, True, True, True, True, False, False],
    ]


@pytest.mark.parametrize(
    "kept",
    [torch.ones(4, 5, dtype=torch.bool), torch.ones(5, 5), torch.ones(1, 5, 5, dtype=torch.bool)],
    ids=["four-rows", "float", "three-dimensions"],
)
def test_from_dense_says_what_it_expects(kept: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected bool \[\.\.\., 5, 5\]"):
        BlockMap.from_dense(kept, VideoGrid(5, 4, 4), (1, 4, 4))
    with pytest.raises(ValueError, match=r"expected bool \[\.\.\., 5, 6\]: queries of .* and keys of"):
        BlockMap.from_dense(kept, VideoGrid(5, 4, 4), (1, 4, 4), key_grid=VideoGrid(6, 4, 4))


# Two grids


def test_one_grid_is_the_default_and_two_have_no_common_one() -> None:
    assert odd().grid == odd().query_grid == odd().key_grid and odd().square
    cache = dataclasses.replace(odd(), key_grid=VideoGrid(9, 7, 11))
    assert not cache.square and repr(cache).startswith("BlockMap(grids 5x7x11 -> 9x7x11, tiles 2x2x6 -> 2x2x6, heads 2")
    for name in ("grid", "view"):
        with pytest.raises(ValueError, match=r"its queries are VideoGrid\(frames=5, .* its keys VideoGrid\(frames=9"):
            getattr(cache, name)
    assert cache.of_heads((1,)).key_grid == cache.to("meta").key_grid == cache.key_grid


def test_lists_of_other_tiles_are_refused() -> None:
    block_map = odd()
    with pytest.raises(ValueError, match=r"counts have shape \(1, 2, 24\), expected \[B\|1, H\|1, 40\]"):
        dataclasses.replace(block_map, query_grid=VideoGrid(9, 7, 11))
    few = dataclasses.replace(block_map, key_grid=VideoGrid(1, 7, 11))
    with pytest.raises(ValueError, match=r"indices hold \d+, but the grid has key tiles 0 to 7"):
        few.check_lists()
    for name, wrong, message in (
        ("counts", block_map.counts + 24, "counts hold .*, the width of the lists"),
        ("indices", block_map.indices.flip(-1), "indices must ascend|indices hold"),
        ("indices", block_map.indices - 24, "indices hold -"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(block_map, **{name: wrong}).check_lists()


# As values


def odd(heads: int = 2, seed: int = 1) -> BlockMap:
    kept = torch.rand(1, heads, 24, 24, generator=torch.Generator().manual_seed(seed)) < 0.4
    return BlockMap.from_dense(kept | torch.eye(24, dtype=torch.bool), VideoGrid(5, 7, 11), (2, 2, 6))


def test_maps_that_keep_the_same_pairs_are_equal() -> None:
    one, same = odd(), odd()
    # Undefined entries, a wider list and another integer type change nothing.
    indices = torch.nn.functional.pad(same.indices, (0, 3), value=-7)
    past = torch.arange(indices.shape[-1]) >= same.counts[..., None]
    indices[past] = 99
    wider = dataclasses.replace(same, indices=indices)
    narrow = dataclasses.replace(same, counts=same.counts.short(), indices=same.indices.short())
    for other in (same, wider, narrow):
        assert one == other and hash(one) == hash(other) and len({one, other}) == 1
    assert HeadGroup((0, 1), one) == HeadGroup((0, 1), wider) != HeadGroup((1, 0), one)


@pytest.mark.parametrize(
    "other",
    [
        odd(seed=2),
        odd(heads=1),
        dataclasses.replace(odd(), query_grid=VideoGrid(5, 7, 11, suffix=1)),
        dataclasses.replace(odd(), key_grid=VideoGrid(5, 7, 11, suffix=1)),
        dataclasses.replace(odd(), key_tile=(2, 2, 6)[::-1]),
        dataclasses.replace(odd(), counts=odd().counts - (torch.arange(24) == 3).int()),
        "a map",
        None,
    ],
    ids=["pairs", "heads", "query-grid", "key-grid", "tile", "one-less", "text", "none"],
)
def test_other_maps_are_not_equal(other: object) -> None:
    assert odd() != other and not odd() == other  # noqa: SIM201


def test_hashing_reads_no_list() -> None:
    meta = dataclasses.replace(odd(), counts=odd().counts.to("meta"), indices=odd().indices.to("meta"))
    assert hash(meta) == hash(odd())  # meta tensors have no values: reading one would raise
    assert repr(meta) == "BlockMap(grid 5x7x11, tiles 2x2x6 -> 2x2x6, heads 2, density unknown)"


def test_equal_maps_keep_their_caches_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention finds what it has derived from a map by the object: it never compares two maps."""
    monkeypatch.setattr(BlockMap, "__eq__", None)
    q, k, v = torch.randn(3, 1, 385, 2, 8)
    for block_map in (odd(), odd(seed=2), odd()):
        out = sparse_attention(q, k, v, block_map, impl="cpu")
        torch.testing.assert_close(out, sparse_attention(q, k, v, block_map, impl="reference"))
        parts = [plan_of_heads(block_map, (1,)) for _ in range(2)]
        assert parts[0] is parts[1] is not block_map
        groups = (HeadGroup((1,), block_map.of_heads((0,))), HeadGroup((0,), block_map.of_heads((1,))))
        ((heads, of_one, _),) = plan_of_heads(groups, (1,))
        assert heads == (0,) and of_one is groups[0].block_map


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies_are_equal_and_without_caches(copied: Callable[[BlockMap], BlockMap]) -> None:
    block_map = odd()
    q = torch.randn(1, 385, 2, 8)
    sparse_attention(q, q, q, block_map, impl="cpu")
    assert block_map.flex_mask is not None and block_map.density and block_map.runs and block_map._derived
    found = copied(block_map)
    assert found == block_map and found is not block_map
    assert set(vars(found)) == {f.name for f in dataclasses.fields(BlockMap)}
    assert not found._derived and not found._lists
    torch.testing.assert_close(sparse_attention(q, q, q, found), sparse_attention(q, q, q, block_map))


def test_a_pickle_is_small() -> None:
    block_map = odd()
    before = len(pickle.dumps(block_map))
    assert block_map.flex_mask is not None and block_map.densities is not None
    assert len(pickle.dumps(block_map)) == before


def test_reprs_are_short() -> None:
    kept = torch.ones(2, 3, 4, 8, dtype=torch.bool)
    assert repr(Dense((1, 8, 8)).plan(VideoGrid(9, 32, 32))) == (
        "BlockMap(grid 9x32x32, tiles 1x8x8 -> 1x8x8, heads 1, density 1.00)"
    )
    block_map = BlockMap.from_dense(kept, VideoGrid(4, 8, 8), (1, 8, 8), (2, 4, 4))
    assert repr(block_map) == "BlockMap(grid 4x8x8, tiles 1x8x8 -> 2x4x4, samples 2, heads 3, density 1.00)"
    assert (
        repr(HeadGroup((0, 1, 2, 5, 7, 8), block_map, "mean"))
        == f"HeadGroup(heads 0-2, 5, 7-8, {block_map!r}, empty mean)"
    )
