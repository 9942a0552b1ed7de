"""Attention under a block map: one function, several implementations, and the exact merge of partial results."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args, overload

import torch

from vidsparse.block_map import BlockMap
from vidsparse_kernels import reference
from vidsparse_kernels.available import triton_lacks
from vidsparse_kernels.cpu import rows
from vidsparse_kernels.cpu.attention import attention as cpu_attention
from vidsparse_kernels.providers import PROVIDERS, provider

KEPT = 8  # cached products of one map on a CPU, for several samples and lengths of text

Impl = Literal["auto", "triton", "cudnn", "fa4", "cpu", "flex", "reference"]


class Choice(NamedTuple):
    """The implementation that runs a call, and why it is not the device's fastest one; None if it is."""

    impl: str
    fallback: str | None = None


def check_impl(impl: str, device: torch.device) -> None:
    """Refuse an implementation that cannot run on a device.

    Raises:
        ValueError: an unknown name, or "cpu" for another device.
        NotImplementedError: "triton", "cudnn" or "fa4" without its package, or on a device that it does not serve.
    """
    if impl not in get_args(Impl):
        raise ValueError(f"impl={impl!r} is unknown; choose one of {', '.join(get_args(Impl))}")
    if impl == "cpu" and device.type != "cpu":
        raise ValueError(f"impl='cpu' needs tensors on the CPU, these are on {device}; use impl='auto'")
    if impl == "triton" and (reason := triton_lacks(device)):
        raise NotImplementedError(f"impl='triton' {reason}; use impl='auto'")
    if impl in PROVIDERS and (reason := provider(impl).lacks(device)):
        raise NotImplementedError(f"impl={impl!r} {reason}; use impl='auto'")


def choose_impl(impl: str, query: torch.Tensor, block_map: BlockMap, gradients: bool | None = None) -> Choice:
    """Choose what will run: "auto" is `cpu` on a CPU; elsewhere `triton`, or `flex` for what the kernels do not take.

    The first call of a kind tries the kernels on a small video: where they are wrong on this device, `flex` runs, too.

    Args:
        impl: as `sparse_attention` takes it.
        query: [batch, tokens, heads, head_dim] of the call.
        block_map: of the call.
        gradients: whether any of query, key and value needs a gradient: then the backward is tried as well. None, where
            the caller knows the query alone: if autograd records.

    Raises:
        ValueError, NotImplementedError: as `check_impl`.
    """
    check_impl(impl, query.device)
    if impl != "auto":
        return Choice(impl)
    if query.device.type == "cpu":
        return Choice("cpu")
    reason = triton_lacks(query.device)
    if reason is None:
        from vidsparse_kernels import trial
        from vidsparse_kernels.gpu import operator

        layout, bounded = block_map.layout, operator.measures_keys(query, block_map.indices, block_map.layout)
        reason = operator.unsupported(query, layout)
        reason = reason or trial.found_wrong(query, layout, bounded, gradients)
    return Choice("triton") if reason is None else Choice("flex", f"impl 'triton' {reason}")


