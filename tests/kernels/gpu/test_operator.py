"""Triton's kernels as an operator: divided columns, strides, torch.compile, CUDA graphs and bad input."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from against_float64 import Case
from operator_case import CASE, DEVICE, TWO_GRIDS, inputs, results

from vidsparse import BlockMap, VideoGrid, sparse_attention

pytest.importorskip("triton")
from vidsparse_kernels.gpu import columns, device, launch, lists, operator
from vidsparse_kernels.gpu.lists import MapLists
from vidsparse_kernels.selection import pooling_kernel, select_kernel
from vidsparse_kernels.selection.rule import Rule

pytestmark = pytest.mark.usefixtures("large_steps")
SMALL = replace(CASE, grid=VideoGrid(2, 5, 9, suffix=5))  # two frames of ragged tiles
TINY = replace(SMALL, heads=1)
both_geometries = pytest.mark.parametrize("case", [CASE, TWO_GRIDS], ids=["one-grid", "two-grids"])
both_in_small = pytest.mark.parametrize(
    "case", [SMALL, replace(TINY, grid=VideoGrid(1, 5, 9), key_grid=VideoGrid(2, 5, 9, suffix=5))], ids=["one", "two"]
)


# Gradients


@pytest.mark.parametrize("split", [0.2, 1])
@both_geometries
def test_gradients_of_divided_columns(case: Case, split: float, monkeypatch: pytest.MonkeyPatch) -> None:
    block_map, tensors = case.block_map(), inputs(case)
    expected = results([x.double().cpu() for x in tensors], block_map, "reference")
    monkeypatch.setattr(columns, "SPLIT", split)
    monkeypatch.setattr(columns, "SLOTS", 4)
    for got, wanted in zip(results(tensors, block_map), expected, strict=True):
        torch.testing.assert_close(got.cpu(), wanted.to(got.dtype), rtol=1e-4, atol=1e-4)


@both_geometries
def test_two_runs_give_the_same_bits(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "SPLIT", 0.5)
    monkeypatch.setattr(columns, "SLOTS", 4)
    block_map, tensors = case.block_map(), inputs(case)
    for one, two in zip(results(tensors, block_map), results(tensors, block_map), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("scale", [-0.3, 0.0, 0.3])
def test_a_scale_of_any_sign(scale: float) -> None:
    block_map, tensors = SMALL.block_map(), inputs(SMALL)
    expected = results([x.double().cpu() for x in tensors], block_map, "reference", scale)
    for impl in ("triton", *(["cpu"] if DEVICE == "cpu" else [])):
        for got, wanted in zip(results(tensors, block_map, impl, scale), expected, strict=True):
            torch.testing.assert_close(got.cpu(), wanted.to(got.dtype), rtol=1e-4, atol=1e-4)


def test_gradients_flow_through_one_output_alone() -> None:
    block_map = SMALL.block_map()
    for output in (0, 1):
        ours = inputs(SMALL)
        exact = [x.detach().double().requires_grad_() for x in ours]
        for leaves, impl in ((ours, "triton"), (exact, "reference")):
            sparse_attention(*leaves, block_map, impl=impl, return_lse=True)[output].sum().backward()  # type: ignore[call-overload]
        for x, y in zip(ours, exact, strict=True):
            wanted = torch.zeros_like(x) if y.grad is None else y.grad.float()
            torch.testing.assert_close(x.grad, wanted, rtol=1e-4, atol=1e-4)


# Memory


@cache
def contiguous(boxes: bool) -> tuple[BlockMap, list[torch.Tensor], list[torch.Tensor]]:
    """A map, tensors of ordinary strides and their results, by this way to read."""
    block_map, tensors = SMALL.block_map(), inputs(SMALL)
    return block_map, tensors, results(tensors, block_map)


@pytest.mark.parametrize("boxes", [False, True], ids=["rows", "boxes"])
@pytest.mark.parametrize("layout", ["fused-projection", "heads-first", "channels-apart", "odd-start", "one-for-all"])
def test_tensors_of_any_strides(layout: str, boxes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":
        monkeypatch.setattr(launch, "reads_boxes", lambda device: boxes)
    elif boxes != launch.reads_boxes(torch.device(DEVICE)):
        pytest.skip("this GPU reads the other way")
    block_map, tensors, expected = contiguous(boxes)
    q, k, v = (x.detach() for x in tensors)
    if layout == "fused-projection":
        strided = list(torch.cat((q, k, v), dim=3).split(SMALL.head_dim, dim=3))
    elif layout == "heads-first":
        strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    elif layout == "odd-start":
        strided = [torch.cat((x.flatten()[:1], x.flatten()))[1:].view_as(x) for x in (q, k, v)]
    elif layout == "one-for-all":
        strided = [x.as_strided(x.shape, (0, *x.stride()[1:])) for x in (q, k, v)]
    else:
        strided = [x.mT.contiguous().mT for x in (q, k, v)]
    in_place = ("fused-projection", "heads-first")
    assert all(launch.has_boxes(x, block_map.layout.key) == (layout in in_place) for x in strided)
    for got, wanted in zip(results(strided, block_map), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_offsets_beyond_32_bits() -> None:
    grid, stride = VideoGrid(1, 8, 17), 2**24  # 2^31 elements, of which few are ever touched
    apart = torch.empty(grid.tokens * stride, dtype=torch.float16, device=DEVICE)
    x = apart.as_strided((1, grid.tokens, 1, 32), (grid.tokens * stride, stride, 32, 1))
    x.copy_(torch.randn(1, grid.tokens, 1, 32))
    assert (grid.tokens - 1) * stride > 2**31
    block_map = BlockMap.from_dense(torch.ones(3, 3, dtype=torch.bool), grid, (1, 8, 8))
    together = x.contiguous()
    for far, near in ((x, together),):
        got = sparse_attention(far, far, far, block_map, impl="triton")
        assert torch.equal(got, sparse_attention(near, near, near, block_map, impl="triton"))


def test_more_valid_tokens_than_there_are_read_nothing_beyond() -> None:
    lists, tensors = CASE.block_map().to(DEVICE).lists, inputs()
    found = [operator.attention(*tensors, lists, torch.tensor([number], device=DEVICE), 0.2)[0] for number in (5, 99)]
    assert torch.equal(*found)


# PyTorch's machinery


def operands(case: Case) -> tuple[Any, ...]:
    block_map = case.block_map().to(DEVICE)
    valid = torch.tensor([4], dtype=torch.int32, device=DEVICE)
    sides = block_map.layout.query.numbers, block_map.layout.key.numbers
    tiles = block_map.lists.keys().tensors, block_map.lists.columns(case.heads).tensors
    return *inputs(case), *tiles, valid, *sides, 0.2, False


@both_in_small
def test_the_operator_keeps_pytorchs_rules(case: Case) -> None:
    torch.library.opcheck(torch.ops.vidsparse.block_sparse.default, operands(case))


@both_in_small
def test_it_compiles_into_one_graph(case: Case) -> None:
    block_map, tensors = case.block_map().to(DEVICE), inputs(case)

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return operator.attention(q * 2, k, v, block_map.lists, None, 0.2)[0] * 3

    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    found = []
    for function in (attention, compiled):
        leaves = [x.detach().requires_grad_() for x in tensors]
        out = function(*leaves)
        out.square().sum().backward()
        found.append([out.detach(), *(x.grad for x in leaves)])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.gpu
def test_a_cuda_graph_holds_it() -> None:
    block_map, tensors = CASE.block_map().to("cuda"), inputs(requires_grad=False)
    static = [x.clone() for x in tensors]
    sparse_attention(*static, block_map, impl="triton")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = sparse_attention(*static, block_map, impl="triton")
    for x in static:
        x.normal_()
    graph.replay()
    torch.testing.assert_close(out, sparse_attention(*static, block_map, impl="triton"))


# What runs, and what cannot


def test_explicit_triton_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("the kernels are broken")

    monkeypatch.setattr(operator, "attention", broken)
    with pytest.raises(RuntimeError, match="the kernels are broken"):
        sparse_attention(*inputs(), CASE.block_map(), impl="triton")


@pytest.mark.parametrize(
    ("case", "dtype", "message"),
    [
        (replace(CASE, head_dim=48), torch.float32, "takes head_dim 32, 64, 96, 128, not 48; use impl='auto'"),
        (CASE, torch.float64, "takes torch.float16, torch.bfloat16, torch.float32, not torch.float64"),
        (replace(CASE, query_tile=(1, 4, 4)), torch.float32, r"not the query tile \(1, 4, 4\)"),
        (replace(CASE, key_tile=(1, 8, 12)), torch.float32, r"tiles of 64 or 128 tokens .* the key tile \(1, 8, 12\)"),
    ],
    ids=["head-dim", "dtype", "small-tile", "odd-tile"],
)
def test_what_the_kernels_do_not_take(case: Case, dtype: torch.dtype, message: str) -> None:
    tensors = [x.to(DEVICE, dtype) for x in case.tensors()]
    with pytest.raises(NotImplementedError, match=message):
        sparse_attention(*tensors, case.block_map(), impl="triton")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"counts": torch.ones(1, 1, 8)}, TypeError, "counts must be int32"),
        ({"indices": torch.ones(1, 1, 8, 2, dtype=torch.int64)}, TypeError, "indices must be int32"),
        ({"counts": torch.ones(1, 8, dtype=torch.int32)}, ValueError, r"counts has shape \(1, 8\)"),
        ({"indices": torch.ones(1, 1, 7, 2, dtype=torch.int32)}, ValueError, r"indices has shape \(1, 1, 7, 2\)"),
        (
            {"indices": torch.ones(1, 1, 2, 8, dtype=torch.int32).mT},
            ValueError,
            r"contiguous counts \[B",
        ),
    ],
    ids=["counts-dtype", "indices-dtype", "counts-rank", "indices-shape", "indices-strides"],
)
def test_bad_lists(changes: dict[str, torch.Tensor], error: type[Exception], message: str) -> None:
    block_map = CASE.block_map()
    given = {"counts": block_map.counts, "indices": block_map.indices, **changes}
    with pytest.raises(error, match=message):
        MapLists(**given, layout=block_map.layout)


def test_lists_that_are_elsewhere() -> None:
    with pytest.raises(TypeError, match="lists are on meta"):
        operator.attention(*inputs(), CASE.block_map().to(torch.device("meta")).lists, None, 1.0)


@pytest.mark.parametrize(
    ("row", "count", "message"),
    [
        ([0, 8], 2, "indices hold 8, but the grid has key tiles 0 to 7"),
        ([3, 3], 2, "indices must ascend"),
        ([0, 1], 3, "counts hold 3 to 3, expected 0 to 2"),
    ],
    ids=["outside", "twice", "too-many"],
)
def test_lists_are_validated_when_asked(
    row: list[int], count: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDSPARSE_CHECK", "1")
    counts = torch.full((1, 1, 8), count, dtype=torch.int32, device=DEVICE)
    indices = torch.tensor(row, dtype=torch.int32, device=DEVICE).repeat(1, 1, 8, 1)
    with pytest.raises(ValueError, match=message):
        operator.attention(*inputs(), MapLists(counts, indices, CASE.block_map().layout), None, 1.0)


def test_a_map_prepares_its_lists_once(monkeypatch: pytest.MonkeyPatch) -> None:
    block_map, tensors, made = TINY.block_map().to(DEVICE), inputs(TINY), []
    for module, name in ((lists, "_key_lists"), (columns, "_columns")):
        right = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, name=name, right=right: made.append(name) or right(*a))
    with torch.no_grad():
        sparse_attention(*tensors, block_map, impl="triton")
    assert made == ["_key_lists"]
    first = results(tensors, block_map)
    assert made == ["_key_lists", "_columns"]
    for one, two in zip(first, results(tensors, block_map), strict=True):
        assert torch.equal(one, two)
    assert made == ["_key_lists", "_columns"]


def test_nothing_is_kept_while_a_graph_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    found = CASE.block_map().to(DEVICE).lists
    for provisional in (True, False):
        monkeypatch.setattr(lists, "provisional", lambda answer=provisional: answer)
        assert (found.keys() is found.keys()) == (found.columns(2) is found.columns(2)) == (not provisional)


@pytest.mark.parametrize("kernels", ["attention", "tile_means", "select_tiles"])
def test_operators_launch_on_the_device_of_their_tensors(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    current = []
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: current.append(x.device) or contextlib.nullcontext())
    query = inputs(TINY)[0]
    if kernels == "attention":
        results(inputs(TINY), TINY.block_map())
    elif kernels == "tile_means":
        pooling_kernel.tile_means(query, TINY.grid.view, (1, 8, 8), 0)
    else:
        select_kernel.select_tiles(torch.rand(1, 2, 3, 4, device=DEVICE), Rule("top_k", 2))
    assert current == [query.device] * (4 if kernels == "attention" else 1)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_need_not_be_on_the_current_device() -> None:
    wanted = results(inputs(), CASE.block_map())
    found = results([x.to("cuda:1") for x in CASE.tensors()], CASE.block_map())
    for x, y in zip(found, wanted, strict=True):
        assert x.device == torch.device("cuda:1") and torch.equal(x.cpu(), y.cpu())


def test_without_an_interpreter_a_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "INTERPRETED", False)
    with pytest.raises(NotImplementedError, match="needs tensors on a CUDA device, these are on cpu; use impl='auto'"):
        sparse_attention(*CASE.tensors(), CASE.block_map(), impl="triton")
