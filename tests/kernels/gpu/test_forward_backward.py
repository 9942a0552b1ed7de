"""Triton's kernels against the float64 specification: on a GPU, or in the interpreter."""

from __future__ import annotations

import pytest
import torch
from against_float64 import Case, assert_close, plain, run

from vidsparse import BlockMap, VideoGrid, sparse_attention

pytest.importorskip("triton")
from vidsparse_kernels.gpu import launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TEXT = VideoGrid(2, 5, 9, prefix=3, suffix=66)
CASES = {
    "whole-tiles": Case(VideoGrid(2, 8, 16), (1, 8, 8), head_dim=64),
    "one-frame": Case(VideoGrid(1, 9, 17), (1, 8, 8), head_dim=32),
    "primes": Case(VideoGrid(3, 7, 11), (2, 8, 8), heads=1, head_dim=64),
    "one-row-short": Case(VideoGrid(4, 7, 8), (2, 8, 8), heads=1, head_dim=32),
    "one-token": Case(VideoGrid(1, 1, 1), (1, 8, 8), head_dim=32),
    "raster": Case(VideoGrid(1, 1, 300), (1, 1, 128), heads=1, head_dim=32),
    "temporal-tile": Case(VideoGrid(33, 3, 5), (32, 2, 2), heads=1, head_dim=32),
    "key-tile-of-64": Case(VideoGrid(3, 9, 10), (2, 8, 8), (1, 8, 8), heads=1, head_dim=96),
    "query-tile-of-64": Case(VideoGrid(3, 9, 10), (4, 4, 4), (2, 8, 8), heads=1, head_dim=64),
    "head-dim-128": Case(VideoGrid(2, 9, 8), (1, 8, 8), heads=1, head_dim=128),
    "prefix": Case(VideoGrid(2, 5, 9, prefix=5), (1, 8, 8), heads=1, head_dim=32),
    "text-of-different-lengths": Case(TEXT, (1, 8, 8), batch=2, heads=1, head_dim=64, extra_valid=(69, 2)),
    "no-valid-text": Case(TEXT, (1, 8, 8), batch=2, heads=1, head_dim=32, extra_valid=(0, 9), empty=(1,)),
    "map-for-each-sample-and-head": Case(
        VideoGrid(2, 9, 8), (1, 8, 8), batch=2, heads=2, map_batch=2, map_heads=2, head_dim=32
    ),
    "empty-rows": Case(VideoGrid(2, 9, 8), (1, 8, 8), heads=1, empty=(0, 3), head_dim=32),
    "all-empty": Case(VideoGrid(2, 8, 8), (1, 8, 8), heads=1, empty=(0, 1), head_dim=32),
    # Queries and keys of two grids.
    "new-frames": Case(VideoGrid(1, 9, 8), (1, 8, 8), heads=1, head_dim=64, key_grid=VideoGrid(3, 9, 8)),
    "fewer-keys": Case(VideoGrid(3, 9, 10), (2, 8, 8), (4, 4, 4), heads=1, head_dim=32, key_grid=VideoGrid(1, 7, 5)),
    "whole-keys": Case(VideoGrid(1, 7, 9), (1, 8, 8), heads=1, head_dim=32, key_grid=VideoGrid(2, 8, 16)),
    "queries-with-text": Case(
        VideoGrid(1, 5, 9, prefix=3, suffix=66), (1, 8, 8), heads=1, head_dim=32, key_grid=VideoGrid(2, 8, 8)
    ),
    "keys-with-text": Case(
        VideoGrid(1, 5, 9), (1, 8, 8), batch=2, heads=1, head_dim=64, extra_valid=(69, 2), key_grid=TEXT, empty=(1,)
    ),
    "two-grids-with-text": Case(
        *(VideoGrid(1, 9, 10, prefix=2), (1, 8, 8), (2, 8, 8)),
        batch=2,
        map_batch=2,
        map_heads=2,
        head_dim=32,
        extra_valid=(0, 9),
        key_grid=TEXT,
    ),
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LOADS = ["rows", "boxes"]  # pointers to rows, or descriptors of boxes, which the interpreter knows too


def tried(case: Case, dtype: torch.dtype, loads: str) -> bool:
    """Whether a combination runs here: all on a GPU, by its way to read; in the interpreter, those that can fail alone.

    There float32 covers every geometry by both ways to read. A narrower dtype only rounds what is loaded and stored:
    bfloat16 does so in all geometries by rows, and both do with 64 channels. Float16 by boxes is left to machine code.
    """
    if DEVICE == "cuda":
        return (loads == "boxes") == launch.reads_boxes(torch.device(DEVICE))
    if dtype == torch.float32 or case.head_dim == 64:
        return (dtype, loads) != (torch.float16, "boxes")
    return (dtype, loads) == (torch.bfloat16, "rows") and case.head_dim <= 96


RUNS = {
    f"{name}-{str(dtype).removeprefix('torch.')}-{loads}": (case, dtype, loads)
    for name, case in CASES.items()
    for dtype in DTYPES
    for loads in LOADS
    if tried(case, dtype, loads)
}


def triton_attention(case: Case, block_map: BlockMap):  # type: ignore[no-untyped-def]
    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        on_device = (x.to(DEVICE) for x in (q, k, v))
        found = sparse_attention(*on_device, block_map, extra_valid=case.valid, impl="triton", return_lse=True)
        return found[0].cpu(), found[1].cpu()

    return attention


@pytest.mark.usefixtures("poison_empty", "large_steps")
@pytest.mark.parametrize(("case", "dtype", "loads"), RUNS.values(), ids=RUNS)
def test_against_float64(monkeypatch: pytest.MonkeyPatch, case: Case, dtype: torch.dtype, loads: str) -> None:
    if DEVICE == "cpu":
        monkeypatch.setattr(launch, "reads_boxes", lambda device: loads == "boxes")
    block_map = case.block_map()
    tensors = [x.to(dtype) for x in case.tensors(4)]

    def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return sparse_attention(q, k, v, block_map, extra_valid=case.valid, impl="reference", return_lse=True)

    expected = run(exact, tensors, torch.float64)
    bound = run(plain(block_map.token_mask(case.valid)), tensors, dtype)
    assert_close(run(triton_attention(case, block_map), tensors, dtype), expected, bound, dtype)
