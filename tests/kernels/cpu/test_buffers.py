"""The buffers that threads of the CPU implementation keep from call to call: whatever comes next finds room in them."""

from __future__ import annotations

import pytest
import torch
from against_float64 import Case, assert_close, plain, run

from vidsparse import BlockMap, VideoGrid, sparse_attention
from vidsparse_kernels.cpu import attention as cpu, rows

SMALL, LARGE = Case(VideoGrid(3, 5, 6), heads=1), Case(VideoGrid(5, 9, 10), head_dim=24)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> cpu._Scratch:
    scratch = cpu._Scratch()
    monkeypatch.setattr(cpu, "_scratch", scratch)
    return scratch


def check(case: Case, dtype: torch.dtype, block_map: BlockMap | None = None) -> None:
    """Output and gradients against float64, as against_float64.py allows."""
    block_map, tensors = block_map or case.block_map(), case.tensors(4)

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return sparse_attention(q, k, v, block_map, impl="cpu", return_lse=True)

    mask = plain(block_map.token_mask())
    expected = run(mask, [x.to(dtype) for x in tensors], torch.float64)
    assert_close(run(attention, tensors, dtype), expected, run(mask, tensors, dtype), dtype)


def test_other_dtypes_and_sizes_one_after_the_other() -> None:
    for dtype in (torch.bfloat16, torch.float32, torch.float64, torch.float16):
        for case in (SMALL, LARGE, SMALL):
            check(case, dtype)


def test_training_after_inference_mode_and_the_other_way_round() -> None:
    block_map = LARGE.block_map()
    for _ in range(2):
        with torch.inference_mode():
            sparse_attention(*LARGE.tensors(), block_map, impl="cpu")  # type: ignore[call-overload]
        check(LARGE, torch.float64, block_map)


def test_views_are_not_kept_without_end(monkeypatch: pytest.MonkeyPatch, fresh: cpu._Scratch) -> None:
    monkeypatch.setattr(cpu, "VIEWS", 5)
    monkeypatch.setattr(rows, "KEYS", 40)
    check(LARGE, torch.float32)
    assert 0 < len(fresh.views) <= 5
