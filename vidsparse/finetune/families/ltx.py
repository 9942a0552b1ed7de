"""LTX-Video: text and image to video. Latents are tokens, and noise levels are spaced by the length of the video."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vidsparse.finetune.draws.example import Example
from vidsparse.finetune.families.task import (
    Tensors,
    TrainingTask,
    View,
    image_latents,
    masked_text,
)
from vidsparse.finetune.noise import generation_levels, shift_of

FRAME_RATE = 25  # the default of the pipeline, which positions are counted by


@dataclass(frozen=True)
class LTXTask(TrainingTask):
    """Text to video: T5's embedding with its mask; positions by seconds and pixels."""

    family = "LTX-Video"
    pipelines = ("LTXPipeline",)

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

    def shift(self, scheduler: Any, view: View) -> float:
        return math.exp(self._mu(scheduler, view)) if _by_length(scheduler) else shift_of(scheduler)

    def levels(self, scheduler: Any, steps: int, view: View) -> Sequence[float]:
        spacing = {"mu": self._mu(scheduler, view)} if _by_length(scheduler) else {}
        return generation_levels(scheduler, steps, sigmas=[1 - step / steps for step in range(steps)], **spacing)

    def _mu(self, scheduler: Any, view: View) -> float:
        """The logarithm of the shift: linear in the number of tokens."""
        known = scheduler.config
        tokens = [
            known.get(name, default) for name, default in (("base_image_seq_len", 256), ("max_image_seq_len", 4096))
        ]
        shifts = [known.get(name, default) for name, default in (("base_shift", 0.5), ("max_shift", 1.15))]
        slope = (shifts[1] - shifts[0]) / (tokens[1] - tokens[0])
        return float(math.prod(view) * slope + shifts[0] - slope * tokens[0])

    def text_width(self, config: Mapping[str, Any]) -> int:
        return int(config["caption_channels"])

    def blank_inputs(self, config: Mapping[str, Any], view: View, words: int) -> Tensors:
        return {"mask": torch.empty(1, words)}


@dataclass(frozen=True)
class LTXImageTask(LTXTask):
    """Image to video: the first latent frame is the image, without noise at timestep 0; the loss is of the others."""

    pipelines = ("LTXImageToVideoPipeline",)
    from_image = True

    def condition(self, pipe: Any, video: torch.Tensor) -> Tensors:
        return {"first": image_latents(pipe, video)}

    def noisy(self, example: Example) -> torch.Tensor:
        return torch.cat([example.more["first"], super().noisy(example)[:, :, 1:]], dim=2)

    def arguments(self, noisy: torch.Tensor, example: Example, dtype: torch.dtype) -> dict[str, Any]:
        arguments = super().arguments(noisy, example, dtype)
        timestep = arguments["timestep"][:, None].repeat(1, arguments["hidden_states"].shape[1])
        timestep[:, : noisy.shape[3] * noisy.shape[4]] = 0
        return arguments | {"timestep": timestep}

    def predicted(self, answer: torch.Tensor, example: Example) -> torch.Tensor:
        return super().predicted(answer, example)[:, :, 1:]

    def target(self, example: Example) -> torch.Tensor:
        return super().target(example)[:, :, 1:]

    def blank_inputs(self, config: Mapping[str, Any], view: View, words: int) -> Tensors:
        first = torch.empty(1, self.latent_channels(config), 1, *view[1:])
        return super().blank_inputs(config, view, words) | {"first": first}


def packed(latents: torch.Tensor) -> torch.Tensor:
    """Latents [1, channels, frames, height, width] as tokens [1, tokens, channels]."""
    return latents.flatten(2).transpose(1, 2)


def _by_length(scheduler: Any) -> bool:
    return bool(scheduler.config.get("use_dynamic_shifting", False))