@overload
def sparse_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    block_map: BlockMap,
    *,
    extra_valid: torch.Tensor | None = None,
    scale: float | None = None,
    impl: str = "auto",
    return_lse: Literal[False] = False,
) -> torch.Tensor: ...
@overload
def sparse_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    block_map: BlockMap,
    *,
    extra_valid: torch.Tensor | None = None,
    scale: float | None = None,
    impl: str = "auto",
    return_lse: Literal[True],
) -> tuple[torch.Tensor, torch.Tensor]: ...
def sparse_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    block_map: BlockMap,
    *,
    extra_valid: torch.Tensor | None = None,
    scale: float | None = None,
    impl: str = "auto",
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention in which each query tile sees the key tiles that the map lists, plus all prefix and suffix tokens.

    Args:
        query: [batch, tokens, heads, head_dim], as diffusers has it.
        key, value: [batch, key tokens, heads, head_dim], of the dtype and on the device of the query.
        block_map: for a query grid of exactly `tokens` tokens and a key grid of `key tokens`, which is the same grid
            unless the map has two; its batch and heads are 1 or those of the query.
        extra_valid: int [batch], how many of the key grid's prefix and suffix tokens, in sequence order, are keys; the
            others are padding. None: all.
        scale: finite factor on the logits; 1/sqrt(head_dim) by default.
        impl: "auto", "triton", "cudnn", "fa4", "cpu", "flex" or "reference"; an explicit one never falls back. On a
            CPU, "flex" is for tests: it computes all scores. "triton" takes float16, bfloat16 and float32, head_dim 32,
            64, 96 and 128, and tiles of 64 or 128 tokens. "cudnn" (the package nvidia-cudnn-frontend[cutedsl]) and
            "fa4" (flash-attn-4) are kernels of others for Hopper and Blackwell, which "auto" does not choose.
        return_lse: also return the natural-log sum of exponentials, [batch, heads, tokens] in float32 (float64 for
            float64 inputs).

    Returns:
        [batch, tokens, heads, head_dim] in the dtype of the query. A row that sees no key is 0, with lse -inf.

    Raises:
        ValueError, TypeError: tensors of another rank, shape, dtype or device, a map of another grid, or a map on a CPU
            whose lists hold what is no key tile.
        NotImplementedError: an explicit `impl` that does not take this call, or computes it wrongly on this device.
    """
    _check(query, key, value, block_map, extra_valid, scale)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if impl == "auto":
        gradients = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
        impl = choose_impl(impl, query, block_map, gradients).impl
    else:
        check_impl(impl, query.device)
    if impl == "triton":
        from vidsparse_kernels.gpu import operator

        lists = _on(block_map, query.device).lists
        out, lse = operator.attention(query, key, value, lists, extra_valid, scale)
    elif impl in PROVIDERS:
        out, lse = _provided(impl, query, key, value, block_map, extra_valid, scale)
    elif impl == "cpu":
        valid = [None] * len(query) if extra_valid is None else extra_valid.tolist()
        products = [_products_of(block_map, b % len(block_map.counts), count) for b, count in enumerate(valid)]
        out, lse = cpu_attention(query, key, value, products, scale, return_lse)
    elif impl == "flex":
        out, lse = _flex(query, key, value, block_map, extra_valid, scale)
    else:
        mask = block_map.to(query.device).token_mask(extra_valid)
        out, lse = reference.attention(query, key, value, mask, scale)
    return (out, lse) if return_lse else out


def _provided(
    impl: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    block_map: BlockMap,
    extra_valid: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    from vidsparse_kernels import trial  # imports torch._dynamo

    gradients = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    reason = provider(impl).unsupported(query, block_map.layout, gradients, extra_valid is not None)
    reason = reason or trial.found_wrong(query, block_map.layout, gradients=gradients, impl=impl)
    if reason is not None:
        raise NotImplementedError(f"impl={impl!r} {reason}; use impl='auto'")
    return provider(impl).attention(query, key, value, _on(block_map, query.device).runs, extra_valid, scale)


def _products_of(block_map: BlockMap, sample: int, valid: int | None) -> rows.Products:
    """The products of one sample's map on a CPU. The last few are cached, at most for the lifetime of the map."""
    known = block_map.derived("products", dict[tuple[int, int | None], rows.Products])
    found = known.get((sample, valid))
    if found is None:
        lists = block_map.counts[sample], block_map.indices[sample]
        found = rows.products(*lists, block_map.layout, valid)
        if len(known) >= KEPT:
            known.clear()
        known[sample, valid] = found
    return found


