"""HunyuanVideo from an image, which its text encoder sees too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vidsparse.finetune.draws.example import Example
from vidsparse.finetune.families.given_frame import GivenFrameTask
from vidsparse.finetune.families.hunyuan_video import HunyuanVideoTask
from vidsparse.finetune.families.task import MAIN, Tensors, View, device_of

CONCATENATED, REPLACED = "latent_concat", "token_replace"
# Kind of image condition -> of how many tokens of the image in the text one is kept, as the pipeline does.
KEPT = {CONCATENATED: 2, REPLACED: 4}
IMAGE_TOKENS = 576  # of LLaVA


@dataclass(frozen=True)
class HunyuanVideoImageTask(GivenFrameTask, HunyuanVideoTask):
    """Image to video, of one of two kinds that the transformer's settings name.

    "latent_concat": the latents of the image and a mask beside the first latent frame, zeros beside the others.
    "token_replace": the image is the first latent frame, without noise; the loss is that of the others.
    """

    pipelines = ("HunyuanVideoImageToVideoPipeline",)
    sees_image = True

    def refusal(self) -> str | None:
        kind = self.config.get("image_condition_type")
        # Before the settings are known, nothing is refused.
        return None if kind in KEPT or not self.config else f"it takes no image (image_condition_type={kind!r})"

    @property
    def replaced(self) -> bool:
        """Whether the image is the first latent frame."""
        return bool(self.config["image_condition_type"] == REPLACED)

    @property
    def given(self) -> int:
        return int(self.replaced)

    def text_facts(self) -> tuple[Any, ...]:
        return (self.config["image_condition_type"],)

    @torch.no_grad()
    def encode_seen_text(self, pipe: Any, caption: str, words: int | None, image: Any) -> Tensors:
        kept = KEPT[self.config["image_condition_type"]]
        asked = dict(max_sequence_length=words, image_embed_interleave=kept, device=device_of(pipe.text_encoder))
        text, pooled, mask = pipe.encode_prompt(image, caption, **asked)
        return {MAIN: text[0].cpu(), "pooled": pooled[0].cpu(), "mask": mask[0].cpu()}

    def noisy(self, example: Example) -> torch.Tensor:
        noisy, first = super().noisy(example), example.more["first"]
        if self.replaced:
            return noisy
        beside = torch.cat([first, torch.ones_like(first[:, :1])], dim=1)
        beside = torch.cat([beside, beside.new_zeros(1, beside.shape[1], noisy.shape[2] - 1, *noisy.shape[3:])], dim=2)
        return torch.cat([noisy, beside], dim=1)

    def arguments(self, noisy: torch.Tensor, example: Example, dtype: torch.dtype) -> dict[str, Any]:
        arguments = super().arguments(noisy, example, dtype)
        return arguments if self.config.get("guidance_embeds") else arguments | {"guidance": None}

    def blank(self, config: Mapping[str, Any], view: View, words: int) -> Example:
        return super().blank(config, view, words + IMAGE_TOKENS // KEPT[config["image_condition_type"]])
