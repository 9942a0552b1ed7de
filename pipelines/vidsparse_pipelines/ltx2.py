"""LTX-2 (`LTX2VideoTransformer3DModel`): text and image to video with sound. Only video sees video sparsely."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch

from vidsparse.grid import VideoGrid
from vidsparse.runtime.adapter import TEXT_TOKENS, Noise, SparseLayer, WrappedProcessor, text_mask
from vidsparse_pipelines.attention import Attention, Layer
from vidsparse_pipelines.ltx import LTXAdapter
from vidsparse_pipelines.rotary import rotate_halves, rotate_pairs

Rotary = tuple[torch.Tensor, torch.Tensor]


class LTX2Adapter(LTXAdapter):
    """Video self-attention (`attn1`) of each block; sound and all cross-attention stay as they are.

    Key frames and reference videos, which pipelines put after the video, are a suffix.
    """

    family = "LTX-2"
    tasks = "text, image and video to video with sound"
    layout = "key frames and references after the video; text and sound by cross-attention"
    frame_rate = 24
    processors = ("LTX2AudioVideoAttnProcessor", "LTX2PerturbedAttnProcessor")
    block_states: Mapping[str, tuple[str, ...]] = {
        "LTX2VideoTransformerBlock": ("hidden_states", "audio_hidden_states")
    }
    refused_caches: Mapping[str, str] = {
        **LTXAdapter.refused_caches,
        "MagCacheConfig": "it keeps what blocks add to the video alone, and sound would miss them",
    }

    def grid(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> VideoGrid:
        sizes: list[Any] = [call.get(name) for name in ("num_frames", "height", "width")]
        if None in sizes:
            coords = call["video_coords"][..., 0]  # each token's start along each axis, without its end
            return super().grid(transformer, {**call, "video_coords": coords})
        config: Any = transformer.config
        patches = zip(sizes, self.patch(config), strict=True)
        frames, height, width = (math.ceil(size / patch) for size, patch in patches)
        suffix = call["hidden_states"].shape[1] - frames * height * width
        return VideoGrid(frames, height, width, suffix=suffix)

    def parallel_plan(self, transformer: torch.nn.Module) -> Mapping[str, Any]:
        raise NotImplementedError(
            f"diffusers' own plan for {self.family} fails: it divides the video that sound attends to, and its text, "
            "but not their masks and positions"
        )

    def left_out(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> Iterable[int]:
        """Those that spatio-temporal guidance perturbs in the whole batch, in a model that takes part in it."""
        config: Any = transformer.config
        mask = call.get("perturbation_mask")
        whole = config.get("perturbed_attn") and (mask is None or not mask.any())
        return call.get("spatio_temporal_guidance_blocks") or () if whole else ()

    def processor(self, original: Any, layer: SparseLayer) -> LTX2SparseProcessor:
        return LTX2SparseProcessor(original, layer)

    def tiny(self, config: Mapping[str, Any]) -> dict[str, Any]:
        sound = 2 * config["audio_attention_head_dim"]
        return super().tiny(config) | {"audio_num_attention_heads": 2, "audio_cross_attention_dim": sound}

    def example(
        self, transformer: torch.nn.Module, view: tuple[int, int, int], batch: int, noise: Noise
    ) -> dict[str, Any]:
        config: Any = transformer.config
        patches = {"num_frames": config.patch_size_t, "height": config.patch_size, "width": config.patch_size}
        sizes = {name: side * patch for side, (name, patch) in zip(view, patches.items(), strict=True)}
        text, text_of_sound, sound = config.caption_channels, config.caption_channels, 5
        if not config.get("use_prompt_embeddings", True):  # LTX-2.3: text comes as wide as each stream
            text, text_of_sound = config.cross_attention_dim, config.audio_cross_attention_dim
        return sizes | {
            "hidden_states": noise(batch, math.prod(view), config.in_channels),
            "timestep": torch.full((batch,), 500.0),
            "sigma": torch.full((batch,), 500.0),
            "encoder_hidden_states": noise(batch, TEXT_TOKENS, text),
            "encoder_attention_mask": text_mask(batch),
            "audio_hidden_states": noise(batch, sound, config.audio_in_channels),
            "audio_num_frames": sound,
            "audio_encoder_hidden_states": noise(batch, TEXT_TOKENS, text_of_sound),
            "audio_encoder_attention_mask": text_mask(batch),
            "return_dict": False,
        }


class LTX2Attention(Attention, Protocol):
    """Attention with one of two rotary embeddings, and in some models a gate for each head."""

    rope_type: str
    to_gate_logits: Layer | None


class LTX2SparseProcessor(WrappedProcessor):
    """Replaces `LTX2AudioVideoAttnProcessor` and `LTX2PerturbedAttnProcessor` in video self-attention."""

    def __call__(
        self,
        attn: LTX2Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        query_rotary_emb: Rotary | None = None,
        key_rotary_emb: Rotary | None = None,
        perturbation_mask: torch.Tensor | None = None,
        all_perturbed: bool | None = None,
    ) -> torch.Tensor:
        # Only the processor of LTX-2.3 and later takes these.
        guidance = {"perturbation_mask": perturbation_mask, "all_perturbed": all_perturbed}
        guidance = {} if all_perturbed is None and perturbation_mask is None else guidance
        arguments = attn, hidden_states, encoder_hidden_states, attention_mask, query_rotary_emb, key_rotary_emb
        if all_perturbed or (all_perturbed is None and perturbation_mask is not None and not perturbation_mask.any()):
            # Spatio-temporal guidance puts values in the place of attention, see `LTX2Adapter.left_out`.
            values: torch.Tensor = self.original(*arguments, **guidance)
            return values
        call = self.layer.begin(self.unsupported(attention_mask))
        if call.reason is not None:
            out: torch.Tensor = self.original(*arguments, **guidance)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
            query, key = attn.norm_q(query), attn.norm_k(key)
            query, key = (_embed(x, query_rotary_emb, attn.rope_type, attn.heads) for x in (query, key))
            value = value.unflatten(-1, (attn.heads, -1))
            out = call.attend(query, key, value).type_as(query)
            if perturbation_mask is not None:
                out = torch.lerp(value, out, perturbation_mask[..., None])
            if attn.to_gate_logits is not None:
                out = out * (2 * torch.sigmoid(attn.to_gate_logits(hidden_states)))[..., None]
            out = out.flatten(2)
            for module in attn.to_out:
                out = module(out)
        return self.layer.end(call, out)


def _embed(x: torch.Tensor, rotary: Rotary | None, kind: str, heads: int) -> torch.Tensor:
    """Query or key [batch, tokens, heads, head_dim] with its rotary embedding, of [batch, tokens, heads * head_dim]."""
    if rotary is not None and kind == "interleaved":
        x = rotate_pairs(x, *rotary)
    x = x.unflatten(-1, (heads, -1))
    if rotary is not None and kind == "split":  # [batch, heads, tokens, head_dim / 2]
        x = rotate_halves(x, *(angles.transpose(1, 2) for angles in rotary))
    return x
