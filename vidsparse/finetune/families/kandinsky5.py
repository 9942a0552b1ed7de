"""Kandinsky 5: text and image to video. Channels come last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vidsparse.finetune.draws.example import Example
from vidsparse.finetune.families.given_frame import GivenFrameTask
from vidsparse.finetune.families.task import MAIN, Tensors, TrainingTask, View, device_of

SMALL, LARGE = (1, 2, 2), (1, 3.16, 3.16)  # factors of positions in videos of about 480 lines, and in others
SMALL_SIDES = range(480, 855)  # pixels


@dataclass(frozen=True)
class Kandinsky5Task(TrainingTask):
    """Text to video: Qwen's embedding, CLIP's pooled one, and places for an image, which are empty."""

    family = "Kandinsky 5"
    pipelines = ("Kandinsky5T2VPipeline",)
    text_parts = ("text_encoder", "text_encoder_2")
    # Other layers are named out_layer too.
    targets = ("to_query", "to_key", "to_value", "self_attention.out_layer", "cross_attention.out_layer")
    _given = 0  # latent frames that are an image

    def refusal(self) -> str | None:
        kind = self.config.get("attention_type", "regular")
        return None if kind == "regular" else f"its own attention is sparse (attention_type={kind!r})"

    @torch.no_grad()
    def encode_text(self, pipe: Any, caption: str, words: int | None) -> Tensors:
        text, pooled, _ = pipe.encode_prompt(caption, device=device_of(pipe.text_encoder), max_sequence_length=words)
        return {MAIN: text[0].cpu(), "pooled": pooled[0].cpu()}

    def arguments(self, noisy: torch.Tensor, example: Example, dtype: torch.dtype) -> dict[str, Any]:
        arguments, place = super().arguments(noisy, example, dtype), noisy.device
        frames, height, width = noisy.shape[2:]
        pixels = height * self.stride[1], width * self.stride[1]
        if self.config.get("visual_cond"):
            mask = torch.zeros_like(noisy[:, :1])
            mask[:, :, : self._given] = 1
            noisy = torch.cat([noisy, torch.zeros_like(noisy), mask], dim=1)
        return arguments | {
            "hidden_states": noisy.movedim(1, -1).to(dtype),
            "timestep": arguments["timestep"].to(dtype),
            "pooled_projections": example.more["pooled"].to(dtype),
            "visual_rope_pos": [torch.arange(side, device=place) for side in (frames, height // 2, width // 2)],
            "text_rope_pos": torch.arange(example.text.shape[1], device=place),
            "scale_factor": SMALL if all(side in SMALL_SIDES for side in pixels) else LARGE,
            "sparse_params": None,
        }

    def predicted(self, answer: torch.Tensor, example: Example) -> torch.Tensor:
        return answer.movedim(-1, 1)

    def latent_channels(self, config: Mapping[str, Any]) -> int:
        return int(config["in_visual_dim"])

    def text_width(self, config: Mapping[str, Any]) -> int:
        return int(config["in_text_dim"])

    def blank_inputs(self, config: Mapping[str, Any], view: View, words: int) -> Tensors:
        return {"pooled": torch.empty(1, config["in_text_dim2"])}


@dataclass(frozen=True)
class Kandinsky5ImageTask(GivenFrameTask, Kandinsky5Task):
    """Image to video: the first latent frame is the image."""

    pipelines = ("Kandinsky5I2VPipeline",)
    _given = 1
