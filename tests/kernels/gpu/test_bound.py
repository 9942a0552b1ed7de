"""The forward without an online maximum: right on both sides of the bound, and used where it pays."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from against_float64 import Case

from vidsparse import BlockMap, VideoGrid, sparse_attention

pytest.importorskip("triton")
from vidsparse_kernels.gpu import forward, operator

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.usefixtures("large_steps")
CASE = Case(VideoGrid(2, 9, 10, suffix=5), (1, 8, 8), heads=2, head_dim=32, extra_valid=(4,))


TWO_GRIDS = replace(CASE, grid=VideoGrid(1, 9, 10, prefix=2), key_grid=CASE.grid)


def inputs(case: Case = CASE) -> list[torch.Tensor]:
    return [x.to(DEVICE) for x in case.tensors()]


def both_walks(tensors: list[torch.Tensor], block_map: BlockMap) -> list[list[torch.Tensor]]:
    found = []
    for bounded in (True, False):
        out, lse = operator.attention(*tensors, block_map.to(DEVICE).lists, CASE.valid, 0.2, bounded)
        found.append([out.detach().cpu(), lse.detach().cpu()])
    return found


@pytest.mark.parametrize("size", [1.0, 4.0, 100.0], ids=["small", "near-the-bound", "beyond-it"])
@pytest.mark.parametrize("case", [CASE, TWO_GRIDS], ids=["one-grid", "two-grids"])
def test_bounded_scores_need_no_maximum(case: Case, size: float) -> None:
    block_map, (query, key, value) = case.block_map(), inputs(case)
    # In one direction query and key are as long as the bound says; in all others they are short.
    for x in (query, key):
        x *= 0.3
        x[:, ::7, :, 0] = size
    query[:, 1::7, :, 0] = -size
    exact = [x.double().cpu() for x in (query, key, value)]
    wanted = sparse_attention(*exact, block_map, extra_valid=CASE.valid, scale=0.2, impl="reference", return_lse=True)
    for found in both_walks([query, key, value], block_map):
        for got, right in zip(found, wanted, strict=True):
            # Scores are float32 numbers of up to 0.2 size^2.
            allowed = 1e-4 + size**2 * torch.finfo(torch.float32).eps
            torch.testing.assert_close(got, right.float(), rtol=allowed, atol=allowed)


def test_the_bound_says_which_walk_a_program_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "key_norms", lambda launch, key: torch.zeros(2, 1, device=DEVICE))
    query, key, value = (x * 40 for x in inputs())
    (trusting, _), (right, _) = both_walks([query, key, value], CASE.block_map())
    assert right.isfinite().all() and not trusting.isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_key_that_is_no_number_is_seen_by_both_walks(value: float) -> None:
    tensors = inputs()
    tensors[1][0, 50] = value
    (one, _), (two, _) = both_walks(tensors, CASE.block_map())
    assert torch.equal(one.isnan(), two.isnan()) and one.isnan().any()


def test_keys_are_measured_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    query, lists = torch.empty(1, 1, 1, 64, dtype=torch.bfloat16), CASE.block_map().lists
    assert not operator.measures_keys(query, lists.indices, lists.layout)
    monkeypatch.setattr(operator, "PAYS", 64 * lists.indices.shape[-1])
    assert operator.measures_keys(query, lists.indices, lists.layout)
    assert not operator.measures_keys(query.half(), lists.indices, lists.layout)
