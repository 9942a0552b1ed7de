"""The loss of one step, from random numbers that depend only on the step and the video.

Each video gets the same noise however a step's videos are divided over processes and passes: runs resume bit for bit,
and two processes compute what one does with twice the batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from vidsparse.finetune.draws.example import Example
from vidsparse.finetune.draws.levels import UNIFORM, LevelSampling
from vidsparse.finetune.draws.order import Epochs
from vidsparse.finetune.noise import draw_levels, share_of
from vidsparse.finetune.task import LossWeighting, TrainingTask, WanTask

__all__ = ["Example", "ExampleStream", "flow_loss", "loss_of"]

if TYPE_CHECKING:
    from vidsparse.finetune.data.cache import Encoded


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
        sampling: density of the noise levels.
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
    sampling: LevelSampling = UNIFORM

    @cached_property
    def epochs(self) -> Epochs:
        """The order of the videos."""
        return Epochs(len(self.examples), self.seed, self.world * self.batch)

    def draw(self, step: int, part: int) -> Example:
        """The video of this process for pass `part` of a step."""
        total = self.world * self.batch
        rng = random.Random(f"{self.seed}-{step}")
        place = part * self.world + self.rank
        index = self.epochs.chosen(step)[place]
        seeds, side = [rng.getrandbits(63) for _ in range(total)], rng.random()
        generator = torch.Generator().manual_seed(seeds[place])
        latents = self.examples.latents(index)
        noise = torch.randn(latents.shape, generator=generator)
        # One draw per stratum, so that the levels of a step cover their range evenly.
        share = self._to_side(side, (torch.rand(1, generator=generator) + place) / total)
        dropped = float(torch.rand(1, generator=generator)) < self.caption_dropout
        text = self.examples.empty_text if dropped else self.examples.text(index)
        level = draw_levels(share, self.shift, self.bounds, self.sampling)
        return Example(latents[None], noise[None], text[None], level)

    def _to_side(self, side: float, share: torch.Tensor) -> torch.Tensor:
        """Map numbers in (0, 1) to the sparse levels or to the dense ones, each with the probability of its range."""
        low, high = (share_of(level, self.shift, self.bounds, self.sampling) for level in self.sparse)
        if side < high - low:
            return low + (high - low) * share
        share = (1 - high + low) * share
        return share + (high - low) * (share > low)


def loss_of(
    transformer: Callable[..., Any],
    example: Example,
    task: TrainingTask,
    weighting: LossWeighting = LossWeighting(),  # noqa: B008 (frozen)
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squared error of what the transformer answers at the example's noise level.

    Args:
        transformer: of the task's family.
        example: one video.
        task: what the transformer is called with and what it should answer.
        weighting: factor of the loss by noise level.
        dtype: of the transformer's inputs.

    Returns:
        The loss to learn from, which is weighted, and the plain one, without a gradient, for the log.
    """
    answer = transformer(**task.arguments(task.noisy(example), example, dtype), return_dict=False)[0]
    loss = torch.nn.functional.mse_loss(answer.float(), task.target(example))
    if weighting.kind == "none":
        return loss, loss.detach()
    return loss * weighting.weight(example.level, task).mean(), loss.detach()


def flow_loss(transformer: Callable[..., Any], example: Example, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Mean squared error of the flow that a transformer of Wan predicts: noise minus latents, all levels alike."""
    return loss_of(transformer, example, WanTask(), dtype=dtype)[0]
