"""How the CPU implementation divides a map into products, keeps that, and which scores it takes no maximum off."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from against_float64 import Case, Results, assert_close, plain, run

from vidsparse import BlockMap, Dense, SlidingTile, VideoGrid, attention, sparse_attention
from vidsparse_kernels.cpu import attention as cpu, rows

GRID = VideoGrid(5, 9, 10)
TEXT = VideoGrid(3, 6, 7, prefix=3, suffix=6)
WINDOW = SlidingTile((3, 6, 6), tile=(1, 3, 3)).plan(GRID)
DIAGONAL = BlockMap.from_dense(torch.eye(8, dtype=torch.bool), VideoGrid(2, 4, 4), (1, 2, 2))


def pairs(asked: rows.Products, shape: torch.Size, head: int = 0) -> torch.Tensor:
    """How often each pair of tokens is computed: int [query tokens, key tokens]."""
    blocks, seen = asked.order.split(asked.sizes), torch.zeros(shape, dtype=torch.int64)
    for row in asked.rows_of(head):
        for chunk in row.chunks:
            keys = torch.cat([blocks[i] for i in chunk.blocks])
            assert len(keys) == chunk.keys
            part = chunk.part_of(row.queries)[:, None], keys[None]
            seen.index_put_(part, torch.tensor(1), accumulate=True)
    return seen


@pytest.mark.parametrize("limits", [(256, 3072, 3 * 2**17), (40, 64, 2**11), (7, 30, 100)], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case(GRID),
        Case(GRID, map_heads=2),
        Case(GRID, (1, 3, 3), (2, 2, 5)),
        Case(TEXT, extra_valid=(4,)),
        Case(TEXT, extra_valid=(0,)),
        Case(GRID, empty=(0, 1, 5)),
        Case(TEXT, (1, 2, 2), extra_valid=(0,), empty=(0, 3, 4)),
        Case(VideoGrid(2, 9, 10), (1, 3, 3), (2, 2, 5), map_heads=2, key_grid=GRID),
        Case(TEXT, (1, 2, 2), key_grid=VideoGrid(1, 4, 3), empty=(0,)),
        Case(VideoGrid(2, 6, 7, prefix=1), key_grid=TEXT, extra_valid=(4,)),
    ],
    ids=[
        *("one-map", "of-each-head", "other-key-tile", "some-text", "no-text", "empty-rows", "empty-rows-no-text"),
        *("two-grids", "two-grids-text-of-queries", "two-grids-some-text"),
    ],
)
def test_products_compute_each_pair_of_the_map_once(
    case: Case, limits: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, limit in zip(("ROWS", "KEYS", "SCORES"), limits, strict=True):
        monkeypatch.setattr(rows, name, limit)
    block_map = case.block_map()
    valid = None if case.extra_valid is None else case.extra_valid[0]
    asked = rows.products(block_map.counts[0], block_map.indices[0], block_map.layout, valid)
    mask = block_map.token_mask(case.valid)
    for head in range(case.heads):
        expected = mask[0, head % mask.shape[1]]
        assert torch.equal(pairs(asked, expected.shape, head), expected.long())
    assert asked.complete == bool(mask.any(dim=-1).all())
    largest = max(asked.sizes)
    for row in asked.rows[0]:
        assert len(row.queries) <= limits[0] and row.chunks[0].seen_by is None
        for chunk in row.chunks:  # cuts are between blocks
            assert chunk.keys <= min(limits[1], limits[2] // len(chunk.part_of(row.queries))) + largest


def test_neighbours_that_see_much_alike_are_computed_together() -> None:
    asked = rows.products(WINDOW.counts[0], WINDOW.indices[0], WINDOW.layout, None)
    assert len(asked.rows[0]) <= WINDOW.counts.shape[-1] / 2
    asked = rows.products(DIAGONAL.counts[0], DIAGONAL.indices[0], DIAGONAL.layout, None)
    assert len(asked.rows[0]) == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("limits", [(256, 3072), (48, 40)], ids=["one-product-a-row", "many"])
def test_with_and_without_a_maximum(
    dtype: torch.dtype, limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(TEXT, heads=3, extra_valid=(5,))
    block_map, tensors = case.block_map(), case.tensors(4)
    mask = plain(block_map.token_mask(case.valid))
    expected, bound = run(mask, [x.to(dtype) for x in tensors], torch.float64), run(mask, tensors, dtype)
    monkeypatch.setattr(rows, "ROWS", limits[0])
    monkeypatch.setattr(rows, "KEYS", limits[1])

    def results() -> Results:
        return run(
            lambda q, k, v: sparse_attention(q, k, v, block_map, extra_valid=case.valid, impl="cpu", return_lse=True),
            tensors,
            dtype,
        )

    for largest in (-1, cpu.BOUND):
        monkeypatch.setattr(cpu, "BOUND", largest)
        assert_close(results(), expected, bound, dtype)


def test_only_heads_with_bounded_scores_do_without_a_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (torch.full((1, 3, 2, 4), fill) for fill in (1.0, 5.0, -3.0))
    query[0, 1, 1] = 10.0

    def flags(scale: float = 1.0, dtype: torch.dtype = torch.float32) -> list[bool]:
        return cpu._bounded(query.to(dtype), key.to(dtype), value.to(dtype), scale)[0]

    assert flags() == [True, False]  # norms 2 and 10, of the other head 20 and 10
    assert flags(-0.3) == flags(0.3, torch.float64) == [True, True]
    for native, bounded in ((True, [False, False]), (False, [True, True])):
        monkeypatch.setattr(cpu, "multiplies_bfloat16", lambda native=native: native)
        assert flags(0.3, torch.bfloat16) == bounded
    value[0, 2, 0, 1] = -(2.0**41)
    assert flags(0.3) == [False, True]
    key[0, 0, 1] = float("nan")
    assert flags(0.3) == [False, False]


@pytest.mark.parametrize("largest", [cpu.BOUND - 0.1, cpu.BOUND + 10, 1e4], ids=str)
@pytest.mark.parametrize("size", [1.0, cpu.LARGEST, 1e30], ids=["1", "largest", "1e30"])
def test_scores_and_values_of_any_size(largest: float, size: float) -> None:
    """Scores from minus to plus `largest`, in powers of two, some rows with one alone; values near 1 times `size`."""
    tokens, scale = GRID.tokens, math.log(2)
    direction = torch.nn.functional.normalize(torch.randn(16), dim=0) * largest**0.5
    query = direction * torch.linspace(-1, 1, tokens)[None, :, None, None].sign()
    key = direction * torch.linspace(1, -1, tokens)[None, :, None, None]
    key[:, : tokens // 4] = direction
    value = (1 + torch.randn(1, tokens, 1, 16)) * size
    block_map = Dense(tile=(1, 3, 3)).plan(GRID)

    def results(impl: str, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [x.detach().to(dtype, copy=True).requires_grad_() for x in (query, key, value)]
        out, lse = sparse_attention(*leaves, block_map, scale=scale, impl=impl, return_lse=True)
        (out / size).sum().backward()
        return [out.detach().double() / size, lse.detach().double(), leaves[2].grad.double() * size]

    # An error of the scores, relative to the largest, is one of the weights.
    error = 16 * torch.finfo(torch.float32).eps * largest
    for found, expected in zip(results("cpu", torch.float32), results("reference", torch.float64), strict=True):
        torch.testing.assert_close(found, expected, rtol=error, atol=error)


def test_a_map_is_read_once_and_forgotten_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    products = rows.products
    monkeypatch.setattr(rows, "products", lambda *arguments: read.append(arguments) or products(*arguments))
    case = Case(TEXT, batch=2, map_batch=2, extra_valid=(4, 2))
    block_map, tensors = case.block_map(), case.tensors()
    for _ in range(3):
        sparse_attention(*tensors, block_map, extra_valid=case.valid, impl="cpu")
    assert len(read) == 2
    for length in range(9):
        sparse_attention(*tensors, block_map, extra_valid=torch.tensor([length, 0]), impl="cpu")
    assert len(block_map._derived["products"]) <= attention.KEPT
    kept = weakref.ref(next(iter(block_map._derived["products"].values())).order)
    read.clear()
    del block_map
    gc.collect()
    assert kept() is None
