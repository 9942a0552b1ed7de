"""AnyFlow-FAR (`AnyFlowFARTransformer3DModel`): text and video to video, chunk by chunk. Kept frames are keys alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vidsparse.grid import VideoGrid
from vidsparse.runtime.adapter import TEXT_TOKENS, Adapter, Noise, SparseLayer, WrappedProcessor
from vidsparse_pipelines.attention import Attention, QueryKeyValue
from vidsparse_pipelines.rotary import rotate_complex

BLOCK = 128  # the model fills its queries, and as many keys and values, with zeros up to a multiple of this
IMAGE_TOKENS = 5  # of an example


class AnyFlowFARAdapter(Adapter):
    """Self-attention (`attn1`) of each block, in the calls that denoise a chunk of frames.

    Queries are those of the chunk. Keys are those of all earlier chunks, of which the last are kept as they are and the
    others as coarser tokens, then those of the chunk. The coarser tokens are the prefix of the keys, always exact. The
    zeros that the model appends, without a mask, are a suffix: they take part in the softmax of the model, so they do
    in ours.

    Two kinds of calls run dense. One for each chunk fills the cache: all chunks at once, where tokens of two sizes see
    the chunks before theirs, which no grid describes. And so does the training rollout, without a cache.
    """

    family = "AnyFlow-FAR"
    tasks = "text, image and video to video, chunk by chunk"
    layout = "kept coarser frames before the kept and the new ones, zeros after them; text by cross-attention"
    processors = ("AnyFlowCausalAttnProcessor",)
    block_states: Mapping[str, tuple[str, ...]] = {"AnyFlowTransformerBlock": ("hidden_states",)}

    def self_attentions(self, transformer: torch.nn.Module) -> dict[str, torch.nn.Module]:
        return {f"blocks.{i}.attn1": block.attn1 for i, block in enumerate(transformer.blocks)}  # type: ignore[arg-type]

    def processor(self, original: Any, layer: SparseLayer) -> AnyFlowSparseProcessor:
        return AnyFlowSparseProcessor(original, layer)

    def latent_sizes(self, call: Mapping[str, Any]) -> tuple[int, int, int]:
        _, frames, _, height, width = call["hidden_states"].shape
        return frames, height, width

    def grid(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> VideoGrid:
        if call.get("kv_cache") is None:
            raise NotImplementedError("without a cache, each chunk of frames sees those before it through a mask")
        if call["kv_cache_flag"]["is_cache_step"]:
            raise NotImplementedError("it fills the cache: each chunk of frames sees those before it through a mask")
        return super().grid(transformer, call)

    def extra_tokens(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> tuple[int, int]:
        """None before the chunk; the zeros after it."""
        config: Any = transformer.config
        sizes = zip(self.latent_sizes(call), self.patch(config), strict=True)
        frames, height, width = (size // patch for size, patch in sizes)
        return 0, -(frames * height * width) % BLOCK

    def key_grid(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> VideoGrid | None:
        if call.get("kv_cache") is None or call["kv_cache_flag"]["is_cache_step"]:
            return None
        config: Any = transformer.config
        chunks = call["chunk_partition"][: call["kv_cache_flag"]["num_cached_chunks"]]
        coarse = max(0, len(chunks) + 1 - config.full_chunk_limit)
        if not chunks:
            return None
        grid, (_, height, width) = self.grid(transformer, call), self.latent_sizes(call)
        _, patch_height, patch_width = config.compressed_patch_size
        prefix = sum(chunks[:coarse]) * (height // patch_height) * (width // patch_width)
        return VideoGrid(sum(chunks[coarse:]) + grid.frames, grid.height, grid.width, prefix, grid.suffix)

    def parallel_plan(self, transformer: torch.nn.Module) -> Mapping[str, Any]:
        raise NotImplementedError("diffusers has no plan for AnyFlow-FAR: its cache is one tensor of all tokens")

    def tiny(self, config: Mapping[str, Any]) -> dict[str, Any]:
        small = {"num_attention_heads": 2, "num_layers": 2, "text_dim": 16, "freq_dim": 32, "ffn_dim": 64}
        return small if config["image_dim"] is None else small | {"image_dim": 16}

    def example(
        self, transformer: torch.nn.Module, view: tuple[int, int, int], batch: int, noise: Noise
    ) -> dict[str, Any]:
        """The chunk after three others, of which the first is kept as coarser tokens."""
        config: Any = transformer.config
        frames, height, width = (side * patch for side, patch in zip(view, config.patch_size, strict=True))
        earlier = [2, *[1] * (config.full_chunk_limit - 1)]
        coarse = earlier[0] * (height // config.compressed_patch_size[1]) * (width // config.compressed_patch_size[2])
        full = sum(earlier[1:]) * view[1] * view[2]
        heads, head_dim = config.num_attention_heads, config.attention_head_dim
        call: dict[str, Any] = {
            "hidden_states": noise(batch, frames, config.in_channels, height, width),
            "timestep": torch.full((batch, frames), 500.0),
            "r_timestep": torch.full((batch, frames), 250.0),
            "encoder_hidden_states": noise(batch, TEXT_TOKENS, config.text_dim),
            "chunk_partition": [*earlier, frames],
            "kv_cache": {
                layer: {
                    "compressed_cache": noise(2, batch, heads, coarse, head_dim),
                    "full_cache": noise(2, batch, heads, full, head_dim),
                }
                for layer in range(config.num_layers)
            },
            "kv_cache_flag": {"num_cached_chunks": len(earlier), "is_cache_step": False},
            "return_dict": False,
        }
        if config.image_dim is not None:
            call["encoder_hidden_states_image"] = noise(batch, IMAGE_TOKENS, config.image_dim)
        return call


class AnyFlowSparseProcessor(WrappedProcessor):
    """Replaces diffusers' `AnyFlowCausalAttnProcessor`."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: Any = None,
        rotary_emb: Mapping[str, torch.Tensor] | None = None,
        kv_cache: Mapping[str, torch.Tensor] | None = None,
        kv_cache_flag: Mapping[str, Any] | None = None,
    ) -> torch.Tensor:
        call = self.layer.begin(self.unsupported(attention_mask))
        if call.reason is not None or kv_cache is None or kv_cache_flag is None:
            out: torch.Tensor = self.original(
                attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb, kv_cache, kv_cache_flag
            )
        else:
            query, key, value = _with_kept(_project(attn, hidden_states), kv_cache, kv_cache_flag)
            if rotary_emb is not None:
                query, key = (
                    rotate_complex(x, rotary_emb[name].transpose(1, 2)) for name, x in (("query", query), ("key", key))
                )
            tokens = hidden_states.shape[1]
            zeros = 0, 0, 0, 0, 0, -tokens % BLOCK
            query, key, value = (torch.nn.functional.pad(x, zeros) for x in (query, key, value))
            out = call.attend(query, key, value)[:, :tokens].flatten(2).type_as(hidden_states)
            for module in attn.to_out:
                out = module(out)
        return self.layer.end(call, out)


def _project(attn: Attention, hidden_states: torch.Tensor) -> QueryKeyValue:
    """Query, key and value [batch, tokens, heads, head_dim] of a chunk, normalised over all heads together."""
    query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
    query, key = (norm(x).type_as(hidden_states) for norm, x in ((attn.norm_q, query), (attn.norm_k, key)))
    query, key, value = (x.unflatten(-1, (attn.heads, -1)) for x in (query, key, value))
    return query, key, value


def _with_kept(own: QueryKeyValue, kv_cache: Mapping[str, torch.Tensor], flag: Mapping[str, Any]) -> QueryKeyValue:
    """The query of a chunk; key and value of what is kept, the coarser tokens first, and of the chunk."""
    coarse = kv_cache["compressed_cache"][:, :, :, : flag["num_cached_compressed_tokens"]]
    full = kv_cache["full_cache"][:, :, :, : flag["num_cached_full_tokens"]]
    query, *new = own
    key, value = (torch.cat((coarse[i].transpose(1, 2), full[i].transpose(1, 2), x), dim=1) for i, x in enumerate(new))
    return query, key, value
