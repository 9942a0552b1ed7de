"""Cosmos 3 (`Cosmos3OmniTransformer`): text sees text, causally; video, sound and action see that and each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from vidsparse.grid import VideoGrid
from vidsparse.runtime.adapter import TEXT_TOKENS, Adapter, Noise, SparseLayer, WrappedProcessor
from vidsparse_pipelines.attention import Layer
from vidsparse_pipelines.rotary import rotate_halves


class Cosmos3Adapter(Adapter):
    """The one attention of each layer. The sequence is text, control videos, the video, sound, action.

    All but the video is exact. Condition frames are frames of the video.
    """

    family = "Cosmos 3"
    tasks = "text, image and video to video with sound and action, control"
    layout = "text and control before the video, sound and action after it"
    processors = ("Cosmos3AttnProcessor",)
    frame_rate = 24
    vae_stride = (4, 16)
    block_states: Mapping[str, tuple[str, ...]] = {"Cosmos3VLTextMoTDecoderLayer": ("gen_seq", "und_seq")}
    attention_states = ("und_seq", "gen_seq")

    def self_attentions(self, transformer: torch.nn.Module) -> dict[str, torch.nn.Module]:
        layers: Any = transformer.layers
        return {f"layers.{i}.self_attn": layer.self_attn for i, layer in enumerate(layers)}

    def grid(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> VideoGrid:
        if getattr(transformer, "_cp_shard_fn", None) is not None:
            raise NotImplementedError("context parallelism is on")
        frames, height, width = call["vision_token_shapes"][-1]
        tokens = frames * height * width
        indices = call["vision_sequence_indexes"][-tokens:]
        start = int(indices[0])
        if not torch.equal(indices, torch.arange(start, start + tokens).to(indices)):
            raise NotImplementedError("vision_sequence_indexes has the video's tokens in no unbroken run")
        if start < call["und_len"]:
            raise NotImplementedError("vision_sequence_indexes has video among the text, where attention is causal")
        return VideoGrid(frames, height, width, prefix=start, suffix=call["sequence_length"] - start - tokens)

    def parallel_plan(self, transformer: torch.nn.Module) -> dict[str, Any]:
        raise NotImplementedError(
            f"diffusers leaves the context parallelism of {self.family} to code outside the model"
        )

    def timestep(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> float:
        """The noise of what is generated: of sound or action alone, the video has none."""
        del transformer
        names = ("timestep", "vision_timesteps", "sound_timesteps", "action_timesteps")
        timesteps = (torch.as_tensor(call[name]) for name in names if call.get(name) is not None)
        return max((float(x.max()) for x in timesteps if x.numel()), default=0.0)

    def attention_width(self, attention: Any) -> int:
        return int(attention.num_attention_heads * attention.head_dim)

    def processor(self, original: Any, layer: SparseLayer) -> Cosmos3SparseProcessor:
        return Cosmos3SparseProcessor(original, layer)

    def patch(self, config: Mapping[str, Any]) -> tuple[int, int, int]:
        return 1, config["latent_patch_size"], config["latent_patch_size"]

    def tiny(self, config: Mapping[str, Any]) -> dict[str, Any]:
        shared = config["num_attention_heads"] > config["num_key_value_heads"]  # keys that heads share
        heads = {"num_attention_heads": 4 if shared else 2, "num_key_value_heads": 2, "num_hidden_layers": 2}
        return heads | {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 20}

    def example(
        self, transformer: torch.nn.Module, view: tuple[int, int, int], batch: int, noise: Noise
    ) -> dict[str, Any]:
        if batch > 1:
            raise NotImplementedError("Cosmos 3 packs one sample into a call")
        config: Any = transformer.config
        frames, height, width = view
        size = frames, config.latent_patch_size * height, config.latent_patch_size * width
        # What is generated: its name, its latents, and how many tokens it has along each axis.
        parts = [("vision", noise(1, config.latent_channel, *size), view)]
        if config.sound_gen:
            parts.append(("sound", noise(config.sound_dim, 4), (4, 1, 1)))
        if config.action_gen:
            parts.append(("action", noise(3, config.action_dim), (3, 1, 1)))
        text = torch.arange(TEXT_TOKENS)
        call: dict[str, Any] = {"input_ids": text, "text_indexes": text, "und_len": len(text), "return_dict": False}
        positions = [text.expand(3, -1)]
        for name, latents, sides in parts:
            start = sum(x.shape[1] for x in positions)
            positions.append(start + torch.cartesian_prod(*(torch.arange(side) for side in sides)).T)
            indices = torch.arange(start, start + math.prod(sides))
            call |= {f"{name}_tokens": [latents], f"{name}_token_shapes": [sides]}
            call |= {f"{name}_sequence_indexes": indices, f"{name}_mse_loss_indexes": indices}
            call |= {f"{name}_timesteps": torch.full((len(indices),), 500.0)}
            call |= {f"{name}_noisy_frame_indexes": [torch.arange(sides[0])]}
        if config.action_gen:
            call["action_domain_ids"] = [torch.tensor([1])]
        joined = torch.cat(positions, dim=1)
        return call | {"position_ids": joined, "sequence_length": joined.shape[1]}


class _Cosmos3Attention(Protocol):
    """Text has the plain names, what is generated the added ones; keys may have fewer heads than queries."""

    head_dim: int
    num_key_value_groups: int
    to_q: Layer
    to_k: Layer
    to_v: Layer
    norm_q: Layer
    norm_k: Layer
    k_norm_und_for_gen: Layer | None
    add_q_proj: Layer
    add_k_proj: Layer
    add_v_proj: Layer
    norm_added_q: Layer
    norm_added_k: Layer
    to_out: Layer
    to_add_out: Layer


class Cosmos3SparseProcessor(WrappedProcessor):
    """Replaces diffusers' `Cosmos3AttnProcessor`."""

    def __call__(
        self,
        attn: _Cosmos3Attention,
        und_seq: torch.Tensor,
        gen_seq: torch.Tensor,
        rotary_emb: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        call = self.layer.begin(self.unsupported())
        if call.reason is not None:
            out: tuple[torch.Tensor, ...] = self.original(attn, und_seq, gen_seq, rotary_emb)
            return self.layer.end(call, out)

        # [tokens, head_dim], each angle twice: once for either half.
        cos_text, sin_text, cos, sin = (x.chunk(2, dim=-1)[0][:, None] for x in rotary_emb)
        # In the order of diffusers' own processor, in which group offloading fetches weights ahead.
        of_text = attn.to_q(und_seq), attn.to_k(und_seq), attn.to_v(und_seq)
        of_video = attn.add_q_proj(gen_seq), attn.add_k_proj(gen_seq), attn.add_v_proj(gen_seq)
        text_query, text_key, text_value, query, key, value = (
            x.unflatten(-1, (-1, attn.head_dim)) for x in (*of_text, *of_video)
        )
        text_query, text_key = attn.norm_q(text_query), attn.norm_k(text_key)
        # Some checkpoints normalise the text's keys another way where the video sees them.
        seen_key = text_key if attn.k_norm_und_for_gen is None else attn.k_norm_und_for_gen(text_key)
        text_query, text_key, seen_key = (
            rotate_halves(x, cos_text, sin_text) for x in (text_query, text_key, seen_key)
        )
        text = _causal(text_query, text_key, text_value)

        query, key = attn.norm_added_q(query), attn.norm_added_k(key)
        query, key = rotate_halves(query, cos, sin), rotate_halves(key, cos, sin)
        # The text's queries are there for the shape: what they would see without a causal mask is dropped.
        query = torch.cat((text_query, query))
        key, value = (
            torch.cat(pair).repeat_interleave(attn.num_key_value_groups, dim=1)
            for pair in ((seen_key, key), (text_value, value))
        )
        attended = call.attend(query[None], key[None], value[None])[:, len(und_seq) :].flatten(2).type_as(query)
        return self.layer.end(call, (attn.to_out(text)[0], attn.to_add_out(attended)[0]))


def _causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Causal attention [1, tokens, heads * head_dim] of [tokens, heads, head_dim]; keys may have fewer heads."""
    query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return out.transpose(1, 2).flatten(2)
