"""LTX-Video (`LTXVideoTransformer3DModel`): text, image and video to video. Every token is video or a condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vidsparse.grid import VideoGrid
from vidsparse.runtime.adapter import (
    PACKED_LATENTS,
    TEXT_TOKENS,
    Adapter,
    Noise,
    SparseLayer,
    WrappedProcessor,
    text_mask,
)
from vidsparse_pipelines.attention import Attention
from vidsparse_pipelines.coords import grid_of_coords
from vidsparse_pipelines.rotary import rotate_pairs
from vidsparse_pipelines.sequence_plan import divided, divided_output, joined_output


class LTXAdapter(Adapter):
    """Self-attention (`attn1`) of each block; cross-attention to text stays as it is.

    Latents arrive packed: the grid is that of `num_frames`, `height` and `width`, or of `video_coords` where a pipeline
    gives these. Condition frames that it puts before or after the video are then prefix and suffix.
    """

    family = "LTX-Video"
    tasks = "text, image and video to video"
    layout = "condition frames before or after the video; text by cross-attention"
    processors: tuple[str, ...] = ("LTXVideoAttnProcessor",)
    frame_rate = 25
    vae_stride = (8, 32)
    refused_caches: Mapping[str, str] = {"FasterCacheConfig": PACKED_LATENTS}

    def self_attentions(self, transformer: torch.nn.Module) -> dict[str, torch.nn.Module]:
        blocks: Any = transformer.transformer_blocks
        return {f"transformer_blocks.{i}.attn1": block.attn1 for i, block in enumerate(blocks)}

    def grid(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> VideoGrid:
        coords = call.get("video_coords")
        if coords is None:
            return VideoGrid(call["num_frames"], call["height"], call["width"])
        return grid_of_coords(coords[0])

    def parallel_plan(self, transformer: torch.nn.Module) -> Mapping[str, Any]:
        """Diffusers' own plan divides the text too, but not the heads of its mask, and fails."""
        return {
            "": {"hidden_states": divided(1, 3), "timestep": divided(1, 2)},  # from an image tokens have their own
            "rope": {index: divided_output(1, 3) for index in (0, 1)},
            "proj_out": joined_output(),
        }

    def processor(self, original: Any, layer: SparseLayer) -> WrappedProcessor:
        return LTXSparseProcessor(original, layer)

    def tiny(self, config: Mapping[str, Any]) -> dict[str, Any]:
        width = 2 * config["attention_head_dim"]
        return {"num_attention_heads": 2, "num_layers": 2, "cross_attention_dim": width, "caption_channels": 16}

    def example(
        self, transformer: torch.nn.Module, view: tuple[int, int, int], batch: int, noise: Noise
    ) -> dict[str, Any]:
        config: Any = transformer.config
        frames, height, width = view
        return {
            "hidden_states": noise(batch, frames * height * width, config.in_channels),
            "num_frames": frames,
            "height": height,
            "width": width,
            "timestep": torch.full((batch,), 500.0),
            "encoder_hidden_states": noise(batch, TEXT_TOKENS, config.caption_channels),
            "encoder_attention_mask": text_mask(batch),
            "return_dict": False,
        }


class LTXSparseProcessor(WrappedProcessor):
    """Replaces diffusers' `LTXVideoAttnProcessor` in self-attention."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        call = self.layer.begin(self.unsupported(attention_mask))
        if call.reason is not None:
            out: torch.Tensor = self.original(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
            query, key = attn.norm_q(query), attn.norm_k(key)
            if image_rotary_emb is not None:  # over all heads together: [batch, tokens, heads * head_dim]
                query, key = rotate_pairs(query, *image_rotary_emb), rotate_pairs(key, *image_rotary_emb)
            query, key, value = (x.unflatten(-1, (attn.heads, -1)) for x in (query, key, value))
            out = call.attend(query, key, value).flatten(2).type_as(query)
            for module in attn.to_out:
                out = module(out)
        return self.layer.end(call, out)
