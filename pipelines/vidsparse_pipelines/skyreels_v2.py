"""SkyReels-V2 (`SkyReelsV2Transformer3DModel`): text, image and video to video. Every token is video."""

from __future__ import annotations

from typing import Any

import torch

from vidsparse_pipelines.base import Noise
from vidsparse_pipelines.wan import WanAdapter


class SkyReelsV2Adapter(WanAdapter):
    """Self-attention (`attn1`) of each block: its modules, layout and processor are those of Wan.

    Diffusion forcing gives each frame a timestep; the noisiest counts. Its autoregressive mode (`num_frame_per_block`
    above 1) masks attention by blocks of frames, and so runs dense.
    """

    family = "SkyReels-V2"
    tasks = "text and image to video, synchronous diffusion forcing"

    def example(
        self, transformer: torch.nn.Module, view: tuple[int, int, int], batch: int, noise: Noise
    ) -> dict[str, Any]:
        call = super().example(transformer, view, batch, noise)
        config: Any = transformer.config
        if config.inject_sample_info:
            call["fps"] = [1] * batch  # a kind: 16 frames a second, or more
        return call
