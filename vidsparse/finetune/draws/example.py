"""One video as input of a training step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Example:
    """One video as input of the transformer in training.

    Attributes:
        latents, noise: float32 [1, channels, latent frames, height, width].
        text: embedding of the caption, [1, words, width].
        level: noise level, float32 [1]; 1 is pure noise.
        more: further inputs of the family by name, each with a batch of one: masks of the text, a pooled embedding,
            latents of an image.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    text: torch.Tensor
    level: torch.Tensor
    more: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Example:
        """The same on a device."""
        latents, noise, text, level = (x.to(device) for x in (self.latents, self.noise, self.text, self.level))
        return Example(latents, noise, text, level, {name: x.to(device) for name, x in self.more.items()})
