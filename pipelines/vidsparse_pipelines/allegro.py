"""Allegro (`AllegroTransformer3DModel`): text to video. Every token is video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb_allegro

from vidsparse.runtime.adapter import TEXT_TOKENS, Adapter, Noise, SparseLayer, WrappedProcessor, text_mask
from vidsparse_pipelines.attention import Attention


class AllegroAdapter(Adapter):
    """Self-attention (`attn1`) of each block; cross-attention to text stays as it is."""

    family = "Allegro"
    tasks = "text to video"
    layout = "video only; text by cross-attention"
    processors = ("AllegroAttnProcessor2_0",)
    frame_rate = 15
    block_states: Mapping[str, tuple[str, ...]] = {"AllegroTransformerBlock": ("hidden_states",)}

    def self_attentions(self, transformer: torch.nn.Module) -> dict[str, torch.nn.Module]:
        blocks: Any = transformer.transformer_blocks
        return {f"transformer_blocks.{i}.attn1": block.attn1 for i, block in enumerate(blocks)}

    def parallel_plan(self, transformer: torch.nn.Module) -> dict[str, Any]:
        raise NotImplementedError(
            f"{self.family} has the positions of its tokens in a tuple inside a tuple, which diffusers cannot divide"
        )

    def processor(self, original: Any, layer: SparseLayer) -> AllegroSparseProcessor:
        return AllegroSparseProcessor(original, layer)

    def latents(self, frames: int) -> tuple[int, int]:
        return frames, -(-(frames - frames % 2) // 4) + frames % 2

    def tiny(self, config: Mapping[str, Any]) -> dict[str, Any]:
        width = 2 * config["attention_head_dim"]
        return {"num_attention_heads": 2, "num_layers": 2, "cross_attention_dim": width, "caption_channels": 16}

    def example(
        self, transformer: torch.nn.Module, view: tuple[int, int, int], batch: int, noise: Noise
    ) -> dict[str, Any]:
        config: Any = transformer.config
        size = (side * patch for side, patch in zip(view, self.patch(config), strict=True))
        # A table of cosines and sines for each axis, and the position of each token on it.
        angles = [3 * noise(side, config.attention_head_dim // 3).float() for side in view]
        positions = torch.cartesian_prod(*(torch.arange(side) for side in view)).T[:, None]
        return {
            "hidden_states": noise(batch, config.in_channels, *size),
            "timestep": torch.full((batch,), 500.0),
            "encoder_hidden_states": noise(batch, TEXT_TOKENS, config.caption_channels),
            "encoder_attention_mask": text_mask(batch),
            "image_rotary_emb": (tuple((x.cos(), x.sin()) for x in angles), tuple(positions)),
            "return_dict": False,
        }


class AllegroSparseProcessor(WrappedProcessor):
    """Replaces diffusers' `AllegroAttnProcessor2_0` in self-attention."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        image_rotary_emb: tuple[Any, Any] | None = None,
    ) -> torch.Tensor:
        call = self.layer.begin(self.unsupported(attention_mask))
        if call.reason is not None:
            out: torch.Tensor = self.original(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb, image_rotary_emb
            )
        else:
            projected = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
            query, key, value = (x.unflatten(-1, (attn.heads, -1)) for x in projected)
            if image_rotary_emb is not None:
                query, key = _rotate(query, image_rotary_emb), _rotate(key, image_rotary_emb)
            out = call.attend(query, key, value).flatten(2)
            for module in attn.to_out:
                out = module(out)
        return self.layer.end(call, out)


def _rotate(x: torch.Tensor, rotary: tuple[Any, Any]) -> torch.Tensor:
    """Rotary embedding of [batch, tokens, heads, head_dim]; `rotary`: (cos, sin) of each axis, and all positions."""
    rotated: torch.Tensor = apply_rotary_emb_allegro(x.transpose(1, 2), *rotary)
    return rotated.transpose(1, 2)
