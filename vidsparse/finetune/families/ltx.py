"""LTX-Video: text and image to video. Latents are tokens, and noise levels are spaced by the length of the video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vidsparse.finetune.draws.example import Example
from vidsparse.finetune.families.given_frame import GivenFrameTask
from vidsparse.finetune.families.levels import LevelsByLength
from vidsparse.finetune.families.task import Tensors, View, masked_text

FRAME_RATE = 25  # the default of the pipeline, which positions are counted by


@dataclass(frozen=True)
class LTXTask(LevelsByLength):
    """Text to video: T5's embedding with its mask; positions by seconds and pixels."""

    family = "LTX-Video"
    pipelines = ("LTXPipeline",)
    timestep_sampling = "logit_normal"  # that of Lightricks' own trainer

    def encode_text(self, pipe: Any, caption: str, words: int | None) -> Tensors:
        return masked_text(pipe, caption, words)

    def arguments(self, noisy: torch.Tensor, example: Example, dtype: torch.dtype) -> dict[str, Any]:
        frames, height, width = noisy.shape[2:]
        return {
            **super().arguments(noisy, example, dtype),
            "hidden_states": packed(noisy).to(dtype),
            "encoder_attention_mask": example.more["mask"],
            "num_frames": frames,
            "height": height,
            "width": width,
            "rope_interpolation_scale": (self.stride[0] / FRAME_RATE, self.stride[1], self.stride[1]),
        }

    def predicted(self, answer: torch.Tensor, example: Example) -> torch.Tensor:
        latents: torch.Tensor = answer.transpose(1, 2).unflatten(2, example.latents.shape[2:])
        return latents

    def text_width(self, config: Mapping[str, Any]) -> int:
        return int(config["caption_channels"])

    def blank_inputs(self, config: Mapping[str, Any], view: View, words: int) -> Tensors:
        return {"mask": torch.ones(1, words)}


@dataclass(frozen=True)
class LTXImageTask(GivenFrameTask, LTXTask):
    """Image to video: the first latent frame is the image, at timestep 0."""

    pipelines = ("LTXImageToVideoPipeline",)

    def arguments(self, noisy: torch.Tensor, example: Example, dtype: torch.dtype) -> dict[str, Any]:
        arguments = super().arguments(noisy, example, dtype)
        timestep = arguments["timestep"][:, None].repeat(1, arguments["hidden_states"].shape[1])
        timestep[:, : noisy.shape[3] * noisy.shape[4]] = 0
        return arguments | {"timestep": timestep}


def packed(latents: torch.Tensor) -> torch.Tensor:
    """Latents [1, channels, frames, height, width] as tokens [1, tokens, channels]."""
    return latents.flatten(2).transpose(1, 2)
