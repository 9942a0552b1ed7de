"""The definition of a sparse model: the model's own attention, under the block map expanded to tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional

from vidsparse.block_map import BlockMap
from vidsparse.grid import VideoGrid
from vidsparse.patterns import Pattern
from vidsparse.runtime.registry import adapter_for


@contextmanager
def masked(transformer: torch.nn.Module, pattern: Pattern, grid: VideoGrid) -> Iterator[None]:
    """Within the context, run video self-attention under the mask of a pattern for a grid.

    The model's own processors run, and masks of their own stay. For small grids, and patterns of shapes alone.

    Raises:
        RuntimeError: attention ran, but none with as many tokens as the grid has.
        TypeError: a pattern whose heads have tiles of several shapes.
    """
    seen = []

    def with_mask(attention: Any, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        suffix = key.shape[-2] - grid.prefix - grid.video_tokens
        seen.append(0 <= suffix <= grid.suffix)  # Cosmos 3's text, which sees itself alone, has another length
        if seen[-1]:  # Mochi leaves out padding after the video
            block_map = pattern.plan(replace(grid, suffix=suffix))
            if not isinstance(block_map, BlockMap):
                raise TypeError(f"{pattern!r} has tiles of several shapes; masked takes patterns with one map")
            kept = block_map.token_mask()[:, :, -query.shape[-2] :]
            mask = kept if mask is None else kept & mask
        out: torch.Tensor = attention(mask)
        return out

    with intercepted(adapter_for(transformer).self_attentions(transformer).values(), with_mask):
        yield
    if seen and not any(seen):
        raise RuntimeError(f"no attention of {type(transformer).__name__} had the {grid.tokens} tokens of {grid}")


@contextmanager
def intercepted(modules: Iterable[torch.nn.Module], attend: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Within the context, `attend(attention, query, key, mask)` replaces PyTorch's attention inside these modules.

    Every processor of diffusers ends in `scaled_dot_product_attention`; `attention(mask)` calls that. Query and key are
    [batch, heads, tokens, head_dim]. The function is PyTorch's for all threads: not for two at once.
    """
    plain, inside = functional.scaled_dot_product_attention, False

    def stand_in(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: Any = None, *rest: Any, **options: Any
    ) -> torch.Tensor:
        def attention(mask: torch.Tensor | None) -> torch.Tensor:
            return plain(query, key, value, mask, *rest, **options)

        return attend(attention, query, key, attn_mask) if inside else attention(attn_mask)

    def enter(*_: Any) -> None:
        nonlocal inside
        inside = True

    def leave(*_: Any) -> None:
        nonlocal inside
        inside = False

    with ExitStack() as undo:
        for module in modules:
            undo.callback(module.register_forward_pre_hook(enter).remove)
            undo.callback(module.register_forward_hook(leave).remove)
        undo.callback(setattr, functional, "scaled_dot_product_attention", plain)
        functional.scaled_dot_product_attention = stand_in
        yield
