"""Implementations for a CPU against the float64 specification: out, lse, all gradients; merge, flex and bad input."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from against_float64 import Case, assert_close, plain, run
from torch.nn.functional import scaled_dot_product_attention

import vidsparse.attention
from vidsparse import BlockMap, Dense, Radial, SlidingTile, VideoGrid, merge, sparse_attention
from vidsparse_kernels.cpu import attention as cpu_attention

HEAD_DIM = 16
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
every_impl = pytest.mark.parametrize("impl", ["cpu", "reference"])


TEXT = VideoGrid(3, 5, 7, prefix=3, suffix=6)
CASES = {
    "5x7x11": Case(VideoGrid(5, 7, 11)),
    "one-frame": Case(VideoGrid(1, 16, 16), (1, 8, 8)),
    "primes": Case(VideoGrid(3, 13, 17), (1, 8, 8)),
    "one-row-short": Case(VideoGrid(4, 7, 8), (2, 4, 4)),
    "one-token-over": Case(VideoGrid(3, 5, 9), (1, 4, 4)),
    "one-token": Case(VideoGrid(1, 1, 1)),
    "raster": Case(VideoGrid(1, 1, 300), (1, 1, 64)),
    "temporal-tile": Case(VideoGrid(9, 4, 6), (8, 2, 2)),
    "batch2": Case(VideoGrid(5, 7, 6), batch=2),
    "prefix": Case(VideoGrid(3, 5, 7, prefix=5)),
    "suffix": Case(VideoGrid(3, 5, 7, suffix=4)),
    "prefix-and-suffix": Case(TEXT, batch=2),
    "text-of-different-lengths": Case(TEXT, batch=3, extra_valid=(9, 2, 5)),
    "no-valid-text": Case(TEXT, batch=2, extra_valid=(0, 9), empty=(1,)),
    "map-for-each-head": Case(VideoGrid(5, 7, 6), heads=3, map_heads=3),
    "map-for-each-sample": Case(TEXT, batch=2, map_batch=2, extra_valid=(1, 7)),
    "map-for-each-sample-and-head": Case(VideoGrid(5, 7, 6), batch=2, heads=3, map_batch=2, map_heads=3),
    "other-key-tile": Case(VideoGrid(5, 7, 11), (2, 4, 4), (1, 8, 8)),
    "other-key-tile-with-text": Case(TEXT, (1, 2, 4), (2, 4, 4), batch=2, heads=3, map_heads=3, extra_valid=(8, 4)),
    "empty-rows": Case(VideoGrid(5, 7, 6), batch=2, empty=(0, 3)),
    "all-empty": Case(VideoGrid(2, 4, 4), (1, 4, 4), empty=(0, 1)),
    # Queries and keys of two grids.
    "two-grids-empty-rows": Case(VideoGrid(3, 5, 7), batch=2, empty=(0, 3), key_grid=VideoGrid(5, 7, 6)),
    "new-frames": Case(VideoGrid(2, 5, 7), batch=2, key_grid=VideoGrid(7, 5, 7)),
    "fewer-keys": Case(VideoGrid(5, 7, 6), heads=3, map_heads=3, key_grid=VideoGrid(1, 3, 5)),
    "primes-of-two-grids": Case(VideoGrid(3, 13, 17), (1, 8, 8), (2, 4, 4), key_grid=VideoGrid(5, 7, 11)),
    "one-query": Case(VideoGrid(1, 1, 1), key_grid=VideoGrid(3, 5, 7)),
    "one-key": Case(VideoGrid(3, 5, 7), key_grid=VideoGrid(1, 1, 1)),
    "queries-with-text": Case(VideoGrid(2, 5, 7, prefix=4, suffix=1), key_grid=VideoGrid(3, 5, 7), empty=(1,)),
    "keys-with-text": Case(VideoGrid(2, 5, 7), batch=3, key_grid=TEXT, extra_valid=(9, 2, 5)),
    "keys-without-valid-text": Case(VideoGrid(2, 5, 7), batch=2, key_grid=TEXT, extra_valid=(0, 9), empty=(1,)),
    "two-grids-with-text": Case(
        *(VideoGrid(2, 5, 7, prefix=2, suffix=3), (1, 2, 4), (2, 4, 4)),
        batch=2,
        heads=3,
        map_batch=2,
        map_heads=3,
        extra_valid=(8, 4),
        key_grid=TEXT,
    ),
    "two-grids-all-empty": Case(VideoGrid(2, 4, 4), (1, 4, 4), empty=(0, 1), key_grid=VideoGrid(3, 4, 4)),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.mark.usefixtures("poison_empty")
@every_dtype
@every_impl
@every_case
def test_against_float64(case: Case, impl: str, dtype: torch.dtype) -> None:
    check_against_float64(case, impl, dtype)


@pytest.mark.usefixtures("poison_empty")
@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("name", ["5x7x11", "text-of-different-lengths", "empty-rows", "two-grids-with-text"])
def test_bfloat16_on_every_kind_of_cpu(name: str, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    matmul = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, **out: used.append(b.dtype) or matmul(a, b, **out))
    monkeypatch.setattr(cpu_attention, "multiplies_bfloat16", lambda: native)
    check_against_float64(CASES[name], "cpu", torch.bfloat16)
    assert (torch.bfloat16 in used) == native  # a CPU without such products takes 40 times as long for them


def check_against_float64(case: Case, impl: str, dtype: torch.dtype) -> None:
    block_map = case.block_map()
    tensors = [x.to(dtype) for x in case.tensors(4)]

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = "reference" if q.dtype == torch.float64 else impl
        return sparse_attention(q, k, v, block_map, extra_valid=case.valid, impl=chosen, return_lse=True)

    expected = run(attention, tensors, torch.float64)
    bound = run(plain(block_map.token_mask(case.valid)), tensors, dtype)
    assert_close(run(attention, tensors, dtype), expected, bound, dtype)


@pytest.mark.parametrize(
    "name",
    ["5x7x11", "prefix-and-suffix", "text-of-different-lengths", "other-key-tile", "new-frames", "two-grids-with-text"],
)
def test_the_reference_is_sdpa_under_the_expanded_mask(name: str) -> None:
    case = CASES[name]
    block_map = case.block_map()
    q, k, v = (x.double() for x in case.tensors())
    out, lse = sparse_attention(q, k, v, block_map, extra_valid=case.valid, impl="reference", return_lse=True)
    mask = block_map.token_mask(case.valid)
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    expected = scaled_dot_product_attention(*heads_first, attn_mask=mask).transpose(1, 2)
    logits = (heads_first[0] @ heads_first[1].mT * HEAD_DIM**-0.5).masked_fill(~mask, float("-inf"))
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, logits.exp().sum(dim=-1).log())


@every_impl
@pytest.mark.parametrize(
    "grid",
    [VideoGrid(5, 7, 11), VideoGrid(1, 16, 16), VideoGrid(3, 5, 2, prefix=3, suffix=5)],
    ids=lambda g: str(g.view),
)
@pytest.mark.parametrize(
    "pattern",
    [Dense(), Dense(tile=(2, 2, 2)), Radial(density=1.0), SlidingTile(window=(99, 99, 99))],
    ids=["dense", "dense-small-tile", "radial-density1", "sliding-full"],
)
def test_a_full_map_is_sdpa(pattern: Any, grid: VideoGrid, impl: str) -> None:
    q, k, v = Case(grid, batch=2).tensors()
    expected = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    torch.testing.assert_close(sparse_attention(q, k, v, pattern.plan(grid), impl=impl), expected)


@every_impl
@pytest.mark.parametrize("name", ["empty-rows", "two-grids-empty-rows"])
def test_a_query_tile_without_keys_gives_zero_and_zero_gradients(name: str, impl: str) -> None:
    case = CASES[name]
    block_map = case.block_map()
    dead = ~block_map.token_mask().any(dim=-1)[0, 0]
    assert dead.any() and not dead.all()
    q, k, v = (x.requires_grad_() for x in case.tensors())
    out, lse = sparse_attention(q, k, v, block_map, impl=impl, return_lse=True)
    assert (out[:, dead] == 0).all() and lse[:, :, dead].isneginf().all()
    assert lse[:, :, ~dead].isfinite().all()
    (out.sum() + torch.where(lse.isneginf(), 0.0, lse).sum()).backward()
    assert q.grad is not None and (q.grad[:, dead] == 0).all() and q.grad[:, ~dead].abs().sum() > 0
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (q, k, v))


@every_impl
@pytest.mark.parametrize("name", ["text-of-different-lengths", "keys-with-text"])
def test_keys_that_are_no_keys_get_no_gradient(name: str, impl: str) -> None:
    case = CASES[name]
    q, k, v = (x.requires_grad_() for x in case.tensors())
    sparse_attention(q, k, v, case.block_map(), extra_valid=case.valid, impl=impl).square().sum().backward()
    assert k.grad is not None and v.grad is not None
    # Sample 1 has 2 real text tokens of 3 + 6: the third of the prefix and the whole suffix are padding.
    padding = [2, *range(case.keys.tokens - 6, case.keys.tokens)]
    assert (k.grad[1, padding] == 0).all() and (v.grad[1, padding] == 0).all()
    assert (v.grad[1, [0, 1]] != 0).all() and (v.grad[0, padding] != 0).any()


@pytest.mark.parametrize("key_grid", [None, VideoGrid(5, 5, 7, suffix=2)], ids=["one-grid", "two-grids"])
@pytest.mark.parametrize("layout", ["fused-projection", "heads-first", "every-other-token", "shared-by-samples"])
@every_impl
def test_tensors_of_any_strides(impl: str, layout: str, key_grid: VideoGrid | None) -> None:
    case = Case(TEXT, batch=2, heads=3, key_grid=key_grid)
    batch, heads, lengths = case.batch, case.heads, (case.grid.tokens, case.keys.tokens, case.keys.tokens)
    if layout == "fused-projection":
        strided = [torch.randn(batch, n, 3 * heads * HEAD_DIM).chunk(3, dim=-1)[i] for i, n in enumerate(lengths)]
        tensors = [x.unflatten(-1, (heads, -1)) for x in strided]
    elif layout == "heads-first":
        tensors = [torch.randn(batch, heads, tokens, HEAD_DIM).transpose(1, 2) for tokens in lengths]
    elif layout == "every-other-token":
        tensors = [torch.randn(batch, 2 * tokens, heads, HEAD_DIM)[:, ::2] for tokens in lengths]
    else:
        tensors = [torch.randn(1, tokens, heads, HEAD_DIM).expand(batch, -1, -1, -1) for tokens in lengths]
    assert not any(x.is_contiguous() for x in tensors)
    block_map = case.block_map()
    results = [sparse_attention(*x, block_map, impl=impl) for x in (tensors, [x.contiguous() for x in tensors])]
    assert torch.equal(*results)


@every_impl
@pytest.mark.parametrize("name", ["prefix-and-suffix", "two-grids-with-text"])
def test_inputs_are_not_written_to(name: str, impl: str) -> None:
    case = CASES[name]
    tensors, block_map = case.tensors(), case.block_map()
    before = [x.clone() for x in tensors], block_map.counts.clone(), block_map.indices.clone()
    sparse_attention(*(x.requires_grad_() for x in tensors), block_map, impl=impl).sum().backward()
    assert all(torch.equal(x, y) for x, y in zip(tensors, before[0], strict=True))
    assert torch.equal(block_map.counts, before[1]) and torch.equal(block_map.indices, before[2])


@every_impl
@pytest.mark.parametrize("name", ["5x7x11", "new-frames"])
def test_scale_multiplies_the_logits(name: str, impl: str) -> None:
    case = CASES[name]
    q, k, v = case.tensors()
    block_map = case.block_map()
    default = sparse_attention(q, k, v, block_map, impl=impl)
    assert torch.equal(sparse_attention(q, k, v, block_map, scale=HEAD_DIM**-0.5, impl=impl), default)
    doubled = sparse_attention(2 * q, k, v, block_map, impl=impl)
    torch.testing.assert_close(sparse_attention(q, k, v, block_map, scale=2 * HEAD_DIM**-0.5, impl=impl), doubled)
    # With a scale of 0 every key weighs the same.
    mean = sparse_attention(q, k, v, block_map, scale=0.0, impl=impl)
    mask = block_map.token_mask().float()
    torch.testing.assert_close(mean.transpose(1, 2), mask / mask.sum(-1, keepdim=True) @ v.transpose(1, 2))


@every_dtype
@every_impl
def test_large_logits_and_long_sums_stay_finite(impl: str, dtype: torch.dtype) -> None:
    grid = VideoGrid(4, 16, 16)
    q, k, v = (torch.full((1, grid.tokens, 1, HEAD_DIM), fill, dtype=dtype) for fill in (30.0, 30.0, 100.0))
    out, lse = sparse_attention(q, k, v, Dense().plan(grid), impl=impl, return_lse=True)
    # 1024 equal keys: the sum of the values, 102400, is beyond float16.
    torch.testing.assert_close(out, v)
    assert lse.isfinite().all()


@every_impl
@pytest.mark.parametrize(
    "case",
    [
        Case(VideoGrid(2, 3, 1), (1, 2, 1), heads=2, map_heads=2, empty=(1,)),
        Case(VideoGrid(2, 3, 1, prefix=1, suffix=2), (1, 2, 1), (2, 2, 1), batch=2, heads=1, extra_valid=(3, 1)),
        Case(VideoGrid(2, 2, 1, prefix=1), (1, 2, 1), batch=2, heads=1, map_batch=2, extra_valid=(0, 1), empty=(1,)),
        Case(VideoGrid(1, 3, 1), (1, 2, 1), heads=2, map_heads=2, empty=(1,), key_grid=VideoGrid(3, 1, 1)),
        Case(
            *(VideoGrid(2, 1, 1, suffix=1), (1, 1, 1), (2, 2, 1), 2, 1),
            extra_valid=(2, 0),
            key_grid=VideoGrid(3, 2, 1, prefix=2),
        ),
    ],
    ids=["heads-and-empty-row", "text-and-other-key-tile", "no-valid-text", "two-grids", "two-grids-with-text"],
)
def test_gradients_by_finite_differences(case: Case, impl: str) -> None:
    block_map = case.block_map()
    dead = ~block_map.token_mask(case.valid).any(dim=-1)
    q, k, v = (x[..., :2].double().contiguous().requires_grad_() for x in case.tensors())

    def attention(*qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = sparse_attention(*qkv, block_map, extra_valid=case.valid, impl=impl, return_lse=True)
        return out, lse.masked_fill(dead, 0.0)  # minus infinity has no finite difference

    assert torch.autograd.gradcheck(attention, (q, k, v))


@pytest.mark.parametrize("grid", [TEXT, VideoGrid(2, 7, 9)], ids=["one-grid", "two-grids"])
def test_scores_in_small_pieces_give_the_same_result(grid: VideoGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(grid, batch=2, heads=3, extra_valid=(8, 4), key_grid=TEXT)
    block_map, tensors = case.block_map(), case.tensors(4)

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        another = replace(block_map)  # of a map that was seen before its products would be kept
        return sparse_attention(q, k, v, another, extra_valid=case.valid, impl="cpu", return_lse=True)

    whole = run(attention, tensors, torch.float32)
    monkeypatch.setattr("vidsparse_kernels.cpu.rows.ROWS", 32)
    monkeypatch.setattr("vidsparse_kernels.cpu.rows.KEYS", 40)
    pieces = run(attention, tensors, torch.float32)
    for name, expected in whole.items():
        torch.testing.assert_close(
            pieces[name], expected, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


# Merging partial results


def split(case: Case, empty: dict[str, list[int]]) -> tuple[BlockMap, BlockMap, BlockMap]:
    """Two disjoint random maps and their union; `empty` names query tiles that are empty in "one" or in the "other"."""
    shape = [torch.Size(grid.tiles(case.query_tile)).numel() for grid in (case.grid, case.keys)]
    kept, side = torch.rand(shape) < 0.6, torch.rand(shape) < 0.5
    one, other = kept & side, kept & ~side
    one[empty["one"]], other[empty["other"]] = False, False
    first, second, union = (case.block_map(x[None, None]) for x in (one, other, one | other))
    return first, second, union


@every_dtype
@every_impl
@pytest.mark.parametrize("key_grid", [None, VideoGrid(7, 5, 9)], ids=["one-grid", "two-grids"])
def test_merge_of_disjoint_maps_is_their_union(impl: str, dtype: torch.dtype, key_grid: VideoGrid | None) -> None:
    case = Case(VideoGrid(5, 7, 6), (2, 4, 4), batch=2, key_grid=key_grid)
    one, other, union = split(case, {"one": [0, 4], "other": [0, 7]})
    tensors = [x.to(dtype) for x in case.tensors(4)]

    def together(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return sparse_attention(q, k, v, union, impl=impl, return_lse=True)

    def merged(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [sparse_attention(q, k, v, part, impl=impl, return_lse=True) for part in (one, other)]
        return merge(*parts[0], *parts[1])

    expected = run(together, tensors, torch.float64)
    assert expected["lse"][:, :, 0].isneginf().all(), "no row is empty in both"
    assert_close(run(merged, tensors, dtype), expected, run(together, tensors, dtype), dtype)


def test_second_derivatives_are_refused_and_not_zero() -> None:
    grid = VideoGrid(2, 4, 4)
    query, key, value = (torch.randn(1, grid.tokens, 1, 8, requires_grad=True) for _ in range(3))
    out = sparse_attention(query, key, value, Dense(tile=(1, 4, 4)).plan(grid), impl="cpu")
    (grad,) = torch.autograd.grad(out.square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.square().sum().backward()


def test_a_pattern_is_no_map() -> None:
    x = torch.randn(1, 32, 1, 8)
    with pytest.raises(TypeError, match=r"must be a BlockMap; make one with pattern\.plan\(grid\)"):
        sparse_attention(x, x, x, Dense())  # type: ignore[arg-type]


def test_merge_has_finite_gradients_where_a_row_is_empty() -> None:
    inf = float("inf")
    out, out2 = (torch.randn(1, 4, 1, 3, requires_grad=True) for _ in range(2))
    lse, lse2 = (torch.tensor([[x]], requires_grad=True) for x in ([0.5, -inf, 1.0, -inf], [0.1, 2.0, -inf, -inf]))
    merged, total = merge(out, lse, out2, lse2)
    torch.testing.assert_close(merged[0, 1:3], torch.stack((out2[0, 1], out[0, 2])))
    assert (merged[0, 3] == 0).all()
    torch.testing.assert_close(total[0, 0, :3], torch.tensor([1.01301, 2.0, 1.0]))
    assert total[0, 0, 3] == -inf
    (merged.sum() + total[..., :3].sum()).backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (out, lse, out2, lse2))


def test_merge_does_not_care_about_the_order_or_about_large_lse() -> None:
    out, out2 = torch.randn(2, 1, 5, 2, 4).unbind()
    lse, lse2 = torch.randn(2, 1, 2, 5).unbind()
    for shift in (0.0, 1e4, -1e4):
        for a, b in zip(
            merge(out, lse + shift, out2, lse2 + shift), merge(out2, lse2 + shift, out, lse + shift), strict=True
        ):
            torch.testing.assert_close(a, b)
            assert a.isfinite().all()


# FlexAttention, an independent implementation


@pytest.mark.parametrize(
    "name",
    [
        *("one-row-short", "text-of-different-lengths", "map-for-each-sample", "other-key-tile-with-text"),
        *("empty-rows", "new-frames", "fewer-keys", "queries-with-text", "two-grids-with-text"),
    ],
)
def test_flex_attention_agrees(name: str) -> None:
    case = CASES[name]
    q, k, v = case.tensors()
    block_map = case.block_map()
    out, lse = sparse_attention(q, k, v, block_map, extra_valid=case.valid, impl="flex", return_lse=True)
    expected = sparse_attention(q, k, v, block_map, extra_valid=case.valid, impl="reference", return_lse=True)
    torch.testing.assert_close(out, expected[0])
    torch.testing.assert_close(lse, expected[1])


@pytest.mark.parametrize("block", [16, 128], ids=["block16", "block128"])
@every_case
def test_the_blocks_of_the_flex_mask_are_the_token_mask(case: Case, block: int) -> None:
    # Without a compiler FlexAttention reads the mask function alone, so the lists of blocks need a look of their own.
    block_map, queries, keys = case.block_map(), case.grid.tokens, case.keys.tokens
    mask = block_map.to_flex(case.valid, block=block)
    assert mask.full_kv_num_blocks is not None and mask.full_kv_indices is not None
    expected = block_map.token_mask(case.valid)
    assert mask.seq_lengths == (queries, keys)
    samples, heads, blocks = mask.kv_num_blocks.shape
    assert blocks == math.ceil(queries / block)
    found = torch.zeros(samples, heads, blocks * block, math.ceil(keys / block) * block, dtype=torch.bool)
    padding = (0, found.shape[-1] - keys, 0, found.shape[-2] - queries)
    row, column = torch.arange(queries)[:, None], torch.arange(keys)
    lists = ((mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices))
    for full, (counts, indices) in enumerate(lists):
        for b, h, q in ((b, h, q) for b in range(samples) for h in range(heads) for q in range(blocks)):
            allowed = mask.mask_mod(torch.tensor(b), torch.tensor(h), row, column)
            allowed = torch.nn.functional.pad(allowed, padding)
            rows = slice(q * block, (q + 1) * block)
            for k in indices[b, h, q, : counts[b, h, q]].tolist():
                columns = slice(k * block, (k + 1) * block)
                assert not found[b, h, rows, columns].any(), "a block is both partial and full"
                inside = rows.stop <= queries and columns.stop <= keys
                assert not full or inside, "a full block ends beyond the sequence"
                found[b, h, rows, columns] = True if full else allowed[rows, columns]
    assert torch.equal(found[..., :queries, :keys], expected.expand(samples, heads, -1, -1))


# Which implementation runs


@pytest.mark.parametrize("impl", ["cpu", "flex", "reference"])
def test_an_explicit_implementation_never_falls_back(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["5x7x11"]

    def broken(*args: object) -> None:
        raise RuntimeError(f"{impl} is broken")

    owners = {"cpu": (vidsparse.attention, "cpu_attention"), "reference": (vidsparse.attention.reference, "attention")}
    owner, name = owners.get(impl, (vidsparse.attention, "_flex"))
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(RuntimeError, match=f"{impl} is broken"):
        sparse_attention(*case.tensors(), case.block_map(), impl=impl)


def test_auto_on_a_cpu_is_the_cpu_implementation() -> None:
    case = CASES["5x7x11"]
    block_map, tensors = case.block_map(), case.tensors()
    assert torch.equal(sparse_attention(*tensors, block_map), sparse_attention(*tensors, block_map, impl="cpu"))
    assert vidsparse.attention.choose_impl("auto", tensors[0], block_map) == ("cpu", None)


@pytest.mark.parametrize(
    ("impl", "device", "error", "message"),
    [
        ("triton", "meta", NotImplementedError, "impl='triton' needs .*; use impl='auto'"),
        ("cpu", "meta", ValueError, "needs tensors on the CPU, these are on meta"),
        ("cuda", "cpu", ValueError, "is unknown; choose one of auto, triton, cudnn, fa4, cpu, flex, reference"),
        (None, "cpu", ValueError, "impl=None is unknown"),
    ],
    ids=["triton-on-meta", "cpu-on-meta", "unknown", "none"],
)
def test_an_implementation_that_cannot_run(impl: Any, device: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        vidsparse.attention.check_impl(impl, torch.device(device))
