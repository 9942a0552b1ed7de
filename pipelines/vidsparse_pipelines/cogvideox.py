"""CogVideoX 1.0 and 1.5 (`CogVideoXTransformer3DModel`), and ConsisID, which has the same blocks.

Text stands before the video in one sequence, and no text token is masked. Call `fuse_qkv_projections` before
`sparsify`, not after: it puts processors of its own in the place of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.attention_processor import FusedCogVideoXAttnProcessor2_0
from diffusers.models.embeddings import apply_rotary_emb

from vidsparse.grid import VideoGrid
from vidsparse_pipelines.base import Adapter, Attend, SparseLayer, WrappedProcessor


class CogVideoXAdapter(Adapter):
    """The one attention (`attn1`) of each block, over text and video together."""

    def self_attentions(self, transformer: torch.nn.Module) -> dict[str, torch.nn.Module]:
        blocks: Any = transformer.transformer_blocks
        return {f"transformer_blocks.{i}.attn1": block.attn1 for i, block in enumerate(blocks)}

    def grid(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> VideoGrid:
        config: Any = transformer.config
        _, frames, _, height, width = call["hidden_states"].shape
        frames //= getattr(config, "patch_size_t", None) or 1  # only 1.5 has patches in time
        text = call["encoder_hidden_states"].shape[1]
        return VideoGrid(frames, height // config.patch_size, width // config.patch_size, prefix=text)

    def processor(self, original: Any, layer: SparseLayer) -> CogVideoXSparseProcessor:
        return CogVideoXSparseProcessor(original, layer)


class CogVideoXSparseProcessor(WrappedProcessor):
    """Takes the place of diffusers' `CogVideoXAttnProcessor2_0`, or of the one for fused projections."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, ...]:
        text = encoder_hidden_states.shape[1]

        def dense() -> tuple[torch.Tensor, ...]:
            out: tuple[torch.Tensor, ...] = self.original(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
            return out

        def sparse(attend: Attend) -> tuple[torch.Tensor, ...]:
            query, key, value = self._project(attn, torch.cat((encoder_hidden_states, hidden_states), dim=1))
            if image_rotary_emb is not None:  # CogVideoX 2B has none
                query, key = _rotate(query, text, image_rotary_emb), _rotate(key, text, image_rotary_emb)
            out = attend(query, key, value).flatten(2)
            for module in attn.to_out:
                out = module(out)
            return out[:, text:], out[:, :text]

        return self.layer.run(dense, sparse, self.unsupported(attention_mask))

    def _project(self, attn: Any, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
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
