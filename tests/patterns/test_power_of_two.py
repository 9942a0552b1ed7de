"""PowerOfTwo: who is seen, against a brute force; how soon everything is reached; the published line of blocks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from vidsparse.grid import VideoGrid
from vidsparse.patterns.power_of_two import PowerOfTwo

VIEWS = [(9, 16, 16), (5, 7, 11), (1, 16, 16), (7, 1, 1), (13, 3, 10)]
POWERS = {1 << k for k in range(20)}


@pytest.mark.parametrize("view", VIEWS, ids=str)
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(("window", "sink"), [((1, 1, 1), False), ((2, 2, 2), True), ((1, 3, 2), True)], ids=str)
def test_against_a_brute_force(view: tuple[int, int, int], axes: int, window: tuple[int, int, int], sink: bool) -> None:
    grid, tile = VideoGrid(*view), (1, 2, 2)
    block_map = PowerOfTwo(axes=axes, window=window, sink=sink, tile=tile).plan(grid)
    places = list(itertools.product(*map(range, grid.tiles(tile))))
    expected = [[sees(query, key, axes, window, sink) for key in places] for query in places]
    assert torch.equal(block_map.to_dense()[0, 0], torch.tensor(expected))


def sees(query: tuple[int, ...], key: tuple[int, ...], axes: int, window: tuple[int, ...], sink: bool) -> bool:
    away = [abs(a - b) for a, b in zip(query, key, strict=True)]
    near = all(d < n for d, n in zip(away, window, strict=True))
    hops = [d for d in away if d]
    return near or (sink and key[0] == 0) or (len(hops) <= axes and all(d in POWERS for d in hops))


@pytest.mark.parametrize("view", VIEWS, ids=str)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_every_tile_is_reached_in_logarithmically_many_layers(view: tuple[int, int, int], axes: int) -> None:
    grid, tile = VideoGrid(*view), (1, 1, 2)
    kept = PowerOfTwo(axes=axes, window=(1, 1, 1), sink=False, tile=tile).plan(grid).to_dense()[0, 0].float()
    bits = [math.ceil(math.log2(n)) for n in grid.tiles(tile)]
    reached = torch.eye(len(kept))
    for _ in range(max(bits) if axes == 3 else sum(bits)):
        reached = (reached @ kept > 0).float()
    assert reached.all()


@pytest.mark.parametrize("tokens", [1, 255, 256, 2304, 32768], ids=str)
def test_published_line_against_a_brute_force(tokens: int) -> None:
    grid = VideoGrid(1, 1, tokens) if tokens % 9 else VideoGrid(9, 1, tokens // 9)
    block_map = PowerOfTwo.published().plan(grid)
    blocks = math.ceil(tokens / 256)
    expected = [[abs(q - k) < 5 or abs(q - k) in POWERS or k == 0 for k in range(blocks)] for q in range(blocks)]
    assert block_map.query_tile == (1, 1, 256) and block_map.grid == grid.raster
    assert torch.equal(block_map.to_dense()[0, 0], torch.tensor(expected))


def test_published_numbers_at_32k_tokens() -> None:
    """The paper is causal: of the lower triangle, its rows hold about 10 blocks and its mask is about 94 % sparse."""
    causal = PowerOfTwo.published().plan(VideoGrid(1, 1, 32768)).to_dense()[0, 0].tril()
    assert causal.sum(dim=1).max() == 10
    assert 1 - causal.double().mean().item() == pytest.approx(0.94, abs=0.01)


def test_the_cost_of_far_tiles_grows_with_the_logarithm() -> None:
    rows = [PowerOfTwo(window=(1, 1, 1), sink=False, tile=(1, 8, 8)).plan(VideoGrid(n, 8, 8)) for n in (65, 129, 257)]
    assert [int(row.counts.max()) for row in rows] == [13, 15, 17]  # from the middle frame, both ways


def test_text_stays_around_a_line_of_blocks() -> None:
    grid = VideoGrid(9, 16, 16, prefix=3, suffix=5)
    block_map = PowerOfTwo.published(128).plan(grid)
    assert (block_map.grid.prefix, block_map.grid.suffix) == (3, 5)
    assert block_map.grid.tokens == grid.tokens


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"axes": 0}, "axes=0 must be 1, 2 or 3"),
        ({"axes": 4}, "axes=4 must be 1, 2 or 3"),
        ({"window": (0, 1, 1)}, r"window=\(0, 1, 1\) must be"),
        ({"tile": (8, 8)}, r"tile=\(8, 8\) must be"),
        ({"tile": (2, 8, 8), "raster": True}, r"tile=\(2, 8, 8\) must be \(1, 1, tokens\)"),
    ],
    ids=str,
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PowerOfTwo(**arguments)
