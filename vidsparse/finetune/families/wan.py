"""Wan 2.1 and 2.2: text and image to video, and each of two experts. The 5B model counts noise for each token."""

from __future__ import annotations

import math
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
    latents_of,
    pixels_of,
)
from vidsparse.runtime.adapter import TRAIN_TIMESTEPS


@dataclass(frozen=True)
class WanTask(TrainingTask):
    """Text to video. Where `expand_timesteps` is set, as in the 5B model, each token has a timestep."""

    family = "Wan 2.1, 2.2"
    pipelines = ("WanPipeline",)
    pads = True
    embeds_prompts = True

    @torch.no_grad()
    def encode_text(self, pipe: Any, caption: str, words: int | None) -> Tensors:
        device = device_of(pipe.text_encoder)
        asked = dict(do_classifier_free_guidance=False, max_sequence_length=words, device=device)
        embedding: torch.Tensor = pipe.encode_prompt(caption, **asked)[0][0]
        return {MAIN: embedding.cpu()}

    @property
    def by_token(self) -> bool:
        """Whether each token has a timestep."""
        return bool(self.pipeline.get("expand_timesteps", False))

    def arguments(self, noisy: torch.Tensor, example: Example, dtype: torch.dtype) -> dict[str, Any]:
        arguments = super().arguments(noisy, example, dtype)
        if self.by_token:
            arguments["timestep"] = token_timesteps(example.level, noisy.shape, given=0)
        return arguments


@dataclass(frozen=True)
class WanImageTask(WanTask):
    """Image to video: latents of the image and a mask beside those of the video, and in 2.1 an embedding of CLIP.

    The 5B model has the image in the place of the first latent frame, without noise; the loss is that of the others.
    """

    pipelines = ("WanImageToVideoPipeline",)
    from_image = True
    embeds_prompts = False
    video_parts = ("vae", "image_encoder")

    def refusal(self) -> str | None:
        if self.config.get("pos_embed_seq_len") is not None:
            return "it is for a first and a last frame; train a model for the first frame alone"
        return None

    def video_facts(self) -> tuple[Any, ...]:
        return ("the image in the place of the first frame",) if self.by_token else ()

    def condition(self, pipe: Any, video: torch.Tensor) -> Tensors:
        image = first_frame(video)
        if self.by_token:
            return {"first": latents_of(pipe.vae, pixels_of(pipe, image, video)[0][:, None])}
        frames, height, width = video.shape[1:]
        place = device_of(pipe.vae)
        size = len(pipe.vae.config.latents_mean), height, width, frames, torch.float32, place
        pixels = pixels_of(pipe, image, video).to(place)
        with torch.no_grad():
            beside = pipe.prepare_latents(pixels, 1, *size, latents=torch.zeros(()))[1][0].float().cpu()
        if self.config.get("image_dim") is None:
            return {"beside": beside}
        seen = pipe.encode_image(image, device_of(pipe.image_encoder))[0]
        return {"beside": beside, "image": seen.detach().float().cpu()}

    def noisy(self, example: Example) -> torch.Tensor:
        noisy = super().noisy(example)
        if self.by_token:
            return torch.cat([example.more["first"], noisy[:, :, 1:]], dim=2)
        return torch.cat([noisy, example.more["beside"]], dim=1)

    def arguments(self, noisy: torch.Tensor, example: Example, dtype: torch.dtype) -> dict[str, Any]:
        image = example.more.get("image")
        arguments = super().arguments(noisy, example, dtype)
        if self.by_token:
            arguments["timestep"] = token_timesteps(example.level, noisy.shape, given=1)
        return arguments | {"encoder_hidden_states_image": None if image is None else image.to(dtype)}

    def predicted(self, answer: torch.Tensor, example: Example) -> torch.Tensor:
        return answer[:, :, 1:] if self.by_token else answer

    def target(self, example: Example) -> torch.Tensor:
        target = super().target(example)
        return target[:, :, 1:] if self.by_token else target

    def blank_inputs(self, config: Mapping[str, Any], view: View, words: int) -> Tensors:
        if self.by_token:
            return {"first": torch.empty(1, self.latent_channels(config), 1, *view[1:])}
        inputs = {"beside": torch.empty(1, config["in_channels"] - self.latent_channels(config), *view)}
        if config.get("image_dim") is not None:
            inputs["image"] = torch.empty(1, IMAGE_TOKENS, config["image_dim"])
        return inputs


IMAGE_TOKENS = 257  # of CLIP ViT-H/14, with its class token


def token_timesteps(level: torch.Tensor, shape: torch.Size, given: int) -> torch.Tensor:
    """The timestep of each token [1, tokens], 0 for those of the first `given` latent frames, of patches (1, 2, 2)."""
    frames, height, width = shape[2:]
    of_frame = math.ceil(height / 2) * math.ceil(width / 2)
    timesteps = (TRAIN_TIMESTEPS * level).repeat(frames * of_frame)
    timesteps[: given * of_frame] = 0
    return timesteps[None]
