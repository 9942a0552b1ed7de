"""Tile means and the selection of tiles: the meaning in torch, and Triton's kernels against it."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from typing import Any

import pytest
import torch

from vidsparse import BlockMap, VideoGrid
from vidsparse_kernels.available import triton_lacks
from vidsparse_kernels.layout import tile_tokens
from vidsparse_kernels.selection import pooling, select
from vidsparse_kernels.selection.rule import Rule, forced_tiles
from vidsparse_kernels.selection.select import select_tiles

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not here")
RULES = [
    Rule("top_k", 1),
    Rule("top_k", 4),
    Rule("top_k", 50),
    Rule("top_p", 0.5),
    Rule("top_p", 0.95),
    Rule("top_p", 1),
    Rule("threshold", 0.05),
    Rule("threshold", 0.9),
]
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.kind}-{rule.amount}")


def rows(counts: torch.Tensor, indices: torch.Tensor) -> list[list[int]]:
    """Each row's list, without what is undefined."""
    flat = zip(counts.flatten().tolist(), indices.flatten(0, -2).tolist(), strict=True)
    return [listed[:count] for count, listed in flat]


def select_of(scores: list[float], rule: Rule, forced: list[int] | None = None) -> list[int]:
    must = None
    if forced is not None:
        must = torch.zeros(1, 1, 1, len(scores), dtype=torch.bool)
        must[..., forced] = True
    return rows(*select_tiles(torch.tensor(scores).view(1, 1, 1, -1), rule, must))[0]


# The meaning


def test_top_k_keeps_the_highest_in_ascending_order() -> None:
    assert select_of([0.1, 3.0, -1.0, 2.0], Rule("top_k", 2)) == [1, 3]
    assert select_of([0.1, 3.0], Rule("top_k", 9)) == [0, 1]


def test_of_equal_scores_the_first_is_kept() -> None:
    assert select_of([1.0, 2.0, 1.0, 1.0], Rule("top_k", 2)) == [0, 1]
    assert select_of([0.0] * 4, Rule("top_p", 0.5)) == [0, 1]


def test_top_p_keeps_the_fewest_that_reach_the_mass() -> None:
    scores = torch.tensor([0.5, 0.1, 0.3, 0.1]).log().tolist()
    assert select_of(scores, Rule("top_p", 0.45)) == [0]
    assert select_of(scores, Rule("top_p", 0.7)) == [0, 2]
    assert select_of(scores, Rule("top_p", 1.0)) == [0, 1, 2, 3]


def test_threshold_keeps_large_weights_and_always_the_highest() -> None:
    scores = torch.tensor([0.5, 0.1, 0.3, 0.1]).log().tolist()
    assert select_of(scores, Rule("threshold", 0.2)) == [0, 2]
    assert select_of(scores, Rule("threshold", 0.9)) == [0]


def test_forced_tiles_are_kept_and_counted() -> None:
    assert select_of([5.0, 4.0, 3.0, 0.0], Rule("top_k", 2), [3]) == [0, 3]
    assert select_of([5.0, 4.0, 3.0, 0.0], Rule("top_k", 1), [1, 3]) == [1, 3]
    assert select_of(torch.tensor([0.6, 0.3, 0.1]).log().tolist(), Rule("top_p", 0.35), [1]) == [0, 1]
    assert select_of([5.0, -float("inf")], Rule("threshold", 0.5), [1]) == [0, 1]


def test_minus_infinity_is_kept_only_where_it_is_forced() -> None:
    inf = float("inf")
    assert select_of([-inf, 1.0, -inf], Rule("top_k", 3)) == [1]
    assert select_of([-inf, 1.0, -inf], Rule("top_p", 1.0), [2]) == [1, 2]
    for rule in RULES:
        assert select_of([-inf, -inf], rule) == []


def test_the_lists_make_a_block_map() -> None:
    grid, tile = VideoGrid(3, 8, 16), (1, 8, 8)
    counts, indices = select_tiles(torch.randn(2, 3, 6, 6), Rule("top_p", 0.6))
    block_map = BlockMap(grid, tile, tile, counts, indices)
    assert torch.equal(block_map.to_dense().sum(dim=-1, dtype=torch.int32), counts)


def test_lists_are_as_wide_as_they_can_get() -> None:
    scores = torch.randn(1, 2, 3, 40)
    assert select_tiles(scores, Rule("top_k", 7))[1].shape == (1, 2, 3, 7)
    assert select_tiles(scores, Rule("top_p", 0.1))[1].shape == (1, 2, 3, 40)