def _flex(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    block_map: BlockMap,
    extra_valid: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    from torch.nn.attention.flex_attention import AuxRequest

    block_map = _on(block_map, query.device)
    mask = block_map.flex_mask if extra_valid is None else block_map.to_flex(extra_valid)
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    aux = AuxRequest(lse=True)
    out, found = _flex_function(query.device.type)(q, k, v, block_mask=mask, scale=scale, return_aux=aux)
    return out.transpose(1, 2), found.lse


def _on(block_map: BlockMap, device: torch.device) -> BlockMap:
    """The map on a device. Patterns return one map object for a grid, so its copy and its mask are made once."""

    @torch.inference_mode(False)  # a training may use it later
    def move() -> BlockMap:
        return block_map.to(device)

    return block_map if block_map.counts.device == device else block_map.derived(device, move)


@lru_cache(maxsize=2)
def _flex_function(device_type: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention if device_type == "cpu" else torch.compile(flex_attention, dynamic=False)


def dense_flops(tokens: int, width: int, keys: int | None = None) -> float:
    """Floating-point operations of dense attention of one sample.

    Two products of tokens x keys x width, a multiplication and an addition each.

    Args:
        tokens: of the queries. width: heads times head_dim. keys: tokens of the keys; None: as many as queries.
    """
    return 4.0 * tokens * (tokens if keys is None else keys) * width


def merge(
    out: torch.Tensor, lse: torch.Tensor, out2: torch.Tensor, lse2: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Combine attention over two disjoint sets of keys exactly, as if it had been computed over their union.

    Prefix and suffix tokens are keys of every map, so one of two calls needs an `extra_valid` of zeros.

    Args:
        out, out2: [batch, tokens, heads, head_dim]. lse, lse2: natural log, [batch, heads, tokens].

    Returns:
        out in the dtype of the first, and lse. Where both lse are -inf the result is 0 and -inf.
    """
    # Rows without a key in both sets use 0: -inf minus -inf would be NaN, also in the gradient.
    dead = lse.isneginf() & lse2.isneginf()
    lse, lse2 = (x.masked_fill(dead, 0.0) for x in (lse, lse2))
    total = torch.logaddexp(lse, lse2)
    shares = ((x - total).exp().masked_fill(dead, 0.0) for x in (lse, lse2))
    weight, weight2 = (x.transpose(1, 2)[..., None] for x in shares)
    return (weight * out + weight2 * out2).to(out.dtype), total.masked_fill(dead, float("-inf"))


def _check(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    block_map: BlockMap,
    extra_valid: torch.Tensor | None,
    scale: float | None,
) -> None:
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
        if x.ndim != 4:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, expected [batch, tokens, heads, head_dim]")
        if (x.shape[0], x.shape[2:], x.dtype, x.device) != (query.shape[0], query.shape[2:], query.dtype, query.device):
            raise ValueError(
                f"{name} is {x.dtype} {tuple(x.shape)} on {x.device}, but query is {query.dtype} "
                f"{tuple(query.shape)} on {query.device}: batch, heads, head_dim, dtype and device must be the same"
            )
    if not isinstance(block_map, BlockMap):
        raise TypeError(f"block_map={block_map!r} must be a BlockMap; make one with pattern.plan(grid)")
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale={scale} must be finite; leave it out for 1/sqrt(head_dim)")
    batch, _, heads, _ = query.shape
    query_grid, key_grid = block_map.query_grid, block_map.key_grid
    for name, x, of, grid in (
        ("query", query, "queries", query_grid),
        ("key", key, "keys", key_grid),
        ("value", value, "keys", key_grid),
    ):
        if x.shape[1] != grid.tokens:
            raise ValueError(
                f"the block map is for {of} of {grid} with {grid.tokens} tokens, but {name} has {x.shape[1]}; plan the "
                "pattern for this grid, or give the map a key_grid where keys are other tokens than queries"
            )
    block_map.check_lists()
    map_batch, map_heads = block_map.counts.shape[:2]
    if map_batch not in (1, batch) or map_heads not in (1, heads):
        raise ValueError(
            f"the block map has batch {map_batch} and {map_heads} heads, the query batch {batch} and {heads} heads; "
            "each must be 1 or the query's"
        )
    extra = key_grid.prefix + key_grid.suffix
    if extra_valid is None:
        return
    whole = isinstance(extra_valid, torch.Tensor) and not extra_valid.is_floating_point()
    if not whole or extra_valid.dtype == torch.bool:
        raise TypeError(f"extra_valid={extra_valid!r} must be an integer tensor of shape [batch]")
    # Values on a GPU are not validated, because reading them would synchronise; the kernels clamp them.
    values = extra_valid.tolist() if extra_valid.device.type == "cpu" else []
    if extra_valid.shape != (batch,) or not all(0 <= n <= extra for n in values):
        raise ValueError(
            f"extra_valid={extra_valid.tolist()} must hold one number from 0 to {extra}, the key grid's prefix and "
            f"suffix, for each of the {batch} samples"
        )
