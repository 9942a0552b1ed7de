"""Cosmos 1, 2 and 2.5 (`CosmosTransformer3DModel`): text, image and video to video. Every token is video."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from vidsparse.runtime.adapter import TEXT_TOKENS, TRAIN_TIMESTEPS, Adapter, Noise, SparseLayer, WrappedProcessor
from vidsparse_pipelines.attention import Attention
from vidsparse_pipelines.rotary import rotate_halves
from vidsparse_pipelines.sequence_plan import divided, divided_output, joined_output


class CosmosAdapter(Adapter):
    """Self-attention (`attn1`) of each block; cross-attention to text and image stays as it is."""

    family = "Cosmos 1, 2, 2.5"
    tasks = "text, image and video to video, control"
    layout = "video only; text and image by cross-attention"
    processors = ("CosmosAttnProcessor2_0",)
    exchanges = False
    vae_stride = (8, 8)
    frame_rate = 30
    block_states: Mapping[str, tuple[str, ...]] = {"CosmosTransformerBlock": ("hidden_states",)}

    def self_attentions(self, transformer: torch.nn.Module) -> dict[str, torch.nn.Module]:
        blocks: Any = transformer.transformer_blocks
        return {f"transformer_blocks.{i}.attn1": block.attn1 for i, block in enumerate(blocks)}

    def timestep(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> float:
        """The noise on the scale of flow matching, from 0 to 1000.

        Cosmos 1 is told log(sigma) / 4 of x + sigma * noise, Cosmos 2 and 2.5 the time of flow matching in [0, 1].
        """
        # The last frame's: condition frames come first, and have more noise than the others in the last steps.
        noise = float(torch.as_tensor(call["timestep"]).flatten()[-1])
        first = _is_first(transformer.config)
        return TRAIN_TIMESTEPS / (1 + math.exp(-4 * noise)) if first else TRAIN_TIMESTEPS * noise

    def parallel_plan(self, transformer: torch.nn.Module) -> dict[str, Any]:
        blocks: Any = transformer.transformer_blocks
        of_tokens = ("embedded_timestep", "temb", "controlnet_residual")  # timesteps, where frames have their own
        positions = (
            {"learnable_pos_embed": {0: divided_output(1, 3)}} if hasattr(transformer, "learnable_pos_embed") else {}
        )
        return positions | {
            "rope": {index: divided_output(0, 2) for index in (0, 1)},
            "transformer_blocks.*": {name: divided(1, 3) for name in of_tokens},
            "transformer_blocks.0": {"hidden_states": divided(1, 3)},
            f"transformer_blocks.{len(blocks) - 1}": joined_output(),
        }

    def processor(self, original: Any, layer: SparseLayer) -> CosmosSparseProcessor:
        return CosmosSparseProcessor(original, layer)

    def fps(self, config: Mapping[str, Any]) -> int:
        return self.frame_rate if _is_first(config) else 16

    def tiny(self, config: Mapping[str, Any]) -> dict[str, Any]:
        small = {"num_attention_heads": 2, "num_layers": 2, "mlp_ratio": 1.0, "adaln_lora_dim": 16}
        small |= {"text_embed_dim": 16, "encoder_hidden_states_channels": 16, "crossattn_proj_in_channels": 24}
        small["concat_padding_mask"] = False  # one more channel of the latents, for which diffusers needs torchvision
        if config.get("img_context_dim_in"):
            small |= {"img_context_dim_in": 16, "img_context_dim_out": 2 * config["attention_head_dim"]}
        return small

    def example(
        self, transformer: torch.nn.Module, view: tuple[int, int, int], batch: int, noise: Noise
    ) -> dict[str, Any]:
        config: Any = transformer.config
        size = (side * patch for side, patch in zip(view, config.patch_size, strict=True))
        projected = config.get("use_crossattn_projection")
        text = noise(batch, TEXT_TOKENS, config.crossattn_proj_in_channels if projected else config.text_embed_dim)
        image = config.get("img_context_dim_in")
        return {
            "hidden_states": noise(batch, config.in_channels, *size),
            "timestep": torch.full((batch,), 0.5),
            "encoder_hidden_states": (text, noise(batch, 3, image)) if image else text,
            "fps": 24,
            "return_dict": False,
        }


def _is_first(config: Any) -> bool:
    """Whether these are the settings of Cosmos 1: it alone has learned positions."""
    return config["extra_pos_embed_type"] is not None


class CosmosSparseProcessor(WrappedProcessor):
    """Replaces diffusers' `CosmosAttnProcessor2_0` in self-attention."""

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
            projected = (project(hidden_states) for project in (attn.to_q, attn.to_k, attn.to_v))
            query, key, value = (x.unflatten(-1, (attn.heads, -1)) for x in projected)
            query, key = attn.norm_q(query), attn.norm_k(key)
            if image_rotary_emb is not None:
                # [tokens, head_dim], each angle twice: once for either half.
                cos, sin = (x.chunk(2, dim=-1)[0][:, None].to(query.device) for x in image_rotary_emb)
                query, key = rotate_halves(query, cos, sin), rotate_halves(key, cos, sin)
            out = call.attend(query, key, value).flatten(2).type_as(query)
            for module in attn.to_out:
                out = module(out)
        return self.layer.end(call, out)