def test_means_are_those_of_each_tiles_tokens() -> None:
    view, tile = (3, 9, 10), (2, 8, 8)
    x = torch.randn(2, 5 + 270, 3, 20, dtype=torch.bfloat16)
    found = pooling.tile_means(x, view, tile, prefix=5)
    wanted = torch.stack([x[:, t].double().mean(dim=1) for t in tile_tokens(view, tile, 5)], dim=2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tile", [(2, 8, 8), (1, 3, 5)], ids=str)
def test_gradients_flow_through_means_where_they_are_asked_for(tile: tuple[int, int, int]) -> None:
    view, prefix = (3, 9, 10), 5
    x = torch.randn(2, 5 + 270, 3, 4, dtype=torch.float64)
    grad = torch.randn(2, 3, len(tile_tokens(view, tile)), 4)
    leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    means = pooling.tile_means(leaf, view, tile, prefix)
    wanted = torch.stack([other[:, t].mean(dim=1) for t in tile_tokens(view, tile, prefix)], dim=2)
    (means * grad).sum().backward()
    (wanted * grad).sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(pooling.tile_means(leaf, view, tile, prefix), means)
    assert not pooling.pooled_scores(leaf, leaf, view, tile, tile, prefix).requires_grad


def test_means_that_need_a_gradient_do_not_take_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "_has_kernel", lambda *_: pytest.fail("the kernel has no gradient"))
    x = torch.randn(1, 64, 1, 32, requires_grad=True)
    assert pooling.tile_means(x, (1, 8, 8), (1, 8, 8)).requires_grad


