"""Before kernels are trusted on a chip, they are tried once on a small video, against the specification.

Compilers have miscompiled kernels like these (Triton before 3.7.1 on Hopper): a user would see a worse video and no
error. The small video has the tiles, dtype and head_dim of the call, so that the code that is tried is the code that
runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch

from vidsparse_kernels import reference
from vidsparse_kernels.available import recording
from vidsparse_kernels.layout import TileLayout, Tiling, Triple, lists_of, tile_of_token
from vidsparse_kernels.providers import provider
from vidsparse_kernels.providers.runs import Runs


def found_wrong(
    query: torch.Tensor,
    layout: TileLayout,
    bounded: bool = False,
    gradients: bool | None = None,
    impl: str = "triton",
) -> str | None:
    """What kernels get wrong for calls like this one, in words that complete "impl='triton' ..."; None if nothing.

    The first call of a kind synchronises the device. While a CUDA graph is recorded nothing can be tried, and the
    answer is None; `torch.compile` tries when it traces.

    Args:
        query: of the call; its device, dtype and head_dim are tried.
        layout: of the call; its tiles are tried, with extra tokens and ragged tiles where the call has them, and with
            more keys than queries where the call has other tokens for keys.
        bounded: as `gpu.operator.attention` takes it.
        gradients: whether the gradients of query, key and value are tried as well. None: where autograd records.
        impl: "triton", "cudnn" or "fa4".
    """
    if recording(query):
        return None
    small = tuple(
        (view, side.tile, 3 if side.prefix else 0, 70 if side.suffix else 0)
        for view, side in zip(_small_views(layout), (layout.query, layout.key), strict=True)
    )
    gradients = torch.is_grad_enabled() if gradients is None else gradients
    found: str | None = _try(impl, query.device, query.dtype, query.shape[-1], small, bounded, gradients)
    return found


def _small_views(layout: TileLayout) -> tuple[Triple, Triple]:
    """Two tiles along each axis; the second is ragged if the call has ragged tiles. Keys of another grid have three."""
    query, key = layout.query, layout.key
    longest = [max(sides) for sides in zip(query.tile, key.tile, strict=True)]
    f, h, w = (side + math.ceil(side / 2) if key.ragged else 2 * side for side in longest)
    return (f, h, w), (f if query.view == key.view else f + longest[0], h, w)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _try(*call: Any) -> str | None:
    return _answer(*call)


@lru_cache(maxsize=256)
def _answer(*call: Any) -> str | None:
    # A new thread has none of the caller's modes: checkpointing would count the tensors saved here for the backward,
    # and autocast or a default device would change the results.
    with ThreadPoolExecutor(1) as alone:
        return alone.submit(_compare, *call).result()


def _compare(
    impl: str,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    small: tuple[Any, ...],
    bounded: bool,
    gradients: bool,
) -> str | None:
    layout, generator = TileLayout(*(Tiling(*side) for side in small)), torch.Generator().manual_seed(0)
    query_tokens, key_tokens = layout.query.tokens, layout.key.tokens
    *operands, grad_out = (
        torch.randn(1, tokens, 2, head_dim, generator=generator).to(device, dtype)
        for tokens in (query_tokens, key_tokens, key_tokens, query_tokens)
    )
    # The norms bound the scores of the first head and not those of the second: both walks of the forward run.
    operands[0][:, :, 1, 0], operands[1][:, 0, 1, 0] = 0, 100
    kept = torch.rand(1, 1, layout.query.tiles, layout.key.tiles, generator=generator) < 0.6
    counts, indices = (x.to(device) for x in lists_of(kept))
    scale = head_dim**-0.5
    mask = reference.token_mask(kept.to(device), layout)

    def specification(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return reference.attention(q, k, v, mask, scale)

    kernels = _attention(impl, counts, indices, layout, scale, bounded)
    wanted = _results(specification, [x.double() for x in operands], grad_out.double(), gradients)
    try:
        found = _results(kernels, operands, grad_out, gradients)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # memory is no fault of the kernels, and after an accelerator's error nothing can run
    except Exception as error:  # compilers and drivers refuse in many ways
        reason = (str(error).strip().splitlines() or ["without a word"])[0]
        return f"fails on this device: {type(error).__name__}: {reason}"
    allowed = max(1.5 * torch.finfo(dtype).eps, 1e-5)
    for name, right in wanted.items():
        off = _worst_tile(found[name], right, layout.key if name in ("dk", "dv") else layout.query)
        if not off <= allowed:
            return f"computes {name} with a relative error of {off:.2g} on this device, where {allowed:.2g} is allowed"
    return None


def _attention(
    impl: str, counts: torch.Tensor, indices: torch.Tensor, layout: TileLayout, scale: float, bounded: bool
) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """The kernels of an implementation for one map, as a function of query, key and value."""
    if impl == "triton":
        from vidsparse_kernels.gpu import operator
        from vidsparse_kernels.gpu.lists import MapLists

        lists = MapLists(counts, indices, layout)
        return lambda q, k, v: operator.attention(q, k, v, lists, None, scale, bounded)
    runs = Runs.of(counts, indices, layout)
    return lambda q, k, v: provider(impl).attention(q, k, v, runs, None, scale)


def _worst_tile(found: torch.Tensor, right: torch.Tensor, side: Tiling) -> float:
    """The largest relative error of the rows of a tile, or of the extra tokens. A norm over all rows could hide a tile.

    `found` and `right` are [B, H, tokens, C]. A tile with small right values is compared with an average tile.
    """
    owner = torch.zeros(side.tokens, dtype=torch.int64)
    owner[side.prefix : side.tokens - side.suffix] = 1 + tile_of_token(side.view, side.tile)
    sizes, owner = torch.bincount(owner).to(right), owner.to(right.device)

    def squares(x: torch.Tensor) -> torch.Tensor:
        return right.new_zeros(*right.shape[:2], len(sizes)).index_add_(2, owner, x.square().sum(dim=-1))

    average = right.square().sum(dim=-1).mean() * sizes.clamp(min=1)
    shares = squares(found - right) / torch.maximum(squares(right), average)
    return float(shares.nan_to_num(nan=torch.inf).max().sqrt())


def _results(
    attention: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    operands: list[torch.Tensor],
    grad_out: torch.Tensor,
    gradients: bool,
) -> dict[str, torch.Tensor]:
    """The outputs of attention and, with `gradients`, its gradients: float64 [B, H, tokens, head_dim or 1], by name."""
    leaves = [x.detach().requires_grad_(gradients) for x in operands]
    out, lse = attention(*leaves)
    results = {"out": out, "lse": lse.transpose(1, 2)[..., None]}
    if gradients:
        results |= zip(("dq", "dk", "dv"), torch.autograd.grad(out, leaves, grad_out), strict=True)
    wide = {name: x.detach().double().transpose(1, 2) for name, x in results.items()}
    return {name: x.nan_to_num(nan=torch.nan, neginf=0.0) for name, x in wide.items()}
