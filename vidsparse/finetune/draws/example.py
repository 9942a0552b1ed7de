"""One video as input of a training step."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Example:
    """One video as input of the transformer in training.

    Attributes:
        latents, noise: float32 [1, channels, latent frames, height, width].
        text: embedding of the caption, [1, words, width].
        level: noise level, float32 [1]; 1 is pure noise.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    text: torch.Tensor
    level: torch.Tensor

    def to(self, device: torch.device) -> Example:
        return Example(*(x.to(device) for x in (self.latents, self.noise, self.text, self.level)))
