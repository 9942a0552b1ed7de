"""The flow-matching loss of one step, from random numbers that depend only on the step and the video.

Each video gets the same noise however a step's videos are divided over processes and passes: runs resume bit for bit,
and two processes compute what one does with twice the batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vidsparse.finetune.noise import draw_levels, uniform_of
from vidsparse.runtime.adapter import TRAIN_TIMESTEPS

if TYPE_CHECKING:
    from vidsparse.finetune.data.cache import Encoded


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


@dataclass(frozen=True)
class ExampleStream:
    """Draws the videos of a training. Each is a separate pass, because its noise decides whether attention is sparse.

    Attributes:
        examples: encoded videos and captions.
        seed: of everything that is drawn.
        batch: videos of a step in each process.
        rank, world: index of this process, and the number of processes.
        shift, bounds: of the noise levels, see `draw_levels`.
        caption_dropout: fraction of the videos that get the empty caption.
        sparse: noise levels (low, high] at which attention is sparse. Either all levels of a step are in this range or
            none, so that no process waits for another whose attention is dense.
    """

    examples: Encoded
    seed: int
    batch: int
    rank: int
    world: int
    shift: float
    bounds: tuple[float, float]
    caption_dropout: float
    sparse: tuple[float, float] = (0.0, 1.0)

    def draw(self, step: int, part: int) -> Example:
        """The video of this process for pass `part` of a step."""
        total, number = self.world * self.batch, len(self.examples)
        rng = random.Random(f"{self.seed}-{step}")
        # No video twice in a step, if there are enough videos.
        chosen = rng.sample(range(number), total) if total <= number else rng.choices(range(number), k=total)
        place = part * self.world + self.rank
        index, seeds, side = chosen[place], [rng.getrandbits(63) for _ in chosen], rng.random()
        generator = torch.Generator().manual_seed(seeds[place])
        latents = self.examples.latents(index)
        noise = torch.randn(latents.shape, generator=generator)
        # One draw per stratum, so that the levels of a step cover their range evenly.
        uniform = self._to_side(side, (torch.rand(1, generator=generator) + place) / total)
        dropped = float(torch.rand(1, generator=generator)) < self.caption_dropout
        text = self.examples.empty_text if dropped else self.examples.text(index)
        return Example(latents[None], noise[None], text[None], draw_levels(uniform, self.shift, self.bounds))

    def _to_side(self, side: float, uniform: torch.Tensor) -> torch.Tensor:
        """Map numbers in (0, 1) to the sparse levels or to the dense ones, each with the probability of its range."""
        low, high = (uniform_of(level, self.shift, self.bounds) for level in self.sparse)
        if side < high - low:
            return low + (high - low) * uniform
        uniform = (1 - high + low) * uniform
        return uniform + (high - low) * (uniform > low)


def flow_loss(transformer: Callable[..., Any], example: Example, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Mean squared error of the predicted flow, noise minus latents, at the example's noise level.

    `dtype` is that of the transformer's inputs.
    """
    noisy = torch.lerp(example.latents, example.noise, example.level).to(dtype)
    timestep = TRAIN_TIMESTEPS * example.level
    flow = transformer(noisy, timestep, example.text.to(dtype), return_dict=False)[0]
    return torch.nn.functional.mse_loss(flow.float(), example.noise - example.latents)
