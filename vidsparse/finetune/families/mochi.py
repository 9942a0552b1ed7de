"""Mochi: text to video. Time runs from 0 for pure noise to 1000 for none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vidsparse.finetune.draws.example import Example
from vidsparse.finetune.families.task import Tensors, TrainingTask, View, masked_text
from vidsparse.finetune.noise import generation_levels
from vidsparse.runtime.adapter import TRAIN_TIMESTEPS

FIRST_HALF = 0.025  # noise that the first half of a generation's steps removes


@dataclass(frozen=True)
class MochiTask(TrainingTask):
    """Text to video: T5's embedding with its mask. At level s the timestep is 1000 (1 - s), and the answer x - n."""

    family = "Mochi"
    pipelines = ("MochiPipeline",)

    def text_facts(self) -> tuple[Any, ...]:
        return ("no empty prompt",) if self.pipeline.get("force_zeros_for_empty_prompt") else ()

    def encode_text(self, pipe: Any, caption: str, words: int | None) -> Tensors:
        return masked_text(pipe, caption, words)

    def arguments(self, noisy: torch.Tensor, example: Example, dtype: torch.dtype) -> dict[str, Any]:
        return super().arguments(noisy, example, dtype) | {
            "timestep": TRAIN_TIMESTEPS * (1 - example.level),
            "encoder_attention_mask": example.more["mask"],
        }

    def target(self, example: Example) -> torch.Tensor:
        return example.latents - example.noise

    def levels(self, scheduler: Any, steps: int, view: View) -> Sequence[float]:
        from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule

        counted = generation_levels(scheduler, steps, sigmas=linear_quadratic_schedule(steps, FIRST_HALF))
        # The scheduler of the published model counts from 0 for pure noise.
        return [1 - level for level in counted] if scheduler.config.get("invert_sigmas") else counted

    def latent_channels(self, config: Mapping[str, Any]) -> int:
        return int(config["in_channels"])

    def text_width(self, config: Mapping[str, Any]) -> int:
        return int(config["text_embed_dim"])

    def blank_inputs(self, config: Mapping[str, Any], view: View, words: int) -> Tensors:
        return {"mask": torch.ones(1, words)}
