"""Attention of the groups of heads that share a map, and putting them together."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

from vidsparse.attention import Choice, choose_impl, sparse_attention
from vidsparse.block_map import HeadGroup, head_indices
from vidsparse.corrections import Correction, SparseCall
from vidsparse.corrections.proxy_weights import Proxies
from vidsparse.grid import VideoGrid
from vidsparse.patterns import Context, Dense
from vidsparse.runtime.exchange import HeadExchange
from vidsparse_kernels.layout import Tiling


class Operands(NamedTuple):
    """The inputs of attention.

    Attributes:
        query, key, value: [batch, tokens, heads, head_dim].
        extra_valid: int [batch], how many prefix and suffix tokens, in sequence order, are real; None: all.
        gate: the model's own gate of the output, of the shape of the query; None where it has none.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    extra_valid: torch.Tensor | None = None
    gate: torch.Tensor | None = None

    def to(self, dtype: torch.dtype) -> Operands:
        """The same in another dtype; a tensor that has it is not copied."""
        query, key, value = (x.to(dtype) for x in self[:3])
        return Operands(query, key, value, self.extra_valid, None if self.gate is None else self.gate.to(dtype))

    def of_heads(self, heads: tuple[int, ...]) -> Operands:
        """Those of some heads, in this order; without a copy where these are all."""
        if heads == tuple(range(self.query.shape[2])):
            return self
        index = head_indices(heads, self.query.device)
        query, key, value = (x.index_select(2, index) for x in self[:3])
        gate = None if self.gate is None else self.gate.index_select(2, index)
        return Operands(query, key, value, self.extra_valid, gate)

    def exchanged(self, exchange: HeadExchange) -> Operands:
        """Those of the heads of this rank, with all tokens."""
        tensors = [x for x in (self.query, self.key, self.value, self.gate) if x is not None]
        query, key, value, *gate = exchange.split_heads(tensors)
        return Operands(query, key, value, self.extra_valid, gate[0] if gate else None)


class Part(NamedTuple):
    """One group of heads that has run: the heads with their map, and the implementation."""

    group: HeadGroup
    choice: Choice


def attend_group(
    group: HeadGroup,
    operands: Operands,
    context: Context,
    impl: str,
    correction: Correction | None,
    strict: bool,
    proxies: Proxies | None = None,
) -> tuple[Part, torch.Tensor]:
    """Sparse attention of one group of heads, corrected.

    Args:
        group: heads and their map. operands: of all heads.
        context: of the call, with all heads, and the correction's memory of this group.
        impl, correction, strict: as for `sparsify`.
        proxies: what `ProxyTokens` has learned for all heads, or None.

    Returns:
        What ran, and out [batch, tokens, heads of the group, head_dim].

    Raises:
        NotImplementedError: with `strict`, where "auto" would fall back to a slower implementation.
    """
    operands = operands.of_heads(group.heads)
    query, key, value, extra_valid, gate = operands
    block_map = group.block_map
    choice = choose_impl(impl, query, block_map)
    if choice.fallback is not None and strict:
        name = f"{context.transformer} layer {context.layer}"
        raise NotImplementedError(f"{name} would run impl {choice.impl!r}: {choice.fallback} (strict=True)")
    if correction is None and group.empty == "zero":
        out = sparse_attention(query, key, value, block_map, extra_valid=extra_valid, impl=choice.impl)
        return Part(group, choice), out
    ran = [block_map]

    def exact() -> tuple[torch.Tensor, torch.Tensor]:
        ran.append(Dense(block_map.query_tile).plan(block_map.grid))
        return sparse_attention(query, key, value, ran[-1], extra_valid=extra_valid, impl=choice.impl, return_lse=True)

    out, lse = sparse_attention(
        query, key, value, block_map, extra_valid=extra_valid, impl=choice.impl, return_lse=True
    )
    if group.empty == "mean":
        alone = lse.isneginf().transpose(1, 2)[..., None]
        out = torch.where(alone, mean_value(value, block_map.layout.padding_mask(extra_valid)), out)
    if correction is None:
        return Part(group, choice), out
    local = None if context.local_heads is None else tuple(context.local_heads[head] for head in group.heads)
    context = replace(context, heads=len(group.heads), value=value, local_heads=local)
    learned = None if proxies is None else proxies.of_heads(head_indices(group.heads, query.device))
    call = SparseCall(query, key, value, out, lse, block_map, context, exact, extra_valid, gate, learned)
    out = correction.correct(call)
    return Part(group._replace(block_map=ran[-1]), choice), out


def interleave(parts: list[Part], outs: list[torch.Tensor]) -> torch.Tensor:
    """The outputs of all groups in one tensor [batch, tokens, heads, head_dim], each head at its index."""
    batch, tokens, first, head_dim = outs[0].shape
    if parts[0].group.heads == tuple(range(first)) and len(outs) == 1:
        return outs[0]
    joined = outs[0].new_empty(batch, tokens, sum(out.shape[2] for out in outs), head_dim)
    for part, out in zip(parts, outs, strict=True):
        joined.index_copy_(2, head_indices(part.group.heads, joined.device), out)
    return joined


def dense_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grid: VideoGrid, extra_valid: torch.Tensor | None
) -> torch.Tensor:
    """PyTorch's attention to all tokens but padding, [batch, tokens, heads, head_dim]; see `Operands`."""
    padding = Tiling(grid.view, (1, 1, 1), grid.prefix, grid.suffix).padding_mask(extra_valid)
    mask = None if padding is None else ~padding[:, None, None].to(query.device)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2)


def densities_of_heads(parts: list[Part]) -> torch.Tensor:
    """Density of video tile pairs and of token pairs of each head, float64 [2, heads], on the device."""
    found = [part.group.block_map.head_densities.expand(2, len(part.group.heads)) for part in parts]
    heads = [head for part in parts for head in part.group.heads]
    order = tuple(sorted(range(len(heads)), key=heads.__getitem__))
    joined = torch.cat(found, dim=1)
    return joined.index_select(1, head_indices(order, joined.device))


def mean_densities(parts: list[Part]) -> torch.Tensor:
    """Density of video tile pairs and of token pairs, float64 [2], left on the device; each head counts the same."""
    total = torch.stack([len(part.group.heads) * part.group.block_map.densities for part in parts]).sum(dim=0)
    return total / sum(len(part.group.heads) for part in parts)


def mean_value(value: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
    """Mean over the tokens that are not padding: [batch, 1, heads, head_dim].

    Args:
        value: [batch, tokens, heads, head_dim]. padding: bool [batch, tokens], or None where there is none.
    """
    if padding is None:
        return value.mean(dim=1, keepdim=True)
    padding = padding[:, :, None, None].to(value.device)
    return value.masked_fill(padding, 0).mean(dim=1, keepdim=True) / (~padding).to(value).mean(dim=1, keepdim=True)
