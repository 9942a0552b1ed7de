"""The definition of a sparse model: the model's own attention, under the block map expanded to tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import flex_attention as flex

from vidsparse.block_map import BlockMap
from vidsparse.grid import VideoGrid
from vidsparse.patterns import Pattern
from vidsparse.patterns.last_frames import of_last_frames
from vidsparse.runtime.registry import adapter_for


@contextmanager
def masked(
    transformer: torch.nn.Module, pattern: Pattern, grid: VideoGrid, key_grid: VideoGrid | None = None
) -> Iterator[None]:
    """Within the context, run video self-attention under the mask of a pattern for a grid.

    The model's own processors run, and masks of their own stay. For small grids, and patterns of shapes alone.

    Args:
        grid: the tokens of the queries. key_grid: of the keys, where they are of more frames; None: those of `grid`.

    Raises:
        RuntimeError: attention ran, but none with as many tokens as the grid has.
        TypeError: a pattern whose heads have tiles of several shapes.
    """
    seen, keys = [], key_grid or grid

    def with_mask(attention: Any, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        suffix = key.shape[-2] - keys.prefix - keys.video_tokens
        seen.append(0 <= suffix <= keys.suffix)  # Cosmos 3's text, which sees itself alone, has another length
        if seen[-1]:  # Mochi leaves out padding after the video
            there = replace(keys, suffix=suffix)
            block_map = pattern.plan(there)
            if key_grid is not None:
                block_map = of_last_frames(block_map, grid, there)
            if not isinstance(block_map, BlockMap):
                raise TypeError(f"{pattern!r} has tiles of several shapes; masked takes patterns with one map")
            kept = block_map.token_mask()[:, :, -query.shape[-2] :]
            mask = kept if mask is None else kept & mask
        out: torch.Tensor = attention(mask)
        return out

    with intercepted(adapter_for(transformer).self_attentions(transformer).values(), with_mask):
        yield
    if seen and not any(seen):
        raise RuntimeError(f"no attention of {type(transformer).__name__} had the {keys.tokens} tokens of {keys}")


@contextmanager
def intercepted(modules: Iterable[torch.nn.Module], attend: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Within the context, `attend(attention, query, key, mask)` replaces PyTorch's attention inside these modules.

    Every processor of diffusers ends in `scaled_dot_product_attention` or `flex_attention`; `attention(mask)` calls
    that. Query and key are [batch, heads, tokens, head_dim]. The mask is None or bool [batch|1, heads|1, queries,
    keys]; a block mask of FlexAttention stays. The functions are PyTorch's for all threads: not for two at once.
    """
    plain, plain_flex, inside = functional.scaled_dot_product_attention, flex.flex_attention, False

    def stand_in(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: Any = None, *rest: Any, **options: Any
    ) -> torch.Tensor:
        def attention(mask: torch.Tensor | None) -> torch.Tensor:
            return plain(query, key, value, mask, *rest, **options)

        return attend(attention, query, key, attn_mask) if inside else attention(attn_mask)

    def flex_stand_in(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, score_mod: Any = None, *rest: Any, **options: Any
    ) -> torch.Tensor:
        def attention(mask: torch.Tensor | None) -> torch.Tensor:
            under = score_mod if mask is None else _scores_under(mask, score_mod)
            out: torch.Tensor = plain_flex(query, key, value, under, *rest, **options)
            return out

        return attend(attention, query, key, None) if inside else attention(None)

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
        undo.callback(setattr, flex, "flex_attention", plain_flex)
        setattr(flex, "flex_attention", flex_stand_in)  # noqa: B010 (mypy wants the signature of all overloads)
        yield


def _scores_under(mask: torch.Tensor, score_mod: Any) -> Any:
    """What FlexAttention calls for each score: the one that is given, and -inf where the mask is False."""

    def scored(score: torch.Tensor, b: Any, h: Any, q: Any, kv: Any) -> torch.Tensor:
        score = score if score_mod is None else score_mod(score, b, h, q, kv)
        return torch.where(mask[b % mask.shape[0], h % mask.shape[1], q, kv], score, -math.inf)

    return scored
