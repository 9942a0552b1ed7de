"""Dense attention for training on a CPU: the exponentials of all scores are kept, so backward computes no score again.

PyTorch's flash kernel saves memory that a small model does not need, and cuts its products into blocks too small for
the matrix units of a CPU. Here a thread takes one head, some hundred queries against all keys at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from precision import precision

from vidsparse.runtime.adapter import States
from vidsparse_kernels.cpu.threads import divide
from vidsparse_pipelines.wan import WanSparseProcessor

ROWS = 384  # queries of one product: their scores stay in the cache of one core
LARGEST = 60.0  # exponent at which neither float32 nor bfloat16 overflows, summed over all keys of a video
ONES = 32  # columns of ones beside the values, whose product is the sum of the weights; a full tile of the matrix unit

_free: list[torch.Tensor] = []  # buffers of earlier steps: pages fresh from the system cost more than the exponentials


def _buffer(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    for i, buffer in enumerate(_free):
        if (buffer.shape, buffer.dtype) == (shape, dtype):
            return _free.pop(i)
    return torch.empty(shape, dtype=dtype)


class _StoredAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        batch, tokens, heads, head_dim = query.shape
        weights = _buffer((batch * heads, tokens, tokens), query.dtype)
        scale = torch.empty(batch * heads, tokens, 1, dtype=query.dtype)
        out = torch.empty_like(query)
        ones = value.new_ones(tokens, ONES)

        def work(pieces: Iterator[int]) -> None:
            for piece in pieces:
                q, k, v = (x[piece // heads, :, piece % heads] for x in (query, key, value))
                q, keys, values = q * head_dim**-0.5, k.t().contiguous(), torch.cat((v, ones), dim=1)
                # Queries and keys are normalised: mostly no score can be too large, and no maximum is looked for.
                bounded = float(q.norm(dim=1).max() * k.norm(dim=1).max()) < LARGEST
                for row in range(0, tokens, ROWS):
                    part = slice(row, row + ROWS)
                    weight = torch.mm(q[part], keys, out=weights[piece, part])
                    if not bounded:
                        weight.sub_(weight.amax(dim=1, keepdim=True))
                    summed = torch.mm(weight.exp_(), values)
                    scale[piece, part] = 1 / summed[:, head_dim : head_dim + 1]
                    out[piece // heads, part, piece % heads] = summed[:, :head_dim] * scale[piece, part]

        divide(work, range(batch * heads))
        ctx.save_for_backward(query, key, value, out, scale)
        ctx.weights = weights
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, out, scale = ctx.saved_tensors
        batch, tokens, heads, head_dim = query.shape
        grads = tuple(torch.empty_like(x) for x in (query, key, value))

        def work(pieces: Iterator[int]) -> None:
            for piece in pieces:
                place = piece // heads, slice(None), piece % heads
                q, k, g = query[place] * head_dim**-0.5, key[place].contiguous(), grad[place] * scale[piece]
                values = value[place].t().contiguous()
                delta = (g.float() * out[place]).sum(dim=-1, keepdim=True).to(g.dtype)
                grad_key, grad_value = torch.zeros(2, tokens, head_dim)
                for row in range(0, tokens, ROWS):
                    part = slice(row, row + ROWS)
                    weight = ctx.weights[piece, part]
                    grad_value += weight.t() @ g[part]
                    grad_score = (g[part] @ values).sub_(delta[part]).mul_(weight)
                    grads[0][place][part] = (grad_score @ k).mul_(head_dim**-0.5)
                    grad_key += grad_score.t() @ q[part]
                grads[1][place], grads[2][place] = grad_key, grad_value

        divide(work, range(batch * heads))
        _free.append(ctx.weights)
        ctx.weights = None
        return grads


@torch.compiler.disable  # type: ignore[untyped-decorator]
def stored_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Dense attention of [batch, tokens, heads, head_dim], in the dtype of `query`, computed in that of `precision`.

    Keeps tokens^2 numbers for each head and sample until the backward pass, which can run once.
    """
    out: torch.Tensor = _StoredAttention.apply(*(x.to(precision("cpu")) for x in (query, key, value)))  # type: ignore[no-untyped-call]
    return out.type_as(query)


class _StoredCall:
    """A call that `stored_attention` computes."""

    reason = None

    @property
    def grid(self) -> NoReturn:
        raise NotImplementedError("dense attention of Wan asks for no grid")

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extra_valid: torch.Tensor | None = None,
        gate: torch.Tensor | None = None,
    ) -> torch.Tensor:
        del extra_valid, gate  # Wan has no text among its tokens, and this model no gate
        return stored_attention(query, key, value)


class _StoredLayer:
    """Sends every call through `stored_attention`."""

    def begin(self, unsupported: str | None = None) -> _StoredCall:
        del unsupported
        return _StoredCall()

    def end(self, call: Any, out: States) -> States:
        del call
        return out


@contextmanager
def attention_stored(blocks: torch.nn.ModuleList) -> Iterator[None]:
    """Let the self-attention of Wan blocks train with `stored_attention`; the backward pass may run after it."""
    modules: list[Any] = [block.attn1 for block in blocks]
    before = [module.processor for module in modules]
    for module in modules:
        module.set_processor(WanSparseProcessor(module.processor, _StoredLayer()))
    try:
        yield
    finally:
        for module, processor in zip(modules, before, strict=True):
            module.set_processor(processor)
