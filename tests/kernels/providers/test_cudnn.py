"""The cuDNN frontend's kernels with our maps: arguments, gradients and refusals. The package itself needs a GPU."""

import pytest
import torch

import vidsparse
from tests.support.blocks import cudnn_frontend
from tests.support.provided import CASES, last_frames, lists, one_sequence
from vidsparse_kernels import reference, trial
from vidsparse_kernels.layout import TileLayout
from vidsparse_kernels.providers import cudnn, package
from vidsparse_kernels.providers.runs import Runs


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is there, and computes in float64 on the CPU."""
    frontend = cudnn_frontend()
    monkeypatch.setattr(package, "load", lambda module: frontend)
    monkeypatch.setattr(cudnn, "lacks", lambda device: None)
    monkeypatch.setattr(cudnn, "unsupported", lambda *call: None)
    trial._answer.cache_clear()
    yield
    trial._answer.cache_clear()


def operands(case: TileLayout, batch: int = 2, heads: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    lengths = case.query.tokens, case.key.tokens, case.key.tokens, case.query.tokens
    return [torch.randn(batch, n, heads, 8, generator=generator, dtype=torch.float64) for n in lengths]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_definition_with_its_gradients(case: TileLayout, padded: bool) -> None:
    kept, counts, indices = lists(case)
    extra = case.key.extra
    valid = torch.tensor([extra, extra // 3]) if padded else None
    *qkv, grad = operands(case)
    results = []
    for attend in (
        lambda *x: cudnn.attention(*x, Runs.of(counts, indices, case), valid, 0.3),
        lambda *x: reference.attention(*x, reference.token_mask(kept, case, valid), 0.3),
    ):
        leaves = [x.clone().requires_grad_() for x in qkv]
        out, lse = attend(*leaves)
        results.append([out, lse, *torch.autograd.grad(out, leaves, grad)])
    assert results[0][1].isneginf().any() == (extra == 0)  # the query tile that keeps nothing
    for found, right in zip(*results, strict=True):
        torch.testing.assert_close(found, right, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("frames", [3, 1])
def test_runs_through_sparse_attention_and_its_trial(frames: int) -> None:
    grid = vidsparse.VideoGrid(3, 9, 9, suffix=5)
    block_map = last_frames(vidsparse.Radial(density=0.5, tile=(1, 8, 8)).plan(grid), frames)
    lengths = block_map.query_grid.tokens, grid.tokens, grid.tokens
    query, key, value = (torch.randn(2, n, 2, 16, dtype=torch.float64, requires_grad=True) for n in lengths)
    valid = torch.tensor([2, 5])
    found = vidsparse.sparse_attention(query, key, value, block_map, extra_valid=valid, impl="cudnn")
    right = vidsparse.sparse_attention(query, key, value, block_map, extra_valid=valid, impl="reference")
    torch.testing.assert_close(found, right, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("installed")
def test_a_kernel_that_computes_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = cudnn.PACKAGE.functions().block_sparse_attention_backward

    def wrong(*args, **kwargs):
        grads = right(*args, **kwargs)
        return grads | {"dk_tensor": grads["dk_tensor"] * 1.01}

    monkeypatch.setattr(cudnn.PACKAGE.functions(), "block_sparse_attention_backward", wrong)
    block_map = vidsparse.Radial(density=0.5, tile=(1, 8, 8)).plan(vidsparse.VideoGrid(2, 9, 9))
    qkv = torch.randn(3, 1, 162, 2, 16)
    vidsparse.sparse_attention(*qkv, block_map, impl="cudnn")  # nothing needs a gradient
    with pytest.raises(NotImplementedError, match="impl='cudnn' computes dk with a relative error"):
        vidsparse.sparse_attention(*qkv.requires_grad_(), block_map, impl="cudnn")


@pytest.mark.usefixtures("installed")
def test_what_it_has_no_gradient_of_is_refused() -> None:
    _, counts, indices = lists(CASES[0])
    query, key, value, _ = (x.requires_grad_() for x in operands(CASES[0]))
    runs = Runs.of(counts, indices, CASES[0])
    _, lse = cudnn.attention(query, key, value, runs, None, 0.3)
    with pytest.raises(NotImplementedError, match="no gradient of lse"):
        lse[lse.isfinite()].sum().backward()
    with pytest.raises(ValueError, match=r"scale=-0\.3 must be positive"):
        cudnn.attention(query, key, value, runs, None, -0.3)


def test_on_a_cpu_it_refuses_before_anything_runs() -> None:
    block_map = vidsparse.Radial(density=0.5).plan(vidsparse.VideoGrid(1, 8, 8))
    with pytest.raises(NotImplementedError, match="impl='cudnn' needs tensors on a CUDA device, these are on cpu"):
        vidsparse.sparse_attention(*torch.randn(3, 1, 64, 1, 64), block_map, impl="cudnn")


@pytest.mark.parametrize(
    ("major", "call", "reason"),
    [
        (9, {}, None),
        (9, {"gradients": True}, None),
        (9, {"dtype": torch.float32}, "takes float16 and bfloat16"),
        (9, {"tile": (1, 4, 8)}, "takes tiles of 64 or of 128 tokens"),
        (9, {"head_dim": 32}, "takes head_dim 64, 96 and 128"),
        (9, {"dtype": torch.float16, "gradients": True}, "has gradients for bfloat16"),
        (9, {"head_dim": 64, "gradients": True}, "has no gradients for head_dim 64"),
        (10, {"padded": True}, "no texts of different lengths"),
        (10, {"head_dim": 64}, None),
        (10, {"head_dim": 96, "gradients": True}, "has no gradients for head_dim 96"),
        (10, {"tile": (1, 8, 8), "head_dim": 64}, "takes head_dim 128"),
        (10, {"tile": (1, 8, 8), "dtype": torch.float16}, "takes bfloat16 for tiles of 64"),
        (12, {"gradients": True}, "has no gradients on this chip"),
        (12, {"head_dim": 64}, "takes head_dim 128"),
    ],
)
def test_refuses_what_the_chip_has_no_kernel_for(major: int, call: dict, reason: str | None) -> None:
    tile = call.get("tile", (1, 8, 16))
    query = torch.empty(2, 64, 1, call.get("head_dim", 128), dtype=call.get("dtype", torch.bfloat16))
    layout = one_sequence((1, 8, 8), tile, tile)
    found = cudnn._refuses(major, query, layout, call.get("gradients", False), call.get("padded", False))
    assert found is None if reason is None else reason in str(found)
