"""Block-sparse attention of NVIDIA's cuDNN frontend, with gradients: kernels for compute capability 9.0 to 12.0.

Read at version 1.32.0 of `nvidia-cudnn-frontend` (`cudnn.BSA`, an experimental interface without autograd). It knows
blocks of a sequence, so queries, keys and values are copied into runs of tiles first.
"""

from __future__ import annotations

from typing import Any

import torch

from vidsparse_kernels.layout import TileLayout
from vidsparse_kernels.providers.package import Package
from vidsparse_kernels.providers.runs import Runs, expanded

LENGTHS = (64, 128)
HEAD_DIMS = (64, 96, 128)


PACKAGE = Package(
    "cudnn", "cudnn.block_sparse_attention.api", "nvidia-cudnn-frontend[cutedsl]", capabilities=(9, 10, 11, 12)
)
lacks = PACKAGE.lacks


def unsupported(query: torch.Tensor, layout: TileLayout, gradients: bool, padded: bool) -> str | None:
    """Why the kernels cannot take a call, in words that complete "impl='cudnn' ..."; None if they can.

    Args:
        query: [batch, tokens, heads, head_dim] of the call. layout: of its map.
        gradients: whether the call needs gradients. padded: whether some prefix and suffix tokens are padding.
    """
    if (reason := lacks(query.device)) is not None:
        return reason
    return _refuses(torch.cuda.get_device_capability(query.device)[0], query, layout, gradients, padded)


def _refuses(major: int, query: torch.Tensor, layout: TileLayout, gradients: bool, padded: bool) -> str | None:
    length, head_dim = layout.query.volume, query.shape[-1]
    if query.dtype not in (torch.float16, torch.bfloat16):
        return f"takes float16 and bfloat16, not {query.dtype}"
    if length != layout.key.volume or length not in LENGTHS:
        return f"takes tiles of 64 or of 128 tokens, not {layout.query.tile} for queries and {layout.key.tile} for keys"
    blackwell = major in (10, 11)
    only_128 = major == 12 or (blackwell and length == 64)
    if head_dim not in ((128,) if only_128 else HEAD_DIMS):
        return f"takes head_dim {'128' if only_128 else '64, 96 and 128'} on this chip, not {head_dim}"
    if blackwell and length == 64 and query.dtype != torch.bfloat16:
        return f"takes bfloat16 for tiles of 64 tokens on this chip, not {query.dtype}"
    if blackwell and padded and len(query) > 1:
        return "takes no texts of different lengths in one batch on this chip"
    if not gradients:
        return None
    if major == 12:
        return "has no gradients on this chip"
    if query.dtype != torch.bfloat16:
        return f"has gradients for bfloat16, not for {query.dtype}"
    if head_dim not in ((64, 128) if blackwell and length == 128 else (128,)):
        return f"has no gradients for head_dim {head_dim} on this chip"
    return None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    runs: Runs,
    extra_valid: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Block-sparse attention, differentiable in its output.

    Args:
        query: [batch, tokens, heads, head_dim]. key, value: [batch, key tokens, heads, head_dim].
        runs: of the map, on the device of the query.
        extra_valid: int [batch], how many prefix and suffix tokens of the keys are keys; None: all.
        scale: positive factor on the logits.

    Returns:
        out like query, and lse float32 [batch, heads, tokens]; rows without keys give 0 and -inf.

    Raises:
        NotImplementedError: in the backward pass, where the loss depends on lse.
        ValueError: a scale that is not positive.
    """
    if scale <= 0:
        raise ValueError(f"scale={scale} must be positive for impl='cudnn'; use impl='triton'")
    out, lse = _Attention.apply(query, key, value, runs, extra_valid, scale)  # type: ignore[no-untyped-call]
    return out, lse


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        runs: Runs,
        extra_valid: torch.Tensor | None,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = runs.query.gather(query), runs.key.gather(key), runs.key.gather(value)
        given = _lists(runs, extra_valid, *query.shape[::2]) | {"softmax_scale": scale, "layout": "bshd"}
        found = PACKAGE.functions().block_sparse_attention_forward(*rows, allow_empty_block_nums=True, **given)
        out, lse = found["o_tensor"], found["lse_tensor"]
        ctx.save_for_backward(*rows, out, lse)
        ctx.runs, ctx.given = runs, given
        ctx.set_materialize_grads(False)
        return runs.query.scatter(out), runs.query.scatter(lse, dim=2)

    @staticmethod
    def backward(
        ctx: Any, grad_out: torch.Tensor | None, grad_lse: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        if grad_lse is not None:
            raise NotImplementedError("impl='cudnn' has no gradient of lse; use impl='triton'")
        if grad_out is None:
            return (None,) * 6
        *rows, out, lse = ctx.saved_tensors
        runs = ctx.runs
        grad = runs.query.gather_gradient(grad_out).to(out.dtype)
        # Rows without a token have some lse or other, and a gradient of zero: they add nothing.
        found = PACKAGE.functions().block_sparse_attention_backward(grad, *rows, out, lse, **ctx.given)
        orders = {"dq_tensor": runs.query, "dk_tensor": runs.key, "dv_tensor": runs.key}
        return *(order.scatter(found[name]) for name, order in orders.items()), None, None, None


def _lists(runs: Runs, extra_valid: torch.Tensor | None, batch: int, heads: int) -> dict[str, Any]:
    """The map as the functions take it. Sizes are left out where every run is full."""
    counts, indices = expanded((runs.counts, runs.indices), batch, heads)
    sizes = None if runs.key.full and extra_valid is None else runs.key_sizes(extra_valid)
    if sizes is not None and sizes.ndim == 2 and batch == 1:
        sizes = sizes[0]
    return {
        "q2k_block_index": indices,
        "q2k_block_nums": counts,
        "block_sizes": sizes,
        "sparse_block_size": runs.key.length,
    }
