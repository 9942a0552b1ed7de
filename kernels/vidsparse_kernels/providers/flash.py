"""Block-sparse attention of FlashAttention-4, with gradients: kernels for compute capability 9.0 and 10.

Read at version 4.0.0b36 of `flash-attn-4` (`flash_attn.cute`). It knows blocks of a sequence, so queries, keys and
values are copied into runs of tiles first. Runs that are not full of keys are listed apart, under a mask.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from vidsparse_kernels.layout import TileLayout
from vidsparse_kernels.providers.package import Package
from vidsparse_kernels.providers.runs import Runs

HEAD_DIMS = (64, 128)
QUERIES = {9: 128, 10: 256}  # rows of a query run are a multiple of these, by the major compute capability
KEYS = 128

Lists = tuple[torch.Tensor, torch.Tensor]


PACKAGE = Package("fa4", "flash_attn.cute", "flash-attn-4", tuple(QUERIES))
lacks = PACKAGE.lacks


def unsupported(query: torch.Tensor, layout: TileLayout, gradients: bool, padded: bool) -> str | None:
    """Why the kernels cannot take a call, in words that complete "impl='fa4' ..."; None if they can.

    Args:
        query: [batch, tokens, heads, head_dim] of the call. layout: of its map.
        gradients, padded: whether the call needs gradients, and has padding; every call may.
    """
    del gradients, padded
    if (reason := lacks(query.device)) is not None:
        return reason
    return _refuses(torch.cuda.get_device_capability(query.device)[0], query, layout)


def _refuses(major: int, query: torch.Tensor, layout: TileLayout) -> str | None:
    if query.dtype not in (torch.float16, torch.bfloat16):
        return f"takes float16 and bfloat16, not {query.dtype}"
    if query.shape[-1] not in HEAD_DIMS:
        return f"takes head_dim 64 and 128, not {query.shape[-1]}"
    for name, side, unit in (("query", layout.query, QUERIES[major]), ("key", layout.key, KEYS)):
        if side.volume % unit:
            return f"takes {name} tiles of a multiple of {unit} tokens on this chip, not {side.tile}"
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
    """Block-sparse attention, differentiable in out and lse.

    Args:
        query: [batch, tokens, heads, head_dim]. key, value: [batch, key tokens, heads, head_dim].
        runs: of the map, on the device of the query.
        extra_valid: int [batch], how many prefix and suffix tokens of the keys are keys; None: all.
        scale: positive factor on the logits.

    Returns:
        out like query, and lse float32 [batch, heads, tokens]; rows without keys give 0 and -inf.

    Raises:
        ValueError: a scale that is not positive.
    """
    if scale <= 0:
        raise ValueError(f"scale={scale} must be positive for impl='fa4'; use impl='triton'")
    rows = _Rows.apply(query, key, value, runs)  # type: ignore[no-untyped-call]
    masked = not runs.key.full or extra_valid is not None
    partial = runs.key.sizes < runs.key.length
    if extra_valid is not None:
        partial = partial | (torch.arange(len(partial), device=partial.device) >= runs.key.tiles)
    blocks = (runs.query.length, runs.key.length)
    given: dict[str, Any] = {"block_sparse_tensors": _tensors(*split(runs.counts, runs.indices, partial), blocks)}
    if torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
        given["block_sparse_tensors_bwd"] = _tensors(*split_rows(*runs.transposed(), partial), blocks)
    if masked:
        given |= {"mask_mod": _mask(), "aux_tensors": [real_keys(runs, extra_valid, len(query))]}
    out, lse = PACKAGE.functions().flash_attn_func(*rows, softmax_scale=scale, return_lse=True, **given)
    return runs.query.scatter(out), runs.query.scatter(lse, dim=2)


class _Rows(torch.autograd.Function):
    """Queries, keys and values as rows; the gradient of a token is that of its row."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, runs: Runs
    ) -> tuple[torch.Tensor, ...]:
        ctx.runs = runs
        return runs.query.gather(query), runs.key.gather(key), runs.key.gather(value)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        runs = ctx.runs
        orders = runs.query, runs.key, runs.key
        return *(order.scatter(grad) for order, grad in zip(orders, grads, strict=True)), None


def split(counts: torch.Tensor, indices: torch.Tensor, partial: torch.Tensor) -> tuple[Lists, Lists]:
    """The lists of partial runs and those of full ones, each ascending.

    Args:
        counts: int32 [..., rows]. indices: int32 [..., rows, W].
        partial: bool [columns], which columns are partial.
    """
    listed = torch.arange(indices.shape[-1], device=counts.device) < counts[..., None]
    masked = partial[torch.where(listed, indices, 0).long()]
    return _kept(indices, listed & masked), _kept(indices, listed & ~masked)


def split_rows(counts: torch.Tensor, indices: torch.Tensor, partial: torch.Tensor) -> tuple[Lists, Lists]:
    """The same for transposed lists: the whole list of a key run is partial, or full."""
    return (torch.where(partial, counts, 0), indices), (torch.where(partial, 0, counts), indices)


def _kept(indices: torch.Tensor, kept: torch.Tensor) -> Lists:
    order = (~kept).int().argsort(dim=-1, stable=True)
    return kept.sum(dim=-1, dtype=torch.int32), indices.gather(-1, order).contiguous()


def real_keys(runs: Runs, extra_valid: torch.Tensor | None, batch: int) -> torch.Tensor:
    """1 for each row that is a key, else 0: int32 [batch, rows of keys]."""
    sizes = runs.key_sizes(extra_valid)
    place = torch.arange(runs.key.length, device=sizes.device)
    return (place < sizes[..., None]).int().flatten(-2).expand(batch, -1).contiguous()


def _tensors(partial: Lists, full: Lists, blocks: tuple[int, int]) -> Any:
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    return BlockSparseTensorsTorch(*partial, *full, block_size=blocks)


@lru_cache(maxsize=1)
def _mask() -> Any:
    """FlashAttention's mask of a partial run: a key counts where the first additional tensor has a 1."""
    import cutlass
    from cutlass import cute
    from flash_attn.cute import utils

    @cute.jit  # type: ignore[untyped-decorator]
    def real(batch: Any, head: Any, query: Any, key: Any, seqlen_info: Any, tensors: Any) -> Any:
        one = utils.scalar_to_ssa(1, cutlass.Int32)
        return utils.scalar_to_ssa(tensors[0][batch[0], key[0]], cutlass.Int32) == one

    return real
