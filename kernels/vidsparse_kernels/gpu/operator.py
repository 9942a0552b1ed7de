"""Block-sparse attention on a GPU as PyTorch operators: checked, differentiable, opaque to `torch.compile`.

The operators never synchronise the device, so CUDA graphs can record them. Input tensors are read in place; a tensor is
copied if its channels are not contiguous, or if a chip's tensor memory accelerator cannot read it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch

from vidsparse_kernels.available import recording
from vidsparse_kernels.gpu.backward import backward
from vidsparse_kernels.gpu.columns import Columns
from vidsparse_kernels.gpu.configs import KERNELS, choose
from vidsparse_kernels.gpu.device import capability, unsupported_device
from vidsparse_kernels.gpu.forward import forward
from vidsparse_kernels.gpu.launch import Launch, readable
from vidsparse_kernels.gpu.lists import KeyLists, MapLists
from vidsparse_kernels.gpu.primitives import HEADS
from vidsparse_kernels.layout import TileLayout, Tiling, check_lists

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
VOLUMES = (64, 128)
# Keys are measured first if a query sees this many or more. Not timed on a GPU: reading all keys once should cost as
# much as 75 keys of each query (at 4 TB/s and 600 TFLOP/s); a model of the machine code predicts that a sixth is saved.
PAYS = 2048


def unsupported(query: torch.Tensor, layout: TileLayout) -> str | None:
    """Why the kernels cannot take this call, in words that complete "impl='triton' ..."; None if they can."""
    reason = unsupported_device(query.device)
    if reason is not None:
        return reason
    if not (layout.query.boxes and layout.key.boxes):
        return "takes whole boxes of a grid as tiles, not the valid voxels of a SparseVolume"
    if query.dtype not in DTYPES:
        return f"takes {', '.join(str(d) for d in DTYPES)}, not {query.dtype}"
    if query.shape[-1] not in HEADS:
        return f"takes head_dim {', '.join(map(str, HEADS))}, not {query.shape[-1]}"
    query_tile, key_tile = layout.query.tile, layout.key.tile
    for name, tile in (("query", query_tile), ("key", key_tile)):
        if math.prod(tile) not in VOLUMES or any(side & (side - 1) for side in tile):
            volumes = " or ".join(map(str, VOLUMES))
            return f"takes tiles of {volumes} tokens with power-of-two sides, not the {name} tile {tile}"
    chip, (itemsize, head_dim) = capability(query.device), (query.element_size(), query.shape[-1])
    for kernel, tile in zip(KERNELS, (query_tile, query_tile, key_tile), strict=True):
        if choose(chip, kernel, itemsize, head_dim, math.prod(tile)) is None:
            return (
                f"takes {query.dtype} with head_dim {head_dim} in tiles of 64 tokens on this chip, not the tile {tile}"
            )
    return None


def measures_keys(query: torch.Tensor, indices: torch.Tensor, layout: TileLayout) -> bool:
    """Whether a call with these lists measures its keys first: see `attention`."""
    return query.dtype == torch.bfloat16 and indices.shape[-1] * layout.key.volume >= PAYS


# Schemas hold only tensors, numbers and lists of them, so lists and layout are passed in pieces: `queries` and `keys`
# are `Tiling.numbers`. Triton launches on the current device, so the operators switch to that of the tensors.
@torch.library.custom_op("vidsparse::block_sparse", mutates_args=())
def _block_sparse(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_lists: Sequence[torch.Tensor],
    columns: Sequence[torch.Tensor],
    extra_valid: torch.Tensor | None,
    queries: Sequence[int],
    keys: Sequence[int],
    scale: float,
    bounded: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    lists, layout = KeyLists(*key_lists), TileLayout(Tiling.of_numbers(queries), Tiling.of_numbers(keys))
    with torch.cuda.device_of(query):
        launch = Launch(query, lists.counts.shape, extra_valid, layout)
        query, key, value = readable(query, layout.query), readable(key, layout.key), readable(value, layout.key)
        return forward(launch, lists, query, key, value, scale, bounded)


@_block_sparse.register_fake
def _(query, key, value, key_lists, columns, extra_valid, queries, keys, scale, bounded):
    batch, tokens, heads, _ = query.shape
    return query.new_empty(query.shape), query.new_empty((batch, heads, tokens), dtype=torch.float32)


@torch.library.custom_op("vidsparse::block_sparse_backward", mutates_args=())
def _block_sparse_backward(
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    key_lists: Sequence[torch.Tensor],
    columns: Sequence[torch.Tensor],
    extra_valid: torch.Tensor | None,
    queries: Sequence[int],
    keys: Sequence[int],
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    lists, layout = KeyLists(*key_lists), TileLayout(Tiling.of_numbers(queries), Tiling.of_numbers(keys))
    with torch.cuda.device_of(query):
        launch = Launch(query, lists.counts.shape, extra_valid, layout)
        query, grad_out = (readable(x, layout.query) for x in (query, grad_out))
        key, value = (readable(x, layout.key) for x in (key, value))
        tensors = grad_out, grad_lse.contiguous(), query, key, value, out, lse
        return backward(launch, lists, Columns(*columns), *tensors, scale)


@_block_sparse_backward.register_fake
def _(grad_out, grad_lse, query, key, value, *_):
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _remember(ctx, inputs, output):
    query, key, value, key_lists, columns, extra_valid, *rest, _ = inputs
    ctx.save_for_backward(query, key, value, *output, extra_valid, *key_lists, *columns)
    ctx.key_lists, ctx.rest = len(key_lists), rest


def _differentiate(ctx, grad_out, grad_lse):
    query, key, value, out, lse, extra_valid, *lists = ctx.saved_tensors
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse
    key_lists, columns = lists[: ctx.key_lists], lists[ctx.key_lists :]
    tensors = grad_out, grad_lse, query, key, value, out, lse
    gradients = _block_sparse_backward(*tensors, key_lists, columns, extra_valid, *ctx.rest)
    return *gradients, [None] * len(key_lists), [None] * len(columns), *[None] * 5


_block_sparse.register_autograd(_differentiate, setup_context=_remember)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lists: MapLists,
    extra_valid: torch.Tensor | None,
    scale: float,
    bounded: bool | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Block-sparse attention by Triton kernels, differentiable in out and lse.

    Args:
        query: [B, tokens, H, head_dim], any strides; float16, bfloat16, or float32 without TF32.
        key, value: [B, key tokens, H, head_dim], of the same dtype.
        lists: of a map, on the device of the query. They cache what the kernels need, so keep them with the map.
        extra_valid: int32 [B], how many prefix and suffix tokens of the keys are keys; None for all. It must be on the
            device of the query while a CUDA graph is recorded.
        scale: finite factor on the logits.
        bounded: whether to measure the keys first, so that query tiles whose norms bound their logits need no online
            maximum; for bfloat16 only. None: if a query sees enough keys to pay for it.

    Returns:
        out like query, contiguous, and lse float32 [B, H, tokens]; rows without keys give 0 and -inf.

    Raises:
        NotImplementedError: a device, dtype, head_dim or tile without a kernel.
        ValueError, TypeError: lists on another device, or `extra_valid` on a CPU while a CUDA graph is recorded; with
            VIDSPARSE_CHECK=1 in the environment also counts and indices that are not those of tiles.
    """
    layout = lists.layout
    reason = unsupported(query, layout)
    if reason is not None:
        raise NotImplementedError(f"impl='triton' {reason}; use impl='auto'")
    if lists.counts.device != query.device:
        raise TypeError(f"the map's lists are on {lists.counts.device}, the query on {query.device}")
    if os.environ.get("VIDSPARSE_CHECK") == "1":
        check_lists(lists.counts, lists.indices, layout.key.tiles)
    if extra_valid is not None:
        if extra_valid.device != query.device and recording(query):
            raise ValueError(
                "extra_valid is on the CPU and cannot be copied while a CUDA graph is recorded; move it to "
                f"{query.device} first"
            )
        # A larger number would read beyond the sequence.
        extra_valid = extra_valid.to(device=query.device, dtype=torch.int32).clamp(0, layout.key.extra)
    if scale <= 0:
        # The kernels find the largest score as the largest product times the scale: the sign goes into the queries.
        query, scale = (-query, -scale) if scale < 0 else (query * 0, 1.0)
    bounded = measures_keys(query, lists.indices, layout) if bounded is None else bounded
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    columns = lists.columns(query.shape[0] * query.shape[2]).tensors if differentiable else []
    result: tuple[torch.Tensor, torch.Tensor] = _block_sparse(
        query,
        key,
        value,
        lists.keys().tensors,
        columns,
        extra_valid,
        layout.query.numbers,
        layout.key.numbers,
        scale,
        bounded,
    )
    return result
