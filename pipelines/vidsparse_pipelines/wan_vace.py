"""Wan-VACE (`WanVACETransformer3DModel`): video editing and reference to video. Every token is video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vidsparse.runtime.adapter import Noise
from vidsparse_pipelines.sequence_plan import divided, divided_output, joined_output
from vidsparse_pipelines.wan import WanAdapter

# Control is added between the blocks, also where these are skipped, and is in the cached residual too.
ADDED_TWICE = "the control that its model adds between blocks would be added twice"


class WanVACEAdapter(WanAdapter):
    """Self-attention (`attn1`) of the control blocks, which run first, and of the main blocks.

    Both see the whole video. Reference images are frames before it, and count as frames of the grid: the transformer
    is not told how many there are.
    """

    family = "Wan-VACE"
    tasks = "editing, control, reference to video"
    layout = "video only, in control blocks too; text by cross-attention"
    refused_caches: Mapping[str, str] = {
        **WanAdapter.refused_caches,
        "FirstBlockCacheConfig": ADDED_TWICE,
        "MagCacheConfig": ADDED_TWICE,
        "SeaCacheConfig": ADDED_TWICE,
    }

    def self_attentions(self, transformer: torch.nn.Module) -> dict[str, torch.nn.Module]:
        blocks: Any = transformer.vace_blocks
        control = {f"vace_blocks.{i}.attn1": block.attn1 for i, block in enumerate(blocks)}
        return control | super().self_attentions(transformer)

    def parallel_plan(self, transformer: torch.nn.Module) -> dict[str, Any]:
        video = {"hidden_states": divided(1, 3)}
        return {
            "rope": {index: divided_output(1, 4) for index in (0, 1)},
            "vace_blocks.*": video,
            "vace_blocks.0": {"control_hidden_states": divided(1, 3)},
            "blocks.0": video,
            "proj_out": joined_output(),
        }

    def tiny(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return super().tiny(config) | {"vace_layers": [0, 1]}

    def example(
        self, transformer: torch.nn.Module, view: tuple[int, int, int], batch: int, noise: Noise
    ) -> dict[str, Any]:
        call = super().example(transformer, view, batch, noise)
        config: Any = transformer.config
        return call | {"control_hidden_states": noise(batch, config.vace_in_channels, *call["hidden_states"].shape[2:])}
