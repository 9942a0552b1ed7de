"""SkyReels-V2 (`SkyReelsV2Transformer3DModel`): text, image and video to video. Every token is video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vidsparse.grid import VideoGrid
from vidsparse.runtime.adapter import Noise
from vidsparse_pipelines.sequence_plan import divided, divided_output, joined_output
from vidsparse_pipelines.wan import WanAdapter

CONDITION = 100  # the most noise, of 1000, of a frame that is given; pipelines warn above 60


class SkyReelsV2Adapter(WanAdapter):
    """Self-attention (`attn1`) of each block: its modules, layout and processor are those of Wan.

    Diffusion forcing gives each frame a timestep; the noisiest counts. Where the others are not those of given frames
    (`ar_step` above 0), a call is not a step of a schedule and runs dense. So does the autoregressive mode
    (`num_frame_per_block` above 1), which masks attention by blocks of frames.
    """

    family = "SkyReels-V2"
    tasks = "text and image to video, synchronous diffusion forcing"
    processors = ("SkyReelsV2AttnProcessor",)
    frame_rate = 24
    block_states: Mapping[str, tuple[str, ...]] = {"SkyReelsV2TransformerBlock": ("hidden_states",)}

    def grid(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> VideoGrid:
        noise = torch.as_tensor(call["timestep"])
        if noise.ndim == 2 and bool(((noise > CONDITION) & (noise < noise.max())).any()):
            raise NotImplementedError("frames are at different steps, as in asynchronous diffusion forcing")
        return super().grid(transformer, call)

    def parallel_plan(self, transformer: torch.nn.Module) -> dict[str, Any]:
        blocks: Any = transformer.blocks
        return {
            "rope": {index: divided_output(1, 4) for index in (0, 1)},
            "blocks.*": {"temb": divided(2, 4)},  # one for each token in diffusion forcing
            "blocks.0": {"hidden_states": divided(1, 3)},
            f"blocks.{len(blocks) - 1}": joined_output(),  # what follows reads the whole timesteps
        }

    def example(
        self, transformer: torch.nn.Module, view: tuple[int, int, int], batch: int, noise: Noise
    ) -> dict[str, Any]:
        call = super().example(transformer, view, batch, noise)
        config: Any = transformer.config
        if config.inject_sample_info:
            call["fps"] = [1] * batch  # a kind: 16 frames a second, or more
        return call
