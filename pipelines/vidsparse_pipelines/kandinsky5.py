"""Kandinsky 5 (`Kandinsky5Transformer3DModel`): text and image to video. Every token is video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from vidsparse.runtime.adapter import TEXT_TOKENS, Adapter, Noise, SparseLayer, WrappedProcessor
from vidsparse_pipelines.attention import Layer
from vidsparse_pipelines.rotary import rotate_pairs_by_matrices
from vidsparse_pipelines.sequence_plan import divided, joined_output


class Kandinsky5Adapter(Adapter):
    """Self-attention of the visual blocks; text blocks and cross-attention to text stay as they are."""

    family = "Kandinsky 5"
    tasks = "text and image to video"
    layout = "video only; text by cross-attention"
    frame_rate = 24
    processors = ("Kandinsky5AttnProcessor",)
    block_states: Mapping[str, tuple[str, ...]] = {"Kandinsky5TransformerDecoderBlock": ("visual_embed",)}

    def self_attentions(self, transformer: torch.nn.Module) -> dict[str, torch.nn.Module]:
        blocks: Any = transformer.visual_transformer_blocks
        return {f"visual_transformer_blocks.{i}.self_attention": block.self_attention for i, block in enumerate(blocks)}

    def latent_sizes(self, call: Mapping[str, Any]) -> tuple[int, int, int]:
        _, frames, height, width, _ = call["hidden_states"].shape  # channels are last here
        return frames, height, width

    def processor(self, original: Any, layer: SparseLayer) -> Kandinsky5SparseProcessor:
        return Kandinsky5SparseProcessor(original, layer)

    def parallel_plan(self, transformer: torch.nn.Module) -> dict[str, Any]:
        blocks: Any = transformer.visual_transformer_blocks
        return {
            "visual_transformer_blocks.*": {"rope": divided(1, 6)},
            "visual_transformer_blocks.0": {"visual_embed": divided(1, 3)},
            f"visual_transformer_blocks.{len(blocks) - 1}": joined_output(),
        }

    def tiny(self, config: Mapping[str, Any]) -> dict[str, Any]:
        widths = {"model_dim": 2 * sum(config["axes_dims"]), "ff_dim": 64, "time_dim": 32}
        return widths | {"num_text_blocks": 2, "num_visual_blocks": 2, "in_text_dim": 16, "in_text_dim2": 16}

    def example(
        self, transformer: torch.nn.Module, view: tuple[int, int, int], batch: int, noise: Noise
    ) -> dict[str, Any]:
        config: Any = transformer.config
        size = (side * patch for side, patch in zip(view, config.patch_size, strict=True))
        channels = 2 * config.in_visual_dim + 1 if config.visual_cond else config.in_visual_dim
        return {
            "hidden_states": noise(batch, *size, channels),
            "timestep": torch.full((batch,), 500.0),
            "encoder_hidden_states": noise(batch, TEXT_TOKENS, config.in_text_dim),
            "pooled_projections": noise(batch, config.in_text_dim2),
            "visual_rope_pos": tuple(torch.arange(side) for side in view),
            "text_rope_pos": torch.arange(TEXT_TOKENS),
            "return_dict": False,
        }


class _Kandinsky5Attention(Protocol):
    num_heads: int
    to_query: Layer
    to_key: Layer
    to_value: Layer
    query_norm: Layer
    key_norm: Layer
    out_layer: Layer


class Kandinsky5SparseProcessor(WrappedProcessor):
    """Replaces diffusers' `Kandinsky5AttnProcessor` in visual self-attention."""

    def __call__(
        self,
        attn: _Kandinsky5Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        rotary_emb: torch.Tensor | None = None,
        sparse_params: dict[str, Any] | None = None,
    ) -> torch.Tensor:
        unsupported = self.unsupported()
        if sparse_params is not None:
            # Its tokens are not in raster order either.
            unsupported = (
                "the model's own sparse attention (nabla) is on; "
                "transformer.register_to_config(attention_type='regular') turns it off"
            )
        call = self.layer.begin(unsupported)
        if call.reason is not None:
            out: torch.Tensor = self.original(attn, hidden_states, encoder_hidden_states, rotary_emb, sparse_params)
        else:
            projected = (project(hidden_states) for project in (attn.to_query, attn.to_key, attn.to_value))
            query, key, value = (x.unflatten(-1, (attn.num_heads, -1)) for x in projected)
            query = attn.query_norm(query.float()).type_as(query)
            key = attn.key_norm(key.float()).type_as(key)
            if rotary_emb is not None:
                query, key = (rotate_pairs_by_matrices(x, rotary_emb) for x in (query, key))
            out = attn.out_layer(call.attend(query, key, value).flatten(2))
        return self.layer.end(call, out)
