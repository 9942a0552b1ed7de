"""Allegro (`AllegroTransformer3DModel`): text to video. Every token is video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb_allegro

from vidsparse.grid import VideoGrid
from vidsparse_pipelines.base import Adapter, Attend, SparseLayer, WrappedProcessor


class AllegroAdapter(Adapter):
    """Self-attention (`attn1`) of each block; cross-attention to text stays as it is."""

    def self_attentions(self, transformer: torch.nn.Module) -> dict[str, torch.nn.Module]:
        blocks: Any = transformer.transformer_blocks
        return {f"transformer_blocks.{i}.attn1": block.attn1 for i, block in enumerate(blocks)}

    def grid(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> VideoGrid:
        config: Any = transformer.config
        frames, height, width = call["hidden_states"].shape[-3:]
        return VideoGrid(frames // config.patch_size_t, height // config.patch_size, width // config.patch_size)

    def processor(self, original: Any, layer: SparseLayer) -> AllegroSparseProcessor:
        return AllegroSparseProcessor(original, layer)


class AllegroSparseProcessor(WrappedProcessor):
    """Takes the place of diffusers' `AllegroAttnProcessor2_0` in self-attention."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        image_rotary_emb: tuple[Any, Any] | None = None,
    ) -> torch.Tensor:
        def dense() -> torch.Tensor:
            out: torch.Tensor = self.original(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb, image_rotary_emb
            )
            return out

        def sparse(attend: Attend) -> torch.Tensor:
            projected = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
            query, key, value = (x.unflatten(-1, (attn.heads, -1)) for x in projected)
            if image_rotary_emb is not None:
                query, key = _rotate(query, image_rotary_emb), _rotate(key, image_rotary_emb)
            out = attend(query, key, value).flatten(2)
            for module in attn.to_out:
                out = module(out)
            return out

        return self.layer.run(dense, sparse, self.unsupported(attention_mask))


def _rotate(x: torch.Tensor, rotary: tuple[Any, Any]) -> torch.Tensor:
    """Rotary embedding of [batch, tokens, heads, head_dim]; `rotary`: (cos, sin) of each axis, and all positions."""
    rotated: torch.Tensor = apply_rotary_emb_allegro(x.transpose(1, 2), *rotary)
    return rotated.transpose(1, 2)
