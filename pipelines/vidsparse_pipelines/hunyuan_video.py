"""HunyuanVideo (`HunyuanVideoTransformer3DModel`): text and image to video. The text follows the video."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, cast

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch.utils.weak import WeakTensorKeyDictionary

from vidsparse.grid import VideoGrid
from vidsparse.runtime.adapter import (
    SEPARATE_GUIDANCE,
    TEXT_TOKENS,
    Adapter,
    Noise,
    SparseLayer,
    WrappedProcessor,
    text_mask,
)
from vidsparse_pipelines.attention import Layer, QueryKeyValue
from vidsparse_pipelines.sequence_plan import divided_output, joined_output


class HunyuanVideoAdapter(Adapter):
    """Joint attention of video and text, in the dual-stream blocks and then in the single-stream blocks."""

    family = "HunyuanVideo"
    tasks = "text and image to video"
    layout = "text after the video, padding masked in each sample"
    frame_rate = 24
    processors = ("HunyuanVideoAttnProcessor2_0",)
    exchanges = False  # with the text on each GPU
    attention_states = ("hidden_states", "encoder_hidden_states")
    refused_caches: Mapping[str, str] = {"FasterCacheConfig": SEPARATE_GUIDANCE}

    def __init__(self) -> None:
        self._counted = WeakTensorKeyDictionary()  # mask -> result of `_leading`; all layers get the same mask

    def self_attentions(self, transformer: torch.nn.Module) -> dict[str, torch.nn.Module]:
        return {
            f"{blocks}.{i}.attn": block.attn
            for blocks in ("transformer_blocks", "single_transformer_blocks")
            for i, block in enumerate(getattr(transformer, blocks, ()))
        }

    def extra_tokens(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> tuple[int, int]:
        return 0, call["encoder_hidden_states"].shape[1]

    def ends(self, grid: VideoGrid) -> tuple[int, int]:
        return 0, grid.suffix

    def parallel_plan(self, transformer: torch.nn.Module) -> dict[str, Any]:
        config: Any = transformer.config
        if config.get("image_condition_type") == "token_replace":
            raise NotImplementedError(
                f"{self.family} with image_condition_type='token_replace' treats its first frame in another way, and "
                "takes it from the start of the sequence on each GPU"
            )
        return {
            "x_embedder": {0: divided_output(1, 3)},
            "rope": {index: divided_output(0, 2) for index in (0, 1)},
            "proj_out": joined_output(),
        }

    def real_keys(self, mask: torch.Tensor, batch: int, tokens: int) -> torch.Tensor | None:
        """The mask that the model gives its attention, as bool [batch, tokens]; None if it cannot be written so."""
        if mask.dtype == torch.bool and mask.shape == (batch, 1, 1, tokens):
            return mask[:, 0, 0]
        return None

    def valid(self, mask: torch.Tensor, batch: int, tokens: int, text: int) -> torch.Tensor | None:
        """The number of real tokens, int32 [batch]; None if the mask hides more than trailing text."""
        if torch.compiler.is_compiling():  # reading the mask would break the graph: the model's own hide no more
            keys = self.real_keys(mask, batch, tokens)
            return None if keys is None else keys.sum(dim=1, dtype=torch.int32)
        if mask not in self._counted:
            keys = self.real_keys(mask, batch, tokens)
            self._counted[mask] = (None, -1) if keys is None else _leading(keys)
        count, least = self._counted[mask]
        return count if least >= tokens - text else None

    def processor(self, original: Any, layer: SparseLayer) -> HunyuanVideoSparseProcessor:
        return HunyuanVideoSparseProcessor(original, layer, self)

    def tiny(self, config: Mapping[str, Any]) -> dict[str, Any]:
        layers = {"num_layers": 2, "num_single_layers": 2, "num_refiner_layers": 1}
        return layers | {"num_attention_heads": 2, "mlp_ratio": 1.0, "text_embed_dim": 16, "pooled_projection_dim": 16}

    def example(
        self, transformer: torch.nn.Module, view: tuple[int, int, int], batch: int, noise: Noise
    ) -> dict[str, Any]:
        config: Any = transformer.config
        size = (side * patch for side, patch in zip(view, self.patch(config), strict=True))
        return {
            "hidden_states": noise(batch, config.in_channels, *size),
            "timestep": torch.full((batch,), 500.0),
            "encoder_hidden_states": noise(batch, TEXT_TOKENS, config.text_embed_dim),
            "encoder_attention_mask": text_mask(batch).long(),
            "pooled_projections": noise(batch, config.pooled_projection_dim),
            "guidance": torch.full((batch,), 6.0) if config.guidance_embeds else None,
            "return_dict": False,
        }


class _HunyuanVideoAttention(Protocol):
    """Attention of dual-stream blocks; single-stream blocks have no weights for the text, nor output projections."""

    heads: int
    to_q: Layer
    to_k: Layer
    to_v: Layer
    norm_q: Layer | None
    norm_k: Layer | None
    add_q_proj: Layer | None
    add_k_proj: Layer
    add_v_proj: Layer
    norm_added_q: Layer | None
    norm_added_k: Layer | None
    to_out: Iterable[Layer] | None
    to_add_out: Layer | None


class HunyuanVideoSparseProcessor(WrappedProcessor):
    """Replaces diffusers' `HunyuanVideoAttnProcessor2_0`, and its counterpart in HunyuanVideo 1.5."""

    def __init__(self, original: Any, layer: SparseLayer, adapter: HunyuanVideoAdapter):
        super().__init__(original, layer)
        self.adapter = adapter

    def __call__(
        self,
        attn: _HunyuanVideoAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> tuple[torch.Tensor, ...]:
        unsupported = self.unsupported()
        valid: torch.Tensor | None = None
        if encoder_hidden_states is None:
            unsupported = "the call has no text tokens"
        elif unsupported is None and attention_mask is not None:
            (batch, tokens, _), extra = hidden_states.shape, encoder_hidden_states.shape[1]
            valid = self.adapter.valid(attention_mask, batch, tokens + extra, extra)
            if valid is None:
                unsupported = "the attention mask hides other tokens than padding after the text"

        call = self.layer.begin(unsupported)
        if call.reason is not None:
            out: tuple[torch.Tensor, ...] = self.original(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
            return self.layer.end(call, out)

        tokens = hidden_states.shape[1]
        query, key, value = _project_both(attn, hidden_states, encoder_hidden_states, image_rotary_emb)
        extra_valid = None if valid is None else valid - tokens + call.grid.prefix
        attended = call.attend(query, key, value, extra_valid).flatten(2).type_as(query)
        video, text = attended[:, :tokens], attended[:, tokens:]
        # A single-stream block projects both itself, together with its feed-forward.
        for module in getattr(attn, "to_out", None) or ():
            video = module(video)
        to_add_out: Layer | None = getattr(attn, "to_add_out", None)
        return self.layer.end(call, (video, text if to_add_out is None else to_add_out(text)))


def _project_both(attn: _HunyuanVideoAttention, video: torch.Tensor, text: Any, rotary: Any) -> QueryKeyValue:
    """Query, key and value [batch, tokens, heads, head_dim] of video and text, with the video's rotary embedding."""
    alone = attn.add_q_proj is not None  # else the text has no weights of its own, and offloading brings them once
    query, key, value = _project(attn, video if alone else torch.cat((video, text), dim=1))
    if rotary is not None:
        query, key = (_rotate(x, video.shape[1], rotary) for x in (query, key))
    if not alone:
        return query, key, value
    joined = zip((query, key, value), _project_text(attn, text), strict=True)
    query, key, value = (torch.cat(pair, dim=1) for pair in joined)
    return query, key, value


def _project(attn: _HunyuanVideoAttention, states: Any) -> QueryKeyValue:
    """Query, key and value [batch, tokens, heads, head_dim] of hidden states [batch, tokens, width]."""
    projected = attn.to_q(states), attn.to_k(states), attn.to_v(states)
    query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in projected)
    return _normalised(query, attn.norm_q), _normalised(key, attn.norm_k), value


def _project_text(attn: _HunyuanVideoAttention, states: Any) -> QueryKeyValue:
    """The same by the text's own weights."""
    projected = cast(Layer, attn.add_q_proj)(states), attn.add_k_proj(states), attn.add_v_proj(states)
    query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in projected)
    return _normalised(query, attn.norm_added_q), _normalised(key, attn.norm_added_k), value


def _normalised(x: torch.Tensor, norm: Layer | None) -> torch.Tensor:
    return x if norm is None else norm(x)


def _rotate(x: torch.Tensor, tokens: int, rotary: Any) -> torch.Tensor:
    """Rotary embedding on the first tokens."""
    # diffusers annotates this function for query and key together.
    rotated = cast(torch.Tensor, apply_rotary_emb(x[:, :tokens], rotary, sequence_dim=1))
    return rotated if x.shape[1] == tokens else torch.cat((rotated, x[:, tokens:]), dim=1)


def _leading(keys: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Count the True keys of bool [batch, tokens]: int32 [batch], and the smallest; -1 if a False precedes a True."""
    count = keys.sum(dim=1, dtype=torch.int32)
    leads = keys == (torch.arange(keys.shape[1], device=keys.device) < count[:, None])
    return count, int(torch.where(leads.all(), count.min(), -1))
