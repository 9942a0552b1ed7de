"""Helios (`HeliosTransformer3DModel`): text, image and video to video, chunk by chunk, with clean history before it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from vidsparse.runtime.adapter import SEPARATE_GUIDANCE, TEXT_TOKENS, Adapter, Noise, SparseLayer, WrappedProcessor
from vidsparse_pipelines.rotary import rotate_pairs
from vidsparse_pipelines.sequence_plan import divided, joined_output
from vidsparse_pipelines.wan import project

# The history of frames, by how long ago they were: the name of its argument -> how much larger than a patch a token is.
HISTORY = {"long": 4, "mid": 2, "short": 1}


class HeliosAdapter(Adapter):
    """Self-attention (`attn1`) of each block, over history and noisy chunk. The grid is that of the chunk.

    The history is made of tokens of three sizes, before the chunk; it is exact.
    """

    family = "Helios"
    tasks = "text, image and video to video, chunk by chunk"
    layout = "history before the video; text by cross-attention"
    processors = ("HeliosAttnProcessor",)
    frame_rate = 24
    block_states: Mapping[str, tuple[str, ...]] = {"HeliosTransformerBlock": ("hidden_states",)}
    refused_caches: Mapping[str, str] = {"FasterCacheConfig": SEPARATE_GUIDANCE}

    def self_attentions(self, transformer: torch.nn.Module) -> dict[str, torch.nn.Module]:
        return {f"blocks.{i}.attn1": block.attn1 for i, block in enumerate(transformer.blocks)}  # type: ignore[arg-type]

    def processor(self, original: Any, layer: SparseLayer) -> HeliosSparseProcessor:
        return HeliosSparseProcessor(original, layer)

    def extra_tokens(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> tuple[int, int]:
        """The tokens of the history, whose frames are filled up to whole tokens; none after the chunk."""
        config: Any = transformer.config
        history = 0
        for name, larger in HISTORY.items():
            latents, indices = call.get(f"latents_history_{name}"), call.get(f"indices_latents_history_{name}")
            if latents is not None and indices is not None:
                sizes = zip(latents.shape[-3:], (larger * patch for patch in config.patch_size), strict=True)
                history += math.prod(-(-size // side) if larger > 1 else size // side for size, side in sizes)
        return history, 0

    def parallel_plan(self, transformer: torch.nn.Module) -> dict[str, Any]:
        """Each attention layer by itself: blocks find the history by its number of tokens, so they see all tokens.

        Raises:
            NotImplementedError: the model scales the keys of the history, whose place in the parts it does not know.
        """
        config: Any = transformer.config
        if config.is_amplify_history:
            raise NotImplementedError("with is_amplify_history, attention of diffusers needs all tokens on each GPU")
        names = self.self_attentions(transformer)
        return {
            "blocks.*.attn1": {"hidden_states": divided(1, 3), "rotary_emb": divided(1, 3)},
            **{name: joined_output() for name in names},
        }

    def tiny(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"num_attention_heads": 2, "num_layers": 2, "text_dim": 16, "freq_dim": 32, "ffn_dim": 64}

    def example(
        self, transformer: torch.nn.Module, view: tuple[int, int, int], batch: int, noise: Noise
    ) -> dict[str, Any]:
        config: Any = transformer.config
        size = [side * patch for side, patch in zip(view, config.patch_size, strict=True)]
        call: dict[str, Any] = {
            "hidden_states": noise(batch, config.in_channels, *size),
            "timestep": torch.full((batch,), 500.0),
            "encoder_hidden_states": noise(batch, TEXT_TOKENS, config.text_dim),
            "indices_hidden_states": torch.arange(9, 9 + view[0]).expand(batch, -1),
            "return_dict": False,
        }
        if config.has_multi_term_memory_patch:
            for name, frames in zip(HISTORY, ((0, 1, 2, 3, 4), (5, 6), (7, 8)), strict=True):
                call[f"latents_history_{name}"] = noise(batch, config.in_channels, len(frames), *size[1:])
                call[f"indices_latents_history_{name}"] = torch.tensor(frames).expand(batch, -1)
        return call


class HeliosSparseProcessor(WrappedProcessor):
    """Replaces diffusers' `HeliosAttnProcessor` in self-attention."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: torch.Tensor | None = None,
        original_context_length: int | None = None,
    ) -> torch.Tensor:
        call = self.layer.begin(self.unsupported(attention_mask))
        if call.reason is not None:
            out: torch.Tensor = self.original(
                attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb, original_context_length
            )
        else:
            query, key, value = project(attn, hidden_states)
            if rotary_emb is not None:
                cos, sin = rotary_emb.unsqueeze(-2).chunk(2, dim=-1)
                query, key = rotate_pairs(query, cos, sin), rotate_pairs(key, cos, sin)
            if attn.is_amplify_history and original_context_length is not None:
                key = _amplified(attn, key, key.shape[1] - original_context_length)
            out = call.attend(query, key, value).flatten(2).type_as(query)
            for module in attn.to_out:
                out = module(out)
        return self.layer.end(call, out)


def _amplified(attn: Any, key: torch.Tensor, history: int) -> torch.Tensor:
    """Keys [batch, tokens, heads, head_dim] of which the first, of the history, are scaled by what was learned."""
    if history <= 0:
        return key
    scale = 1.0 + torch.sigmoid(attn.history_key_scale) * (attn.max_scale - 1.0)
    return torch.cat((key[:, :history] * scale.view(1, 1, -1, 1), key[:, history:]), dim=1)
