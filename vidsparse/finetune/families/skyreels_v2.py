"""SkyReels-V2: text and image to video, and diffusion forcing, where each frame has a timestep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vidsparse.finetune.draws.example import Example
from vidsparse.finetune.families.wan import WanImageTask, WanTask

FRAMES_A_SECOND = 24  # the default of the pipeline
SLOW = 16  # frames a second that the model is told as kind 0, and all others as kind 1


@dataclass(frozen=True)
class SkyReelsV2Task(WanTask):
    """Text to video."""

    family = "SkyReels-V2"
    pipelines = ("SkyReelsV2Pipeline",)


@dataclass(frozen=True)
class SkyReelsV2ImageTask(WanImageTask):
    """Image to video, with CLIP's embedding."""

    family = "SkyReels-V2"
    pipelines = ("SkyReelsV2ImageToVideoPipeline",)


@dataclass(frozen=True)
class SkyReelsV2ForcingTask(SkyReelsV2Task):
    """Text to video by diffusion forcing: each latent frame is told its noise level.

    All frames of a video have the same one, as in a synchronous generation (`ar_step=0`). In an asynchronous one
    attention is dense, which a LoRA for sparse attention does not learn.
    """

    pipelines = ("SkyReelsV2DiffusionForcingPipeline",)

    def refusal(self) -> str | None:
        blocks = self.config.get("num_frame_per_block", 1)
        return None if blocks == 1 else f"it is autoregressive (num_frame_per_block={blocks}), and its attention dense"

    def arguments(self, noisy: torch.Tensor, example: Example, dtype: torch.dtype) -> dict[str, Any]:
        arguments = super().arguments(noisy, example, dtype)
        return arguments | {
            "timestep": arguments["timestep"][:, None].repeat(1, noisy.shape[2]),
            "enable_diffusion_forcing": True,
            "fps": [int(FRAMES_A_SECOND != SLOW)],
        }
