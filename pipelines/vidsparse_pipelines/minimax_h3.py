"""MiniMax-H3 (`MiniMaxH3Transformer3DModel`): text, condition, sound and video in one packed sequence, video last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from vidsparse.grid import VideoGrid
from vidsparse_pipelines.base import Adapter, Attend, SparseLayer, WrappedProcessor
from vidsparse_pipelines.cosmos import rotate_halves
from vidsparse_pipelines.ltx import grid_of_coords


class MiniMaxH3Adapter(Adapter):
    """The one attention of each block, over all tokens. Text, key frames, references and sound are prefix: exact."""

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

        H3 counts from 0 for pure noise to 1 for none, and says for each token which timestep of a few it has.
        """
        del transformer
        timestep = torch.as_tensor(call["timestep"])
        if "timestep_indices" in call:
            timestep = timestep[call["timestep_indices"][call["video_indices"][-1]]]
        return 1000 * (1 - float(timestep))

    def processor(self, original: Any, layer: SparseLayer) -> MiniMaxH3SparseProcessor:
        return MiniMaxH3SparseProcessor(original, layer)


class MiniMaxH3SparseProcessor(WrappedProcessor):
    """Takes the place of diffusers' `MiniMaxH3AttnProcessor`, but for the text's refiner."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        def dense() -> torch.Tensor:
            out: torch.Tensor = self.original(attn, hidden_states, rotary_emb, attention_mask)
            return out

        def sparse(attend: Attend) -> torch.Tensor:
            if attn.fused_projections:
                projected = attn.to_qkv(hidden_states).chunk(3, dim=-1)
            else:
                projected = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
            query, key, value = (x.unflatten(-1, (attn.heads, -1)) for x in projected)
            query, key = attn.norm_q(query), attn.norm_k(key)
            if rotary_emb is not None:
                query, key = _rotate(query, *rotary_emb), _rotate(key, *rotary_emb)
            out = attend(query, key, value).flatten(2).type_as(query)
            for module in attn.to_out:
                out = module(out)
            return out

        return self.layer.run(dense, sparse, self.unsupported(attention_mask))


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of the first channels of each head; `cos` and `sin` [tokens, channels] hold each angle twice."""
    rotated, rest = x.split((cos.shape[-1], x.shape[-1] - cos.shape[-1]), dim=-1)
    cos, sin = (angles.chunk(2, dim=-1)[0][:, None].to(x.dtype) for angles in (cos, sin))
    return torch.cat((rotate_halves(rotated, cos, sin), rest), dim=-1)
