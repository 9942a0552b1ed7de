"""Wan 2.1 and 2.2 (`WanTransformer3DModel`): text and image to video, both experts. Every token is video."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from vidsparse.runtime.adapter import SEPARATE_GUIDANCE, TEXT_TOKENS, Adapter, Noise, SparseLayer, WrappedProcessor
from vidsparse_pipelines.attention import FusableAttention, QueryKeyValue
from vidsparse_pipelines.rotary import rotate_pairs

IMAGE_TOKENS, LAST_TOKENS_ARE_TEXT = 5, 512
CHANNELS_5B = 48  # of the latents of Wan 2.2 5B


class WanAdapter(Adapter):
    """Self-attention (`attn1`) of each block; cross-attention to text and image stays as it is."""

    family = "Wan 2.1, 2.2"
    tasks = "text, image, first and last frame to video; both experts"
    layout = "video only; text and image by cross-attention"
    processors = ("WanAttnProcessor",)
    gated = True
    refused_caches: Mapping[str, str] = {"FasterCacheConfig": SEPARATE_GUIDANCE}

    def self_attentions(self, transformer: torch.nn.Module) -> dict[str, torch.nn.Module]:
        return {f"blocks.{i}.attn1": block.attn1 for i, block in enumerate(transformer.blocks)}  # type: ignore[arg-type]

    def cross_attentions(self, transformer: torch.nn.Module) -> dict[str, torch.nn.Module]:
        names = [name.replace(".attn1", ".attn2") for name in self.self_attentions(transformer)]
        return {name: transformer.get_submodule(name) for name in names}

    def processor(self, original: Any, layer: SparseLayer) -> WanSparseProcessor:
        return WanSparseProcessor(original, layer)

    def fps(self, config: Mapping[str, Any]) -> int:
        return 24 if config.get("in_channels") == CHANNELS_5B else self.frame_rate

    def tiny(self, config: Mapping[str, Any]) -> dict[str, Any]:
        small = {"num_attention_heads": 2, "num_layers": 2, "text_dim": 16, "freq_dim": 32, "ffn_dim": 64}
        if config["image_dim"] is not None:
            small |= {"image_dim": 16, "added_kv_proj_dim": 2 * config["attention_head_dim"]}
        if config["pos_embed_seq_len"] is not None:  # first and last frame: two images in a row
            small["pos_embed_seq_len"] = 2 * IMAGE_TOKENS
        return small

    def example(
        self, transformer: torch.nn.Module, view: tuple[int, int, int], batch: int, noise: Noise
    ) -> dict[str, Any]:
        config: Any = transformer.config
        size = (side * patch for side, patch in zip(view, config.patch_size, strict=True))
        call: dict[str, Any] = {
            "hidden_states": noise(batch, config.in_channels, *size),
            "timestep": torch.full((batch,), 500.0),
            "encoder_hidden_states": noise(batch, TEXT_TOKENS, config.text_dim),
            "return_dict": False,
        }
        if config.in_channels == CHANNELS_5B:  # a timestep for each token, since the first frame may be an image
            call["timestep"] = torch.full((batch, math.prod(view)), 500.0)
            call["timestep"][:, : view[1] * view[2]] = 0.0
        if config.image_dim is not None:
            images = batch if config.pos_embed_seq_len is None else 2 * batch
            call["encoder_hidden_states_image"] = noise(images, IMAGE_TOKENS, config.image_dim)
            call["encoder_hidden_states"] = noise(batch, LAST_TOKENS_ARE_TEXT, config.text_dim)
        return call


class WanSparseProcessor(WrappedProcessor):
    """Replaces diffusers' `WanAttnProcessor` in self-attention."""

    def __call__(
        self,
        attn: FusableAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        call = self.layer.begin(self.unsupported(attention_mask))
        gate = _gate(attn, hidden_states, dense=call.reason is not None)
        if call.reason is not None:
            out: torch.Tensor = self.original(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        else:
            query, key, value = project(attn, hidden_states)
            if rotary_emb is not None:
                query, key = rotate_pairs(query, *rotary_emb), rotate_pairs(key, *rotary_emb)
            out = call.attend(query, key, value, gate=gate).flatten(2).type_as(query)
            for module in attn.to_out:
                out = module(out)
        return self.layer.end(call, out)


def project(attn: FusableAttention, hidden_states: torch.Tensor) -> QueryKeyValue:
    """Query, key and value [batch, tokens, heads, head_dim], normalised over all heads together as Wan does."""
    if attn.fused_projections:
        query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
    else:
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
    query, key, value = (x.unflatten(-1, (attn.heads, -1)) for x in (attn.norm_q(query), attn.norm_k(key), value))
    return query, key, value


def _gate(attn: FusableAttention, hidden_states: torch.Tensor, dense: bool) -> torch.Tensor | None:
    """The gate [batch, tokens, heads, head_dim] of a module that has one, see `load_gates`.

    A dense call needs none. But group offloading with streams fetches modules ahead in the order of the first call, so
    no call of theirs leaves the gate out.
    """
    to_gate: Any = getattr(attn, "to_gate_compress", None)
    if to_gate is None or (dense and not hasattr(to_gate, "_diffusers_hook")):
        return None
    gate: torch.Tensor = to_gate(hidden_states).unflatten(-1, (attn.heads, -1))
    return gate
