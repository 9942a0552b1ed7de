"""Mochi (`MochiTransformer3DModel`): two streams with their own weights; text after the video, padding masked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from vidsparse.grid import VideoGrid
from vidsparse.runtime.adapter import (
    TEXT_TOKENS,
    TRAIN_TIMESTEPS,
    Adapter,
    Noise,
    SparseLayer,
    WrappedProcessor,
    text_mask,
)
from vidsparse_pipelines.attention import JointAttention, QueryKeyValue
from vidsparse_pipelines.rotary import rotate_pairs_of_heads
from vidsparse_pipelines.sequence_plan import divided, divided_output, joined_output


class MochiAdapter(Adapter):
    """The one attention (`attn1`) of each block, over video and text together."""

    family = "Mochi"
    tasks = "text to video"
    layout = "text after the video, padding masked in each sample"
    processors = ("MochiAttnProcessor2_0",)
    exchanges = False
    attention_states = ("hidden_states", "encoder_hidden_states")
    frame_rate = 30
    vae_stride = (6, 8)

    def self_attentions(self, transformer: torch.nn.Module) -> dict[str, torch.nn.Module]:
        blocks: Any = transformer.transformer_blocks
        return {f"transformer_blocks.{i}.attn1": block.attn1 for i, block in enumerate(blocks)}

    def extra_tokens(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> tuple[int, int]:
        return 0, call["encoder_hidden_states"].shape[1]

    def ends(self, grid: VideoGrid) -> tuple[int, int]:
        return 0, grid.suffix

    def parallel_plan(self, transformer: torch.nn.Module) -> dict[str, Any]:
        return {
            "rope": {index: divided_output(0, 3) for index in (0, 1)},
            "transformer_blocks.0": {"hidden_states": divided(1, 3)},
            "proj_out": joined_output(),
        }

    def processor(self, original: Any, layer: SparseLayer) -> MochiSparseProcessor:
        return MochiSparseProcessor(original, layer)

    def timestep(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> float:
        """The timestep turned round, so that it falls within a run as in other families."""
        del transformer
        # Mochi counts from 0 for pure noise.
        return TRAIN_TIMESTEPS - float(torch.as_tensor(call["timestep"]).min())

    def tiny(self, config: Mapping[str, Any]) -> dict[str, Any]:
        small = {"num_attention_heads": 2, "num_layers": 2, "time_embed_dim": 16}
        return small | {"text_embed_dim": 16, "pooled_projection_dim": 16}

    def example(
        self, transformer: torch.nn.Module, view: tuple[int, int, int], batch: int, noise: Noise
    ) -> dict[str, Any]:
        config: Any = transformer.config
        frames, height, width = view
        size = frames, config.patch_size * height, config.patch_size * width
        return {
            "hidden_states": noise(batch, config.in_channels, *size),
            "timestep": torch.full((batch,), 500.0),
            "encoder_hidden_states": noise(batch, TEXT_TOKENS, config.text_embed_dim),
            "encoder_attention_mask": text_mask(batch),
            "return_dict": False,
        }


class _MochiAttention(JointAttention, Protocol):
    context_pre_only: bool  # in the last block, whose text nothing reads


class MochiSparseProcessor(WrappedProcessor):
    """Replaces diffusers' `MochiAttnProcessor2_0`."""

    def __call__(
        self,
        attn: _MochiAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, ...]:
        call = self.layer.begin(self.unsupported())
        if call.reason is not None:
            out: tuple[torch.Tensor, ...] = self.original(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
            return self.layer.end(call, out)

        # Mochi packs the real text tokens to the front and leaves their outputs there, the others being 0.
        real = attention_mask.to(hidden_states.device).bool().flatten(1)
        order = (~real).int().argsort(dim=1, stable=True)
        packed = encoder_hidden_states.take_along_dim(order[..., None], dim=1)
        padding = ~real.take_along_dim(order, dim=1)[..., None]

        query, key, value = _project_video(attn, hidden_states)
        if image_rotary_emb is not None:
            query, key = (rotate_pairs_of_heads(x, *image_rotary_emb) for x in (query, key))
        pairs = zip((query, key, value), _project_text(attn, packed), strict=True)
        query, key, value = (torch.cat(pair, dim=1) for pair in pairs)
        attended = call.attend(query, key, value, real.sum(dim=1, dtype=torch.int32)).flatten(2)

        video, text = attended.split((hidden_states.shape[1], packed.shape[1]), dim=1)
        text = text.masked_fill(padding, 0.0)
        for module in attn.to_out:
            video = module(video)
        return self.layer.end(call, (video, text if attn.context_pre_only else attn.to_add_out(text)))


def _project_video(attn: _MochiAttention, hidden_states: torch.Tensor) -> QueryKeyValue:
    """Query, key and value [batch, tokens, heads, head_dim], normalised in each head."""
    projected = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
    query, key, value = (x.unflatten(-1, (attn.heads, -1)) for x in projected)
    return attn.norm_q(query), attn.norm_k(key), value


def _project_text(attn: _MochiAttention, hidden_states: torch.Tensor) -> QueryKeyValue:
    """The same by the text's own weights."""
    projected = attn.add_q_proj(hidden_states), attn.add_k_proj(hidden_states), attn.add_v_proj(hidden_states)
    query, key, value = (x.unflatten(-1, (attn.heads, -1)) for x in projected)
    return attn.norm_added_q(query), attn.norm_added_k(key), value
