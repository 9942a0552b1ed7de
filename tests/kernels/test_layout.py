"""The geometry that kernels and patterns share: tiles, their sizes, their lists."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from vidsparse import VideoGrid
from vidsparse_kernels.layout import (
    TileLayout,
    Tiling,
    Triple,
    check_lists,
    lists_of,
    tile_count,
    tile_counts,
    tile_of_token,
    tile_sizes,
    tile_tokens,
)

CASES = [((3, 9, 10), (2, 4, 4)), ((1, 7, 13), (1, 8, 16)), ((5, 1, 1), (2, 1, 1)), ((4, 8, 8), (2, 8, 4))]
every_case = pytest.mark.parametrize(("view", "tile"), CASES, ids=str)


@every_case
def test_tiles_hold_each_token_once_in_raster_order(view: Triple, tile: Triple) -> None:
    places = list(itertools.product(*(range(size) for size in view)))
    held = tile_tokens(view, tile, offset=5)
    assert sorted(torch.cat(held).tolist()) == list(range(5, 5 + math.prod(view)))
    for number, tokens in enumerate(held):
        of_tile = {tuple(n // side for n, side in zip(places[t - 5], tile, strict=True)) for t in tokens.tolist()}
        assert len(of_tile) == 1 and tokens.tolist() == sorted(tokens.tolist())
        assert (tile_of_token(view, tile)[tokens - 5] == number).all()


@every_case
def test_sizes_and_counts_are_those_of_the_tiles(view: Triple, tile: Triple) -> None:
    sizes = tile_sizes(view, tile)
    assert sizes.dtype == torch.int64
    assert sizes.tolist() == [len(tokens) for tokens in tile_tokens(view, tile)]
    assert tile_counts(view, tile) == VideoGrid(*view).tiles(tile)
    assert tile_count(list(view), list(tile)) == len(sizes)


def test_sizes_are_kept_for_each_device() -> None:
    view, tile = CASES[0]
    assert tile_sizes(view, tile) is tile_sizes(view, tile)
    assert tile_sizes(view, tile, torch.device("meta")).is_meta
    assert not tile_sizes(view, tile).is_meta


def test_what_is_cached_in_inference_mode_serves_a_training() -> None:
    with torch.inference_mode():
        sizes = tile_sizes((3, 3, 3), (1, 2, 2))
    weight = torch.ones(len(sizes), requires_grad=True)
    (weight * sizes).sum().backward()
    assert torch.equal(weight.grad, sizes.float())


def test_lists_ascend_and_hold_what_is_kept() -> None:
    kept = torch.rand(2, 3, 5, 11, generator=torch.Generator().manual_seed(0)) < 0.4
    kept[0, 0, 0] = False
    counts, indices = lists_of(kept)
    assert counts.dtype == indices.dtype == torch.int32 and indices.shape == kept.shape
    for row, count, listed in zip(kept.view(-1, 11), counts.flatten(), indices.view(-1, 11), strict=True):
        assert listed[:count].tolist() == row.nonzero().flatten().tolist()


def test_padding_is_what_follows_the_valid_extra_tokens() -> None:
    key = Tiling((1, 2, 2), (1, 2, 2), prefix=2, suffix=3)
    layout = TileLayout(Tiling((1, 2, 2), (1, 2, 2)), key)  # padding is what is no key
    assert layout.padding_mask(None) is key.padding_mask(None) is None
    found = layout.padding_mask(torch.tensor([1, 4]))
    assert found is not None
    assert found.int().tolist() == [[0, 1, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0, 1]]


@every_case
@pytest.mark.parametrize("edges", [(0, 0), (3, 0), (2, 40)], ids=str)
def test_a_tiling_counts_its_tokens_and_is_its_numbers(view: Triple, tile: Triple, edges: tuple[int, int]) -> None:
    tiling = Tiling(view, tile, *edges)
    assert tiling.tokens == math.prod(view) + sum(edges) == tiling.video_tokens + tiling.extra
    assert tiling.tiles == len(tile_tokens(view, tile)) and tiling.volume == math.prod(tile)
    assert tiling.ragged == (int(tile_sizes(view, tile).min()) < tiling.volume)
    assert tiling.volume * (tiling.extra_blocks - 1) < tiling.extra <= tiling.volume * tiling.extra_blocks
    video = torch.cat(tile_tokens(view, tile, tiling.prefix))
    assert sorted([*tiling.extra_tokens.tolist(), *video.tolist()]) == list(range(tiling.tokens))
    assert Tiling.of_numbers(tiling.numbers) == tiling


def test_lists_that_are_not_those_of_tiles_are_found() -> None:
    counts, indices = torch.tensor([[2, 0, 3]]), torch.tensor([[[1, 4, 9], [7, 7, 7], [0, 1, 2]]])
    check_lists(counts, indices, tiles=5)  # what is past the count may be anything
    for wrong, message in (
        ((counts + 1, indices), "counts hold 1 to 4, expected 0 to 3, the width of the lists"),
        ((counts - 1, indices), "counts hold -1 to 2"),
        ((counts, indices + 1), "indices hold 5, but the grid has key tiles 0 to 4"),
        ((counts, indices - 1), "indices hold -1"),
        ((counts, indices.flip(-1)), "indices hold 9"),
        ((counts, indices * 0), "indices must ascend within each list"),
    ):
        with pytest.raises(ValueError, match=message):
            check_lists(*wrong, tiles=5)
