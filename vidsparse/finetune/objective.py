"""The loss of one step, from random numbers that depend only on the step and the video.

Each video gets the same noise however a step's videos are divided over processes and passes: runs resume bit for bit,
and two processes compute what one does with twice the batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from vidsparse.finetune.draws.example import Example
from vidsparse.finetune.draws.levels import UNIFORM, LevelSampling
from vidsparse.finetune.draws.order import Epochs
from vidsparse.finetune.families import TrainingTask
from vidsparse.finetune.families.task import MAIN
from vidsparse.finetune.families.wan import WanTask
from vidsparse.finetune.noise import draw_levels, share_of
from vidsparse.finetune.weighting import LossWeighting

__all__ = ["Example", "ExampleStream", "example_of", "flow_loss", "loss_of"]

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
        shift_of: the shift for latents of a video, where it depends on their size; `shift` then decides how many steps
            are sparse.
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
    shift_of: Callable[[torch.Tensor], float] | None = None

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
        video = self.examples.video(index)
        latents = video[MAIN]
        noise = torch.randn(latents.shape, generator=generator)
        # One draw per stratum, so that the levels of a step cover their range evenly.
        shift = self.shift if self.shift_of is None else self.shift_of(latents)
        share = self._to_side(side, (torch.rand(1, generator=generator) + place) / total, shift)
        dropped = float(torch.rand(1, generator=generator)) < self.caption_dropout
        caption = self.examples.no_caption(index) if dropped else self.examples.caption(index)
        return example_of(video, caption, noise, draw_levels(share, shift, self.bounds, self.sampling))

    def _to_side(self, side: float, share: torch.Tensor, shift: float) -> torch.Tensor:
        """Map numbers in (0, 1) to the sparse levels or to the dense ones, each with the probability of its range."""
        low, high = self._sparse_shares(self.shift)
        is_sparse = side < high - low
        if shift != self.shift:
            low, high = self._sparse_shares(shift)
        if is_sparse:
            return low + (high - low) * share
        share = (1 - high + low) * share
        return share + (high - low) * (share > low)

    def _sparse_shares(self, shift: float) -> tuple[float, float]:
        low, high = (share_of(level, shift, self.bounds, self.sampling) for level in self.sparse)
        return low, high


def example_of(
    video: Mapping[str, torch.Tensor], caption: Mapping[str, torch.Tensor], noise: torch.Tensor, level: torch.Tensor
) -> Example:
    """An example of what the cache has of a video and of a caption, of the noise and of its level."""
    more = {name: tensor[None] for name, tensor in {**video, **caption}.items() if name != MAIN}
    return Example(video[MAIN][None], noise[None], caption[MAIN][None], level, more)


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
    out = transformer(**task.arguments(task.noisy(example), example, dtype), return_dict=False)
    # Kandinsky 5 returns no tuple.
    answer = task.predicted(out if isinstance(out, torch.Tensor) else out[0], example)
    loss = torch.nn.functional.mse_loss(answer.float(), task.target(example))
    if weighting.kind == "none":
        return loss, loss.detach()
    return loss * weighting.weight(example.level, task).mean(), loss.detach()


def flow_loss(transformer: Callable[..., Any], example: Example, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Mean squared error of the flow that a transformer of Wan predicts: noise minus latents, all levels alike."""
    return loss_of(transformer, example, WanTask(), dtype=dtype)[0]
