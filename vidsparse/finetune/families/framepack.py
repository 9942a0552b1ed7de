"""FramePack: image to video in sections of nine latent frames, each of which sees those that were made before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from vidsparse.finetune.draws.example import Example
from vidsparse.finetune.families.hunyuan_video import HunyuanVideoTask
from vidsparse.finetune.families.levels import LevelsByLength
from vidsparse.finetune.families.task import Tensors, View, device_of, first_frame, image_latents, pixels_of

SECTION = 9  # latent frames of a call, the default of the pipeline
HISTORY = (1, 2, 16)  # latent frames that a call sees whole, at half and at a quarter of their sides
IMAGE_TOKENS = 729  # of SigLIP
FORWARDS = "FramePack_F1"  # in the name of a checkpoint that begins with the first section


@dataclass(frozen=True)
class FramepackTask(LevelsByLength, HunyuanVideoTask):
    """Image to video from the last section to the first (`sampling_type="inverted_anti_drifting"`, the default).

    A clip is its first frame and whole sections. A step trains one section of a clip, with the image and the sections
    that follow it as they are in the clip. The image has no noise: what is drawn for its place draws the section.
    """

    family = "FramePack"
    pipelines = ("HunyuanVideoFramepackPipeline",)
    from_image = True
    video_parts = ("vae", "image_encoder")
    section = SECTION
    largest_shift: ClassVar[float] = 7.0

    def refusal(self) -> str | None:
        if FORWARDS in str(self.config.get("_name_or_path", "")):
            return "it begins with the first section (sampling_type='vanilla'), not with the last"
        return None

    @torch.no_grad()
    def condition(self, pipe: Any, video: torch.Tensor) -> Tensors:
        image = first_frame(video)
        seen = pipe.encode_image(pixels_of(pipe, image, video), device=device_of(pipe.image_encoder))[0]
        return {"first": image_latents(pipe, image, video), "image": seen.float().cpu()}

    def noisy(self, example: Example) -> torch.Tensor:
        place = self._place(example)
        return torch.lerp(example.latents[:, :, place], example.noise[:, :, place], example.level)

    def target(self, example: Example) -> torch.Tensor:
        return super().target(example)[:, :, self._place(example)]

    def arguments(self, noisy: torch.Tensor, example: Example, dtype: torch.dtype) -> dict[str, Any]:
        number, sections = self._section(example)
        gap = SECTION * paddings(sections)[number]
        places = torch.arange(1 + gap + SECTION + sum(HISTORY)).split([1, gap, SECTION, *HISTORY])
        later = example.latents[:, :, self._place(example).stop :][:, :, : sum(HISTORY)]
        missing = sum(HISTORY) - later.shape[2]
        later = torch.cat([later, later.new_zeros(*later.shape[:2], missing, *later.shape[3:])], dim=2)
        whole, half, quarter = later.split(HISTORY, dim=2)
        return super().arguments(noisy, example, dtype) | {
            "image_embeds": example.more["image"].to(dtype),
            "indices_latents": places[2],
            "latents_clean": torch.cat([example.more["first"], whole], dim=2).to(dtype),
            "indices_latents_clean": torch.cat([places[0], places[3]]),
            "latents_history_2x": half.to(dtype),
            "indices_latents_history_2x": places[4],
            "latents_history_4x": quarter.to(dtype),
            "indices_latents_history_4x": places[5],
        }

    def _section(self, example: Example) -> tuple[int, int]:
        """The number of the section that is trained, from the first on, and how many there are."""
        sections = (example.latents.shape[2] - 1) // SECTION
        if sections == 1:
            return 0, 1
        share = float(torch.special.ndtr(example.noise[0, 0, 0, 0, 0]))
        return min(int(share * sections), sections - 1), sections

    def _place(self, example: Example) -> slice:
        """The latent frames of the section that is trained."""
        start = 1 + SECTION * self._section(example)[0]
        return slice(start, start + SECTION)

    def tokens(self, view: View) -> float:
        return SECTION * view[1] * view[2] / int(self.config["patch_size"]) ** 2

    def called_with(self, frames: int) -> int:
        return (SECTION - 1) * self.stride[0] + 1

    def asked(self, frames: int) -> int:
        """The pipeline makes a section of 36 frames for each 33 that are asked for."""
        sections = (frames - 1) // (SECTION * self.stride[0])
        return (sections * self.called_with(frames) - 1) // self.stride[0] * self.stride[0] + 1

    def blank(self, config: Mapping[str, Any], view: View, words: int) -> Example:
        return super().blank(config, (1 + SECTION, *view[1:]), words)

    def blank_inputs(self, config: Mapping[str, Any], view: View, words: int) -> Tensors:
        return super().blank_inputs(config, view, words) | {
            "first": torch.empty(1, self.latent_channels(config), 1, *view[1:]),
            "image": torch.empty(1, IMAGE_TOKENS, config["image_proj_dim"]),
        }


def paddings(sections: int) -> list[int]:
    """How many sections the model is told to be between the image and each section, as the pipeline tells it."""
    return list(range(sections)) if sections <= 4 else [0, 1, *[2] * (sections - 3), 3]
