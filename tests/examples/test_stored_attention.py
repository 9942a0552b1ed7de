"""Attention that keeps its exponentials: output and gradients against float64, and where exponents would overflow."""

from __future__ import annotations

import pytest
import stored_attention as module
import torch
from stored_attention import attention_stored, stored_attention
from torch.nn.functional import scaled_dot_product_attention

from vidsparse.shapes import model as parts


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value))).transpose(1, 2)


def error(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found.detach().double() - right.detach()).norm() / right.detach().norm())


@pytest.mark.parametrize("tokens", [5, 450])
def test_output_and_gradients(tokens: int) -> None:
    torch.manual_seed(0)
    query, key, value, grad = torch.randn(4, 2, tokens, 3, 64).bfloat16().unbind()
    results = []
    for attend, dtype in ((dense, torch.float64), (stored_attention, torch.bfloat16), (dense, torch.bfloat16)):
        leaves = [x.to(dtype).requires_grad_() for x in (query, key, value)]
        out = attend(*leaves)
        assert out.dtype == dtype
        results.append((out, *torch.autograd.grad(out, leaves, grad.to(dtype))))
    # Twice the error of PyTorch's own bfloat16 attention and one rounding to 8 bits, as for every kernel here.
    for exact, mine, theirs in zip(*results, strict=True):
        assert error(mine, exact) <= 2 * error(theirs, exact) + 2**-8


def test_scores_beyond_the_exponent_do_not_overflow() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 9, 2, 64).unbind()
    found = stored_attention(100 * query, key, value)
    # Nearly all weight is on one key; scores of some hundred, rounded to 8 bits, are good for little more than that.
    assert found.isfinite().all() and error(found, dense(100 * query, key, value).double()) < 0.1


def test_a_step_reuses_the_buffers_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_free", [])
    x = torch.randn(1, 7, 2, 32, requires_grad=True)
    for _ in range(3):
        stored_attention(x, x, x).sum().backward()
        assert [buffer.shape for buffer in module._free] == [(2, 7, 7)]


def test_a_transformer_trains_as_before() -> None:
    torch.manual_seed(0)
    transformer = parts.build_transformer(num_layers=2, ffn_dim=64)
    call = torch.randn(1, parts.LATENT_CHANNELS, 3, 6, 5), torch.tensor([500.0]), torch.randn(1, 4, parts.TEXT_WIDTH)

    def run() -> list[torch.Tensor]:
        out = transformer(*call).sample
        return [out.detach(), *torch.autograd.grad(out.square().sum(), list(transformer.parameters()))]

    before = run()
    usual = [block.attn1.processor for block in transformer.blocks]
    with attention_stored(transformer.blocks):
        assert all(block.attn1.processor is not kept for block, kept in zip(transformer.blocks, usual, strict=True))
        after = run()
    assert all(block.attn1.processor is kept for block, kept in zip(transformer.blocks, usual, strict=True))
    exact = torch.cat([x.flatten() for x in before]).double()
    assert error(torch.cat([x.flatten() for x in after]), exact) < 2**-6
