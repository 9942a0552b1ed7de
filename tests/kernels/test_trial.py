"""The trial of the kernels before their first call on a device: what is wrong is found out, and what is not stays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from against_float64 import Case
from operator_case import CASE, TWO_GRIDS, inputs, results
from torch.utils.checkpoint import checkpoint

import vidsparse.attention
from vidsparse import VideoGrid, sparse_attention

pytest.importorskip("triton")
from vidsparse_kernels import reference, trial
from vidsparse_kernels.gpu import operator
from vidsparse_kernels.gpu.lists import MapLists
from vidsparse_kernels.layout import tile_of_token

pytestmark = pytest.mark.usefixtures("large_steps")


@pytest.mark.parametrize(
    ("case", "gradients", "bounded"),
    [
        (CASE, False, True),
        (CASE, True, False),
        (replace(CASE, grid=VideoGrid(2, 8, 16)), True, True),
        (TWO_GRIDS, True, True),
    ],
    ids=["ragged-with-text-forward", "ragged-with-text-both-passes", "whole", "two-grids"],
)
def test_the_kernels_stand_their_trial(case: Case, gradients: bool, bounded: bool) -> None:
    (query, *_) = inputs(replace(case, extra_valid=None), requires_grad=gradients)
    assert trial.found_wrong(query, case.block_map().layout, bounded) is None


def test_the_trial_has_more_keys_where_the_call_has_other_keys() -> None:
    tried: list[Any] = []
    with mock.patch.object(trial, "_try", lambda *call: tried.append(call[4])):
        for case in (CASE, TWO_GRIDS):
            assert trial.found_wrong(inputs()[0], case.block_map().layout) is None
    tile = (1, 8, 8)
    assert tried[0] == (((2, 12, 12), tile, 0, 70),) * 2
    assert tried[1] == (((2, 12, 12), tile, 0, 0), ((3, 12, 12), tile, 0, 70))


def test_one_wrong_tile_is_noticed() -> None:
    side = CASE.block_map().layout.query
    right = torch.randn(1, 2, side.tokens, 32, dtype=torch.float64)
    found = right + 1e-6 * torch.randn_like(right)
    assert trial._worst_tile(found, right, side) < 2e-6
    owner = tile_of_token(side.view, side.tile)
    found[:, 1, torch.nonzero(owner == 3)[0] + side.prefix, 0] += 1.0
    # Of all rows it is less than what bfloat16 may differ by.
    assert (found - right).norm() / right.norm() < 0.012
    assert trial._worst_tile(found, right, side) > 0.03
    found[0, 0, -1, 0] = float("nan")
    assert trial._worst_tile(found, right, side) == float("inf")


@pytest.fixture
def fresh_trial() -> Iterator[None]:
    trial._answer.cache_clear()
    yield
    trial._answer.cache_clear()


@pytest.fixture
def exact_kernels(monkeypatch: pytest.MonkeyPatch, fresh_trial: None) -> None:
    """The specification in the place of the kernels, for what is done with their results."""

    def exact(q: Any, k: Any, v: Any, lists: MapLists, valid: None, scale: float, bounded: bool) -> Any:
        listed = torch.arange(lists.indices.shape[-1]) < lists.counts[..., None]
        pairs = torch.nn.functional.one_hot(lists.indices.where(listed, 0).long(), lists.layout.key.tiles).bool()
        kept = (pairs & listed[..., None]).any(dim=-2)
        return reference.attention(q, k, v, reference.token_mask(kept, lists.layout), scale)

    monkeypatch.setattr(operator, "attention", exact)


@pytest.fixture
def wrong_kernels(monkeypatch: pytest.MonkeyPatch, exact_kernels: None) -> None:
    right = operator.attention

    def off_by_a_little(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = right(*arguments)
        return out * 1.01, lse

    monkeypatch.setattr(operator, "attention", off_by_a_little)


@pytest.mark.usefixtures("wrong_kernels")
def test_a_kernel_that_is_wrong_is_found_out() -> None:
    reason = trial.found_wrong(inputs()[0].detach(), CASE.block_map().layout)
    assert reason is not None and reason.startswith("computes out with a relative error of 0.01 on this device")


@pytest.mark.usefixtures("exact_kernels")
def test_gradients_of_keys_and_values_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    right = operator.attention

    def wrong_backward(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any) -> Any:
        return right(query, key + 0.01 * (key - key.detach()), value, *rest)

    monkeypatch.setattr(operator, "attention", wrong_backward)
    query, layout = inputs()[0].detach(), CASE.block_map().layout
    assert trial.found_wrong(query, layout, gradients=False) is None
    assert "computes dk with a relative error of 0.01" in str(trial.found_wrong(query, layout, gradients=True))


@pytest.mark.parametrize(
    "which", [(), (0,), (1,), (2,), (1, 2)], ids=["none", "query", "key", "value", "key-and-value"]
)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad], ids=["grad", "no-grad"])
def test_gradients_are_tried_whichever_tensor_asks_for_them(
    which: tuple[int, ...], mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[bool] = []
    monkeypatch.setattr(vidsparse.attention, "triton_lacks", lambda device: None)
    monkeypatch.setattr(operator, "unsupported_device", lambda device: None)
    monkeypatch.setattr(trial, "_try", lambda *call: tried.append(call[-1]) or "computes dk wrongly")
    monkeypatch.setattr(vidsparse.attention, "_flex", lambda query, *_: (query, None))
    tensors = [torch.empty(1, CASE.grid.tokens, 2, 32, device="meta", requires_grad=i in which) for i in range(3)]
    with mode():
        sparse_attention(*tensors, CASE.block_map())  # type: ignore[call-overload]
        assert tried == [bool(which) and torch.is_grad_enabled()]
        # Where only the query is known, gradients may be asked for whenever they are recorded.
        vidsparse.attention.choose_impl("auto", tensors[0].detach(), CASE.block_map())
        assert tried[1] == torch.is_grad_enabled()


@pytest.mark.usefixtures("wrong_kernels")
def test_a_kernel_that_is_wrong_is_found_out_while_compiling() -> None:
    layout = CASE.block_map().layout

    def scaled(query: torch.Tensor) -> torch.Tensor:
        return query * (2 if trial.found_wrong(query, layout) is None else 3)

    query = inputs()[0].detach()
    compiled = torch.compile(scaled, fullgraph=True, backend="eager")
    assert torch.equal(compiled(query), query * 3)


@pytest.mark.usefixtures("fresh_trial")
def test_a_kernel_that_does_not_compile_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> None:
        raise RuntimeError("PassManager::run failed\nat line 3")

    monkeypatch.setattr(operator, "attention", refuses)
    reason = trial.found_wrong(inputs()[0].detach(), CASE.block_map().layout)
    assert reason == "fails on this device: RuntimeError: PassManager::run failed"


@pytest.mark.usefixtures("fresh_trial")
def test_memory_that_is_short_is_no_fault_of_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def takes_too_much(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(operator, "attention", takes_too_much)
    with pytest.raises(torch.OutOfMemoryError):
        trial.found_wrong(inputs()[0].detach(), CASE.block_map().layout)


@pytest.mark.usefixtures("exact_kernels")
def test_the_trial_leaves_gradient_checkpointing_alone() -> None:
    """The first call tries, the one that is computed again does not: both must save the same tensors."""
    block_map, layout = CASE.block_map(), CASE.block_map().layout
    tensors = inputs()
    wanted = results(tensors, block_map, "reference")[2:]

    def layer(*qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert trial.found_wrong(qkv[0] * 1, layout) is None
        return sparse_attention(*qkv, block_map, extra_valid=CASE.valid, impl="reference", return_lse=True)

    leaves = [x.detach().requires_grad_() for x in tensors]
    out, lse = checkpoint(layer, *leaves, use_reentrant=False)
    (out.square().sum() + lse.sum()).backward()
    assert trial._answer.cache_info().hits == 1
    for leaf, expected in zip(leaves, wanted, strict=True):
        assert torch.equal(leaf.grad, expected)


@pytest.mark.usefixtures("exact_kernels")
def test_the_trial_knows_no_default_device_and_no_autocast() -> None:
    query, layout = inputs()[0].detach(), CASE.block_map().layout
    with torch.device("meta"), torch.autocast(query.device.type, torch.bfloat16):
        assert trial.found_wrong(query, layout, gradients=True) is None


def test_auto_says_why_it_is_not_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    query, block_map = torch.empty(1, 185, 2, 48, device="meta"), CASE.block_map()
    monkeypatch.setattr(vidsparse.attention, "triton_lacks", lambda device: None)
    monkeypatch.setattr(operator, "unsupported_device", lambda device: None)
    monkeypatch.setattr(trial, "_try", lambda *_: None)
    choice = vidsparse.attention.choose_impl("auto", query, block_map)
    assert choice == ("flex", "impl 'triton' takes head_dim 32, 64, 96, 128, not 48")
    fitting = torch.empty(1, 185, 2, 64, device="meta")
    assert vidsparse.attention.choose_impl("auto", fitting, block_map) == ("triton", None)
    monkeypatch.setattr(trial, "_try", lambda *_: "computes out wrongly")
    choice = vidsparse.attention.choose_impl("auto", fitting, block_map)
    assert choice == ("flex", "impl 'triton' computes out wrongly")