def test_pooled_scores_are_products_of_means() -> None:
    view, tile = (3, 9, 10), (2, 8, 8)
    query, key = torch.randn(2, 2, 270 + 5, 3, 20, dtype=torch.float64).unbind()
    found = pooling.pooled_scores(query, key, view, tile, (1, 8, 8), prefix=5)
    rows, columns = (
        torch.stack([x[:, t].mean(dim=1) for t in tile_tokens(view, sides, 5)], dim=2)
        for x, sides in ((query, tile), (key, (1, 8, 8)))
    )
    torch.testing.assert_close(found.double(), rows @ columns.mT * 20**-0.5, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reach", [(0, 0, 0), (1, 0, 2)], ids=str)
@pytest.mark.parametrize("key_tile", [(2, 4, 4), (1, 8, 4), (4, 3, 5)], ids=str)
def test_forced_tiles_are_own_neighbours_and_first_frames(
    key_tile: tuple[int, int, int], reach: tuple[int, int, int]
) -> None:
    view, query_tile = (5, 9, 10), (2, 4, 4)
    found = forced_tiles(view, query_tile, key_tile, reach, sink=1)[0, 0]
    places = list(itertools.product(*(range(size) for size in view)))
    tiles_of = [
        {p: tuple(x // side for x, side in zip(p, tile, strict=True)) for p in places}
        for tile in (query_tile, key_tile)
    ]
    rows, columns = (sorted(set(tiles.values())) for tiles in tiles_of)
    assert found.shape == (len(rows), len(columns))
    for i, row in enumerate(rows):
        own = {tiles_of[1][p] for p in places if tiles_of[0][p] == row}
        for j, column in enumerate(columns):
            near = any(all(abs(a - b) <= r for a, b, r in zip(column, o, reach, strict=True)) for o in own)
            assert found[i, j] == (near or column[0] < 1)


# The kernels


@needs_triton
@every_rule
@pytest.mark.parametrize("force", [False, True], ids=["free", "forced"])
@pytest.mark.parametrize("shape", [(2, 1, 3, 37), (1, 2, 2, 5), (1, 1, 1, 1)], ids=str)
def test_the_kernel_selects_the_same(shape: tuple[int, ...], force: bool, rule: Rule) -> None:
    from vidsparse_kernels.selection import select_kernel

    scores = torch.randn(shape) * 2
    if shape[-1] > 1:
        scores[..., 1] = -float("inf")
        scores[0, 0, 0, 2:5] = 1.0  # ties
        scores[-1, -1, -1] = -float("inf")
    forced = torch.rand(1, shape[1], *shape[2:]) < 0.15 if force else None
    on_device = None if forced is None else forced.to(DEVICE)
    found = select_kernel.select_tiles(scores.to(DEVICE), rule, on_device)
    expected = select.select_tiles(scores, rule, forced)
    assert found[1].shape == expected[1].shape
    assert rows(*found) == rows(*expected)


@needs_triton
@pytest.mark.parametrize("head_dim", [32, 96])
@pytest.mark.parametrize("tile", [(1, 8, 8), (2, 8, 8), (4, 2, 2)], ids=str)
def test_the_kernel_averages_the_same(tile: tuple[int, int, int], head_dim: int) -> None:
    from vidsparse_kernels.selection import pooling_kernel

    view = (3, 9, 10)
    x = torch.randn(2, 270 + 7, 2, 3 * head_dim, dtype=torch.float16)[..., :head_dim]
    found = pooling_kernel.tile_means(x.to(DEVICE), view, tile, 4)
    torch.testing.assert_close(found.cpu(), pooling.tile_means(x, view, tile, 4), rtol=1e-4, atol=1e-5)


@needs_triton
def test_they_keep_pytorchs_rules() -> None:
    from vidsparse_kernels.selection import pooling_kernel, select_kernel

    x = torch.randn(1, 90, 2, 32, device=DEVICE)
    torch.library.opcheck(torch.ops.vidsparse.tile_means.default, (x, [1, 9, 10], [1, 8, 8], 0))
    scores = torch.randn(1, 2, 3, 9, device=DEVICE)
    torch.library.opcheck(torch.ops.vidsparse.select_tiles.default, (scores, None, "top_k", 3.0, 3))
    assert pooling_kernel and select_kernel  # their import registers the operators


def test_a_gpu_without_triton_computes_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vidsparse_kernels.gpu.device", None)
    assert not pooling._has_kernel(torch.device("cuda"), 64, (1, 8, 8))
    assert "needs Triton, which is not installed" in str(triton_lacks(torch.device("cuda")))


@needs_triton
def test_what_the_kernel_does_not_take_is_computed_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "triton_lacks", lambda device: None)
    calls = [(64, (1, 8, 8)), (72, (1, 8, 8)), (64, (1, 3, 5))]
    assert [pooling._has_kernel(torch.device("cuda"), *call) for call in calls] == [True, False, False]
    assert not pooling._has_kernel(torch.device("cpu"), *calls[0])


@every_rule
def test_the_torch_code_stays_on_its_device(rule: Rule) -> None:
    means = pooling.tile_means(torch.empty(1, 180, 2, 72, device="meta"), (3, 6, 10), (1, 3, 5))
    counts, indices = select_tiles(means @ means.mT, rule)
    assert means.device.type == counts.device.type == indices.device.type == "meta"


# Bad input


@pytest.mark.parametrize(
    ("kind", "amount", "message"),
    [
        ("best", 3, "kind='best' is unknown; choose top_k, top_p or threshold"),
        ("top_k", 0, "top_k=0 must be a whole number of at least 1"),
        ("top_k", 1.5, "top_k=1.5 must be a whole number of at least 1"),
        ("top_p", 0, r"top_p=0 must be in \(0, 1\]"),
        ("threshold", 1.1, r"threshold=1.1 must be in \(0, 1\]"),
    ],
)
def test_bad_rules(kind: Any, amount: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rule(kind, amount)


@pytest.mark.parametrize(
    ("scores", "forced", "error", "message"),
    [
        (torch.zeros(1, 1, 2, 3, dtype=torch.bfloat16), None, TypeError, "scores are torch.bfloat16"),
        (torch.zeros(2, 3), None, ValueError, r"scores have shape \(2, 3\)"),
        (torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 2, 3), ValueError, "forced is torch.float32"),
        (torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 3, 3, dtype=torch.bool), ValueError, r"\(1, 1, 3, 3\)"),
        (torch.zeros(1, 1, 2, 3), torch.zeros(1, 2, 2, 3, dtype=torch.bool), ValueError, r"\(1, 2, 2, 3\)"),
    ],
    ids=["dtype", "rank", "forced-dtype", "forced-rows", "forced-heads"],
)
def test_bad_scores(scores: torch.Tensor, forced: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        select_tiles(scores, Rule("top_k", 1), forced)


@needs_triton
def test_what_the_pooling_kernel_does_not_take() -> None:
    from vidsparse_kernels.selection import pooling_kernel

    with pytest.raises(NotImplementedError, match="head_dim 32, 64, 96, 128, not 20"):
        pooling_kernel.tile_means(torch.zeros(1, 4, 1, 20), (1, 2, 2), (1, 2, 2), 0)
    with pytest.raises(NotImplementedError, match=r"power-of-two sides, not \(1, 3, 2\)"):
        pooling_kernel.tile_means(torch.zeros(1, 6, 1, 32), (1, 3, 2), (1, 3, 2), 0)
