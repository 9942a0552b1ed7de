"""MiniMax-H3 (`MiniMaxH3Transformer3DModel`): text, condition, sound and video in one packed sequence, video last."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from vidsparse.grid import VideoGrid
from vidsparse.runtime.adapter import (
    TEXT_TOKENS,
    TRAIN_TIMESTEPS,
    Adapter,
    Noise,
    SparseLayer,
    WrappedProcessor,
)
from vidsparse_pipelines.attention import FusableAttention
from vidsparse_pipelines.coords import grid_of_coords
from vidsparse_pipelines.rotary import rotate_halves_of_first


class MiniMaxH3Adapter(Adapter):
    """The one attention of each block, over all tokens. Text, key frames, references and sound are prefix: exact."""

    family = "MiniMax-H3"
    tasks = "text, key frames and references to video with sound"
    layout = "text, conditions and sound before the video"
    processors = ("MiniMaxH3AttnProcessor",)
    frame_rate = 24
    vae_stride = (4, 16)
    block_states: Mapping[str, tuple[str, ...]] = {"MiniMaxH3TransformerBlock": ("hidden_states",)}
    refused_caches: Mapping[str, str] = {
        "FasterCacheConfig": "it wants latents of frames, height and width, and the model takes them as tokens"
    }

    def self_attentions(self, transformer: torch.nn.Module) -> dict[str, torch.nn.Module]:
        blocks: Any = transformer.transformer_blocks
        return {f"transformer_blocks.{i}.attn": block.attn for i, block in enumerate(blocks)}

    def grid(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> VideoGrid:
        rows, positions = call["video_indices"].cpu(), call["position_ids"]
        # Conditions are rows of video too, but come first: what is generated is the last unbroken run.
        starts = [0, *((rows.diff() != 1).nonzero().flatten() + 1).tolist()]
        start, end = int(rows[starts[-1]]), int(rows[-1]) + 1
        grid = grid_of_coords(positions[start:end].T)
        return replace(grid, prefix=start + grid.prefix, suffix=grid.suffix + len(positions) - end)

    def timestep(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> float:
        """The noise of the generated video: sound and conditions have their own.

        H3 counts from 0 for pure noise to 1 for none, and gives each token the index of its timestep.
        """
        del transformer
        timestep = torch.as_tensor(call["timestep"])
        if "timestep_indices" in call:
            timestep = timestep[call["timestep_indices"][call["video_indices"][-1]]]
        return TRAIN_TIMESTEPS * (1 - float(timestep))

    def processor(self, original: Any, layer: SparseLayer) -> MiniMaxH3SparseProcessor:
        return MiniMaxH3SparseProcessor(original, layer)

    def latents(self, frames: int) -> tuple[int, int]:
        chunks = max(0, round((frames - 5) / 17))  # of 17 frames and 5 latent frames, after the first 5 and 2
        return 17 * chunks + 5, 5 * chunks + 2

    def tiny(self, config: Mapping[str, Any]) -> dict[str, Any]:
        small = {"num_attention_heads": 2, "num_layers": 2, "num_refiner_layers": 1, "hidden_size": 64, "ffn_dim": 64}
        return small | {"text_dim": 16, "freq_dim": 32, "time_embed_hidden_dim": 16, "time_embed_dim": 16}

    def example(
        self, transformer: torch.nn.Module, view: tuple[int, int, int], batch: int, noise: Noise
    ) -> dict[str, Any]:
        """Text, sound and the video, each with its timestep."""
        config: Any = transformer.config
        counts = [TEXT_TOKENS, 4, math.prod(view)]
        text, sound, video = torch.arange(sum(counts)).split(counts)
        positions = torch.zeros(sum(counts), 3)
        positions[:, 0] = torch.arange(sum(counts)).clamp(max=TEXT_TOKENS)
        positions[video] += torch.cartesian_prod(*(torch.arange(side) for side in view))
        return {
            "hidden_states": noise(batch, len(video), config.in_channels * math.prod(config.patch_size)),
            "audio_hidden_states": noise(batch, len(sound), config.audio_in_channels),
            "encoder_hidden_states": noise(batch, len(text), config.text_dim),
            "timestep": torch.tensor([0.3, 0.6]),
            "timestep_indices": torch.tensor([0, 1, 0]).repeat_interleave(torch.tensor(counts)),
            "token_tags": torch.tensor([1, 2, 0]).repeat_interleave(torch.tensor(counts)),
            "position_ids": positions,
            "video_indices": video,
            "audio_indices": sound,
            "text_indices": text,
            "return_dict": False,
        }


class MiniMaxH3SparseProcessor(WrappedProcessor):
    """Replaces diffusers' `MiniMaxH3AttnProcessor`, but for the text's refiner."""

    def __call__(
        self,
        attn: FusableAttention,
        hidden_states: torch.Tensor,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        call = self.layer.begin(self.unsupported(attention_mask))
        if call.reason is not None:
            out: torch.Tensor = self.original(attn, hidden_states, rotary_emb, attention_mask)
        else:
            if attn.fused_projections:
                projected = attn.to_qkv(hidden_states).chunk(3, dim=-1)
            else:
                projected = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
            query, key, value = (x.unflatten(-1, (attn.heads, -1)) for x in projected)
            query, key = attn.norm_q(query), attn.norm_k(key)
            if rotary_emb is not None:
                query, key = (rotate_halves_of_first(x, *rotary_emb) for x in (query, key))
            out = call.attend(query, key, value).flatten(2).type_as(query)
            for module in attn.to_out:
                out = module(out)
        return self.layer.end(call, out)
