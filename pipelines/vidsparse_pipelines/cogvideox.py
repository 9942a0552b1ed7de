"""CogVideoX 1.0 and 1.5 (`CogVideoXTransformer3DModel`), and ConsisID, which has the same blocks.

The text precedes the video in one sequence, and no text token is masked. Call `fuse_qkv_projections` before `sparsify`,
not after: it replaces the processors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.attention_processor import FusedCogVideoXAttnProcessor2_0
from diffusers.models.embeddings import apply_rotary_emb

from vidsparse.grid import VideoGrid
from vidsparse.runtime.adapter import TEXT_TOKENS, Adapter, Noise, SparseLayer, WrappedProcessor
from vidsparse_pipelines.attention import FusableAttention, QueryKeyValue
from vidsparse_pipelines.sequence_plan import divided, joined_output


class CogVideoXAdapter(Adapter):
    """The one attention (`attn1`) of each block, over text and video together."""

    family = "CogVideoX 1.0, 1.5"
    tasks = "text, image and video to video"
    layout = "text before the video"
    processors = ("CogVideoXAttnProcessor2_0", "FusedCogVideoXAttnProcessor2_0")
    exchanges = False
    frame_rate = 8
    attention_states = ("hidden_states", "encoder_hidden_states")

    def self_attentions(self, transformer: torch.nn.Module) -> dict[str, torch.nn.Module]:
        blocks: Any = transformer.transformer_blocks
        return {f"transformer_blocks.{i}.attn1": block.attn1 for i, block in enumerate(blocks)}

    def latent_sizes(self, call: Mapping[str, Any]) -> tuple[int, int, int]:
        _, frames, _, height, width = call["hidden_states"].shape  # channels come after frames here
        return frames, height, width

    def extra_tokens(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> tuple[int, int]:
        return call["encoder_hidden_states"].shape[1], 0

    def ends(self, grid: VideoGrid) -> tuple[int, int]:
        return grid.prefix, 0

    def parallel_plan(self, transformer: torch.nn.Module) -> dict[str, Any]:
        return {
            "transformer_blocks.*": {"image_rotary_emb": [divided(0, 2), divided(0, 2)]},
            "transformer_blocks.0": {"hidden_states": divided(1, 3)},
            "proj_out": joined_output(),
        }

    def processor(self, original: Any, layer: SparseLayer) -> CogVideoXSparseProcessor:
        return CogVideoXSparseProcessor(original, layer)

    def fps(self, config: Mapping[str, Any]) -> int:
        return 16 if config.get("patch_size_t") else self.frame_rate  # 1.5 joins two latent frames in a token

    def tiny(self, config: Mapping[str, Any]) -> dict[str, Any]:
        small = {"num_attention_heads": 2, "num_layers": 2, "time_embed_dim": 32, "text_embed_dim": 16}
        small |= {"max_text_seq_length": TEXT_TOKENS, "sample_frames": 9, "sample_height": 8, "sample_width": 8}
        small["use_learned_positional_embeddings"] = False  # they would allow for one size of video alone
        return small | ({"ofs_embed_dim": 32} if config.get("ofs_embed_dim") else {})

    def example(
        self, transformer: torch.nn.Module, view: tuple[int, int, int], batch: int, noise: Noise
    ) -> dict[str, Any]:
        config: Any = transformer.config
        frames, height, width = view[0] * (config.get("patch_size_t") or 1), *(config.patch_size * n for n in view[1:])
        call = {
            "hidden_states": noise(batch, frames, config.in_channels, height, width),
            "timestep": torch.full((batch,), 500.0),
            "encoder_hidden_states": noise(batch, TEXT_TOKENS, config.text_embed_dim),
            "return_dict": False,
        }
        if config.use_rotary_positional_embeddings:
            angles = 3 * noise(math.prod(view), config.attention_head_dim // 2).float().repeat_interleave(2, dim=1)
            call["image_rotary_emb"] = angles.cos(), angles.sin()
        if config.get("ofs_embed_dim"):
            call["ofs"] = torch.full((1,), 2.0)
        return call


class ConsisIDAdapter(CogVideoXAdapter):
    """The same attention; a face is seen by cross-attention, which stays as it is."""

    family = "ConsisID"
    tasks = "text and face to video"
    block_states: Mapping[str, tuple[str, ...]] = {"ConsisIDBlock": ("hidden_states", "encoder_hidden_states")}

    def tiny(self, config: Mapping[str, Any]) -> dict[str, Any]:
        face = {"cross_attn_interval": 1, "cross_attn_dim_head": 16, "cross_attn_num_heads": 2}
        face |= {"LFE_id_dim": 16, "LFE_vit_dim": 16, "LFE_depth": config["LFE_num_scale"], "LFE_dim_head": 8}
        face |= {
            "LFE_num_heads": 2,
            "LFE_num_querie": 2,
            "LFE_output_dim": int(2 * config["attention_head_dim"] / 3 * 2),
        }
        return super().tiny(config) | face

    def example(
        self, transformer: torch.nn.Module, view: tuple[int, int, int], batch: int, noise: Noise
    ) -> dict[str, Any]:
        call = super().example(transformer, view, batch, noise)
        config: Any = transformer.config
        if config.is_train_face:
            call["id_cond"] = noise(batch, config.LFE_id_dim)
            call["id_vit_hidden"] = [noise(batch, 3, config.LFE_vit_dim) for _ in range(config.LFE_num_scale)]
        return call


class CogVideoXSparseProcessor(WrappedProcessor):
    """Replaces diffusers' `CogVideoXAttnProcessor2_0`, or of the one for fused projections."""

    def __call__(
        self,
        attn: FusableAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, ...]:
        call = self.layer.begin(self.unsupported(attention_mask))
        if call.reason is not None:
            out: tuple[torch.Tensor, ...] = self.original(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
            return self.layer.end(call, out)

        text = encoder_hidden_states.shape[1]
        query, key, value = self._project(attn, torch.cat((encoder_hidden_states, hidden_states), dim=1))
        if image_rotary_emb is not None:  # CogVideoX 2B has none
            query, key = _rotate(query, text, image_rotary_emb), _rotate(key, text, image_rotary_emb)
        attended = call.attend(query, key, value).flatten(2)
        for module in attn.to_out:
            attended = module(attended)
        return self.layer.end(call, (attended[:, text:], attended[:, :text]))

    def _project(self, attn: FusableAttention, hidden_states: torch.Tensor) -> QueryKeyValue:
        """Query, key and value [batch, tokens, heads, head_dim], normalised in each head."""
        # Unfusing sets the old processors and leaves `attn.fused_projections` True, so the processor decides.
        if isinstance(self.original, FusedCogVideoXAttnProcessor2_0):
            projected = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            projected = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key, value = (x.unflatten(-1, (attn.heads, -1)) for x in projected)
        return attn.norm_q(query), attn.norm_k(key), value


def _rotate(x: torch.Tensor, text: int, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary embedding on what follows the first `text` tokens."""
    rotated: Any = apply_rotary_emb(x[:, text:], rotary, sequence_dim=1)  # type: ignore[arg-type]
    return torch.cat((x[:, :text], rotated), dim=1)
