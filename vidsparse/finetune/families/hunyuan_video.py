"""HunyuanVideo and HunyuanVideo 1.5: text to video, and in 1.5 image to video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vidsparse.finetune.draws.example import Example
from vidsparse.finetune.families.task import (
    MAIN,
    Tensors,
    TrainingTask,
    View,
    device_of,
    first_frame,
)
from vidsparse.finetune.noise import generation_levels

GUIDANCE = 6.0  # the default of the pipeline, which the model is told times 1000
GLYPHS, IMAGE_TOKENS = 256, 729  # of 1.5: tokens of ByT5, and of SigLIP


class _EvenLevels:
    """A generation whose levels are evenly spaced before the shift, down to one step above 0."""

    def levels(self, scheduler: Any, steps: int, view: View) -> Any:
        del view
        return generation_levels(scheduler, steps, sigmas=[1 - step / steps for step in range(steps)])


@dataclass(frozen=True)
class HunyuanVideoTask(_EvenLevels, TrainingTask):
    """Text to video: Llama's embedding with its mask, CLIP's pooled one, and the guidance as an input."""

    family = "HunyuanVideo"
    pipelines = ("HunyuanVideoPipeline",)
    text_parts = ("text_encoder", "text_encoder_2")

    @torch.no_grad()
    def encode_text(self, pipe: Any, caption: str, words: int | None) -> Tensors:
        device = device_of(pipe.text_encoder)
        text, pooled, mask = pipe.encode_prompt(caption, device=device, max_sequence_length=words)
        return {MAIN: text[0].cpu(), "pooled": pooled[0].cpu(), "mask": mask[0].cpu()}

    def arguments(self, noisy: torch.Tensor, example: Example, dtype: torch.dtype) -> dict[str, Any]:
        return {
            **super().arguments(noisy, example, dtype),
            "encoder_attention_mask": example.more["mask"].to(dtype),
            "pooled_projections": example.more["pooled"].to(dtype),
            "guidance": torch.full((1,), 1000 * GUIDANCE, device=noisy.device, dtype=dtype),
        }

    def text_width(self, config: Mapping[str, Any]) -> int:
        return int(config["text_embed_dim"])

    def blank_inputs(self, config: Mapping[str, Any], view: View, words: int) -> Tensors:
        return {"pooled": torch.empty(1, config["pooled_projection_dim"]), "mask": torch.ones(1, words)}


@dataclass(frozen=True)
class HunyuanVideo15Task(_EvenLevels, TrainingTask):
    """Text to video: Qwen's embedding and that of glyphs, each with its mask, and empty places for an image."""

    family = "HunyuanVideo 1.5"
    pipelines = ("HunyuanVideo15Pipeline",)
    text_parts = ("text_encoder", "text_encoder_2")

    def refusal(self) -> str | None:
        return "it is distilled (use_meanflow)" if self.config.get("use_meanflow") else None

    @torch.no_grad()
    def encode_text(self, pipe: Any, caption: str, words: int | None) -> Tensors:
        text, mask, glyphs, glyph_mask = pipe.encode_prompt(caption, device=device_of(pipe.text_encoder))
        found = {MAIN: text, "mask": mask, "glyphs": glyphs, "glyph_mask": glyph_mask}
        return {name: tensor[0].cpu() for name, tensor in found.items()}

    def condition(self, pipe: Any, video: torch.Tensor) -> Tensors:
        tokens = torch.zeros(pipe.vision_num_semantic_tokens, pipe.vision_states_dim)
        return {"image": tokens}

    def noisy(self, example: Example) -> torch.Tensor:
        noisy = super().noisy(example)
        return torch.cat([noisy, torch.zeros_like(noisy), torch.zeros_like(noisy[:, :1])], dim=1)

    def arguments(self, noisy: torch.Tensor, example: Example, dtype: torch.dtype) -> dict[str, Any]:
        arguments = super().arguments(noisy, example, dtype)
        more = {name: tensor.to(dtype) for name, tensor in example.more.items()}
        return arguments | {
            "timestep": arguments["timestep"].to(dtype),
            "encoder_attention_mask": more["mask"],
            "encoder_hidden_states_2": more["glyphs"],
            "encoder_attention_mask_2": more["glyph_mask"],
            "image_embeds": more["image"],
        }

    def latent_channels(self, config: Mapping[str, Any]) -> int:
        return int(config["in_channels"] - 1) // 2

    def text_width(self, config: Mapping[str, Any]) -> int:
        return int(config["text_embed_dim"])

    def blank_inputs(self, config: Mapping[str, Any], view: View, words: int) -> Tensors:
        return {
            "mask": torch.ones(1, words),
            "glyphs": torch.empty(1, GLYPHS, config["text_embed_2_dim"]),
            "glyph_mask": torch.ones(1, GLYPHS),
            "image": torch.zeros(1, IMAGE_TOKENS, config["image_embed_dim"]),
        }


@dataclass(frozen=True)
class HunyuanVideo15ImageTask(HunyuanVideo15Task):
    """Image to video: SigLIP's embedding, and beside the first latent frame the image's latents and a mask of ones."""

    pipelines = ("HunyuanVideo15ImageToVideoPipeline",)
    from_image = True
    video_parts = ("vae", "image_encoder")

    @torch.no_grad()
    def condition(self, pipe: Any, video: torch.Tensor) -> Tensors:
        image, (height, width) = first_frame(video), video.shape[2:]
        asked = dict(batch_size=1, device=device_of(pipe.vae), dtype=torch.float32)
        seen = pipe.encode_image(image, **asked)[0]
        frames = self.view(*video.shape[1:])
        latents = torch.empty(1, pipe.num_channels_latents, *frames, device=device_of(pipe.vae))
        beside = torch.cat(
            pipe.prepare_cond_latents_and_mask(latents, image, height=height, width=width, **asked), dim=1
        )
        # The pipeline gives the first frame the image's latents, and all others zeros.
        return {"image": seen.float().cpu(), "first": beside[0, :, :1].float().cpu()}

    def arguments(self, noisy: torch.Tensor, example: Example, dtype: torch.dtype) -> dict[str, Any]:
        return super().arguments(noisy, example, dtype) | {"timestep_r": None}

    def noisy(self, example: Example) -> torch.Tensor:
        noisy = super().noisy(example)
        first = example.more["first"]
        noisy[:, -first.shape[1] :, :1] = first
        return noisy

    def blank_inputs(self, config: Mapping[str, Any], view: View, words: int) -> Tensors:
        first = torch.empty(1, self.latent_channels(config) + 1, 1, *view[1:])
        image = torch.ones(1, IMAGE_TOKENS, config["image_embed_dim"])  # with zeros it would be text to video
        return super().blank_inputs(config, view, words) | {"first": first, "image": image}
