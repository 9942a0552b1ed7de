"""Image to video where the first latent frame is the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vidsparse.finetune.draws.example import Example
from vidsparse.finetune.families.task import Tensors, TrainingTask, View, first_frame, image_latents


@dataclass(frozen=True)
class GivenFrameTask(TrainingTask):
    """The first latent frame is the image, without noise; the loss is that of the others.

    An image task of a family derives from this class and then from the text task of the family.
    """

    from_image = True

    @property
    def given(self) -> int:
        """Latent frames that are the image."""
        return 1

    def condition(self, pipe: Any, video: torch.Tensor) -> Tensors:
        return {"first": image_latents(pipe, first_frame(video), video)}

    def noisy(self, example: Example) -> torch.Tensor:
        return torch.cat([example.more["first"][:, :, : self.given], super().noisy(example)[:, :, self.given :]], dim=2)

    def predicted(self, answer: torch.Tensor, example: Example) -> torch.Tensor:
        return super().predicted(answer, example)[:, :, self.given :]

    def target(self, example: Example) -> torch.Tensor:
        return super().target(example)[:, :, self.given :]

    def blank_inputs(self, config: Mapping[str, Any], view: View, words: int) -> Tensors:
        first = torch.empty(1, self.latent_channels(config), 1, *view[1:])
        return super().blank_inputs(config, view, words) | {"first": first}
