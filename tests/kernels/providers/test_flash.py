"""FlashAttention-4 with our maps: arguments, gradients and refusals. The package itself needs a GPU."""

import pytest
import torch

import vidsparse
from tests.support.blocks import BlockSparse, flash_attention
from tests.support.provided import CASES, last_frames, lists, one_sequence
from vidsparse_kernels import reference, trial
from vidsparse_kernels.layout import TileLayout
from vidsparse_kernels.providers import flash, package
from vidsparse_kernels.providers.runs import Runs


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is there, and computes in float64 on the CPU."""
    functions = flash_attention()
    monkeypatch.setattr(package, "load", lambda module: functions)
    monkeypatch.setattr(flash, "_mask", lambda: "keys where the first tensor has a 1")
    monkeypatch.setattr(flash, "_tensors", lambda partial, full, blocks: BlockSparse(*partial, *full, blocks))
    monkeypatch.setattr(flash, "lacks", lambda device: None)
    monkeypatch.setattr(flash, "unsupported", lambda *call: None)
    trial._answer.cache_clear()
    yield
    trial._answer.cache_clear()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_definition_with_its_gradients(case: TileLayout, padded: bool) -> None:
    kept, counts, indices = lists(case)
    extra = case.key.extra
    valid = torch.tensor([extra, extra // 3]) if padded else None
    lengths, generator = [case.query.tokens, *[case.key.tokens] * 2, *[case.query.tokens] * 2], torch.Generator()
    *qkv, grad, weights = (torch.randn(2, n, 2, 8, generator=generator, dtype=torch.float64) for n in lengths)
    results = []
    for attend in (
        lambda *x: flash.attention(*x, Runs.of(counts, indices, case), valid, 0.3),
        lambda *x: reference.attention(*x, reference.token_mask(kept, case, valid), 0.3),
    ):
        leaves = [x.clone().requires_grad_() for x in qkv]
        out, lse = attend(*leaves)
        loss = (out * grad).sum() + (lse.masked_fill(lse.isneginf(), 0) * weights[..., 0].transpose(1, 2)).sum()
        results.append([out, lse, *torch.autograd.grad(loss, leaves)])
    for found, right in zip(*results, strict=True):
        torch.testing.assert_close(found, right, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("frames", [2, 1])
def test_runs_through_sparse_attention_and_its_trial(frames: int) -> None:
    grid = vidsparse.VideoGrid(2, 9, 17, prefix=3)
    block_map = last_frames(vidsparse.Radial(density=0.5, tile=(1, 8, 16)).plan(grid), frames)
    lengths = block_map.query_grid.tokens, grid.tokens, grid.tokens
    query, key, value = (torch.randn(1, n, 2, 16, dtype=torch.float64, requires_grad=True) for n in lengths)
    found = vidsparse.sparse_attention(query, key, value, block_map, impl="fa4")
    right = vidsparse.sparse_attention(query, key, value, block_map, impl="reference")
    torch.testing.assert_close(found, right, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("installed")
def test_a_mask_that_is_ignored_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "real_keys", lambda runs, valid, batch: torch.ones(batch, len(runs.key.padding)))
    block_map = vidsparse.Radial(density=0.5, tile=(1, 8, 16)).plan(vidsparse.VideoGrid(2, 9, 17))
    with pytest.raises(NotImplementedError, match="impl='fa4' computes out with a relative error"):
        vidsparse.sparse_attention(*torch.randn(3, 1, 306, 2, 16), block_map, impl="fa4")


def test_refuses_what_the_chip_has_no_kernel_for() -> None:
    query = torch.empty(1, 64, 1, 128, dtype=torch.bfloat16)
    whole, half = (1, 8, 16), (1, 8, 8)
    assert flash._refuses(9, query, one_sequence((1, 8, 8), whole, whole)) is None
    assert flash._refuses(10, query, one_sequence((1, 8, 8), (2, 8, 16), whole)) is None
    for major, call, layout, reason in (
        (9, query.float(), one_sequence((1, 8, 8), whole, whole), "takes float16 and bfloat16"),
        (9, query[..., :96], one_sequence((1, 8, 8), whole, whole), "takes head_dim 64 and 128, not 96"),
        (9, query, one_sequence((1, 8, 8), half, whole), "query tiles of a multiple of 128"),
        (9, query, one_sequence((1, 8, 8), whole, half), "key tiles of a multiple of 128"),
        (10, query, one_sequence((1, 8, 8), whole, whole), "query tiles of a multiple of 256"),
    ):
        assert reason in str(flash._refuses(major, call, layout))
