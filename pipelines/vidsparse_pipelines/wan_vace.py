"""Wan-VACE (`WanVACETransformer3DModel`): video editing and reference to video. Every token is video."""

from __future__ import annotations

from typing import Any

import torch

from vidsparse_pipelines.wan import WanAdapter


class WanVACEAdapter(WanAdapter):
    """Self-attention (`attn1`) of the control blocks, which run first, and of the main blocks.

    Both see the whole video. Reference images are frames before it, and count as frames of the grid: the transformer
    is not told how many there are.
    """

    def self_attentions(self, transformer: torch.nn.Module) -> dict[str, torch.nn.Module]:
        blocks: Any = transformer.vace_blocks
        control = {f"vace_blocks.{i}.attn1": block.attn1 for i, block in enumerate(blocks)}
        return control | super().self_attentions(transformer)
